"""From the adapters' answers to one resource's observation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hactl.agents import disks
from hactl.agents.journal import Record
from hactl.agents.kit import Kit
from hactl.agents.states import Aspect, Change, ResourceObserved
from hactl.errors import HactlError
from hactl.model.check import Problem
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.replication.state import ResourceState
from hactl.target.gates import GateState, gate_name

EVERYTHING = frozenset(Aspect)


@dataclass(frozen=True)
class Common:
    """What is asked once for all resources of a node, as far as it was."""

    drbd: dict[str, ResourceState] | None = None
    gates: dict[str, GateState] | None = None
    exports: dict[str, tuple[Change, ...]] | None = None


NOTHING = Common()


async def observe_common(kit: Kit) -> Common:
    """DRBD and the gates of the whole node."""
    return Common(await kit.drbd.observe(), await kit.gates.observe())


async def observe_node(kit: Kit, cluster: ClusterSpec, node: str) -> Common:
    """The same and the LIO tree."""
    common = await observe_common(kit)
    return replace(common, exports=await observe_exports(kit, cluster, node))


async def observe_exports(kit: Kit, cluster: ClusterSpec, node: str) -> dict[str, tuple[Change, ...]] | None:
    """Pending changes of the LIO tree by resource. None if it cannot be planned as a whole: then each
    resource has to be, by itself."""
    gates = await kit.gates.observe()
    try:
        return await kit.exports.pending(devices(cluster, node, gates))
    except HactlError:
        return None


async def observe(
    kit: Kit,
    cluster: ClusterSpec,
    node: str,
    spec: ResourceSpec,
    record: Record,
    *,
    adjusted: bool,
    aspects: frozenset[Aspect] = EVERYTHING,
    common: Common = NOTHING,
) -> ResourceObserved:
    """What ``aspects`` of a resource are like on this node now; the rest is left as not known.

    An adapter that cannot tell raises; the LIO tree alone is reported as ``export_error`` instead, since
    what is wrong with it must not keep a node from being demoted.
    """
    replica = node in spec.replicas
    drbd: ResourceState | None = None
    if replica and aspects & {Aspect.DRBD, Aspect.CONFIG}:
        drbd = (common.drbd if common.drbd is not None else await kit.drbd.observe()).get(spec.name)
    configured: bool | None = None
    metadata: dict[int, bool | None] = {}
    problems: tuple[Problem, ...] = ()
    if replica and Aspect.CONFIG in aspects:
        problems = await disks.problems(kit, cluster, node, spec, drbd, record.fresh)
    if replica and Aspect.CONFIG in aspects and not problems:
        configured = await kit.drbd.configured(cluster, spec)
        for volume in spec.volumes:
            asked = configured and (drbd is None or volume.number not in drbd.volumes)
            metadata[volume.number] = await kit.drbd.has_metadata(spec, volume.number) if asked else None
    gates: dict[str, GateState] = {}
    if aspects & {Aspect.GATES, Aspect.EXPORT}:
        names = [gate_name(spec.name, v.number) for v in spec.volumes]
        gates = common.gates if common.gates is not None else await kit.gates.observe(names)
    pending: tuple[Change, ...] | None = None
    error: str | None = None
    if Aspect.EXPORT in aspects:
        try:
            changes = common.exports
            if changes is None:
                changes = await kit.exports.pending(devices(cluster, node, gates), spec.name)
            pending = changes.get(spec.name, ())
        except HactlError as refusal:
            error = str(refusal)
    return ResourceObserved(
        configured=configured,
        metadata=metadata,
        drbd=drbd,
        gates=own_gates(spec, gates),
        export=pending,
        export_error=error,
        alua=await kit.exports.states(spec.name) if Aspect.ALUA in aspects else {},
        fresh=record.fresh,
        adjusted=adjusted,
        problems=problems,
    )


def own_gates(spec: ResourceSpec, gates: dict[str, GateState]) -> dict[int, GateState]:
    """The gates of one resource by volume number."""
    names = {v.number: gate_name(spec.name, v.number) for v in spec.volumes}
    return {number: gates[name] for number, name in names.items() if name in gates}


def devices(cluster: ClusterSpec, node: str, gates: dict[str, GateState]) -> dict[tuple[str, int], str]:
    """Block devices of the gates of everything this node exports."""
    return {
        (spec.name, number): gate.device
        for spec in cluster.resources
        if node in spec.nodes
        for number, gate in own_gates(spec, gates).items()
    }
