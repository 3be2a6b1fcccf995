"""A lab from Python, for tests and scripts, synchronous like the tests are.

::

    with Lab.up("mine") as lab:
        lab["n1"].succeed("drbdadm status")
        lab.cut("replication", "n1")
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab import images, machinery
from lab.layout import Kind, machines
from lab.recipe import RECIPES

HOME = Path(os.environ.get("HACTL_LAB_HOME", "/var/tmp/hactl-lab"))  # noqa: S108 (folders are made 0700)


class LabError(Exception):
    """Something the lab could not do."""


class CommandError(LabError):
    """A command in a machine ended otherwise than expected."""


@dataclass(frozen=True)
class Result:
    """What a command in a machine gave."""

    status: int
    out: str
    err: str


class Machine:
    """One machine of a lab."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name

    def stream(
        self, argv: list[str], timeout: float | None = None, stdin: bytes | None = None
    ) -> Iterator[tuple[str, bytes | int]]:
        """Run a program: ("out" or "err", bytes) as it comes, then ("exit", status)."""
        given = None if stdin is None else base64.b64encode(stdin).decode()
        for message in self.lab.request("exec", machine=self.name, argv=argv, timeout=timeout, stdin=given):
            for stream in ("out", "err"):
                if stream in message:
                    yield stream, base64.b64decode(message[stream])
            if "exit" in message:
                yield "exit", message["exit"]

    def execute(self, command: str | list[str], timeout: float = 120, stdin: bytes | None = None) -> Result:
        """Run a program, or a line for the shell, whatever its exit status."""
        argv = ["bash", "-c", f"set -o pipefail; {command}"] if isinstance(command, str) else command
        collected = {"out": b"", "err": b""}
        status = -1
        for kind, data in self.stream(argv, timeout, stdin):
            if isinstance(data, bytes):
                collected[kind] += data
            else:
                status = data
        return Result(status, collected["out"].decode(errors="replace"), collected["err"].decode(errors="replace"))

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

    def wait_until_succeeds(self, command: str | list[str], timeout: float = 60, interval: float = 0.1) -> str:
        """Run it again and again until it succeeds, for ``timeout`` seconds at most; then raise with its last words."""
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
        return self.succeed(["base64", "-w0", path]) and base64.b64decode(self.succeed(["base64", "-w0", path]))

    def start(self) -> None:
        """Power on and wait for the control line."""
        self.lab.call("start", machine=self.name)

    def crash(self) -> None:
        """Power off at once."""
        self.lab.call("crash", machine=self.name)

    def freeze(self) -> None:
        """Stop every process of the machine, as a hypervisor does that pauses it."""
        self.lab.call("freeze", machine=self.name)

    def thaw(self) -> None:
        """Undo ``freeze``."""
        self.lab.call("thaw", machine=self.name)

    @property
    def state(self) -> str:
        """off, booting, up or frozen."""
        return next(m["state"] for m in self.lab.status()["machines"] if m["name"] == self.name)

    @property
    def console(self) -> str:
        """All that the consoles showed."""
        files = sorted((self.lab.folder / self.name).glob("console.log*"))
        return "".join(file.read_text(errors="replace") for file in files)


class Lab:
    """A running lab."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = HOME / name
        self._owner: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.machines = {m["name"]: Machine(self, m["name"]) for m in self.status()["machines"]}

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    @property
    def nodes(self) -> list[Machine]:
        """The storage nodes."""
        return [m for m in self.machines.values() if m.name.startswith("n")]

    def request(self, op: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Ask the supervisor; give its answers up to the last."""
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.folder / "lab.sock"))
            except OSError as error:
                raise LabError(f"lab {self.name!r} is not running: `lab up` starts it") from error
            with connection.makefile("rb") as answers:
                try:
                    connection.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
                    lines = iter(answers.readline, b"")
                    for line in lines:
                        message = json.loads(line)
                        if "done" in message:
                            return
                        if "error" in message:
                            raise LabError(f"{fields.get('machine', self.name)}: {message['error']}")
                        yield message
                except OSError:
                    pass
        raise LabError(f"lab {self.name!r} went away")

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask the supervisor; give its last answer with content."""
        result: dict[str, Any] = {}
        for message in self.request(op, **fields):
            result = message
        return result

    def status(self) -> dict[str, Any]:
        """Machines with state and addresses, and what is cut."""
        return self.call("status")

    def cut(self, network: str, *names: str) -> None:
        """Part the named machines from the rest of a network."""
        self.call("cut", network=network, machines=list(names))

    def heal(self) -> None:
        """Undo every cut."""
        self.call("heal")

    def down(self) -> None:
        """End it and wait until all of it is gone; disks stay."""
        self.call("down")
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held by the supervisor for as long as it lives
        if self._process is not None:
            self._process.wait()
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @classmethod
    def up(
        cls,
        name: str = "default",
        *,
        nodes: int = 3,
        fresh: bool = False,
        kinds: str = "auto",
        keep: bool = False,
        progress: images.Progress = lambda _text, _done: None,
    ) -> Lab:
        """Start a lab, or what is off in one that runs already.

        ``fresh``: with empty disks. ``kinds``: ``auto`` or ``qemu``. ``keep``: it outlives the calling process;
        otherwise it ends with it, however that ends.
        """
        folder = HOME / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            lab = cls(name)
            if fresh:
                lab.down()
                raise LabError
        except LabError:
            lab = cls._spawn(folder, nodes, fresh, kinds, keep, progress)
        progress("starting machines", 0)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Machine.start, lab.machines.values()))
        if "c1" in lab.machines:
            lab.call("snapshot", machine="c1")
        progress("ready", 1)
        return lab

    @classmethod
    def _spawn(
        cls, folder: Path, nodes: int, fresh: bool, kinds: str, keep: bool, progress: images.Progress
    ) -> Lab:
        built = {recipe.name: images.ensure(recipe, progress) for recipe in RECIPES.values()}
        chosen = machinery.choose(kinds, built["node"])
        uml = Kind.UML in chosen.values()
        settings = {
            "nodes": nodes,
            "kinds": {image: kind.value for image, kind in chosen.items()},
            "images": {name: str(image.folder) for name, image in built.items()},
            "runtime": str(images.runtime(progress)) if uml else None,
        }
        described = folder / "settings.json"
        # Disks are layers over one image: with another one underneath they would be garbage.
        if fresh or not described.exists() or json.loads(described.read_text()) != settings:
            for machine in machines(9):
                shutil.rmtree(folder / machine.name, ignore_errors=True)
        for machine in machines(nodes):
            (folder / machine.name).mkdir(exist_ok=True)
        described.write_text(json.dumps(settings))
        watched, held = os.pipe()
        command = [
            "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation",
            "private", sys.executable, "-m", "lab.supervisor", "--folder", str(folder),
        ]  # fmt: skip
        with (folder / "supervisor.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *([] if keep else ["--owner-fd", str(watched)])],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[watched], start_new_session=True,
                cwd=Path(__file__).parent.parent,
            )  # fmt: skip
        os.close(watched)
        end = time.monotonic() + 30
        while True:
            try:
                lab = cls(folder.name)
                break
            except LabError:
                if process.poll() is not None or time.monotonic() > end:
                    text = (folder / "supervisor.log").read_text(errors="replace")
                    raise LabError(f"the lab's supervisor did not start: {text}") from None
            time.sleep(0.02)
        lab._owner = held
        lab._process = process
        return lab

    def collect(self, folder: Path, commands: dict[str, str]) -> Path:
        """Keep the consoles and what ``commands`` (file name → shell line) print on every machine that is up."""
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
