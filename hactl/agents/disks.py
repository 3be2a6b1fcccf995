"""Whether the disks of volumes that DRBD does not have yet may be used: asked before anything is done to
them."""

from __future__ import annotations

from hactl.agents.kit import Kit
from hactl.errors import HactlError, Refused
from hactl.model.preflight import judge
from hactl.model.problem import Problem
from hactl.model.spec import ClusterSpec, ResourceSpec, VolumeSpec
from hactl.replication.state import ResourceState


def unsettled(
    spec: ResourceSpec, node: str, state: ResourceState | None, placed: dict[int, str]
) -> tuple[VolumeSpec, ...]:
    """Volumes whose disk on ``node`` this DRBD does not use yet. ``placed`` are the disks by volume in the
    resource file. Those of the others are the kernel's business: a disk that fails is detached, and the
    resource goes on."""
    return tuple(
        v
        for v in spec.volumes
        if node in v.disks
        and (state is None or v.number not in state.volumes or placed.get(v.number) != v.disks[node])
    )


class Carried:
    """Which of a resource's disks carry DRBD meta-data; each is asked about once, so keep it for one look
    only."""

    def __init__(self, kit: Kit, spec: ResourceSpec) -> None:
        self._kit = kit
        self._spec = spec
        self._known: dict[int, bool] = {}

    async def by(self, volume: int) -> bool:
        """As :meth:`hactl.replication.protocol.Replication.has_metadata`."""
        if volume not in self._known:
            self._known[volume] = await self._kit.drbd.has_metadata(self._spec, volume)
        return self._known[volume]


async def problems(
    kit: Kit,
    cluster: ClusterSpec,
    node: str,
    spec: ResourceSpec,
    state: ResourceState | None,
    fresh: frozenset[int],
    carried: Carried,
) -> tuple[Problem, ...]:
    """What keeps the node's disks from being used for ``spec``; empty if nothing does.

    DRBD meta-data counts as this volume's own if the journal says that this agent created it (``fresh``), or
    if the resource file, which is written only after this judgement, has that disk for that volume. A disk
    that cannot be looked at is a problem as well, and so is a resource file that hactl did not write.
    """
    try:
        return await _problems(kit, cluster, node, spec, state, fresh, carried)
    except HactlError as error:
        return (Problem((), error.code, error.message, error.hint),)


async def _problems(
    kit: Kit,
    cluster: ClusterSpec,
    node: str,
    spec: ResourceSpec,
    state: ResourceState | None,
    fresh: frozenset[int],
    carried: Carried,
) -> tuple[Problem, ...]:
    placed = await kit.drbd.placed(spec.name)
    volumes = unsettled(spec, node, state, placed)
    if not volumes:
        # The common case, and the cheap one: no program is started.
        return ()
    devices = await kit.disks.observe(v.disks[node] for v in volumes)
    own = set()
    for volume in volumes:
        known = volume.number in fresh or placed.get(volume.number) == volume.disks[node]
        device = devices[volume.disks[node]]
        if known and device.exists and device.is_block and await _carries(carried, volume):
            own.add((spec.name, volume.number))
    only = cluster.model_copy(update={"resources": (spec.model_copy(update={"volumes": volumes}),)})
    return judge(only, node, devices, version=await kit.drbd.version(), own=own)


async def _carries(carried: Carried, volume: VolumeSpec) -> bool:
    # Not libblkid's word: it does not find the meta-data of a disk that was enlarged while it was detached.
    try:
        return await carried.by(volume.number)
    except Refused:
        # Somebody else has the disk open, which the judgement reports in its own words.
        return False
