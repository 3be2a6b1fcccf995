"""A tiny parent that keeps the descriptor where there is no systemd to do it.

It mounts, starts the capture process with the descriptor as systemd would hand it over, and starts it again
whenever it ends. Killed itself, it takes the connection with it: writes that wait then fail. SIGTERM ends
both and takes the file system off.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from hactl.pr_sync.capture import mounting

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs start-up time
    from typing import NoReturn

SHORT = 0.5
"""Seconds; a process that lived for less is not started again at once."""


def keep(dbroot: str, run: str) -> NoReturn:
    """Mount on ``<dbroot>/pr`` and keep it served."""
    name = os.urandom(4).hex()
    device = mounting.mount(dbroot, lambda _: None)
    child = 0

    def stop(*_: object) -> None:
        if child:
            os.kill(child, signal.SIGTERM)
        mounting.detach(os.fsencode(f"{dbroot}/{mounting.DIRECTORY}"))
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while True:
        started = time.monotonic()
        # Between fork and its number being known no signal may come in, or the child would be forgotten.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        child = os.fork()
        if not child:
            _become_server(device, name, dbroot, run)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
        _, status = os.waitpid(child, 0)
        child = 0
        sys.stderr.write(
            f"<4>the capture process ended with {os.waitstatus_to_exitcode(status)}; started again\n"
        )
        time.sleep(max(0.0, min(SHORT, started + SHORT - time.monotonic())) / 5)


def _become_server(device: int, name: str, dbroot: str, run: str) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    if device == 3:
        os.set_inheritable(3, True)
    else:
        os.dup2(device, 3)
    environment = os.environ | {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": "1",
        "LISTEN_FDNAMES": f"fuse-{name}",
    }
    command = [sys.executable, "-m", "hactl.pr_sync.capture", "serve", dbroot, run]
    os.execve(sys.executable, command, environment)  # noqa: S606  a shell would be one process more
