"""Keeps Corosync and Pacemaker of this node as the cluster's nodes are, while its agent runs."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from hactl.cluster import stack, unfinished
from hactl.cluster.kit import Kit, real
from hactl.cluster.layout import COROSYNC_UNIT, PACEMAKER_UNIT
from hactl.cluster.services import Standing
from hactl.errors import Failed, HactlError
from hactl.model.spec import ClusterSpec

EVERY = 60.0
"""Seconds between two looks, without an event."""
SOON = 2.0
"""Seconds until the next look after one that found something wrong; each time twice as many, up to ``EVERY``:
what does not run may be what cannot, on a machine that is busy enough."""
_log = structlog.get_logger("hactl.stack")


class StackUpkeep:
    """``node``: this node's name. :meth:`update` tells what the cluster shall be, :meth:`run` sees to it."""

    def __init__(self, node: str, cluster: ClusterSpec, kit: Kit | None = None) -> None:
        self._node = node
        self._cluster = cluster
        self._kit = kit or real()
        self._changed = asyncio.Event()
        self._problem: HactlError | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong with Corosync or Pacemaker here."""
        return None if self._problem is None else str(self._problem)

    def update(self, cluster: ClusterSpec) -> None:
        """What the cluster shall be has changed, or not."""
        before, self._cluster = self._cluster, cluster
        if before.nodes != cluster.nodes or before.pacemaker != cluster.pacemaker:
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        soon = SOON
        while True:
            self._changed.clear()
            try:
                whole = await self.once()
            except (HactlError, OSError) as error:
                self._failed(error)
                whole = False
            else:
                self._problem = None
            pause, soon = (EVERY, SOON) if whole else (soon, min(2 * soon, EVERY))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    async def once(self) -> bool:
        """One look, and what follows from it; False if it is not yet the time for one."""
        cluster, kit = self._cluster, self._kit
        # A node that is not in the configuration any more is leaving: its part of this is done there.
        if not cluster.pacemaker or all(n.name != self._node for n in cluster.nodes):
            return True
        # Something of this is missing still, or already, and the command is at it.
        if unfinished.load(kit.layout) is not None:
            return False
        stack.refuse_unusable(kit.layout)
        if stack.write_settings(kit.layout, cluster):
            _log.info("corosync's settings written", nodes=[n.name for n in cluster.nodes])
        for unit, found in (await kit.services.standing(COROSYNC_UNIT, PACEMAKER_UNIT)).items():
            if found is Standing.FALLEN:
                _log.warning("started again", unit=unit)
                await kit.services.revive(unit)
            elif found is Standing.STOPPED:
                raise Failed(
                    "pacemaker-stopped",
                    f"somebody has stopped {unit} here",
                    f"when it may run again: systemctl enable --now {unit}",
                )
        await stack.reload_if_needed(kit, cluster)
        if gone := await stack.forget_gone(kit, cluster):
            _log.info("nodes forgotten by Pacemaker", nodes=list(gone))
        return True

    def _failed(self, error: HactlError | OSError) -> None:
        found = error if isinstance(error, HactlError) else Failed("corosync-file", str(error))
        if self.problem != str(found):
            _log.warning("Corosync or Pacemaker is not as it shall be", error=str(found))
        self._problem = found
