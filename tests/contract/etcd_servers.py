"""Where etcd's members run in tests: as processes, or in containers of a Docker engine of our own."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tests.contract.etcd_binary import etcd_binary


class Server(Protocol):
    """One member. Started once and then killed and started again at will, with the same data."""

    def start(self) -> None: ...

    def kill(self) -> None:
        """As by a power failure."""
        ...

    def pause(self) -> None:
        """Silent from now on; connections stay open."""
        ...

    def resume(self) -> None:
        """Also where it was not paused."""
        ...

    def running(self) -> bool: ...


class Host(Protocol):
    """Where they run."""

    def ports(self, count: int) -> list[int]:
        """Port numbers on 127.0.0.1, free there, at which the tests will find what servers listen on."""
        ...

    def server(self, name: str, arguments: Sequence[str], folder: Path) -> Server:
        """etcd with these arguments; ``folder`` has all files it uses, at the same paths. Its log is
        ``NAME.log`` there."""
        ...

    def close(self) -> None:
        """End whatever is left."""
        ...


class ProcessHost:
    """Processes on the machine's own loopback."""

    def __init__(self) -> None:
        self._binary = etcd_binary()
        self._servers: list[ServerProcess] = []

    def ports(self, count: int) -> list[int]:
        with contextlib.ExitStack() as stack:
            return [port_of(stack.enter_context(listening())) for _ in range(count)]

    def server(self, name: str, arguments: Sequence[str], folder: Path) -> ServerProcess:
        # Ends with this process, however that ends.
        argv = ["setpriv", "--pdeathsig", "KILL", str(self._binary), *arguments]
        self._servers.append(ServerProcess(argv, folder / f"{name}.log"))
        return self._servers[-1]

    def close(self) -> None:
        for server in self._servers:
            server.kill()


class ServerProcess:
    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._argv = argv
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"LC_ALL": "C"}
            )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None


def listening() -> socket.socket:
    """A socket that listens on a free port of 127.0.0.1."""
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


def port_of(made: socket.socket) -> int:
    port = made.getsockname()[1]
    assert isinstance(port, int)
    return port
