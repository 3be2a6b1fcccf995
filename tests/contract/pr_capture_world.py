"""Capture processes to test: in memory, over a socket that plays the kernel, and over /dev/fuse itself."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Protocol

from hactl.pr_sync.capture import wire
from hactl.pr_sync.capture.client import CaptureClient
from hactl.pr_sync.capture.memory import MemoryCapture, MemoryCaptureClient
from hactl.pr_sync.capture.protocol import Capture, Event, Held, Mounted

IN = Struct("=IIQQIIIHH")
OUT = Struct("=IiQ")
OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_TRUNC
"""How LIO opens its file (drivers/target/target_core_pr.c)."""


SECONDS = 30


class Listener:
    """Events of a client, one by one."""

    def __init__(self, capture: Capture) -> None:
        self.events = aiter(capture)

    async def event(self) -> Event:
        async with asyncio.timeout(SECONDS):
            return await anext(self.events)

    async def held(self) -> Held:
        event = await self.event()
        assert isinstance(event, Held)
        return event

    async def mounted(self) -> Mounted:
        event = await self.event()
        assert isinstance(event, Mounted)
        return event


class Client(Capture, Protocol):
    async def __aenter__(self) -> Client: ...
    async def __aexit__(self, *_: object) -> None: ...


class World(Protocol):
    def client(self) -> Client: ...

    def write(self, serial: str, text: str) -> asyncio.Future[None]:
        """What LIO does for a unit; done when its command is answered."""

    async def crash(self) -> None:
        """kill -9 of the capture process, which does not come back yet."""

    async def start(self) -> None:
        """Its successor, without waiting until it is ready."""

    async def lose(self) -> None:
        """The descriptor of the file system is lost; then a successor."""

    async def close(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.capture = MemoryCapture()

    def client(self) -> MemoryCaptureClient:
        return self.capture.client()

    def write(self, serial: str, text: str) -> asyncio.Future[None]:
        return self.capture.write(serial, text)

    async def crash(self) -> None:
        self.capture.crash()

    async def start(self) -> None:
        self.capture.start()

    async def lose(self) -> None:
        self.capture.unmount()

    async def close(self) -> None:
        pass


class Manager:
    """What systemd does for a service of Type=notify that has a store of descriptors and no Restart=."""

    def __init__(self, directory: Path, prefix: tuple[str, ...] = ()) -> None:
        self.dbroot = directory / "db"
        self.run = directory / "run"
        (self.dbroot / "pr").mkdir(parents=True)
        self.run.mkdir()
        self.kept: dict[str, int] = {}
        self.ready = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.said = b""
        self._prefix = prefix
        self._reader: asyncio.Task[None] | None = None
        self._address = str(directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._address)
        asyncio.get_running_loop().add_reader(self._socket, self._hear)

    def _hear(self) -> None:
        rights = array.array("i")
        data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(64))
        for level, kind, raw in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            rights.frombytes(raw)
        words = dict(line.partition("=")[::2] for line in data.decode().splitlines())
        if words.get("FDSTORE") == "1":
            assert words["FDNAME"] not in self.kept
            (self.kept[words["FDNAME"]],) = rights
        elif words.get("BARRIER") == "1":
            os.close(rights[0])
        elif words.get("FDSTOREREMOVE") == "1":
            os.close(self.kept.pop(words["FDNAME"]))
        else:
            assert words == {"READY": "1"}
            self.ready.set()

    def _drop_the_dead(self) -> None:
        poll = select.poll()
        for descriptor in self.kept.values():
            poll.register(descriptor, 0)
        dead = {descriptor for descriptor, _ in poll.poll(0)}
        for name in [name for name, descriptor in self.kept.items() if descriptor in dead]:
            os.close(self.kept.pop(name))

    async def start(self) -> None:
        self._drop_the_dead()
        self.ready.clear()
        names = list(self.kept)
        kept = [self.kept[name] for name in names]
        assert len(kept) <= 1
        environment = os.environ | {"NOTIFY_SOCKET": self._address, "PYTHONWARNINGS": "error"}
        script = "export LISTEN_PID=$$; exec "
        if kept:
            environment |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": names[0]}
        # The first descriptor handed over is number 3; a shell of any kind takes one from its standard input.
        script += '"$@" 3<&0 </dev/null' if kept else '"$@"'
        server = (sys.executable, "-m", "hactl.pr_sync.capture", "serve", str(self.dbroot), str(self.run))
        self.process = await asyncio.create_subprocess_exec(
            *self._prefix,
            *("sh", "-c", script, "sh", *server),
            env=environment,
            stdin=kept[0] if kept else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read(self.process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr
        while piece := await process.stderr.read(4096):
            self.said += piece

    async def crash(self) -> None:
        assert self.process
        assert self._reader
        self.process.kill()
        assert await self.process.wait() == -signal.SIGKILL
        await self._reader
        self.process = None

    async def ended(self) -> int:
        """Exit status of the process, which ends by itself."""
        assert self.process
        assert self._reader
        status = await self.process.wait()
        await self._reader
        self.process = None
        return status

    def lose(self) -> None:
        for descriptor in self.kept.values():
            os.close(descriptor)
        self.kept.clear()

    async def close(self) -> None:
        self.lose()
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.ended()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


class Kernel:
    """The other end of /dev/fuse: asks, keeps what is not answered, asks again when told to."""

    def __init__(self) -> None:
        self.socket, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.resends = True
        self.asked: dict[int, tuple[bytes, asyncio.Future[bytes]]] = {}
        self._unique = 0
        asyncio.get_running_loop().add_reader(self.socket, self._hear)

    def _hear(self) -> None:
        packet = self.socket.recv(1 << 21)
        if not packet:
            self.close()
            return
        length, error, unique = OUT.unpack_from(packet)
        assert length == len(packet)
        if not unique:
            assert error == wire.NOTIFY_RESEND
            for number, (request, _) in self.asked.items():
                size, opcode, _, *rest = IN.unpack_from(request)
                again = IN.pack(size, opcode, number | wire.RESENT, *rest)
                self.socket.send(again + request[IN.size :])
            return
        # What the last process did not get to read is still on its way when it is sent again.
        _, answer = self.asked.pop(unique & ~wire.RESENT, (b"", None))
        if answer is None or answer.done():
            return
        if error:
            answer.set_exception(OSError(-error, os.strerror(-error)))
        else:
            answer.set_result(packet[OUT.size :])

    async def ask(self, opcode: int, node: int, body: bytes = b"") -> bytes:
        self._unique += 2
        number = self._unique
        packet = IN.pack(IN.size + len(body), opcode, number, node, 0, 0, 1, 0, 0) + body
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.asked[number] = packet, answer
        self.socket.send(packet)
        return await answer

    async def init(self) -> bytes:
        flags = (1 << 30) - 1 | wire.INIT_EXT
        return await self.ask(wire.INIT, 0, Struct("=IIIII44x").pack(7, 41, 131072, flags, 0xFFFF))

    async def write(self, name: str, data: bytes) -> None:
        raw = name.encode() + b"\0"
        try:
            node = int.from_bytes((await self.ask(wire.LOOKUP, wire.ROOT, raw))[:8], sys.byteorder)
        except FileNotFoundError:
            body = wire.CREATE_IN.pack(OPEN_FLAGS, 0o100600, 0, 0) + raw
            made = await self.ask(wire.CREATE, wire.ROOT, body)
            assert len(made) == 128 + 16
            node = int.from_bytes(made[:8], sys.byteorder)
            handle = int.from_bytes(made[128:136], sys.byteorder)
        else:
            opened = await self.ask(wire.OPEN, node, wire.OPEN_IN.pack(OPEN_FLAGS & ~os.O_CREAT, 0))
            handle = int.from_bytes(opened[:8], sys.byteorder)
        for offset in range(0, len(data), 65536):
            piece = data[offset : offset + 65536]
            body = wire.IO_IN.pack(handle, offset, len(piece), 0, 0, OPEN_FLAGS, 0) + piece
            assert await self.ask(wire.WRITE, node, body) == Struct("=II").pack(len(piece), 0)
        await self.ask(wire.RELEASE, node, Struct("=QIIQ").pack(handle, 0, 0, 0))

    def close(self) -> None:
        if self.socket.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()
        for _, answer in self.asked.values():
            if not answer.done():
                answer.set_exception(OSError(103, "the file system is gone"))
        self.asked.clear()


class KernelWorld:
    """The capture process, with a socket for a kernel."""

    def __init__(self, directory: Path) -> None:
        self.manager = Manager(directory)
        self._mounts = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def mount(self) -> None:
        self.kernel = Kernel()
        self._mounts += 1
        self.manager.kept[f"fuse-m{self._mounts}"] = self.kernel.device.detach()
        initialised = asyncio.create_task(self.kernel.init())
        await self.manager.start()
        await initialised

    def client(self) -> CaptureClient:
        return CaptureClient(self.manager.run / "capture.sock")

    def write(self, serial: str, text: str) -> asyncio.Future[None]:
        self._tasks.append(asyncio.create_task(self.kernel.write(f"aptpl_{serial}", text.encode() + b"\0")))
        return self._tasks[-1]

    async def crash(self) -> None:
        await self.manager.crash()

    async def start(self) -> None:
        await self.manager.start()

    async def lose(self) -> None:
        await self.manager.crash()
        self.manager.lose()
        self.kernel.close()
        await self.mount()

    async def close(self) -> None:
        await self.manager.close()
        self.kernel.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class RealWorld:
    """The capture process on /dev/fuse, in a mount namespace that ends with the test."""

    def __init__(self, directory: Path) -> None:
        # Shared within, as systemd makes it. Ends with its standard input, hence also when nobody is left to
        # end it.
        script = "mount --make-rshared / && echo here && exec cat >&2"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout
        assert self._holder.stdout.readline() == b"here\n"
        self.inside = ("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--")
        self.manager = Manager(directory, self.inside)
        self.root = Path(f"/proc/{self._holder.pid}/root")
        self.pr = self.root / str(self.manager.dbroot / "pr").lstrip("/")
        self.below = self.manager.dbroot / "pr"
        self._writers: list[asyncio.Future[None]] = []

    def client(self) -> CaptureClient:
        return CaptureClient(self.manager.run / "capture.sock")

    def mounts(self) -> int:
        """How many file systems of hactl's there are."""
        text = (self.root.parent / "mountinfo").read_text()
        return text.count(" fuse.hactl-capture ")

    def in_thread(self, work: Callable[[], None]) -> asyncio.Future[None]:
        self._writers.append(asyncio.ensure_future(asyncio.to_thread(work)))
        return self._writers[-1]

    def write(self, serial: str, text: str) -> asyncio.Future[None]:
        def work() -> None:
            descriptor = os.open(self.pr / f"aptpl_{serial}", OPEN_FLAGS, 0o600)
            try:
                data = text.encode() + b"\0"
                assert os.write(descriptor, data) == len(data)
            finally:
                os.close(descriptor)

        return self.in_thread(work)

    async def unmount(self) -> None:
        process = await asyncio.create_subprocess_exec(*self.inside, "umount", str(self.below))
        assert await process.wait() == 0

    async def crash(self) -> None:
        await self.manager.crash()

    async def start(self) -> None:
        await self.manager.start()

    async def lose(self) -> None:
        await self.manager.crash()
        self.manager.lose()
        await self.manager.start()

    async def close(self) -> None:
        # Without any descriptor the kernel fails what waits, so that the threads end.
        await self.manager.close()
        await asyncio.gather(*self._writers, return_exceptions=True)
        assert self._holder.stdin
        assert self._holder.stdout
        self._holder.stdin.close()
        self._holder.stdout.close()
        assert self._holder.wait(10) == 0
