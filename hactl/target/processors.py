"""Keeps a processor free of LIO's iSCSI threads, for the agent and the capture.

LIO waits in a loop that does not sleep for a PERSISTENT RESERVE OUT whose write to the APTPL file is held, if
another one removes its sender's registration; reads and writes of that unit wait for the same lock, in the
same way (target_core_pr.c, ``__core_scsi3_free_registration``; target_core_device.c). The threads of each
connection are bound to one processor out of ``cpus_allowed_list`` (iscsi_target.c,
``iscsit_thread_get_cpumask``). With all of them in that loop nothing would run any more that could end it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import structlog

from hactl.errors import HactlError
from hactl.target.configfs import ConfigFs

ATTRIBUTE = "iscsi/cpus_allowed_list"
ONLINE = Path("/sys/devices/system/cpu/online")

_log = structlog.get_logger("hactl.target")


def parse(text: str) -> frozenset[int]:
    """A list of processors, such as ``0-3,6`` (cpuset(7), List format); ValueError if it is none."""
    found: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def online(path: Path = ONLINE) -> frozenset[int]:
    """Processors that run now; none if that cannot be told."""
    try:
        return parse(path.read_text())
    except (OSError, ValueError):
        return frozenset()


def spare_one(fs: ConfigFs, running: Collection[int]) -> None:
    """Keep LIO off the first of the running processors, unless it is kept off one already, or there is no
    other. What cannot be done is logged: it is a precaution."""
    if len(running) < 2 or not fs.exists(ATTRIBUTE):
        return
    try:
        if parse(fs.read(ATTRIBUTE)) >= set(running):
            rest = sorted(running)[1:]
            fs.write(ATTRIBUTE, ",".join(str(one) for one in rest))
            _log.info("a processor is kept free of LIO's threads", processor=min(running))
    except (HactlError, ValueError) as error:
        _log.warning("no processor can be kept free of LIO's threads", error=str(error))
