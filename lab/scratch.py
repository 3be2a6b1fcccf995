"""Temporary folders in the cache that are swept when whoever made them was killed, mounts inside included."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import LabError

PREFIX = ".scratch-"


def mounts_below(folder: Path, mountinfo: str) -> list[Path]:
    """Mount points at or below a folder, those on top first.

    ``mountinfo`` is the text of /proc/self/mountinfo (proc_pid_mountinfo(5)): the fifth field is the mount
    point, with spaces and the like as octal escapes; later lines lie on top of earlier ones.
    """
    found = []
    for line in mountinfo.splitlines():
        text = re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), line.split(" ")[4])
        if Path(text).is_relative_to(folder):
            found.append(Path(text))
    return found[::-1]


def remove(folder: Path) -> None:
    """Delete a folder with all that is in it, but never what is mounted in it: that is unmounted first.

    A mount inside is the host's /dev or /proc, left behind by a build that was killed.
    """
    folder = folder.resolve()
    info = Path("/proc/self/mountinfo")
    for point in mounts_below(folder, info.read_text()):
        # Lazily: off the tree at once, even if a process that is just being killed still has a file open in
        # it.
        subprocess.run(["umount", "--lazy", str(point)], check=False, capture_output=True)
    left = mounts_below(folder, info.read_text())
    if left:
        raise LabError(f"{left[0]} is still mounted, so {folder} was not removed: unmount it")
    # Somebody who is just being killed may still have added a file: the next sweep takes what is left.
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _exclusive(parent: Path) -> Iterator[None]:
    with (parent / f"{PREFIX}lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sweep(parent: Path) -> None:
    """Remove the folders whose makers are gone. A maker holds a lock on its folder for as long as it
    lives."""
    with _exclusive(parent):
        for folder in parent.glob(f"{PREFIX}*"):
            if not folder.is_dir():
                continue
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(folder)
            except BlockingIOError:
                pass  # its maker lives
            finally:
                os.close(held)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new temporary folder in ``parent``, removed at the end; those of killed makers are removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    with _exclusive(parent):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        with contextlib.suppress(FileNotFoundError):
            remove(folder)
        os.close(held)
