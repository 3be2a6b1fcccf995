"""The adapters an agent works with, together, and its time limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hactl.agents.clock import Clock
from hactl.agents.journal import Journal
from hactl.agents.peers import Peers
from hactl.agents.states import Change
from hactl.alua.states import AccessState
from hactl.replication.blockdev import BlockDevices
from hactl.replication.protocol import Replication
from hactl.target.gates import Gates


class Exports(Protocol):
    """The LIO tree of one node; kept by ``exports.LioExports`` on the real or the in-memory configfs."""

    async def pending(
        self, devices: Mapping[tuple[str, int], str], resource: str | None = None
    ) -> dict[str, tuple[Change, ...]]:
        """Changes still to be made, by resource name; under ``""`` those that concern no wanted resource.
        ``devices`` are the gates' block devices by resource and volume; a resource that lacks one is left
        out. With ``resource`` only that one's, at a cost that does not grow with the others."""
        ...

    async def apply(self, change: Change) -> None: ...

    async def states(self, resource: str) -> dict[int, dict[str, AccessState]]:
        """Access states by volume and node; empty while the resource is not exported."""
        ...

    async def set_states(self, resource: str, states: Mapping[str, AccessState]) -> None: ...


@dataclass(frozen=True)
class Kit:
    """One node's adapters."""

    drbd: Replication
    gates: Gates
    exports: Exports
    journal: Journal
    peers: Peers
    clock: Clock
    disks: BlockDevices


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
