"""The logs of units that are no more."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from hactl.errors import HactlError
from hactl.model.desired import Desired, Leftover
from hactl.pr_sync.log import PrLog

_log = structlog.get_logger("hactl.pr")


async def forget(log: PrLog, gone: Iterable[Leftover], now: Desired) -> None:
    """Remove the logs of units of which ``gone`` was the last: no node has anything left of them, and none is
    to have them. What cannot be removed stays, and does no harm but for its place."""
    cluster = now.cluster
    used = {cluster.serial(r, v) for r in cluster.resources for v in r.volumes}
    used |= {left.serial for left in now.leftovers}
    for serial in sorted({left.serial for left in gone} - used):
        try:
            await log.forget(serial)
        except HactlError as error:
            _log.warning("the log of a removed unit stays", serial=serial, error=str(error))
