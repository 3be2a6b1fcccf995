"""What this boot's kernel was brought to, unit by unit: files in memory, gone with the kernel itself."""

from __future__ import annotations

import json
from pathlib import Path

from hactl.errors import HactlError
from hactl.pr_sync.records import Head, decode_head, encode_head

FOLDER = Path("/run/hactl/reservations")


class Kept:
    """One file for each unit. ``boot`` tells this boot of the kernel from others."""

    def __init__(self, boot: str, folder: Path = FOLDER) -> None:
        self._boot = boot
        self._folder = folder

    def write(self, serial: str, head: Head) -> None:
        """The kernel has what the log says up to ``head``."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        value = {"revision": head.revision, "boot": self._boot, "head": encode_head(head).decode()}
        draft = self._folder / f".{serial}"
        draft.write_text(json.dumps(value))
        draft.replace(self._folder / serial)

    def read(self, serial: str) -> Head | None:
        """What was written last; None if nothing was in this boot, or it cannot be read."""
        path = self._folder / serial
        try:
            value = json.loads(path.read_text())
            if value["boot"] != self._boot:
                return None
            return decode_head(str(path), value["head"].encode(), value["revision"])
        except (OSError, ValueError, KeyError, TypeError, HactlError):
            return None

    def forget(self, serial: str) -> None:
        """The unit is not this node's any more."""
        (self._folder / serial).unlink(missing_ok=True)
