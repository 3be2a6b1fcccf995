"""From the adapters' answers to one resource's observation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from hactl.agents import disks
from hactl.agents.kit import Devices, Kit, Pending, View
from hactl.agents.states import Aspect, Change, ResourceObserved
from hactl.backing.protocol import BackingDisk, PoolState
from hactl.errors import HactlError
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.replication.state import ResourceState
from hactl.target.gates import GateState, gate_name

EVERYTHING = frozenset(Aspect)
Gates = Mapping[str, Mapping[int, GateState]]
"""Gates by resource and volume."""

_log = structlog.get_logger("hactl.agent")


@dataclass(frozen=True)
class Subject:
    """What is observed: resource ``spec`` on ``node``.

    ``fresh`` and ``adjusted`` are as in :class:`ResourceObserved`. ``disks`` come from pools and are not
    known to be there yet; ``dropped`` are volumes that the resource has no more and may have a gate of.
    ``prepared`` are those whose disk was judged, and given its meta-data, by the steps taken just before;
    ``adopting`` those whose disk this node has begun to take over with its data.
    """

    cluster: ClusterSpec
    node: str
    spec: ResourceSpec
    fresh: frozenset[int] = frozenset()
    adjusted: bool = False
    disks: tuple[BackingDisk, ...] = ()
    dropped: frozenset[int] = frozenset()
    prepared: frozenset[int] = frozenset()
    adopting: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Common:
    """What was asked once for all resources of a node, as far as it was."""

    drbd: Mapping[str, ResourceState] | None = None
    gates: Gates | None = None
    exports: Pending | None = None
    alua: Mapping[str, View] | None = None
    pools: Mapping[str, PoolState] | None = None


NOTHING = Common()


def parse_gate(name: str) -> tuple[str, int] | None:
    """Resource and volume of a gate's name; None if it is not one of hactl's."""
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "hactl" and parts[2].isdigit():
        return parts[1], int(parts[2])
    return None


def by_resource(gates: Mapping[str, GateState]) -> Gates:
    """Gates of hactl's by resource and volume."""
    found: dict[str, dict[int, GateState]] = {}
    for name, gate in gates.items():
        key = parse_gate(name)
        if key is not None:
            found.setdefault(key[0], {})[key[1]] = gate
    return found


def devices(gates: Gates) -> Devices:
    """Block devices of gates."""
    return {(name, number): gate.device for name, of in gates.items() for number, gate in of.items()}


async def observe_roles(kit: Kit, drbd: Mapping[str, ResourceState] | None = None) -> Common:
    """DRBD and the gates of the whole node; ``drbd`` if that is known already."""
    return Common(
        drbd if drbd is not None else await kit.drbd.observe(), by_resource(await kit.gates.observe())
    )


async def observe_node(
    kit: Kit,
    wanted: Iterable[tuple[ClusterSpec, ResourceSpec]],
    leaving: Mapping[str, str],
    drbd: Mapping[str, ResourceState] | None,
    pools: Mapping[str, PoolState] | None = None,
) -> Common:
    """The whole node, LIO's tree too (``leaving``: see :meth:`Exports.pending`), each read once.

    What cannot be told of the node as a whole is left out: each resource then asks for itself, and has its
    own reason why not.
    """
    here = tuple(wanted)
    try:
        common = await observe_roles(kit, drbd)
        assert common.gates is not None
        exports, alua = await kit.exports.pending(here, leaving, devices(common.gates))
    except (HactlError, OSError) as error:
        _log.warning("the node cannot be looked at as a whole", error=str(error))
        return Common(drbd)
    return Common(common.drbd, common.gates, exports, alua, pools)


