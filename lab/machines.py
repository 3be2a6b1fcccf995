"""Processes that are machines, started and stopped by the supervisor: what all kinds have in common."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from lab.control import Control
from lab.images import Image
from lab.layout import Kind, MachineSpec

BOOT_SECONDS = 600
"""How long a machine may take until its control line answers: four under emulation share what cores there
are."""
PANIC = "echo c > /proc/sysrq-trigger"
PANICKED = b"Kernel panic - not syncing"
PANIC_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """Where a machine finds its things: its own folder, its image, the tree user-mode Linux runs in."""

    folder: Path
    image: Image
    runtime: Path | None
    everyone: tuple[MachineSpec, ...]


class Machine:
    """One machine of any kind. All its processes are one process group."""

    window: int
    """Bytes under way on its control line at most."""
    panic_ends_it = False
    """Whether its process ends when its kernel panics."""

    def __init__(self, spec: MachineSpec, kind: Kind, place: Place) -> None:
        self.spec = spec
        self.kind = kind
        self.place = place
        self.process: subprocess.Popen[bytes] | None = None
        self.control: Control | None = None
        self.frozen = False
        self.panicked = False
        self.boots = 0
        self._starting = asyncio.Lock()
        # Held by whoever starts or kills the process. Killing waits, so it is done in a thread.
        self._switch = threading.Lock()
        self._offs = 0
        """How often it was powered off."""
        self._about_to_start: int | None = None
        """While it is being powered on without a process yet: how often it had been powered off by then."""

    @property
    def console(self) -> Path:
        """What the machine printed: the kernel's messages and, written as they come, the lines of its
        journal.

        So what led to a crash is here, although the journal itself is in memory and ends with the machine.
        """
        return self.place.folder / "console.log"

    @property
    def data(self) -> Path:
        """The disk for replicas: a sparse raw file that outlives crashes."""
        return self.place.folder / "data.raw"

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        process = self.process  # another thread may be at work in crash()
        return process is not None and process.poll() is None

    @property
    def powered(self) -> bool:
        """Whether there is a process, or will be in a moment."""
        return self.running or self._about_to_start == self._offs

    @property
    def state(self) -> str:
        """off, booting, up, frozen or panicked."""
        if not self.running:
            return "off"
        if self.frozen:
            return "frozen"
        if self.panicked:
            return "panicked"
        return "up" if self.control is not None and self.control.ready.is_set() else "booting"

    # What a kind of machine has to say for itself.

    async def prepare(self) -> None:
        """Make what the next power-on needs."""

    def command(self, line: int) -> list[str]:
        """What to run; ``line`` is the file descriptor of the control line."""
        raise NotImplementedError

    def root(self) -> Path | None:
        """The tree to run it in, None for the host's own."""
        return None

    async def settle(self, control: Control) -> None:
        """Wait until the control line answers."""
        await control.ready.wait()

    def missing(self) -> Path | None:
        """A file it cannot start without that is gone."""
        return next((file for file in (self.place.image.root,) if not file.exists()), None)

    async def start(self) -> None:
        """Power on; returns once the control line answers. One that is up stays as it is."""
        async with self._starting:
            if self.state == "frozen":
                raise RuntimeError(f"it is frozen: `lab thaw {self.spec.name}`")
            if self.state == "panicked":
                raise RuntimeError(f"its kernel has panicked: `lab crash {self.spec.name}` first")
            if self.state == "up":
                return
            if (gone := self.missing()) is not None:
                raise RuntimeError(f"{gone} is gone: `lab down`, then `lab up` makes it again")
            await self._power_on()

    async def _power_on(self) -> None:
        self._about_to_start = self._offs
        try:
            await self.release()
            self.place.folder.mkdir(parents=True, exist_ok=True)
            await self.prepare()
            if self.spec.data_size and not self.data.exists():
                with self.data.open("w") as file:
                    file.truncate(self.spec.data_size)
            with self._switch:
                # Whoever powered it off meanwhile was told that it is off, and it stays so.
                if self._about_to_start != self._offs:
                    raise RuntimeError("it was powered off while it was being started")
                ours = self._spawn()
        finally:
            self._about_to_start = None
        self.boots += 1
        self.control = Control(ours, self.window)
        try:
            async with asyncio.timeout(BOOT_SECONDS):
                await self._until_settled(self.control)
        except TimeoutError:
            self.crash()
            raise RuntimeError(
                f"not up after {BOOT_SECONDS} s, powered off again; see {self.console}"
            ) from None

    def _spawn(self) -> socket.socket:
        """Run it; gives the host's end of the control line."""
        root = self.root()
        ours, theirs = socket.socketpair()
        with theirs, self.console.open("ab") as console:
            console.write(f"\n--- power on {self.boots + 1}\n".encode())
            console.flush()
            self.process = subprocess.Popen(
                self.command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin"), "HOME": "/tmp", "TMPDIR": "/tmp"},  # noqa: S108
                preexec_fn=None if root is None else lambda: _enter(root),
            )
        return ours

    async def _until_settled(self, control: Control) -> None:
        settled, lost = asyncio.create_task(self.settle(control)), asyncio.create_task(control.lost.wait())
        try:
            await asyncio.wait((settled, lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            settled.cancel()
        if control.lost.is_set():
            raise RuntimeError(f"it ended while it was booting; see {self.console}")
        await settled

    async def put(self, path: str, data: bytes, mode: int) -> None:
        """Write a file into the machine."""
        assert self.control is not None
        await self.control.put(path, data, mode)

    def crash(self) -> None:
        """Power off at once. At the end there is no process of it."""
        with self._switch:
            self._offs += 1
            self._kill()

    def _kill(self) -> None:
        process = self.process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Helpers of the machine's process became children of this one, the first of its PID namespace.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-process.pid, 0)
        self.process = None
        self.frozen = self.panicked = False

    async def release(self) -> None:
        """Let go of what is left of a machine that went off by itself."""
        with self._switch:
            self._kill()
        if self.control is not None:
            await self.control.close()
            self.control = None

    def freeze(self, frozen: bool) -> None:
        """Stop or continue every process of the machine."""
        if self.process is None or not self.running:
            raise RuntimeError(f"it is off: `lab start {self.spec.name}`")
        os.killpg(self.process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)
        self.frozen = frozen

    async def panic(self) -> None:
        """Have its kernel panic, and wait until it has.

        In user-mode Linux the machine's process ends then, in QEMU it hangs.
        """
        control, process = self.control, self.process
        assert control is not None
        assert process is not None
        before = self.console.stat().st_size
        # Asked for by writing, which needs no key to be allowed (admin-guide/sysrq.rst). It is not answered.
        asking = asyncio.create_task(_drain(control.run(["sh", "-c", PANIC], None, None)))
        try:
            async with asyncio.timeout(PANIC_SECONDS):
                while PANICKED not in self._console_from(before):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)  # a console is a file: there is no event to wait for
                if self.panic_ends_it:
                    await control.lost.wait()
                    await asyncio.to_thread(process.wait)
        except TimeoutError:
            raise RuntimeError(f"no panic within {PANIC_SECONDS:g} s; see {self.console}") from None
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        self.panicked = not self.panic_ends_it

    def _console_from(self, begin: int) -> bytes:
        with self.console.open("rb") as file:
            file.seek(begin)
            return file.read()

    async def save(self) -> None:
        """Keep the freshly booted machine for the next time, where that is possible and not done yet."""


async def _drain(messages: AsyncIterator[object]) -> None:
    async for _ in messages:
        pass


def _enter(root: Path) -> None:
    os.chroot(root)
    os.chdir("/")
