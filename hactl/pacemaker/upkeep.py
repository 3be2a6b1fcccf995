"""Keeps Pacemaker's configuration as the cluster's specification has it, while the agent runs."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from hactl.cluster.layout import Layout
from hactl.errors import HactlError
from hactl.model.spec import ClusterSpec
from hactl.pacemaker import secrets
from hactl.pacemaker.difference import Difference, difference
from hactl.pacemaker.lost import unfenced
from hactl.pacemaker.protocol import Pacemaker
from hactl.pacemaker.wanted import wanted

EVERY = 30.0
"""Seconds between two looks, without an event."""
SOON = 5.0
"""Seconds until the next look after one that found something wrong."""
_log = structlog.get_logger("hactl.pacemaker")


class ConfigurationUpkeep:
    """``node``: this node's name. :meth:`update` tells what the cluster shall be, :meth:`run` sees to it, on
    the designated controller's node. Every node keeps the programs that print its fence devices' secrets.
    """

    def __init__(
        self, node: str, cluster: ClusterSpec, pacemaker: Pacemaker, layout: Layout | None = None
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._pacemaker = pacemaker
        self._layout = layout or Layout()
        self._changed = asyncio.Event()
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """What is wrong with Pacemaker's configuration, and which lost nodes are not fenced yet; told by the
        controller's node alone, unless this node's own part is wrong."""
        return self._problem

    def update(self, cluster: ClusterSpec) -> None:
        """What the cluster shall be has changed, or not."""
        before, self._cluster = self._cluster, cluster
        if before != cluster:
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            problem: str | None
            try:
                problem = await self.once()
            except (HactlError, OSError) as error:
                problem = str(error)
            if problem is not None and problem != self._problem:
                _log.warning("Pacemaker is not as it shall be", problem=problem)
            self._problem = problem
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY if problem is None else SOON):
                    await self._changed.wait()

    async def once(self) -> str | None:
        """One look, and what follows from it; what is still wrong then, in words."""
        cluster = self._cluster
        secrets.write(self._layout, cluster)
        if not cluster.pacemaker:
            return None
        state = await self._pacemaker.state()
        if state.dc != self._node or not state.quorum:
            return None
        objects = wanted(cluster)
        found = difference(await self._pacemaker.configuration(), objects)
        if found.change:
            await self._carry_out(found)
        return "; ".join((*unfenced(cluster, state), *found.problems)) or None

    async def _carry_out(self, found: Difference) -> None:
        for clone in found.clear:
            await self._pacemaker.clear(clone)
        if found.awake:
            # Roles may have been changed by hand while Pacemaker looked away. What it last knew would make
            # it take the active node's role for a failure, and repair that.
            await self._pacemaker.refresh(found.awake)
        await self._pacemaker.commit(found.change)
        _log.info("Pacemaker's configuration changed", what=list(found.words))
