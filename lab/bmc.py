"""A machine's BMC: OpenIPMI's ipmi_sim in a network namespace of its own, on a cable to one of the bridges.

It outlives its machine, and ends with the lab. For every question of power it runs lab/chassis.sh, which asks
here: ``ID get power`` or ``ID set power 0``, a line in the FIFO ``requests``, is answered by a line ``ID
STATUS WORDS`` in ``answers``. That program is the shell's and not Python's, as its start is part of the time
that fencing takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Protocol

from lab.layout import BMC_NETWORK, BMC_USER, MachineSpec
from lab.network import ip

PROGRAM = Path(__file__).parent / "chassis.sh"
PORT = 623
"""UDP port of RMCP+ (IPMI 2.0, 13.1.2)."""
START_SECONDS = 20.0
COMMANDS = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
mc_enable 0x20
"""
"""ipmi_sim_cmd(5): a controller without sensors, with the numbers of ipmi_sim's own example."""


class Powered(Protocol):
    """What has a power switch. See :class:`lab.machines.Machine`."""

    @property
    def powered(self) -> bool: ...

    def crash(self) -> None: ...

    async def start(self) -> None: ...


def configuration(spec: MachineSpec, password: str) -> str:
    """ipmi_lan(5) for ``ipmi_sim -c``; the password is in it."""
    address = spec.bmc_address.partition("/")[0]
    return (
        f'name "{spec.name}"\n'
        "set_working_mc 0x20\n"
        "startlan 1\n"
        f"addr {address} {PORT}\n"
        "priv_limit admin\n"
        "allowed_auths_admin md5\n"
        f'guid "{spec.name}"\n'
        "endlan\n"
        f'chassis_control "sh {shlex.quote(str(PROGRAM))}"\n'
        f'user 2 true "{BMC_USER}" "{password}" admin 10 md5\n'
    )


def password_file(folder: Path) -> Path:
    """Where the password for a machine's BMC is, given the machine's folder."""
    return folder / "bmc" / "password"


class Bmc:
    """The BMC of one machine. ``folder`` is the machine's, which only root can enter."""

    def __init__(self, spec: MachineSpec, folder: Path, machine: Powered) -> None:
        self.spec = spec
        self.folder = folder / "bmc"
        self.password_file = password_file(folder)
        self._machine = machine
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._answers = -1
        self._rest = b""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Switch it on; returns once it answers on its network. RuntimeError when it does not."""
        self.listen()
        await asyncio.to_thread(self._spawn)
        assert self._process is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while self._process.poll() is None and not _bound(self._process.pid):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # there is no event for its having bound its socket
        if self._process.poll() is not None or not _bound(self._process.pid):
            raise RuntimeError(f"{self.spec.name}: its BMC does not start; see {self.folder / 'log'}")

    def listen(self) -> None:
        """Answer lab/chassis.sh, and have a password."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ends = []
        for name in ("requests", "answers"):
            path = self.folder / name
            path.unlink(missing_ok=True)
            os.mkfifo(path, 0o600)
            # For reading and writing: opening never blocks, and there is no end of the file between two
            # programs.
            ends.append(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        self._requests, self._answers = ends
        asyncio.get_running_loop().add_reader(self._requests, self._take)
        if not self.password_file.exists():
            self._write("password", secrets.token_hex(8) + "\n")  # sixteen bytes: what IPMI 1.5 allows

    def close(self) -> None:
        """Answer no longer."""
        asyncio.get_running_loop().remove_reader(self._requests)
        for end in (self._requests, self._answers):
            os.close(end)

    def _write(self, name: str, text: str) -> None:
        made = self.folder / f"{name}.new"
        made.unlink(missing_ok=True)
        made.touch(0o600)
        made.write_text(text, encoding="ascii")
        made.rename(self.folder / name)

    def _spawn(self) -> None:
        self._write("lan.conf", configuration(self.spec, self.password_file.read_text().strip()))
        self._write("commands", COMMANDS)
        script = (
            "echo; read -r _"
            " && ip link set lo up && ip address add $1 dev bmc && ip link set bmc up"
            " && exec ipmi_sim -n -p -c lan.conf -f commands -s . </dev/null >&2"
        )
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", script, "bmc", self.spec.bmc_address],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            # The line says that it is in its own namespace: before, the cable would end in the lab's.
            if process.stdout.readline():
                port = self.spec.bmc_port
                ip([
                    f"link add {port} type veth peer name bmc netns {process.pid}",
                    f"link set {port} master {BMC_NETWORK} up",
                ])  # fmt: skip
                with contextlib.suppress(BrokenPipeError):  # it ended: whoever waits for it sees that
                    process.stdin.write(b"\n")

    def _take(self) -> None:
        """Read what programs ask for, one after the other: ipmi_sim waits for each."""
        with contextlib.suppress(BlockingIOError):
            *lines, self._rest = (self._rest + os.read(self._requests, 1 << 16)).split(b"\n")
            for line in lines:
                self._run(self._answer(*line.decode(errors="replace").split()))

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, asker: str = "", *words: str) -> None:
        try:
            status, said = 0, await self.control(*words)
        except Exception as error:  # noqa: BLE001 (whatever it is, ipmi_sim has to get an answer)
            status, said = 1, " ".join(str(error).split()) or type(error).__name__
        # What a program that was killed has not read is not for the next one to read.
        with contextlib.suppress(BlockingIOError):
            while os.read(self._answers, 1 << 16):
                pass
        os.write(self._answers, f"{asker} {status} {said}\n".encode())

    async def control(self, *words: str) -> str:
        """Do what ipmi_sim's ``chassis_control`` program is asked to, and give what it prints.

        An answer to ``set power 0`` means that the machine is off: no process of it is left. ``set power 1``
        is answered while it boots.
        """
        match words:
            case ("get", "power"):
                return f"power:{int(self._machine.powered)}"
            case ("set", "power", "0"):
                await asyncio.to_thread(self._machine.crash)
            case ("set", "power", "1"):
                self._switch_on()
            case ("set", "reset", "1"):
                if self._machine.powered:
                    await asyncio.to_thread(self._machine.crash)
                    self._switch_on()
            case _:
                raise ValueError(f"not known here: {' '.join(words)}")
        return ""

    def _switch_on(self) -> None:
        if not self._machine.powered:
            self._run(self._boot())

    async def _boot(self) -> None:
        try:
            await self._machine.start()
        except Exception as error:  # noqa: BLE001 (nobody waits for it: the supervisor's log is to tell)
            print(f"{self.spec.name}, switched on by its BMC: {error}", file=sys.stderr, flush=True)


def _bound(pid: int) -> bool:
    """Whether a process's network namespace has a socket at the BMC's port (proc_pid_net(5))."""
    return f":{PORT:04X} " in Path(f"/proc/{pid}/net/udp").read_text(encoding="ascii")
