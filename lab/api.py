"""A lab from Python, for tests and scripts, synchronous like the tests are.

::

    with Lab.up("mine") as lab:
        lab["n1"].succeed("drbdadm status")
        lab.cut("replication", "n1")
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab import launch, wire
from lab.bmc import password_file
from lab.builder import Progress
from lab.errors import CommandError, LabError
from lab.launch import HOME

__all__ = ["HOME", "Bmc", "CommandError", "Lab", "LabError", "Machine", "Result", "in_parallel"]


@dataclass(frozen=True)
class Result:
    """What a command in a machine gave."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Bmc:
    """How to reach a machine's BMC: IPMI 2.0 (lanplus) at its usual port."""

    address: str
    user: str
    password: str = field(repr=False)
    password_file: Path
    """Where the password is on the host; only root can read it."""


class Machine:
    """One machine of a lab."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name

    def stream(
        self, argv: list[str], timeout: float | None = None, stdin: bytes | Iterable[bytes] | None = None
    ) -> Iterator[tuple[str, bytes | int]]:
        """Run a program: ("out" or "err", bytes) as it comes, then ("exit", status).

        ``timeout``: seconds until it is killed. ``stdin``: all of its standard input, or pieces of it, which
        are taken from the iterable as the program reads; None for an empty one. A program that cannot be
        started gives 127 or 126, as in a shell; one that died of a signal, 128 and its number.
        """
        given = None if stdin is None else [stdin] if isinstance(stdin, bytes) else stdin
        fields: dict[str, Any] = {"machine": self.name, "argv": argv, "timeout": timeout}
        if given is not None:
            fields["stdin"] = True
        for message in wire.ask(self.lab.folder, "exec", given, **fields):
            for stream in ("out", "err"):
                if stream in message:
                    yield stream, base64.b64decode(message[stream])
            if "exit" in message:
                yield "exit", message["exit"]

    def execute_raw(
        self, argv: list[str], timeout: float = 120, stdin: bytes | Iterable[bytes] | None = None
    ) -> tuple[int, bytes, bytes]:
        """Run a program for its exit status, output and errors."""
        collected: dict[str, list[bytes]] = {"out": [], "err": []}
        status = -1
        for kind, data in self.stream(argv, timeout, stdin):
            if isinstance(data, bytes):
                collected[kind].append(data)
            else:
                status = data
        return status, b"".join(collected["out"]), b"".join(collected["err"])

    def execute(self, command: str | list[str], timeout: float = 120, stdin: bytes | None = None) -> Result:
        """Run a program, or a line for the shell, whatever its exit status."""
        argv = ["bash", "-c", f"set -o pipefail; {command}"] if isinstance(command, str) else command
        status, out, err = self.execute_raw(argv, timeout, stdin)
        return Result(status, out.decode(errors="replace"), err.decode(errors="replace"))

    def succeed(self, command: str | list[str], timeout: float = 120, stdin: bytes | None = None) -> str:
        """Run it and give its output; :class:`CommandError` with all of its output if it fails."""
        result = self.execute(command, timeout, stdin)
        if result.status != 0:
            raise CommandError(self._report(command, result))
        return result.out

    def fail(self, command: str | list[str], timeout: float = 120) -> str:
        """Run it and give output and errors together; :class:`CommandError` if it succeeds."""
        result = self.execute(command, timeout)
        if result.status == 0:
            raise CommandError(self._report(command, result) + "\nbut was expected to fail")
        return result.out + result.err

    def wait_until_succeeds(
        self, command: str | list[str], timeout: float = 60, interval: float = 0.1
    ) -> str:
        """Run it again and again until it succeeds, for ``timeout`` seconds at most; then raise with its last
        words."""
        end = time.monotonic() + timeout
        while True:
            result = self.execute(command)
            if result.status == 0:
                return result.out
            if time.monotonic() > end:
                raise CommandError(self._report(command, result) + f"\nstill so after {timeout:g} s")
            time.sleep(interval)

    def _report(self, command: str | list[str], result: Result) -> str:
        text = command if isinstance(command, str) else shlex.join(command)
        return f"{self.name}: {text}\nexit status {result.status}\n{result.out}{result.err}".rstrip()

    def write(self, path: str, data: str | bytes, mode: int = 0o644) -> None:
        """Write a file into the machine."""
        raw = data.encode() if isinstance(data, str) else data
        text = base64.b64encode(raw).decode()
        self.lab.call("put", machine=self.name, path=path, data=text, mode=mode)

    def read(self, path: str) -> bytes:
        """A file's content."""
        status, out, err = self.execute_raw(["cat", "--", path])
        if status != 0:
            raise CommandError(f"{self.name}: {err.decode(errors='replace').strip()}")
        return out

    def start(self) -> None:
        """Power on and wait for the control line."""
        self.lab.call("start", machine=self.name)

    def crash(self) -> None:
        """Power off at once."""
        self.lab.call("crash", machine=self.name)

    def empty(self) -> None:
        """Power off at once and take its disks away: started again, it is like a new machine in the place of
        the old one. A storage node then lacks hactl: :func:`lab.product.install`."""
        self.crash()
        for file in (self.lab.folder / self.name).iterdir():
            if file.is_file() and file.name not in ("console.log", "made-of"):
                file.unlink()

    def freeze(self) -> None:
        """Stop every process of the machine, as a hypervisor does that pauses it."""
        self.lab.call("freeze", machine=self.name)

    def thaw(self) -> None:
        """Undo ``freeze``."""
        self.lab.call("thaw", machine=self.name)

    def panic(self) -> None:
        """Have its kernel panic: in user-mode Linux it is off then, in QEMU it hangs until power is off."""
        self.lab.call("panic", machine=self.name)

    @property
    def state(self) -> str:
        """off, booting, up, frozen or panicked."""
        return str(self._status["state"])

    @property
    def bmc(self) -> Bmc:
        """How to reach its BMC, from the machines on the cluster network."""
        told = self._status["bmc"]
        password = password_file(self.lab.folder / self.name)
        return Bmc(told["address"], told["user"], password.read_text().strip(), password)

    @property
    def _status(self) -> dict[str, Any]:
        found: dict[str, Any] = next(m for m in self.lab.status()["machines"] if m["name"] == self.name)
        return found

    @property
    def console(self) -> str:
        """All that its console showed since its disks are new: the kernel's messages and its journal's lines.

        It survives crashes of the machine, which the journal itself does not.
        """
        file = self.lab.folder / self.name / "console.log"
        return file.read_text(errors="replace") if file.exists() else ""


