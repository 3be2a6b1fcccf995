"""Putting the file system on ``<dbroot>/pr`` and finding what is there already.

LIO opens its files as a thread of the kernel, in the first mount namespace. Whoever mounts must be there too.

Where the file system is mounted and its descriptor is gone, nothing can be saved any more: the kernel ended
all requests with an error when the last descriptor was closed, LIO has answered the commands that waited, and
every open fails with ENOTCONN since. Then the remains are replaced. A new mount goes *beneath* them (Linux
6.5), so that there is no moment in which LIO could write to the real directory. The mount's new name tells
the agent to compare everything. What is never done is to end a connection that someone still serves (``umount
-f``, or ``abort`` in /sys/fs/fuse): that fails the writes that wait, and LIO answers RESERVE and RELEASE with
GOOD when its write failed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs start-up time
    from collections.abc import Callable, Iterable, Iterator

SUBTYPE = "hactl-capture"
FSTYPE = f"fuse.{SUBTYPE}"
DBROOT = "/sys/kernel/config/target/dbroot"
DIRECTORY = "pr"
SILENCE = 1.0
"""Seconds after which a mount that does not answer counts as served by someone."""

# asm-generic/unistd.h: the same on every architecture but Alpha.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_AT_FDCWD = -100
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MOVE_F_EMPTY_PATH, _MOVE_BENEATH = 0x4, 0x200
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(what: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: int | bytes | None) -> int:
    # Variable arguments are passed as C's int unless said otherwise, and the kernel reads whole registers.
    passed = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    return _checked(what, _libc.syscall(ctypes.c_long(number), *passed))


def mounts(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Mount points and types, lowest first, of proc_pid_mountinfo(5)."""
    for line in lines:
        mount, _, source = line.partition(" - ")
        point = mount.split(" ")[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        yield point, source.split(" ")[0]


def mounted(path: str) -> str:
    """Type of what is mounted on a path, topmost; empty where nothing is."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:  # noqa: PTH123
        return dict(mounts(lines)).get(path, "")


def served(path: str) -> bool:
    """Whether someone holds the descriptor of the mount on this path, be it without answering.

    Asked in a process of its own, since it may have to wait for as long as nobody answers.
    """
    child = os.fork()
    if not child:
        os.closerange(3, 1 << 16)
        try:
            os.stat(path)  # noqa: PTH116  pathlib costs start-up time
        except OSError:
            os._exit(1)
        os._exit(0)
    end = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        if not poll.poll(SILENCE * 1000):
            os.kill(child, signal.SIGKILL)
            return True
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(end)


def open_below(dbroot: str) -> int:
    """A descriptor of the real ``<dbroot>/pr``, whatever is mounted there."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    path = os.path.join(dbroot, DIRECTORY)  # noqa: PTH118  pathlib costs start-up time
    if not mounted(path):
        return os.open(path, flags)
    # A copy of the mount without what is mounted on it.
    tree = _syscall(
        "open_tree", _OPEN_TREE, _AT_FDCWD, os.fsencode(dbroot), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    )
    try:
        return os.open(DIRECTORY, flags, dir_fd=tree)
    finally:
        os.close(tree)


def mount(dbroot: str, keep: Callable[[int], None]) -> int:
    """Mount on ``<dbroot>/pr`` and return the descriptor that requests come from.

    ``keep`` is called with it when the connection exists and nobody can use it yet, to have it survive this
    process. Raises OSError.
    """
    path = os.fsencode(os.path.join(dbroot, DIRECTORY))  # noqa: PTH118  pathlib costs start-up time
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    opened = []
    try:
        context = _syscall("fsopen", _FSOPEN, b"fuse", _CLOEXEC)
        opened.append(context)
        options = {
            b"source": b"hactl",
            b"subtype": SUBTYPE.encode(),
            b"fd": str(device).encode(),
            b"rootmode": b"40000",
            b"user_id": b"0",
            b"group_id": b"0",
        }
        for key, value in options.items():
            _syscall("fsconfig", _FSCONFIG, context, _FSCONFIG_SET_STRING, key, value, 0)
        _syscall("fsconfig", _FSCONFIG, context, _FSCONFIG_SET_FLAG, b"default_permissions", None, 0)
        _syscall("fsconfig", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        tree = _syscall("fsmount", _FSMOUNT, context, _CLOEXEC, _NOSUID_NODEV_NOEXEC)
        opened.append(tree)
        keep(device)
        if mounted(os.fsdecode(path)) == FSTYPE:
            _replace(tree, path)
        else:
            _syscall("move_mount", _MOVE_MOUNT, tree, b"", _AT_FDCWD, path, _MOVE_F_EMPTY_PATH)
    except OSError:
        os.close(device)
        raise
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return device


def _replace(tree: int, path: bytes) -> None:
    """Put a mount in the place of the remains on ``path``."""
    beneath = _MOVE_F_EMPTY_PATH | _MOVE_BENEATH
    try:
        _syscall("move_mount", _MOVE_MOUNT, tree, b"", _AT_FDCWD, path, beneath)
    except OSError as failed:
        if failed.errno != errno.EINVAL:
            raise
        # A kernel before 6.5: better a moment without than to stay with remains that fail every write.
        detach(path)
        _syscall("move_mount", _MOVE_MOUNT, tree, b"", _AT_FDCWD, path, _MOVE_F_EMPTY_PATH)
        return
    detach(path)


def detach(path: bytes) -> None:
    """Take the topmost mount off a path; a write that waits in it goes on waiting for its server."""
    _checked("umount", _libc.umount2(path, _MNT_DETACH))
