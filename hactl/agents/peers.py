"""What agents ask of each other; kept by ``peer.HttpsPeers`` and, in one process,
``memory_peers.MemoryPeers``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from hactl.agents.states import OrderedRole
from hactl.model.spec import ClusterSpec

UNREACHABLE = "peer-unreachable"
"""Code of the refusal that says: the request has certainly not reached the peer."""

ABORTED = "switchover-aborted"
"""Code of the refusal that says: this switchover was called off before."""

BUSY = "busy"
"""Code of the refusal that says: another operation on the resource is running."""


class Left(StrEnum):
    """What a node's disks are to another one that has lost it: they know that they are old (``outdated``),
    hold nothing usable (``worse``), are not attached (``down``); or it is Primary, or DRBD there still calls
    the other one connected."""

    OUTDATED = "outdated"
    WORSE = "worse"
    DOWN = "down"
    PRIMARY = "primary"
    CONNECTED = "connected"


@dataclass(frozen=True)
class PeerResource:
    """One resource as its agent on another node sees it.

    ``serving``: ordered active, DRBD Primary and every gate open. ``fresh``: volumes whose
    meta-data is brand-new.
    """

    role: OrderedRole
    serving: bool
    primary: bool
    active_node: str | None = None
    fresh: tuple[int, ...] = ()


class Peers(Protocol):
    """The other nodes' agents.

    A refusal by the peer comes back as its :class:`hactl.errors.Refused` or :class:`hactl.errors.Failed`; a
    request that certainly did not arrive as ``Refused`` with code :data:`UNREACHABLE`; one that may have
    been carried out, or still may be, as :class:`hactl.errors.Unknown`.
    """

    def follow(self, cluster: ClusterSpec) -> None:
        """From now on these are the nodes, and their addresses."""
        ...

    async def status(self, node: str, only: Collection[str] = ()) -> dict[str, PeerResource]:
        """All resources of a node, or those of ``only`` that it has."""
        ...

    async def document(self, node: str) -> dict[str, Any]:
        """The node's status document (:mod:`hactl.agents.document`)."""
        ...

    async def ready(self, node: str, resource: str, handover: str) -> tuple[str, ...]:
        """Why the node could not take a resource over now; empty if it could, and then it is prepared for
        switchover ``handover`` for a moment."""
        ...

    async def promote(self, node: str, resource: str, handover: str) -> None:
        """Make the node active, as part of switchover ``handover``; may be repeated."""
        ...

    async def abort(self, node: str, resource: str, handover: str) -> bool:
        """Call a switchover off: False if the node is not active and will not become so under this id any
        more, True if it is active already, which stays as it is."""
        ...

    async def announce(self, node: str, resource: str, active: str) -> None:
        """Tell a node which one is active now; that node tells the truth of it by asking the active one."""
        ...

    async def outdate(self, node: str, resource: str) -> Left:
        """This node has lost the connection to ``node``: have its disks remember that they are old, unless it
        is Primary; may be repeated."""
        ...

    async def reserved(self, node: str, unit: str, index: int) -> None:
        """Back when the node's kernel has what the PR log of a unit (its serial) says up to ``index``."""
        ...

    async def switchover(self, node: str, resource: str, to: str) -> None:
        """Have the active node ``node`` hand a resource over to ``to``."""
        ...

    async def order(self, node: str, resource: str, order: str) -> None:
        """Have ``node`` carry out an operator's order: ``promote`` or ``demote``."""
        ...


class PeerService(Protocol):
    """The answering side of :class:`Peers`, kept by ``agent.Agent``; ``caller`` is the asking node's name."""

    async def on_status(self, caller: str, only: Collection[str] = ()) -> dict[str, PeerResource]: ...

    async def on_document(self, caller: str) -> dict[str, Any]: ...

    async def on_ready(self, caller: str, resource: str, handover: str) -> tuple[str, ...]: ...

    async def on_promote(self, caller: str, resource: str, handover: str) -> None: ...

    async def on_abort(self, caller: str, resource: str, handover: str) -> bool: ...

    async def on_announce(self, caller: str, resource: str, active: str) -> None: ...

    async def on_outdate(self, caller: str, resource: str) -> Left: ...

    async def on_reserved(self, caller: str, unit: str, index: int) -> None: ...

    async def on_switchover(self, caller: str, resource: str, to: str) -> None: ...

    async def on_order(self, caller: str, resource: str, order: str) -> None: ...