class Lab:
    """A running lab."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = launch.folder_of(name)
        self._started: launch.Started | None = None
        self.machines = {m["name"]: Machine(self, m["name"]) for m in self.status()["machines"]}

    def __getitem__(self, name: str) -> Machine:
        if name not in self.machines:
            raise LabError(f"lab {self.name!r} has no machine {name!r}: there are {', '.join(self.machines)}")
        return self.machines[name]

    @property
    def nodes(self) -> list[Machine]:
        """The storage nodes."""
        return [m for m in self.machines.values() if m.name.startswith("n")]

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask the supervisor; give its last answer with content."""
        result: dict[str, Any] = {}
        for message in wire.ask(self.folder, op, **fields):
            result = message
        return result

    def status(self) -> dict[str, Any]:
        """Machines with state and addresses, and what is cut."""
        return self.call("status")

    def cut(self, network: str, *names: str) -> None:
        """Part the named machines from the rest of a network; with ``bmc`` for a network, their BMCs from
        everybody."""
        self.call("cut", network=network, machines=list(names))

    def heal(self) -> None:
        """Undo every cut."""
        self.call("heal")

    @property
    def supervisor(self) -> int:
        """The id of the process that is the lab: the first of its PID namespace."""
        with wire.connect(self.folder) as connection:
            return wire.listener(connection)

    def down(self, remove: bool = False) -> None:
        """End it and wait until all of it is gone; disks stay, unless ``remove``."""
        try:
            wire.end(self.folder)
        finally:
            if self._started is not None:
                launch.abandon(self._started)
                self._started = None
        if remove:
            shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(LabError):  # it ended already, and what failed is more interesting
            self.down()

    @classmethod
    def up(
        cls,
        name: str = "default",
        *,
        nodes: int | None = None,
        client: bool | None = None,
        fresh: bool = False,
        kinds: str | None = None,
        keep: bool = False,
        progress: Progress = lambda _text, _done: None,
    ) -> Lab:
        """Start a lab, or what is off in one that runs already.

        ``nodes``: number of storage nodes, ``client``: whether there is one, ``kinds``: ``auto`` or ``qemu``;
        None for 3, True and ``auto``, or for what the running lab has. LabError if that has something else.
        ``fresh``: with empty disks. ``keep``: it outlives the calling process once it is up; otherwise, and
        until then, it ends with it, however that ends.
        """
        folder = launch.folder_of(name)
        wanted = launch.Wanted(nodes, client, kinds)
        with launch.alone(folder, progress):
            lab = cls._running(name, wanted, fresh)
            if lab is None:
                started = launch.start(folder, wanted, fresh, progress)
                try:
                    lab = cls(name)
                    lab._started = started
                    lab._boot(progress)
                    if keep:
                        lab._keep()
                except BaseException:
                    launch.abandon(started)
                    raise
            else:
                lab._boot(progress)
        progress("ready", 1)
        return lab

    @classmethod
    def _running(cls, name: str, wanted: launch.Wanted, fresh: bool) -> Lab | None:
        """The lab if it runs and is to go on."""
        try:
            lab = cls(name)
        except LabError:
            return None
        if fresh:
            lab.down()
            return None
        settings = lab.status().get("settings")
        if settings is None:
            raise LabError(f"lab {name!r} runs with another version of the lab's code: `lab down` first")
        differences = wanted.differs(settings)
        if differences:
            raise LabError(
                f"lab {name!r} runs already, with {' and '.join(differences)}:"
                " `lab down` first, or leave the option out"
            )
        return lab

    def _boot(self, progress: Progress) -> None:
        """Start what is off."""
        count = itertools.count(1)
        progress("starting machines", 0)
        for message in wire.ask(self.folder, "boot"):
            if "up" in message:
                done = next(count) / len(self.machines)
                progress(f"{message['up']} is up after {message['seconds']} s", min(done, 0.99))
            elif "saving" in message:
                progress(f"looking after the snapshot of {message['saving']}", 0.99)

    def _keep(self) -> None:
        """Let it outlive this process."""
        self.call("keep")
        if self._started is not None:
            os.close(self._started.owner)
            self._started.process.returncode = 0  # not waited for from here on: it is nobody's child soon
            self._started = None

    def collect(self, folder: Path, commands: dict[str, str]) -> Path:
        """Keep the consoles and what ``commands`` (file name → shell line) print on every machine that is
        up."""

        def one(machine: Machine) -> None:
            place = folder / machine.name
            place.mkdir(parents=True, exist_ok=True)
            (place / "console.txt").write_text(machine.console)
            if machine.state != "up":
                (place / "state.txt").write_text(machine.state + "\n")
                return
            for name, command in commands.items():
                try:
                    result = machine.execute(command, timeout=20)
                except LabError as error:
                    result = Result(-1, "", str(error))
                (place / f"{name}.txt").write_text(f"$ {command}\n{result.out}{result.err}")

        with ThreadPoolExecutor() as pool:
            list(pool.map(one, self.machines.values()))
        return folder


def in_parallel(*calls: Callable[[], Any]) -> list[Any]:
    """Results of several calls made at the same time."""
    with ThreadPoolExecutor(max_workers=max(1, len(calls))) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
