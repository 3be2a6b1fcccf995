"""DRBD's fencing in memory: a primary that loses a peer suspends I/O and asks a handler.

As the kernel's 8.4 does it with ``resource-and-stonith``: drbd_nl.c, conn_try_outdate_peer and drbd_set_role;
drbd_state.c, ``susp_fen`` and SS_PRIMARY_NOP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from hactl.replication.memory_model import JUST_CREATED, Instance, Replica
from hactl.replication.state import DiskState, Role

if TYPE_CHECKING:
    from hactl.replication.memory_cluster import MemoryDrbdCluster

Handler = Callable[[str, str], Awaitable[int]]
"""Called with resource and peer; its exit code as in :mod:`hactl.agents.fence_peer`."""

_SETTLED = (DiskState.INCONSISTENT, DiskState.OUTDATED)
_TRIES = 4
"""So often a promotion has the handler called (drbd_set_role, max_tries)."""


class MemoryFencing:
    """What the nodes of one cluster know of peers that are not connected. ``handlers`` are called by node; a
    node without one is as if its handler failed."""

    def __init__(self, cluster: MemoryDrbdCluster) -> None:
        self._cluster = cluster
        self.handlers: dict[str, Handler] = {}
        self._running: set[asyncio.Task[bool]] = set()

    def peer_disk(self, node: str, peer: str, resource: str, volume: int) -> DiskState:
        """Disk state of a peer's volume as the node knows it, connected or not."""
        if self._cluster.linked(node, peer, resource):
            return self._cluster.peer_disk(peer, resource, volume)
        instance = self._cluster.nodes[node].instances[resource]
        return instance.lost.get((peer, volume), DiskState.UNKNOWN)

    def unsettled(self, node: str, resource: str) -> list[str]:
        """Replicas that are not connected and may be as good as this one, with fencing on."""
        instance = self._cluster.nodes[node].instances[resource]
        if not instance.fencing:
            return []
        away = set(instance.spec.replicas) - set(self._cluster.reached(node, resource)) - {node}
        return [
            peer
            for peer in sorted(away)
            if any(self.peer_disk(node, peer, resource, n) not in _SETTLED for n in instance.replicas)
        ]

    def attached(self, instance: Instance, node: str, volume: int, replica: Replica) -> None:
        """A disk comes up: whether it is the newest is known only if every other was known to be older."""
        data = replica.disk.metadata if replica.disk else None
        if data is None:
            return
        others = set(instance.spec.replicas) - {node}
        for peer in data.outdated_peers & others:
            instance.lost[peer, volume] = DiskState.OUTDATED
        old = data.generation != JUST_CREATED and data.consistent and not data.outdated
        replica.unsure = instance.fencing and old and not others <= data.outdated_peers

    def note(self, node: str) -> None:
        """Before a node goes down: its disks remember which peers were known to be older."""
        for name, instance in self._cluster.nodes[node].instances.items():
            for number, replica in instance.replicas.items():
                if replica.disk is not None and replica.disk.metadata is not None:
                    others = [n for n in instance.spec.replicas if n != node]
                    replica.disk.metadata.outdated_peers = {
                        peer for peer in others if self.peer_disk(node, peer, name, number) in _SETTLED
                    }

    def connected(self, node: str, peer: str, resource: str) -> None:
        """The connection is up again: nothing is in doubt any more."""
        instance = self._cluster.nodes[node].instances[resource]
        instance.lost = {key: disk for key, disk in instance.lost.items() if key[0] != peer}
        for replica in instance.replicas.values():
            replica.unsure = False
        if not self.unsettled(node, resource):
            instance.frozen = False

    def disks(self, node: str, resource: str) -> dict[tuple[str, int], DiskState]:
        """Disk states of the connected peers, by peer and volume."""
        instance = self._cluster.nodes[node].instances[resource]
        peers = [
            n for n in self._cluster.reached(node, resource) if n != node and n in instance.spec.replicas
        ]
        return {(p, n): self._cluster.peer_disk(p, resource, n) for p in peers for n in instance.replicas}

    def disconnected(self, node: str, resource: str, before: dict[tuple[str, int], DiskState]) -> None:
        """Peers were lost that were like ``before``."""
        instance = self._cluster.nodes[node].instances[resource]
        reached = self._cluster.reached(node, resource)
        lost = {peer for peer, _ in before if peer not in reached}
        for peer in lost:
            instance.losses[peer] = instance.losses.get(peer, 0) + 1
            for number in instance.replicas:
                if before[peer, number] in _SETTLED:
                    instance.lost[peer, number] = before[peer, number]
        if instance.role is not Role.PRIMARY:
            return
        for peer in lost & set(self.unsettled(node, resource)):
            instance.frozen = True
            if node in self.handlers:
                task = asyncio.get_running_loop().create_task(self.ask(node, resource, peer))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def ask(self, node: str, resource: str, peer: str) -> bool:
        """Run the handler and act on its exit code; whether the peer is known to be older now."""
        instance = self._cluster.nodes[node].instances[resource]
        if not any(self._good(node, resource, number) for number in instance.replicas):
            # "Not fencing peer, I'm not even Consistent myself."
            instance.frozen = False
            self._cluster.touch()
            return False
        losses = instance.losses.get(peer, 0)
        handler = self.handlers.get(node)
        code = 1 if handler is None else await handler(resource, peer)
        if self._cluster.nodes[node].instances.get(resource) is not instance:
            return False
        if self._cluster.linked(node, peer, resource) or instance.losses.get(peer, 0) != losses:
            return False
        self._take(instance, node, peer, code)
        settled = peer not in self.unsettled(node, resource)
        if settled and not self.unsettled(node, resource):
            instance.frozen = False
        self._cluster.touch()
        return settled

    def _take(self, instance: Instance, node: str, peer: str, code: int) -> None:
        name = instance.spec.name
        newest = any(self._cluster.state_of(node, name, n) is DiskState.UP_TO_DATE for n in instance.replicas)
        match code:
            case 3:
                known = DiskState.INCONSISTENT
            case 4 | 7:
                known = DiskState.OUTDATED
            case 5 if newest:
                known = DiskState.OUTDATED
            case 6:
                self.outdate(instance)
                return
            case _:
                return
        for number in instance.replicas:
            instance.lost[peer, number] = known

    def outdate(self, instance: Instance) -> bool:
        """The disks' own doing, while nobody is connected; False, and nothing done, on a primary."""
        if instance.role is Role.PRIMARY:
            return False
        for replica in instance.replicas.values():
            if replica.disk is not None and replica.disk.metadata is not None:
                replica.disk.metadata.outdated, replica.unsure = True, False
        return True

    async def before_primary(self, node: str, resource: str) -> None:
        """What becoming primary has done first: disks that are only Consistent, or peers that may be as
        good, are asked after."""
        instance = self._cluster.nodes[node].instances[resource]
        for _ in range(_TRIES):
            peers = self.unsettled(node, resource)
            states = {self._cluster.state_of(node, resource, n) for n in instance.replicas}
            alone = self._cluster.reached(node, resource) == [node]
            unsure = alone and DiskState.CONSISTENT in states
            if alone and not states <= {DiskState.UP_TO_DATE, DiskState.CONSISTENT}:
                return
            if not peers and not unsure:
                return
            done = [await self.ask(node, resource, peer) for peer in peers]
            if unsure and all(done):
                for replica in instance.replicas.values():
                    replica.unsure = False

    def _good(self, node: str, resource: str, volume: int) -> bool:
        return self._cluster.state_of(node, resource, volume) in (
            DiskState.CONSISTENT,
            DiskState.OUTDATED,
            DiskState.UP_TO_DATE,
        )
