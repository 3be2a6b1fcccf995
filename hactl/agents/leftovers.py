"""Clears away what is left of volumes that were removed, once nothing of this node uses it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

import structlog

from hactl.agents.execute import AfterStep, nothing
from hactl.agents.kit import Kit
from hactl.backing.protocol import leftover_disk
from hactl.errors import Failed, HactlError, Refused
from hactl.model.desired import Desired, Leftover
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.replication.state import ResourceState
from hactl.target.gates import gate_name

Done = Callable[[Sequence[Leftover]], Awaitable[None]]
"""Tells whoever keeps the desired state that these are gone. Raises :class:`hactl.errors.HactlError`."""

_log = structlog.get_logger("hactl.agent")


async def nobody(_: Sequence[Leftover]) -> None:
    """Where desired state is a file there are no leftovers, and nobody to tell."""


class Leftovers:
    """Of one node. Each step may be repeated, so that a kill between any two does no harm: storage is removed
    first, and the leftover is reported gone only then.

    ``reasons``: by key, why a leftover is not gone yet.
    """

    def __init__(self, kit: Kit, node: str, after_step: AfterStep = nothing) -> None:
        self.done: Done = nobody
        self.reasons: dict[tuple[str, str, int], str] = {}
        self.event = asyncio.Event()
        self._kit = kit
        self._node = node
        self._after_step = after_step
        self._told: set[Leftover] = set()

    def pending(self, desired: Desired) -> tuple[Leftover, ...]:
        """Those that are not gone yet, as far as is known here."""
        return tuple(left for left in desired.leftovers_of(self._node) if left not in self._told)

    async def clean(
        self,
        desired: Desired,
        cluster: ClusterSpec,
        kept: Mapping[str, ResourceSpec],
        leaving: Collection[str],
    ) -> None:
        """One try with all that are pending. ``cluster``: with paths of devices; ``kept``: the resources this
        node works with at this moment, ``leaving``: those it takes down."""
        self.event.clear()
        pending = self.pending(desired)
        self._told &= set(desired.leftovers)
        self.reasons = {key: why for key, why in self.reasons.items() if key in {p.key for p in pending}}
        gone: list[Leftover] = []
        ready = [left for left in pending if left.resource not in leaving and not _wanted(left, kept)]
        if not ready:
            return
        try:
            drbd = await self._kit.drbd.observe()
        except HactlError as error:
            self.reasons.update({left.key: str(error) for left in ready})
            return
        for left in ready:
            try:
                await self._refuse_in_use(left, drbd, self._paths(cluster))
                await self._remove(desired, left)
            except HactlError as error:
                self._note(left, error)
            else:
                gone.append(left)
        if gone:
            await self._report(gone)

    async def _report(self, gone: Sequence[Leftover]) -> None:
        try:
            await self.done(gone)
        except HactlError as error:
            for left in gone:
                self._note(left, error)
            return
        self._told.update(gone)
        for left in gone:
            self.reasons.pop(left.key, None)
            self._after_step(left.resource, "leftover:done")

    def _note(self, left: Leftover, error: HactlError) -> None:
        if self.reasons.get(left.key) != str(error):
            _log.warning("leftover stays", resource=left.resource, volume=left.volume, error=str(error))
        self.reasons[left.key] = str(error)

    def _paths(self, cluster: ClusterSpec) -> frozenset[str]:
        """Devices that this node has to use now."""
        disks = (v.disks.get(self._node) for r in cluster.resources for v in r.volumes)
        return frozenset(disk for disk in disks if disk is not None)

    async def _refuse_in_use(
        self, left: Leftover, drbd: Mapping[str, ResourceState], paths: Collection[str]
    ) -> None:
        name = gate_name(left.resource, left.volume)
        minors = {v.minor for state in drbd.values() for v in state.volumes.values()}
        found: Iterable[str] = (
            word
            for word, there in (
                (f"gate {name}", name in await self._kit.gates.observe([name])),
                (f"DRBD's minor {left.minor}", left.minor in minors),
                (
                    "its place in DRBD's resource file",
                    left.volume in await self._kit.drbd.placed(left.resource),
                ),
            )
            if there
        )
        there = ", ".join(found)
        if there:
            raise Refused(
                "leftover-in-use", f"{left.resource}/{left.volume} still has {there}", "it is tried again"
            )
        if left.destroy and left.device in paths:
            raise Refused(
                "leftover-wanted",
                f"{left.device}, where {left.resource}/{left.volume} was, is wanted for another volume",
                "nothing of it is removed; give that volume another disk",
            )

    async def _remove(self, desired: Desired, left: Leftover) -> None:
        if not left.destroy or left.device is None:
            return
        try:
            disk = leftover_disk(desired.cluster, left)
        except KeyError as error:
            raise Failed(
                "pool-missing",
                f"{left.device} cannot be removed: the specification has no node or pool {error}",
                "put the pool back into the specification until it is removed",
            ) from None
        if disk is not None:
            await self._kit.backing.remove(disk)
        else:
            await self._kit.drbd.wipe_metadata(left.resource, left.minor, left.device)
        _log.info("removed", resource=left.resource, volume=left.volume, device=left.device)
        self._after_step(left.resource, "leftover:removed")


def _wanted(left: Leftover, kept: Mapping[str, ResourceSpec]) -> bool:
    spec = kept.get(left.resource)
    return spec is not None and any(v.number == left.volume for v in spec.volumes)
