"""Whether LIO writes reservations where the capture is.

The directory is one attribute of the whole machine, and anybody may change it while LIO has no backstore
(target_core_configfs.c, ``target_core_item_dbroot_store``); targetcli does so whenever it starts. What LIO
wrote elsewhere would be answered without waiting for the other nodes. Once a backstore exists it stays as it
is, so what is found then is found for good.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from hactl.errors import Failed
from hactl.pr_sync.capture.mounting import DIRECTORY, FSTYPE, mounts
from hactl.target.configfs import ConfigFs

ATTRIBUTE = "dbroot"

_log = structlog.get_logger("hactl.pr")


class Place:
    """Of one machine. ``mountinfo``: proc_pid_mountinfo(5) of a process that sees the capture's mounts."""

    def __init__(self, fs: ConfigFs, mountinfo: Path = Path("/proc/self/mountinfo")) -> None:
        self._fs = fs
        self._mountinfo = mountinfo

    def claim(self) -> None:
        """Before the first backstore is made: have LIO write where the capture is, if that can be changed."""
        here = self._captured()
        if not here or not self._fs.exists(ATTRIBUTE) or self._kernels() in here:
            return
        _log.warning("LIO's directory was changed by somebody", now=self._kernels(), again=here[-1])
        try:
            self._fs.write(ATTRIBUTE, here[-1])
        except Failed as error:
            # Others have backstores already. The check tells what to do.
            _log.warning("LIO's directory cannot be changed", error=str(error))

    def check(self) -> None:
        """When there is a backstore. :class:`Failed` ``capture-elsewhere``."""
        here, now = self._captured(), self._kernels()
        if now not in here:
            raise Failed(
                "capture-elsewhere",
                f"LIO keeps reservations in {now}/{DIRECTORY}, which is not captured"
                + (f"; the capture is on {here[-1]}/{DIRECTORY}" if here else ""),
                "see systemctl status hactl-capture; if something else serves targets here: take those down"
                " (targetcli clearconfig), and it is put right by itself",
            )

    def _kernels(self) -> str:
        # As mountinfo has it: without symbolic links.
        return os.path.realpath(self._fs.read(ATTRIBUTE).strip())

    def _captured(self) -> list[str]:
        end = f"/{DIRECTORY}"
        with self._mountinfo.open(encoding="utf-8", errors="surrogateescape") as lines:
            return [
                point.removesuffix(end)
                for point, kind in mounts(lines)
                if kind == FSTYPE and point.endswith(end)
            ]
