"""What a node's agent wants of a resource and what it finds, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from typing import Protocol

from hactl.alua.states import AccessState, wanted
from hactl.backing.protocol import BackingDisk
from hactl.model.problem import Problem
from hactl.replication.state import ConnectionState, DiskState, ReplicationState, ResourceState, Role
from hactl.target.gates import GateState, Mode


class OrderedRole(StrEnum):
    """What this node was last ordered to be for a resource."""

    ACTIVE = "active"
    DEMOTED = "demoted"
    """Not active any more, successor not known yet: I/O is held for a while."""
    STANDBY = "standby"


class Aspect(Enum):
    """A part of the observation, so that a re-check reads only what it needs."""

    CONFIG = auto()
    DRBD = auto()
    GATES = auto()
    EXPORT = auto()
    ALUA = auto()
    BACKING = auto()


class Change(Protocol):
    """One change of the LIO tree; made by ``hactl.target.plan``."""

    @property
    def reason(self) -> str: ...

    def describe(self) -> str: ...


@dataclass(frozen=True)
class VolumeDesired:
    """One volume: ``size`` in bytes, ``gate`` its device-mapper name, ``backing`` the DRBD device. ``adopt``:
    the node whose disk has its data, until that is carried out."""

    number: int
    lun: int
    size: int
    gate: str
    minor: int
    backing: str
    adopt: str | None = None


@dataclass(frozen=True)
class ResourceDesired:
    """What one node shall be for one resource.

    ``exporters`` are all nodes that export it, ``replica`` says whether this node holds data.
    ``active_node`` is the node known to serve it: this one or another, or None. ``hold_over``: I/O has been
    held for as long as allowed. ``peer_fresh``: volumes whose meta-data is brand-new on every other replica
    too, as their agents say. ``skips_sync``: this node is the one to declare brand-new replicas equal.
    ``disks`` are those that come from this node's pools. ``others``: the other nodes with a replica.
    """

    name: str
    node: str
    exporters: tuple[str, ...]
    replica: bool
    volumes: tuple[VolumeDesired, ...]
    role: OrderedRole
    active_node: str | None = None
    hold_over: bool = False
    peer_fresh: frozenset[int] = frozenset()
    skips_sync: bool = False
    disks: tuple[BackingDisk, ...] = ()
    others: tuple[str, ...] = ()

    def unready_copies(self, volumes: frozenset[int]) -> frozenset[int]:
        """Those of ``volumes`` that another replica is not known to be brand-new of: taken over with data,
        theirs might be as good."""
        return volumes - self.peer_fresh if self.others else frozenset()

    def view(self, active: str | None) -> dict[str, AccessState]:
        """Access states of all groups if ``active`` is the active node."""
        return {node: wanted(node, active) for node in self.exporters}


@dataclass(frozen=True)
class Enlargement:
    """A disk under its path that has ``size`` bytes and needs ``wanted``."""

    device: str
    size: int
    wanted: int

    @property
    def needed(self) -> bool:
        return self.size < self.wanted


@dataclass(frozen=True)
class ResourceObserved:
    """One resource as found on this node; aspects that were not asked for are None.

    ``metadata`` is only looked at for volumes that DRBD does not have, since it holds their disks otherwise:
    None then. ``adjusted``: this agent has brought DRBD in line with the resource file since it was
    started, so that a kill between writing the file and using it is made good. ``fresh``: volumes whose
    meta-data this node created and whose initial synchronisation is still to be decided. ``export`` are the
    pending changes of the LIO tree, or None if it cannot be planned; ``export_error`` says why.
    ``problems`` are what keeps this node's disks from being used for volumes that DRBD does not have yet.
    ``alua_error``: why the access states cannot be read. ``surplus`` are gates of volumes that the resource
    does not have any more. ``lacking``: volumes whose disk is not in this node's pool as it should be,
    ``lost`` those of them that had data already.
    ``former``: the node holds no replica, and has a resource file of when it did. ``adoptable``: volumes
    whose disk is to be taken over with its data, and has not been.
    """

    configured: bool | None = None
    metadata: Mapping[int, bool | None] = field(default_factory=dict)
    drbd: ResourceState | None = None
    gates: Mapping[int, GateState] = field(default_factory=dict)
    export: tuple[Change, ...] | None = None
    export_error: str | None = None
    alua: Mapping[int, Mapping[str, AccessState]] = field(default_factory=dict)
    fresh: frozenset[int] = frozenset()
    adjusted: bool = False
    problems: tuple[Problem, ...] = ()
    alua_error: str | None = None
    surplus: Mapping[int, GateState] = field(default_factory=dict)
    lacking: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()
    former: bool = False
    adoptable: Mapping[int, Enlargement] = field(default_factory=dict)

    def gate(self, number: int) -> GateState | None:
        """A volume's gate, also of one that is not wanted any more."""
        return self.gates.get(number) or self.surplus.get(number)

    @property
    def primary(self) -> bool:
        return self.drbd is not None and self.drbd.role is Role.PRIMARY

    def modes(self, *modes: Mode) -> tuple[int, ...]:
        """Numbers of the volumes whose gate is in one of ``modes``."""
        return tuple(sorted(n for n, gate in self.gates.items() if gate.mode in modes))

    def connected_peers(self) -> tuple[str, ...]:
        if self.drbd is None:
            return ()
        return tuple(
            sorted(p for p, c in self.drbd.connections.items() if c.state is ConnectionState.CONNECTED)
        )

    def primary_peer(self) -> str | None:
        """A connected peer that DRBD says is Primary."""
        if self.drbd is None:
            return None
        for peer in self.connected_peers():
            if self.drbd.connections[peer].role is Role.PRIMARY:
                return peer
        return None


