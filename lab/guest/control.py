"""The lab's agent inside a machine: runs what the host asks for over a serial line, never over the network.

One JSON object a line, both ways; binary data as base64. Every read is answered with ``{"ack": BYTES}``: a
terminal line has a buffer of 4 KiB and user-mode Linux drops or stalls on what does not fit, so the host
limits what it has under way. Every request has an ``id``, and what answers it carries the same.

Host to machine: ``{"op": "exec", "argv", "timeout", "input"}`` (``input``: whether standard input follows,
else it is empty), ``{"op": "input", "data"}`` and ``{"op": "input", "end"}`` for it, ``{"op": "kill"}`` to
end the program, ``{"op": "put", "path", "mode"}`` with ``{"data", "append"}`` or ``{"exchange", "source"}``
(options to mount a folder of the host, and a file in it), ``{"op": "configure", "time"}``, ``{"op":
"hello"}``.

Machine to host: ``{"ready"}`` when it begins; ``{"out"}`` and ``{"err"}`` any number of times;
``{"taken": BYTES}`` when the program has read that much of its input, which the host waits for before it
sends more; at last ``{"exit"}`` or ``{"error"}``. Runs on the system's Python with nothing but the standard
library.
"""

from __future__ import annotations

import array
import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import termios
import time
import tty
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # neither typing nor dataclasses is imported for real: together a quarter of the start
    from typing import Any

ENVIRONMENT = {
    "PATH": "/opt/hactl/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
}
CHUNK = 48 * 1024
EXCHANGE = Path("/run/lab/exchange")
"""Where a folder of the host is mounted, in user-mode Linux."""


def parameters() -> dict[str, str]:
    """The ``lab.*`` words of the kernel's command line, without the prefix."""
    words = Path("/proc/cmdline").read_text(encoding="ascii").split()
    pairs = (word.removeprefix("lab.").partition("=") for word in words if word.startswith("lab."))
    return {name: value for name, _, value in pairs}


def configure_network(given: dict[str, str]) -> None:
    """Name the machine and give its interfaces their addresses.

    ``lab.net`` is ``ADDRESS/PREFIX,ADDRESS6/PREFIX;…``: a part an interface (eth0, eth1, … in QEMU, vec0,
    vec1, … in user-mode Linux). ``lab.hosts`` is ``NAME@ADDRESS,…``.
    """
    socket.sethostname(given["name"])
    Path("/etc/hostname").write_text(given["name"] + "\n", encoding="ascii")
    hosts = ["127.0.0.1 localhost", "::1 localhost"]
    hosts += [" ".join(pair.split("@")[::-1]) for pair in given.get("hosts", "").split(",") if pair]
    Path("/etc/hosts").write_text("\n".join(hosts) + "\n", encoding="ascii")
    batch = ["link set lo up"]
    interfaces = sorted(i.name for i in Path("/sys/class/net").iterdir() if i.name[:3] in ("eth", "vec"))
    parts = [part for part in given.get("net", "").split(";") if part]
    for interface, part in zip(interfaces, parts, strict=True):
        # Segmentation offload stays on: user-mode Linux takes the large frames of it (gro=1 in lab/uml.py).
        batch.append(f"link set {interface} up")
        for address in part.split(","):
            batch.append(f"addr add {address} dev {interface}" + (" nodad" if ":" in address else ""))
    subprocess.run(["ip", "-force", "-batch", "-"], input="\n".join(batch).encode(), check=False)


def name_disk() -> None:
    """User-mode Linux calls the disk for replicas ubdb; give it the name that it has in QEMU as well."""
    if Path("/dev/ubdb").exists():
        with contextlib.suppress(FileExistsError):
            Path("/dev/vdb").symlink_to("ubdb")


def open_line() -> int:
    """The control line: a virtio port named lab.control, or the serial line of user-mode Linux."""
    if any(Path("/sys/bus/virtio/devices").glob("*")):
        # Nothing loads drivers by itself on a node, whose image is made for user-mode Linux.
        subprocess.run(["modprobe", "-a", "virtio_console", "virtio_rng"], check=False)
    for port in Path("/sys/class").glob("virtio-ports/*/name"):
        if port.read_text(encoding="ascii").strip() == "lab.control":
            return os.open(f"/dev/{port.parent.name}", os.O_RDWR | os.O_CLOEXEC)
    line = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(line, termios.TCSANOW)
    return line


