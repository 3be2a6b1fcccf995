"""The lab's agent inside a machine: runs what the host asks for over a serial line, never over the network.

One JSON object a line, both ways; binary data as base64. Every read is answered with ``{"ack": BYTES}``: a terminal
line has a buffer of 4 KiB and user-mode Linux drops or stalls on what does not fit, so the host never has more than 2 KiB
under way. Host to machine: ``{"id", "op": "exec", "argv", "stdin",
"timeout"}``, ``{"id", "op": "put", "path", "mode", "data", "append"}``, ``{"id", "op": "configure", "time"}``,
``{"id", "op": "hello"}``. Machine to host: ``{"id", "out"|"err"}`` any number of times, then ``{"id", "exit"}``
or ``{"id", "error"}``. Runs on the system's Python with nothing but the standard library.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import tty
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "PATH": "/opt/hactl/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
}
CHUNK = 48 * 1024


def parameters() -> dict[str, str]:
    """The ``lab.*`` words of the kernel's command line, without the prefix."""
    words = Path("/proc/cmdline").read_text(encoding="ascii").split()
    pairs = (word.removeprefix("lab.").partition("=") for word in words if word.startswith("lab."))
    return {name: value for name, _, value in pairs}


def configure_network(given: dict[str, str]) -> None:
    """Name the machine and give its interfaces their addresses.

    ``lab.net`` is ``ADDRESS/PREFIX,ADDRESS6/PREFIX;…``: a part an interface (eth0, eth1, … in QEMU, vec0, vec1, …
    in user-mode Linux). ``lab.hosts`` is ``NAME@ADDRESS,…``.
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
        batch.append(f"link set {interface} up")
        for address in part.split(","):
            batch.append(f"addr add {address} dev {interface}" + (" nodad" if ":" in address else ""))
    subprocess.run(["ip", "-force", "-batch", "-"], input="\n".join(batch).encode(), check=False)


def open_line() -> int:
    """The control line: a virtio port named lab.control, or the serial line of user-mode Linux."""
    for port in Path("/sys/class/virtio-ports").glob("*/name") if Path("/sys/class/virtio-ports").exists() else ():
        if port.read_text(encoding="ascii").strip() == "lab.control":
            return os.open(f"/dev/{port.parent.name}", os.O_RDWR | os.O_CLOEXEC)
    line = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(line, termios.TCSANOW)
    return line


class Control:
    """Serves requests; commands run side by side, each in a session of its own."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.rest = b""
        self.running: dict[int, tuple[int, subprocess.Popen[bytes], float | None]] = {}
        """pidfd → request id, process, deadline on the monotonic clock."""
        self.pipes: dict[int, tuple[int, str]] = {}
        """Read end of a pipe → request id, "out" or "err"."""

    def send(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.line, data):]

    def serve(self) -> None:
        while True:
            deadlines = [d for _, _, d in self.running.values() if d is not None]
            wait = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
            ready, _, _ = select.select([self.line, *self.running, *self.pipes], [], [], wait)
            for fd in ready:
                if fd in self.pipes:
                    self.forward(fd)
            for fd in ready:
                if fd in self.running:
                    self.reap(fd)
            if self.line in ready:
                self.receive()
            for request, process, deadline in list(self.running.values()):
                if deadline is not None and time.monotonic() >= deadline:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    self.send(id=request, err=base64.b64encode(b"lab: killed after its time-out\n").decode())
                    self.expire(request)

    def expire(self, request: int) -> None:
        self.running = {
            fd: (r, p, None if r == request else d) for fd, (r, p, d) in self.running.items()
        }

    def receive(self) -> None:
        data = os.read(self.line, 65536)
        if not data:
            time.sleep(0.05)  # virtio port without a host on it: reads return nothing at once
            return
        self.send(ack=len(data))
        *lines, self.rest = (self.rest + data).split(b"\n")
        for text in lines:
            if not text.strip():
                continue
            try:
                message = json.loads(text)
            except ValueError:
                continue  # noise from before the line was raw, or half a line of a previous host
            try:
                self.handle(message)
            except Exception as error:  # noqa: BLE001 (whatever it is, the host has to hear of it)
                self.send(id=message.get("id"), error=f"{type(error).__name__}: {error}")

    def handle(self, message: dict[str, Any]) -> None:
        request, op = message["id"], message["op"]
        if op == "hello":
            self.send(id=request, exit=0)
        elif op == "configure":
            time.clock_settime(time.CLOCK_REALTIME, message["time"])
            self.send(id=request, exit=0)
        elif op == "put":
            path = Path(message["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab" if message.get("append") else "wb") as file:
                file.write(base64.b64decode(message["data"]))
            path.chmod(message.get("mode", 0o644))
            self.send(id=request, exit=0)
        elif op == "exec":
            self.start(request, message)
        else:
            raise ValueError(f"unknown operation {op!r}")

    def start(self, request: int, message: dict[str, Any]) -> None:
        given = message.get("stdin")
        process = subprocess.Popen(
            message["argv"],
            stdin=subprocess.PIPE if given else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            cwd="/root",
            start_new_session=True,
        )
        if given and process.stdin:
            # Small inputs only; large ones are put into a file first.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(base64.b64decode(given))
                process.stdin.close()
        assert process.stdout is not None and process.stderr is not None
        self.pipes[process.stdout.fileno()] = (request, "out")
        self.pipes[process.stderr.fileno()] = (request, "err")
        seconds = message.get("timeout")
        deadline = None if seconds is None else time.monotonic() + seconds
        self.running[os.pidfd_open(process.pid)] = (request, process, deadline)

    def forward(self, fd: int) -> bool:
        request, stream = self.pipes[fd]
        data = os.read(fd, CHUNK)
        if not data:
            del self.pipes[fd]
            return False
        self.send(id=request, **{stream: base64.b64encode(data).decode()})
        return True

    def reap(self, pidfd: int) -> None:
        request, process, _ = self.running.pop(pidfd)
        os.close(pidfd)
        status = process.wait()
        # What the program itself wrote is in the pipes by now. A child it left behind may hold them open for
        # ever, so take what is there and do not wait for the end of file.
        for fd in [fd for fd, (r, _) in self.pipes.items() if r == request]:
            while select.select([fd], [], [], 0)[0] and self.forward(fd):
                pass
            self.pipes.pop(fd, None)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        self.send(id=request, exit=status if status >= 0 else 128 - status)


def notify_ready() -> None:
    """Tell systemd that the network is configured (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(b"READY=1")


def main() -> None:
    configure_network(parameters())
    line = open_line()
    notify_ready()
    control = Control(line)
    control.send(id=0, ready=True)
    control.serve()


if __name__ == "__main__":
    sys.exit(main())
