"""What ``losetup`` lists, as frozen values. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from hactl.errors import Failed

COLUMNS = "NAME,BACK-INO,BACK-MAJ:MIN,AUTOCLEAR,OFFSET,SIZELIMIT,RO"
"""losetup(8), ``--output``."""


@dataclass(frozen=True)
class Loop:
    """A loop device in use. ``inode`` and ``filesystem`` (``major:minor``) say which file is behind it.
    ``whole``: it shows all of the file, for reading and writing; ``going``: it is detached as soon as nobody
    has it open."""

    device: str
    inode: int
    filesystem: str
    whole: bool
    going: bool


def loops(text: str) -> tuple[Loop, ...]:
    """The output of ``losetup --json --list`` with :data:`COLUMNS`, which is nothing where there are none."""
    if not text.strip():
        return ()
    try:
        return tuple(sorted((_loop(row) for row in json.loads(text)["loopdevices"]), key=_number))
    except (ValueError, KeyError, TypeError) as error:
        raise Failed(
            "backing-failed", f"losetup printed what cannot be understood: {error!r}", "try losetup by hand"
        ) from None


def _loop(row: dict[str, object]) -> Loop:
    # Numbers and truth are written as such or as text, by the version of util-linux.
    number = {key: int(str(row[key]) or 0) for key in ("back-ino", "offset", "sizelimit")}
    true = {key: row[key] in (True, "1", 1) for key in ("autoclear", "ro")}
    return Loop(
        device=str(row["name"]),
        inode=number["back-ino"],
        filesystem=str(row["back-maj:min"]).strip(),
        whole=not (number["offset"] or number["sizelimit"] or true["ro"]),
        going=true["autoclear"],
    )


def behind(all_loops: Iterable[Loop], inode: int, filesystem: str) -> tuple[Loop, ...]:
    """Those that have a file behind them."""
    return tuple(loop for loop in all_loops if (loop.inode, loop.filesystem) == (inode, filesystem))


def _number(loop: Loop) -> tuple[int, str]:
    return len(loop.device), loop.device