class Running:
    """A program that was asked for and has not ended; its deadline is on the monotonic clock."""

    def __init__(self, request: int, process: subprocess.Popen[bytes], deadline: float | None) -> None:
        self.request = request
        self.process = process
        self.deadline = deadline


class Input:
    """Standard input of a program: what it has not read yet, and whether that is all."""

    def __init__(self, request: int) -> None:
        self.request = request
        self.waiting = b""
        self.ended = False


class Control:
    """Serves requests; commands run side by side, each in a session of its own."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.rest = b""
        self.running: dict[int, Running] = {}
        """By pidfd."""
        self.pipes: dict[int, tuple[int, str]] = {}
        """Read end of a pipe → request id, "out" or "err"."""
        self.inputs: dict[int, Input] = {}
        """By the write end of a pipe."""

    def send(self, **message: Any) -> None:
        """Say it to the host; waits until the line has taken it."""
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.line, data) :]

    def serve(self) -> None:
        """Answer for ever."""
        while True:
            deadlines = [r.deadline for r in self.running.values() if r.deadline is not None]
            wait = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            full = [fd for fd, given in self.inputs.items() if given.waiting]
            readable, writable, _ = select.select([self.line, *self.running, *self.pipes], full, [], wait)
            for fd in writable:
                self.feed(fd)
            for fd in readable:
                if fd in self.pipes:
                    self.forward(fd, CHUNK)
            for fd in readable:
                if fd in self.running:
                    self.reap(fd)
            if self.line in readable:
                self.receive()
            for running in self.running.values():
                if running.deadline is not None and time.monotonic() >= running.deadline:
                    self.kill(running, signal.SIGKILL)
                    self.complain(running.request, "killed after its time-out")
                    running.deadline = None

    @staticmethod
    def kill(running: Running, number: signal.Signals) -> None:
        """Signal the program and what it started in its session's first process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, number)

    def complain(self, request: int, text: str) -> None:
        """Say something on the program's standard error."""
        self.send(id=request, err=base64.b64encode(f"lab: {text}\n".encode()).decode())

    def receive(self) -> None:
        """Read what the host sent and do what is complete of it."""
        data = os.read(self.line, 65536)
        if not data:
            # A virtio port without a host on it reads as empty at once and offers nothing to wait for.
            time.sleep(0.05)
            return
        self.send(ack=len(data))
        *lines, self.rest = (self.rest + data).split(b"\n")
        for text in lines:
            try:
                message = json.loads(text)
                request = message["id"]
            except (ValueError, KeyError, TypeError):
                continue  # noise from before the line was raw, or half a line of a previous host
            try:
                self.handle(request, message)
            except Exception as error:  # noqa: BLE001 (whatever it is, the host has to hear of it)
                self.send(id=request, error=f"{type(error).__name__}: {error}")

    def handle(self, request: int, message: dict[str, Any]) -> None:
        """One request of the host."""
        op = message["op"]
        if op == "exec":
            self.start(request, message)
            return
        if op == "input":
            self.take(request, message)
            return
        if op == "kill":
            for running in self.running.values():
                if running.request == request:
                    self.kill(running, signal.SIGTERM)
            return
        if op == "configure":
            time.clock_settime(time.CLOCK_REALTIME, message["time"])
        elif op == "put":
            self.put(message)
        elif op != "hello":
            raise ValueError(f"unknown operation {op!r}")
        self.send(id=request, exit=0)

    @staticmethod
    def put(message: dict[str, Any]) -> None:
        """Write a file, with data that came along or that user-mode Linux reads from the host itself."""
        if "source" in message:
            EXCHANGE.mkdir(parents=True, exist_ok=True)
            if not EXCHANGE.is_mount():
                command = ["mount", "-t", "hostfs", "-o", message["exchange"], "none", EXCHANGE]
                subprocess.run(command, check=True)
            data = (EXCHANGE / message["source"]).read_bytes()
        else:
            data = base64.b64decode(message["data"])
        path = Path(message["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab" if message.get("append") else "wb") as file:
            file.write(data)
        path.chmod(message["mode"])

    def start(self, request: int, message: dict[str, Any]) -> None:
        """Start a program; one that cannot be started ends with 127 or 126, as in a shell."""
        try:
            process = subprocess.Popen(
                message["argv"],
                stdin=subprocess.PIPE if message.get("input") else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                cwd="/root",
                start_new_session=True,
            )
        except OSError as error:
            self.complain(request, f"{message['argv'][0]}: {error.strerror}")
            self.send(id=request, exit=127 if isinstance(error, FileNotFoundError) else 126)
            return
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            self.inputs[process.stdin.fileno()] = Input(request)
        for stream, name in ((process.stdout, "out"), (process.stderr, "err")):
            assert stream is not None
            self.pipes[stream.fileno()] = (request, name)
        seconds = message.get("timeout")
        deadline = None if seconds is None else time.monotonic() + seconds
        self.running[os.pidfd_open(process.pid)] = Running(request, process, deadline)

    def take(self, request: int, message: dict[str, Any]) -> None:
        """Keep input for a program until it reads it. What comes after its end is for nobody."""
        for fd, given in list(self.inputs.items()):
            if given.request == request:
                given.waiting += base64.b64decode(message.get("data", ""))
                given.ended = given.ended or bool(message.get("end"))
                if given.ended and not given.waiting:
                    self.close_input(fd)

    def feed(self, fd: int) -> None:
        """Give a program as much input as it takes now."""
        given = self.inputs[fd]
        try:
            done = os.write(fd, given.waiting)
        except BlockingIOError:
            return
        except BrokenPipeError:
            done = len(given.waiting)  # it does not want any more: the host is to go on with something else
        given.waiting = given.waiting[done:]
        self.send(id=given.request, taken=done)
        if given.ended and not given.waiting:
            self.close_input(fd)

    def close_input(self, fd: int) -> None:
        """End of input."""
        request = self.inputs.pop(fd).request
        for running in self.running.values():
            if running.request == request and running.process.stdin is not None:
                with contextlib.suppress(OSError):
                    running.process.stdin.close()

    def forward(self, fd: int, most: int) -> int:
        """Pass on what a program wrote, ``most`` bytes of it; gives how much that was."""
        request, stream = self.pipes[fd]
        data = os.read(fd, most)
        if not data:
            del self.pipes[fd]
            return 0
        self.send(id=request, **{stream: base64.b64encode(data).decode()})
        return len(data)

    def reap(self, pidfd: int) -> None:
        """A program ended: pass on the rest of its output, then its status."""
        running = self.running.pop(pidfd)
        os.close(pidfd)
        status = running.process.wait()
        # What the program itself wrote is in the pipes by now. A child it left behind may hold them open for
        # ever, and write for ever, so take what is there now and do not wait for the end of file.
        for fd in [fd for fd, (request, _) in self.pipes.items() if request == running.request]:
            count = array.array("i", [0])
            fcntl.ioctl(fd, termios.FIONREAD, count)
            while count[0] > 0 and (done := self.forward(fd, min(count[0], CHUNK))):
                count[0] -= done
            self.pipes.pop(fd, None)
        self.inputs = {fd: given for fd, given in self.inputs.items() if given.request != running.request}
        for stream in (running.process.stdin, running.process.stdout, running.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.send(id=running.request, exit=status if status >= 0 else 128 - status)


def notify_ready() -> None:
    """Tell systemd that the network is configured (sd_notify(3))."""
    address = os.environ.pop("NOTIFY_SOCKET", None)
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(b"READY=1")


def main() -> None:
    configure_network(parameters())
    name_disk()
    line = open_line()
    notify_ready()
    control = Control(line)
    control.send(id=0, ready=True)
    control.serve()


if __name__ == "__main__":
    main()
