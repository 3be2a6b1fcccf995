"""Whether the disks of volumes that DRBD does not have yet may be used: asked before anything is done to
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hactl.agents.kit import Kit
from hactl.agents.states import Enlargement
from hactl.errors import HactlError, Refused
from hactl.model.preflight import judge
from hactl.model.problem import Problem
from hactl.model.spec import ClusterSpec, ResourceSpec, VolumeSpec
from hactl.replication.metadata import max_peers, required_disk_size
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


@dataclass(frozen=True)
class Judged:
    """What keeps a node's disks from being used, if anything does, and the disks whose data are to be taken
    over, by volume, with how large they have to be for that."""

    problems: tuple[Problem, ...] = ()
    adoptable: Mapping[int, Enlargement] = field(default_factory=dict)


async def judged(
    kit: Kit,
    cluster: ClusterSpec,
    node: str,
    spec: ResourceSpec,
    state: ResourceState | None,
    known: frozenset[int],
    carried: Carried,
) -> Judged:
    """Whether the node's disks may be used for ``spec``.

    DRBD meta-data counts as this volume's own if the journal says that this agent wrote it (``known``), or
    if the resource file, which is written only after this judgement, has that disk for that volume. A disk
    that cannot be looked at is a problem as well, and so is a resource file that hactl did not write.

    A disk is taken over with its data only if DRBD has never had one for that volume here, and it carries no
    meta-data: so what is said of it (``adopt``) holds for the disk that was there when it was said, and not
    for one that comes in its place.
    """
    try:
        return await _judged(kit, cluster, node, spec, state, known, carried)
    except HactlError as error:
        return Judged((Problem((), error.code, error.message, error.hint),))


async def _judged(
    kit: Kit,
    cluster: ClusterSpec,
    node: str,
    spec: ResourceSpec,
    state: ResourceState | None,
    known: frozenset[int],
    carried: Carried,
) -> Judged:
    placed = await kit.drbd.placed(spec.name)
    volumes = unsettled(spec, node, state, placed)
    if not volumes:
        # The common case, and the cheap one: no program is started.
        return Judged()
    devices = await kit.disks.observe(v.disks[node] for v in volumes)
    own, adopt = set(), set()
    over: list[Problem] = []
    for volume in volumes:
        device = devices[volume.disks[node]]
        usable = device.exists and device.is_block
        ours = volume.number in known or placed.get(volume.number) == volume.disks[node]
        carries = usable and ours and await _carries(carried, volume)
        if carries:
            own.add((spec.name, volume.number))
        elif volume.adopt == node and (volume.number in placed or _in_kernel(state, volume.number)):
            over.append(_over(spec, node, volume))
        elif volume.adopt == node:
            adopt.add((spec.name, volume.number))
    only = cluster.model_copy(update={"resources": (spec.model_copy(update={"volumes": volumes}),)})
    version = await kit.drbd.version()
    problems = (*over, *judge(only, node, devices, version=version, own=own, adopt=adopt))
    if problems:
        return Judged(problems)
    peers = max_peers(spec, version)
    return Judged(
        adoptable={
            v.number: Enlargement(path, devices[path].size, required_disk_size(v.size, peers))
            for v in volumes
            if (spec.name, v.number) in adopt and (path := v.disks[node])
        }
    )


def _in_kernel(state: ResourceState | None, volume: int) -> bool:
    return state is not None and volume in state.volumes


def _over(spec: ResourceSpec, node: str, volume: VolumeSpec) -> Problem:
    return Problem(
        (),
        "adopt-over",
        f"{volume.disks[node]} carries no meta-data, and DRBD has had a disk of {spec.name}/{volume.number} "
        "here before, so that its data cannot be the newest; they are not taken over",
        "if the other replica is to be copied to it, take back what was said of its data: hactl resource "
        f"adopt {spec.name} --node {node} --withdraw",
    )


async def _carries(carried: Carried, volume: VolumeSpec) -> bool:
    # Not libblkid's word: it does not find the meta-data of a disk that was enlarged while it was detached.
    try:
        return await carried.by(volume.number)
    except Refused:
        # Somebody else has the disk open, which the judgement reports in its own words.
        return False
