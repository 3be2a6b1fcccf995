"""The adapters an agent works with, together, and its time limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hactl.agents.clock import Clock
from hactl.agents.journal import Journal
from hactl.agents.peers import Peers
from hactl.agents.reach_probes import StorageProbes
from hactl.agents.states import Change
from hactl.alua.states import AccessState
from hactl.backing.protocol import Backing
from hactl.errors import HactlError, Refused
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.pacemaker.protocol import Pacemaker
from hactl.pr_sync.clear import Cleared
from hactl.pr_sync.units import Unit
from hactl.replication.blockdev import BlockDevices
from hactl.replication.protocol import Replication
from hactl.target.gates import Gates

Devices = Mapping[tuple[str, int], str]
"""Block devices by resource and volume."""

View = Mapping[int, Mapping[str, AccessState]]
"""Access states of one resource by volume and node, as this node's kernel reports them."""

Pending = Mapping[str, tuple[Change, ...] | HactlError]
"""Changes of the LIO tree still to be made, by resource, or why they cannot be told. What is not in it has
none."""

OTHERS = ""
"""In :data:`Pending`, the changes that concern no resource that is known."""


class Exports(Protocol):
    """The LIO tree of one node; kept by ``exports.LioExports`` on the real or the in-memory configfs.

    It knows of no specification: what shall be is told with each question. ``devices`` are the gates' block
    devices; a resource that lacks one is left out.
    """

    async def pending(
        self,
        wanted: Sequence[tuple[ClusterSpec, ResourceSpec]],
        leaving: Mapping[str, str],
        devices: Devices,
    ) -> tuple[Pending, Mapping[str, View]]:
        """Of the whole tree, read once: the changes for all resources that are ``wanted``, and those that
        take everything else of hactl's away: of the resources ``leaving`` (by name, with their IQN) under
        their names, of others under :data:`OTHERS`. And the access states that can be read."""
        ...

    async def pending_of(
        self, cluster: ClusterSpec, resource: ResourceSpec, devices: Devices
    ) -> tuple[Change, ...]:
        """Of one wanted resource alone, at a cost that does not grow with the others."""
        ...

    async def pending_gone(self, resource: str, iqn: str, id: int) -> tuple[Change, ...]:  # noqa: A002 - its name
        """Of one resource that is not wanted any more, at a cost that does not grow with the others."""
        ...

    async def apply(self, change: Change) -> None: ...

    async def states(self, cluster: ClusterSpec, resource: ResourceSpec) -> View:
        """Access states by volume and node; empty while the resource is not exported."""
        ...

    async def set_states(
        self, cluster: ClusterSpec, resource: ResourceSpec, states: Mapping[str, AccessState]
    ) -> None: ...


async def _nothing(*_: object) -> None:
    """Where no reservations are kept in step."""


async def _none(serial: str, index: int) -> None:  # noqa: ARG001 - as it is called
    raise Refused("unknown-unit", "this node keeps no reservations in step", "see hactl status")


async def _kept_by_nobody(unit: Unit) -> Cleared:
    raise Refused(
        "pr-not-logged",
        f"the reservations of unit {unit.name} are in no log: this agent's cluster has no store",
        "clear them on the host: sg_persist --out --clear",
    )


@dataclass
class Standing:
    """What persistent reservations have to say in who may be active. ``unready``: why this node must not for
    a resource; ``confirm`` it with the store, given the nodes that are down; ``applied``: another node asks
    whether a unit has an entry of its log. ``reached``: how far each volume of a resource is here, for the
    status document; ``clear`` takes a unit's registrations away on all nodes. ``withdraw``: shut this node's
    port of a resource and leave the members, for as long as its record says so; back when the port is shut.
    ``rejoin``: the record does not say so any more; becoming a member again goes on by itself."""

    unready: Callable[[str], str | None] = lambda _: None
    confirm: Callable[[str, Iterable[str]], Awaitable[None]] = _nothing
    applied: Callable[[str, int], Awaitable[None]] = _none
    reached: Callable[[str], dict[str, dict[str, Any]]] = lambda _: {}
    clear: Callable[[Unit], Awaitable[Cleared]] = _kept_by_nobody
    withdraw: Callable[[str], Awaitable[None]] = _nothing
    rejoin: Callable[[str], Awaitable[None]] = _nothing


@dataclass(frozen=True)
class Kit:
    """One node's adapters. ``pacemaker``: None where the cluster was made without. ``storage``: None where
    nobody asks whether hosts reach the node."""

    drbd: Replication
    gates: Gates
    exports: Exports
    journal: Journal
    peers: Peers
    clock: Clock
    disks: BlockDevices
    backing: Backing
    standing: Standing = field(default_factory=Standing)
    pacemaker: Pacemaker | None = None
    storage: StorageProbes | None = None


@dataclass(frozen=True)
class Timings:
    """Limits in seconds.

    ``handover``: I/O held longer than this rolls a switchover back. ``hold``: how long a demoted node holds
    I/O for a successor. ``ask``: pause between two questions to a peer that did not answer. ``reconcile``:
    between two passes without an event. ``prepared``: how long a node stays prepared for a switchover to it.
    ``rest``: after it, until the next pass. ``calm``: how long a pass waits for switchovers to end.
    """

    handover: float = 15.0
    hold: float = 20.0
    ask: float = 0.5
    reconcile: float = 30.0
    prepared: float = 2.5
    rest: float = 0.3
    calm: float = 3.0
