"""``python -m hactl.pr_sync.capture COMMAND [DBROOT [RUN]]``.

``serve``: the capture process, started by systemd or by a keeper, which keep its descriptor. ``keep``: mount,
and keep a ``serve`` running, where there is no systemd. ``detach``: take the file system off, once ``serve``
is stopped for good and hactl's units are gone from LIO; from then on all writes go to the real directory.

DBROOT: LIO's, else what the kernel says. RUN: directory of socket, lock and list of units, else /run/hactl.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
import time
from contextlib import suppress

from hactl.pr_sync.capture import lines, mounting, systemd
from hactl.pr_sync.capture.below import Below
from hactl.pr_sync.capture.serve import Server, complain
from hactl.pr_sync.capture.units import Units

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs start-up time
    from typing import NoReturn

RUN = "/run/hactl"
DEVICE = "fuse-"
"""Of the name under which the descriptor is kept; the rest is the name of the mount."""


def kernels_dbroot() -> str:
    """LIO's directory as the kernel has it now."""
    try:
        with open(mounting.DBROOT, encoding="utf-8") as file:  # noqa: PTH123  pathlib costs start-up time
            return file.read().strip()
    except FileNotFoundError:
        from hactl.errors import Failed  # not at the top: it costs start-up time

        raise Failed(
            "capture-no-lio",
            f"{mounting.DBROOT} does not exist",
            "modprobe target_core_mod, with configfs mounted",
        ) from None


def alive(descriptor: int) -> bool:
    """Whether a kept descriptor still has a mount at its other end."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def kept() -> tuple[int, str] | None:
    """Descriptor and name of the mount that was kept for this process."""
    for name, descriptor in systemd.handed_over().items():
        if not name.startswith(DEVICE):
            continue
        if alive(descriptor):
            os.set_blocking(descriptor, False)
            return descriptor, name.removeprefix(DEVICE)
        os.close(descriptor)
        systemd.forget(name)
    return None


def mount_new(dbroot: str) -> tuple[int, str]:
    """Mount, and have the descriptor kept by systemd."""
    path = f"{dbroot}/{mounting.DIRECTORY}"
    name = os.urandom(4).hex()

    def keep(device: int) -> None:
        if not systemd.store(DEVICE + name, device):
            from hactl.errors import Failed  # not at the top: it costs start-up time

            raise Failed(
                "capture-no-keeper",
                "nobody is there to keep the descriptor of the file system",
                "start hactl-capture.service, or 'python -m hactl.pr_sync.capture keep' without systemd",
            )

    check_mountable(path)
    return mounting.mount(dbroot, keep), name


def check_mountable(path: str) -> None:
    """See that there is a directory, and nobody who serves it already."""
    try:
        if mounting.mounted(path) == mounting.FSTYPE:
            if mounting.served(path):
                from hactl.errors import Failed  # not at the top: it costs start-up time

                raise Failed(
                    "capture-served-elsewhere",
                    f"another process serves the file system on {path}",
                    "end that process, or take the file system off: python -m hactl.pr_sync.capture detach",
                )
        else:
            os.makedirs(path, mode=0o755, exist_ok=True)  # noqa: PTH103  pathlib costs start-up time
    except OSError as failed:
        from hactl.errors import Failed  # not at the top: it costs start-up time

        raise Failed(
            "capture-not-mounted", f"{path}: {failed}", "LIO's directory has to be there and writable"
        ) from None


def only_one(run: str) -> int:
    """The lock of the one capture process that may serve this directory."""
    descriptor = os.open(f"{run}/capture.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        from hactl.errors import Failed  # not at the top: it costs start-up time

        raise Failed(
            "capture-running",
            f"another capture process has {run}/capture.lock",
            "systemctl status hactl-capture",
        ) from None
    return descriptor


def listen(run: str) -> socket.socket:
    path = f"{run}/{lines.SOCKET}"
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108  pathlib costs start-up time
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        door.bind(path)
    finally:
        os.umask(before)
    door.listen(8)
    return door


def serve(dbroot: str, run: str) -> NoReturn:
    os.makedirs(run, mode=0o700, exist_ok=True)  # noqa: PTH103  pathlib costs start-up time
    lock = only_one(run)
    units = Units(f"{run}/capture-units")
    if units.problem:
        complain(f"{units.problem}; until the agent has sent it, every write to {dbroot}/pr waits")
    known = kept()
    device, mount = known or mount_new(dbroot)
    server = Server(device, mount, Below(mounting.open_below(dbroot)), units)
    # A new mount has nothing to send again, and from Linux 7 on refuses to before its first request.
    if known and not server.take_over():
        complain(
            "this kernel cannot send requests again (FUSE_NOTIFY_RESEND, Linux 6.9): what waits while this"
            " process is killed or restarted waits for ever, and its initiator's connection with it"
        )
    # Only now: an agent is told what waits, and takes for gone what it is not told of.
    door = listen(run)
    systemd.notify("READY=1")
    reason = server.run(door)
    os.close(lock)
    complain(f"{reason}; mounted again at the next start")
    sys.exit(1)


def main() -> None:
    command, dbroot, run, *_ = [*sys.argv[1:], "", "", ""]
    if command not in ("serve", "keep", "detach") or len(sys.argv) > 4:
        sys.exit(__doc__)
    # As mountinfo has it: without symbolic links.
    dbroot = os.path.realpath(dbroot or kernels_dbroot())
    run = run or RUN
    if command == "serve":
        serve(dbroot, run)
    elif command == "keep":
        from hactl.pr_sync.capture.keeper import keep

        check_mountable(f"{dbroot}/pr")
        keep(dbroot, run)
    else:
        path = f"{dbroot}/{mounting.DIRECTORY}"
        if mounting.mounted(path) == mounting.FSTYPE:
            mounting.detach(os.fsencode(path))


def guarded() -> None:
    """``main``, with errors as one line."""
    try:
        main()
    except Exception as error:
        from hactl.errors import HactlError

        if not isinstance(error, HactlError | OSError):
            raise
        complain(f"{error}")
        if os.environ.get("NOTIFY_SOCKET"):
            # systemd starts it again at once, as it should after a kill, and what failed now fails again now.
            time.sleep(1)
        sys.exit(1)


if __name__ == "__main__":
    guarded()