_QUIET = frozenset(
    {ReplicationState.OFF, ReplicationState.ESTABLISHED, ReplicationState.VERIFY_S, ReplicationState.VERIFY_T}
)


def resyncing(state: ResourceState) -> bool:
    """A resync of any volume is running, starting or paused."""
    return any(
        volume.replication not in _QUIET
        for connection in state.connections.values()
        for volume in connection.volumes.values()
    )


_ATTACHED = frozenset(
    {DiskState.INCONSISTENT, DiskState.OUTDATED, DiskState.CONSISTENT, DiskState.UP_TO_DATE}
)


def attached(observed: ResourceObserved) -> frozenset[int]:
    """Volumes whose disk DRBD has and has understood."""
    volumes = {} if observed.drbd is None else observed.drbd.volumes
    return frozenset(n for n, volume in volumes.items() if volume.disk in _ATTACHED)


def sync_decided(state: ResourceState) -> frozenset[int]:
    """Volumes whose first copy is over, or runs, or is not needed."""
    copying = {
        number
        for connection in state.connections.values()
        for number, volume in connection.volumes.items()
        if volume.replication not in _QUIET
    }
    return frozenset(
        n for n, v in state.volumes.items() if v.disk is not DiskState.INCONSISTENT or n in copying
    )


def serving(desired: ResourceDesired, observed: ResourceObserved) -> bool:
    """This node serves the resource: DRBD Primary and every gate open."""
    return (
        desired.role is OrderedRole.ACTIVE
        and observed.primary
        and set(observed.modes(Mode.OPEN)) == {v.number for v in desired.volumes}
    )


def unready(desired: ResourceDesired, observed: ResourceObserved, *, giver: str | None) -> tuple[str, ...]:
    """Why this node could not become active now; empty if it could.

    ``giver``: the living node that hands over, so DRBD has to be connected to that one and no resync may run.
    Without one a lone UpToDate replica will do: that is a failover.
    """
    if not desired.replica:
        return (f"{desired.node} holds no replica of {desired.name}",)
    reasons: list[str] = [problem.message for problem in observed.problems]
    state = observed.drbd
    if state is None:
        reasons.append(f"DRBD resource {desired.name} is not up")
    else:
        for volume in desired.volumes:
            local = state.volumes.get(volume.number)
            disk = DiskState.DISKLESS if local is None else local.disk
            if disk is not DiskState.UP_TO_DATE:
                reasons.append(f"volume {volume.number} is {disk}, not UpToDate")
            if local is not None and not local.quorum:
                reasons.append(f"volume {volume.number} has no quorum")
        if state.suspended != "no":
            reasons.append(f"DRBD has suspended I/O ({state.suspended})")
        if giver is not None and giver not in observed.connected_peers():
            reasons.append(f"DRBD is not connected to {giver}")
        if giver is not None and resyncing(state):
            reasons.append("a resync is running")
    for volume in desired.volumes:
        gate = observed.gates.get(volume.number)
        if gate is None:
            reasons.append(f"gate {volume.gate} is missing")
        elif gate.mode is Mode.FOREIGN:
            reasons.append(f"gate {volume.gate} has a table that is not hactl's")
    if observed.export is None:
        reasons.append(observed.export_error or "the LIO tree is not known")
    elif observed.export:
        reasons.append(f"the LIO tree is not in order: {observed.export[0].describe()}")
    return tuple(reasons)


def troubles(desired: ResourceDesired, observed: ResourceObserved) -> tuple[str, ...]:
    """What no action of the agent mends and somebody has to know."""
    found: list[str] = [
        f"{p.message} ({p.hint}) [{p.code}]; {desired.name} is left alone" for p in observed.problems
    ]
    waiting = desired.unready_copies(frozenset(observed.adoptable))
    if waiting and not observed.problems:
        which, nodes = ", ".join(map(str, sorted(waiting))), ", ".join(desired.others)
        found.append(
            f"volume {which}: the data on this node's disk are taken over when the empty replica is ready; "
            f"the agent on {nodes} has not said yet that its disk is brand-new"
        )
    for each in (*observed.gates.values(), *observed.surplus.values()):
        if each.mode is Mode.FOREIGN:
            found.append(f"gate {each.name} has a table that is not hactl's; it is left alone")
    for volume in desired.volumes:
        gate = observed.gates.get(volume.number)
        if gate is not None and gate.size > volume.size:
            found.append(f"gate {volume.gate} is larger than the volume; units are never shrunk")
        if (
            desired.role is OrderedRole.ACTIVE
            and gate is not None
            and gate.mode is Mode.OPEN
            and gate.backing != volume.backing
        ):
            found.append(f"gate {volume.gate} leads to {gate.backing}, not to {volume.backing}")
    found.extend(error for error in (observed.export_error, observed.alua_error) if error)
    if desired.role is OrderedRole.DEMOTED and desired.hold_over and desired.active_node is None:
        found.append("demoted, and no other node has become active: order promote on the one that shall be")
    state = observed.drbd
    if state is not None and desired.replica:
        for peer, connection in sorted(state.connections.items()):
            if connection.state is ConnectionState.STANDALONE:
                found.append(f"DRBD does not connect to {peer} (StandAlone): see drbd's split-brain recovery")
        for number, local in sorted(state.volumes.items()):
            disks = {local.disk} | {
                c.volumes[number].disk for c in state.connections.values() if number in c.volumes
            }
            if disks == {DiskState.INCONSISTENT} and number not in observed.fresh:
                found.append(
                    f"volume {number}: all replicas are Inconsistent: declare the good one by hand "
                    f"(drbdsetup new-current-uuid, or a first synchronisation)"
                )
    return tuple(found)