async def observe(
    kit: Kit, subject: Subject, *, aspects: frozenset[Aspect] = EVERYTHING, common: Common = NOTHING
) -> ResourceObserved:
    """What ``aspects`` of a resource are like on its node now; the rest is left as not known.

    An adapter that cannot tell raises; what LIO cannot tell is reported as ``export_error`` and
    ``alua_error`` instead, since what is wrong with it must not keep a node from being demoted.
    """
    spec, node = subject.spec, subject.node
    replica = node in spec.replicas
    former = not replica and Aspect.CONFIG in aspects and bool(await kit.drbd.placed(spec.name))
    drbd: ResourceState | None = None
    if (replica or former) and aspects & {Aspect.DRBD, Aspect.CONFIG}:
        drbd = (common.drbd if common.drbd is not None else await kit.drbd.observe()).get(spec.name)
    lacking, lost = frozenset[int](), frozenset[int]()
    if replica and subject.disks and aspects & {Aspect.BACKING, Aspect.CONFIG}:
        lacking = await _lacking(kit, subject.disks, common.pools)
        lost = await _lost(kit, subject, lacking) if lacking else lacking
    configured: bool | None = None
    metadata: dict[int, bool | None] = {}
    judged = disks.Judged()
    if replica and Aspect.CONFIG in aspects:
        metadata = dict.fromkeys(subject.prepared, True)
        there = tuple(v for v in spec.volumes if v.number not in lacking | subject.prepared)
        asked_of = spec.model_copy(update={"volumes": there})
        carried = disks.Carried(kit, spec)
        known = subject.fresh | subject.adopting
        judged = await disks.judged(kit, subject.cluster, node, asked_of, drbd, known, carried)
        if not judged.problems:
            configured = await kit.drbd.configured(subject.cluster, spec)
        for volume in there if not judged.problems else ():
            asked = configured and (drbd is None or volume.number not in drbd.volumes)
            metadata[volume.number] = await carried.by(volume.number) if asked else None
    gates: Mapping[int, GateState] = {}
    if aspects & {Aspect.GATES, Aspect.EXPORT}:
        gates = await _gates(kit, subject, common)
    export, export_error = (
        await _export(kit, subject, gates, common) if Aspect.EXPORT in aspects else (None, None)
    )
    alua, alua_error = await _alua(kit, subject, common) if Aspect.ALUA in aspects else ({}, None)
    numbers = {v.number for v in spec.volumes}
    return ResourceObserved(
        configured=configured,
        metadata=metadata,
        drbd=drbd,
        gates={n: gate for n, gate in gates.items() if n in numbers},
        export=export,
        export_error=export_error,
        alua=alua,
        fresh=subject.fresh,
        adjusted=subject.adjusted,
        problems=judged.problems,
        alua_error=alua_error,
        surplus={n: gate for n, gate in gates.items() if n not in numbers},
        lacking=lacking,
        lost=lost,
        former=former,
        adoptable=judged.adoptable,
    )


async def _gates(kit: Kit, subject: Subject, common: Common) -> Mapping[int, GateState]:
    name = subject.spec.name
    found = common.gates
    if found is None:
        numbers = {v.number for v in subject.spec.volumes} | subject.dropped
        found = by_resource(await kit.gates.observe([gate_name(name, n) for n in sorted(numbers)]))
    return found.get(name, {})


async def _lacking(
    kit: Kit, wanted: tuple[BackingDisk, ...], known: Mapping[str, PoolState] | None
) -> frozenset[int]:
    pools = {disk.pool.name: disk.pool for disk in wanted}
    states = known if known is not None else await kit.backing.observe(pools.values())
    lacking = set()
    for disk in wanted:
        pool = states.get(disk.pool.name)
        found = pool.disks.get(disk.key) if pool is not None else None
        if found is None or not found.satisfies(disk):
            lacking.add(disk.volume)
    return frozenset(lacking)


async def _lost(kit: Kit, subject: Subject, lacking: frozenset[int]) -> frozenset[int]:
    """Those whose disk has been in use before: DRBD's resource file names it, and it is not brand-new."""
    placed = await kit.drbd.placed(subject.spec.name)
    known = {disk.volume for disk in subject.disks if placed.get(disk.volume) == disk.device}
    return lacking & known - subject.fresh


async def _export(
    kit: Kit, subject: Subject, gates: Mapping[int, GateState], common: Common
) -> tuple[tuple[Change, ...] | None, str | None]:
    name = subject.spec.name
    try:
        if common.exports is not None:
            found = common.exports.get(name, ())
            if isinstance(found, HactlError):
                raise found
            return found, None
        return await kit.exports.pending_of(subject.cluster, subject.spec, devices({name: gates})), None
    except (HactlError, OSError) as error:
        return None, str(error)


async def _alua(kit: Kit, subject: Subject, common: Common) -> tuple[View, str | None]:
    try:
        if common.alua is not None and subject.spec.name in common.alua:
            return common.alua[subject.spec.name], None
        return await kit.exports.states(subject.cluster, subject.spec), None
    except (HactlError, OSError) as error:
        return {}, f"what is reported of {subject.spec.name} cannot be read: {error}"
