"""The loop of the capture process: the kernel on one side, at most one agent on the other.

It keeps nothing that has to survive: what waits comes again from the kernel, the list of units is on disk,
the descriptor is kept by the service manager. So it may be killed at any instruction, and stops without a
word.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys

from hactl.pr_sync.capture import lines, wire
from hactl.pr_sync.capture.below import Below
from hactl.pr_sync.capture.filesystem import FileSystem, HeldWrite
from hactl.pr_sync.capture.units import Units

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs start-up time
    from typing import Any

_GONE = (errno.ENODEV, errno.ECONNABORTED)
_PIECE = 1 << 16


class _Agent:
    """The connection of an agent, with what came of its next line and what did not go out yet."""

    __slots__ = ("greeted", "incoming", "outgoing", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.greeted = False


class Server:
    """``device``: of the mount, not blocking. ``mount``: its name."""

    def __init__(self, device: int, mount: str, below: Below, units: Units) -> None:
        self._device = device
        self._mount = mount
        self._units = units
        self._agent: _Agent | None = None
        self._files = FileSystem(units, below, self._answer, self._tell_held)
        self._resends = True
        self._poll = select.epoll()
        self._poll.register(device, select.EPOLLIN)

    def take_over(self) -> bool:
        """Ask for what a process before this one had read and not answered. False: this kernel cannot do
        that."""
        try:
            os.write(self._device, wire.resend())
        except OSError as failed:
            if failed.errno != errno.EINVAL:
                raise
            self._resends = False
        return self._resends

    def run(self, door: socket.socket) -> str:
        """Serve until the file system is not mounted any more; the reason. ``door``: listens for agents."""
        self._poll.register(door, select.EPOLLIN)
        buffer = memoryview(bytearray(wire.BUFFER))
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self._device:
                    if not self._requests(buffer):
                        return "the file system was unmounted"
                elif descriptor == door.fileno():
                    self._accept(door)
                elif self._agent and descriptor == self._agent.socket.fileno():
                    self._serve_agent(self._agent, events)

    def _requests(self, buffer: memoryview) -> bool:
        """Handle all that the kernel has now. False: there is no kernel any more."""
        while True:
            try:
                size = os.readv(self._device, [buffer])
            except OSError as failed:
                if failed.errno in _GONE:
                    return False
                if failed.errno == errno.EAGAIN:
                    return True
                if failed.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the request was taken back while it was read
                raise
            if not size:
                return False
            self._files.handle(buffer[:size])

    def _answer(self, packet: bytes) -> None:
        os.write(self._device, packet)

    def _id(self, number: int) -> str:
        return f"{self._mount}-{number:x}"

    def _tell_held(self, write: HeldWrite) -> None:
        if self._agent and self._agent.greeted:
            self._send(self._agent, self._held(write))

    def _held(self, write: HeldWrite) -> bytes:
        return lines.encode(
            "held",
            id=self._id(write.number),
            serial=write.serial,
            since=write.since,
            size=write.size,
            content=write.content.rstrip(b"\0").decode(errors="replace"),
            resent=write.resent,
            thread=write.thread,
        )

    def _accept(self, door: socket.socket) -> None:
        try:
            connection, _ = door.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, uid, _ = struct.unpack("=iII", raw)
        if uid not in (0, os.geteuid()):
            connection.close()
            return
        if self._agent:
            self._send(self._agent, lines.encode("replaced"))
        if self._agent:
            self._drop(self._agent)
        connection.setblocking(False)
        self._agent = _Agent(connection)
        self._poll.register(connection, select.EPOLLIN)

    def _drop(self, agent: _Agent) -> None:
        # Closing takes it out of the poll as well; what it was told is told again to the next one.
        agent.socket.close()
        if self._agent is agent:
            self._agent = None

    def _send(self, agent: _Agent, line: bytes) -> None:
        agent.outgoing += line
        self._flush(agent)

    def _flush(self, agent: _Agent) -> None:
        try:
            while agent.outgoing:
                sent = agent.socket.send(agent.outgoing)
                del agent.outgoing[:sent]
        except BlockingIOError:
            self._poll.modify(agent.socket, select.EPOLLIN | select.EPOLLOUT)
        except OSError:
            self._drop(agent)
        else:
            self._poll.modify(agent.socket, select.EPOLLIN)

    def _serve_agent(self, agent: _Agent, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(agent)
        if not events & ~select.EPOLLOUT or self._agent is not agent:
            return
        try:
            piece = agent.socket.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        agent.incoming += piece
        *whole, rest = agent.incoming.split(b"\n") if piece else (b"",)
        if not piece or len(rest) > lines.LIMIT:
            self._drop(agent)
            return
        agent.incoming = bytearray(rest)
        for line in whole:
            if self._agent is agent:
                self._obey(agent, bytes(line))

    def _obey(self, agent: _Agent, line: bytes) -> None:
        try:
            message = lines.decode(line)
            if agent.greeted:
                self._command(agent, message["ref"], message)
            elif message["type"] == "hello" and message["version"] == lines.VERSION:
                self._greet(agent)
            else:
                raise ValueError(f"this capture speaks version {lines.VERSION}, starting with hello")
        except (ValueError, KeyError, TypeError) as wrong:
            self._send(agent, lines.encode("refused", message=f"{wrong!r}"))
            self._drop(agent)

    def _greet(self, agent: _Agent) -> None:
        agent.greeted = True
        resend = self._resends and self._files.resends is not False
        self._send(agent, lines.encode("hello", version=lines.VERSION, mount=self._mount, resend=resend))
        for write in self._files.held.values():
            self._send(agent, self._held(write))
        self._send(agent, lines.encode("synced"))

    def _command(self, agent: _Agent, ref: object, message: dict[str, Any]) -> None:
        found = True
        match message["type"]:
            case "release":
                found = self._release(str(message["id"]))
            case "units":
                try:
                    self._replace_units(message["serials"])
                except OSError as failed:
                    self._send(agent, lines.encode("failed", ref=ref, message=str(failed)))
                    return
            case "ping":
                pass
            case other:
                raise ValueError(f"unknown type {other!r}")
        self._send(agent, lines.encode("done", ref=ref, found=found))

    def _release(self, held: str) -> bool:
        mount, _, number = held.rpartition("-")
        return mount == self._mount and self._files.release(int(number, 16))

    def _replace_units(self, serials: object) -> None:
        if not isinstance(serials, list) or not all(isinstance(one, str) for one in serials):
            raise TypeError("serials is a list of texts")
        self._units.replace(frozenset(serials))


def complain(text: str) -> None:
    """A line for the journal, with the priority of an error (sd-daemon(3))."""
    sys.stderr.write(f"<3>{text}\n")
    sys.stderr.flush()
