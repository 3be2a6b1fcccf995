"""DRBD in memory: the cluster that the nodes' in-memory twins share, with links, disks and data that can
fail.

Data is modelled as blocks with a value each, and data generations as a name and its ancestors, which is what
DRBD's generation UUIDs tell: who is older, who is newer, and whether both went their own way (split brain).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

from hactl.errors import Failed, Refused
from hactl.model.spec import ResourceSpec
from hactl.replication import metadata
from hactl.replication.memory_fencing import MemoryFencing
from hactl.replication.memory_model import JUST_CREATED, Disk, Instance, MetaData, Node, Replica
from hactl.replication.state import ConnectionState, DiskState, ReplicationState, Role

Version = tuple[int, int, int]
Before = dict[tuple[str, str], tuple[int, dict[tuple[str, int], DiskState]]]
"""By node and resource: how many nodes it reached, and how the peers' disks were."""


class MemoryDrbdCluster:
    """All nodes, their disks and the links between them."""

    def __init__(self, nodes: tuple[str, ...], version: Version = (8, 4, 11)) -> None:
        self.version = version
        self.nodes = {name: Node(name) for name in nodes}
        self.disks: dict[tuple[str, str], Disk] = {}
        self.revision = 0
        self._cut: set[frozenset[str]] = set()
        self.listeners: list[Callable[[], None]] = []
        """Called after every change, with the cluster as it is then."""
        self._changed = asyncio.Event()
        self._generations = itertools.count(1)
        self.fencing = MemoryFencing(self)

    # Waiting for changes

    def touch(self) -> None:
        """Tell everyone who watches that something may have changed."""
        self.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in list(self.listeners):
            listener()

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    # Faults

    def cut(self, a: str, b: str) -> None:
        """Cut the replication link of two nodes."""
        self._lose({frozenset((a, b))})

    def isolate(self, node: str) -> None:
        """Cut all replication links of a node at the same moment."""
        self._lose({frozenset((node, other)) for other in self.nodes if other != node})

    def heal(self, a: str, b: str) -> None:
        """Repair the link of two nodes; they connect, compare generations and resync."""
        self._cut.discard(frozenset((a, b)))
        self.connect_all()

    def crash(self, node: str) -> None:
        """Power off a node: what its kernel knows is gone, its disks and files remain."""
        before = self.before_loss()
        self.fencing.note(node)
        self.nodes[node].alive = False
        self.nodes[node].instances.clear()
        self.after_loss(before)

    def boot(self, node: str) -> None:
        """Power a node on again; nothing is up on it yet."""
        self.nodes[node].alive = True
        self.touch()

    def fail_disk(self, node: str, path: str) -> None:
        """Let a disk fail: it is detached (on-io-error detach)."""
        disk = self.disk(node, path)
        disk.failed = True
        for instance in self.nodes[node].instances.values():
            for replica in instance.replicas.values():
                if replica.disk is disk:
                    replica.disk = None
        self.touch()

    def _lose(self, links: set[frozenset[str]]) -> None:
        before = self.before_loss()
        self._cut |= links
        self.after_loss(before)

    # Disks and data

    def disk(self, node: str, path: str) -> Disk:
        """A node's disk, an empty one of 1 TiB if it was not spoken of before."""
        return self.disks.setdefault((node, path), Disk())

    def replica(self, node: str, resource: str, volume: int) -> Replica:
        """A volume that is up on a node."""
        instance = self.nodes[node].instances.get(resource)
        if instance is None or volume not in instance.replicas:
            raise Refused("drbd-not-configured", f"resource {resource} is not up on node {node}")
        return instance.replicas[volume]

    def state_of(self, node: str, resource: str, volume: int) -> DiskState:
        """Disk state of a volume that is up on a node."""
        replica = self.replica(node, resource, volume)
        data = replica.disk.metadata if replica.disk else None
        if data is None:
            return DiskState.DISKLESS
        if not data.consistent:
            return DiskState.INCONSISTENT
        if data.outdated:
            return DiskState.OUTDATED
        return DiskState.CONSISTENT if replica.unsure else DiskState.UP_TO_DATE

    def open(self, node: str, resource: str, volume: int) -> None:
        """Open a volume's device for writing; refused on a secondary, as the kernel does with EROFS."""
        replica = self.replica(node, resource, volume)
        if self.nodes[node].instances[resource].role is not Role.PRIMARY:
            raise Failed("drbd-read-only", f"resource {resource} on node {node}: Read-only file system")
        replica.opens += 1

    def release(self, node: str, resource: str, volume: int) -> None:
        """Close it again."""
        instance = self.nodes[node].instances.get(resource)
        if instance is not None:
            assert instance.replicas[volume].opens > 0, "closed more often than opened"
            instance.replicas[volume].opens -= 1

    def suspended(self, node: str, resource: str) -> str:
        """Why I/O is held back, in DRBD's words; ``no`` if it is not."""
        instance = self.nodes[node].instances.get(resource)
        if instance is None:
            return "no"
        reasons = ["fencing"] if instance.frozen else []
        if instance.role is Role.PRIMARY and not instance.quorum:
            reasons.append("quorum")
        return ",".join(reasons) or "no"

    def write(self, node: str, resource: str, volume: int, block: int, value: str) -> None:
        """Write one block on the primary; returning means acknowledged, that is on every connected replica's
        disk.

        Raises :class:`hactl.errors.Refused` if I/O is suspended or the node is not primary, and
        :class:`hactl.errors.Failed` if there is no up-to-date disk left to write to.
        """
        self.replica(node, resource, volume)
        if self.nodes[node].instances[resource].role is not Role.PRIMARY:
            raise Refused("drbd-read-only", f"resource {resource} is not primary on node {node}")
        why = self.suspended(node, resource)
        if why != "no":
            raise Refused("drbd-suspended", f"resource {resource} on node {node} is suspended: {why}")
        reached = self._having(self._reached(node, resource), resource, volume)
        reached = [n for n in reached if self.replica(n, resource, volume).disk]
        states = {n: self.state_of(n, resource, volume) for n in reached}
        if DiskState.UP_TO_DATE not in states.values():
            raise Failed("drbd-io-error", f"resource {resource} on node {node}: no up-to-date disk")
        spec = self.nodes[node].instances[resource].spec
        missing = [n for n in spec.replicas if n not in reached]
        self._new_generation(resource, volume, reached, missing)
        for name in reached:
            disk = self.replica(name, resource, volume).disk
            assert disk is not None
            assert disk.metadata is not None
            disk.blocks[block] = value
            for peer in missing:
                blocks = disk.metadata.dirty.setdefault(peer, set())
                if blocks is not None:
                    blocks.add(block)
        self.touch()

    def read(self, node: str, resource: str, volume: int, block: int) -> str | None:
        """Read one block as the device of a primary would give it."""
        for name in self._having(self._reached(node, resource), resource, volume):
            if self.state_of(name, resource, volume) is DiskState.UP_TO_DATE:
                disk = self.replica(name, resource, volume).disk
                assert disk is not None
                return disk.blocks.get(block)
        raise Failed("drbd-io-error", f"resource {resource} on node {node}: no up-to-date disk")

    def _new_generation(self, resource: str, volume: int, reached: list[str], missing: list[str]) -> None:
        """Writing, or being promoted, without a peer that has the same data begins a generation of its
        own."""
        datas = [self._data(n, resource, volume) for n in reached]
        # The target of a running resync has no data of its own, and keeps the name of what it had.
        newest = [d for d in datas if d is not None and d.consistent]
        if not any(peer not in d.dirty for d in newest for peer in missing):
            return
        generation = self.new_generation()
        for data in newest:
            data.ancestors |= {data.generation}
            data.generation = generation
            for peer in missing:
                data.dirty.setdefault(peer, set())

    def _data(self, node: str, resource: str, volume: int) -> MetaData | None:
        disk = self.replica(node, resource, volume).disk
        return disk.metadata if disk else None

    # Connections

    def linked(self, a: str, b: str, resource: str) -> bool:
        """The resource's connection between two nodes is up."""
        first, second = self.nodes[a].instances.get(resource), self.nodes[b].instances.get(resource)
        return (
            first is not None
            and second is not None
            and frozenset((a, b)) not in self._cut
            and b not in first.standalone
            and a not in second.standalone
        )

    def connection(self, node: str, peer: str, resource: str) -> ConnectionState:
        """State of one connection, as the node sees it."""
        if self.linked(node, peer, resource):
            return ConnectionState.CONNECTED
        if peer in self.nodes[node].instances[resource].standalone:
            return ConnectionState.STANDALONE
        return ConnectionState.CONNECTING

    def _reached(self, node: str, resource: str) -> list[str]:
        members = self.members(self.nodes[node].instances[resource].spec)
        return [n for n in members if n == node or self.linked(node, n, resource)]

    def _having(self, nodes: list[str], resource: str, volume: int) -> list[str]:
        """Those of ``nodes`` that have a volume up: one that joins comes up on one node after the other."""
        return [n for n in nodes if volume in self.nodes[n].instances[resource].replicas]

    def peer_disk(self, peer: str, resource: str, volume: int) -> DiskState:
        """Disk state of a connected peer's volume, as others see it."""
        if not self._having([peer], resource, volume):
            return DiskState.DISKLESS
        return self.state_of(peer, resource, volume)

    def members(self, spec: ResourceSpec) -> tuple[str, ...]:
        """Nodes that take part in a resource's replication: on DRBD 9 also those without a disk."""
        return spec.nodes if self.version >= (9,) else spec.replicas

    def connect_all(self) -> None:
        """Let every pair of nodes that can reach each other compare their data; call after any repair."""
        for a, b in itertools.combinations(self.nodes, 2):
            for name in [n for n in self.nodes[a].instances if self.linked(a, b, n)]:
                self._handshake(a, b, name)
                if self.linked(a, b, name):
                    self.fencing.connected(a, b, name)
                    self.fencing.connected(b, a, name)
        for node in self.nodes.values():
            for name, instance in node.instances.items():
                reached = len(self._reached(node.name, name))
                if 2 * reached > len(self.members(instance.spec)):
                    instance.quorum = True
        self.touch()

    def _handshake(self, a: str, b: str, resource: str) -> None:
        for volume in self.nodes[a].instances[resource].replicas:
            if not self._having([b], resource, volume):
                continue
            mine, theirs = self._data(a, resource, volume), self._data(b, resource, volume)
            if mine is None or theirs is None:
                continue
            if mine.generation == theirs.generation:
                mine.outdated = theirs.outdated = mine.outdated and theirs.outdated
                continue
            if theirs.generation in (mine.ancestors | {JUST_CREATED}):
                self._start_resync(a, b, resource, volume)
            elif mine.generation in (theirs.ancestors | {JUST_CREATED}):
                self._start_resync(b, a, resource, volume)
            else:
                # after-sb-*pri disconnect: neither side's data is thrown away.
                self.nodes[a].instances[resource].standalone.add(b)
                self.nodes[b].instances[resource].standalone.add(a)
                return

    def _start_resync(self, source: str, target: str, resource: str, volume: int) -> None:
        data, old = self._data(source, resource, volume), self._data(target, resource, volume)
        assert data is not None
        assert old is not None
        if old.generation == JUST_CREATED or target not in data.dirty:
            data.dirty[target] = None
        old.consistent = False
        self.replica(target, resource, volume).syncing_from = source

    # Resync

    def missing(self, source: str, target: str, resource: str, volume: int) -> list[int]:
        """Blocks that the target still misses."""
        disk = self.replica(source, resource, volume).disk
        assert disk is not None
        assert disk.metadata is not None
        blocks = disk.metadata.dirty.get(target, set())
        return sorted(disk.blocks if blocks is None else blocks)

    def resync(self, resource: str, blocks: int | None = None) -> int:
        """Copy up to ``blocks`` blocks (all by default) of each running resync; how many were copied."""
        copied = 0
        for node, number, replica in list(self._syncing(resource)):
            source = replica.syncing_from
            assert source is not None
            if not self.linked(node, source, resource):
                continue
            disk, origin = replica.disk, self.replica(source, resource, number).disk
            if disk is None or origin is None or disk.metadata is None or origin.metadata is None:
                continue
            todo = self.missing(source, node, resource, number)
            now = todo if blocks is None else todo[:blocks]
            for block in now:
                disk.blocks[block] = origin.blocks[block]
            copied += len(now)
            origin.metadata.dirty[node] = set(todo[len(now) :])
            if len(now) == len(todo):
                del origin.metadata.dirty[node]
                old = disk.metadata
                old.generation, old.ancestors = origin.metadata.generation, origin.metadata.ancestors
                old.consistent, old.outdated, replica.syncing_from = True, False, None
                old.dirty = {k: v if v is None else set(v) for k, v in origin.metadata.dirty.items()}
        self.touch()
        return copied

    def _syncing(self, resource: str) -> Iterator[tuple[str, int, Replica]]:
        for node in self.nodes.values():
            if resource in node.instances:
                for number, replica in node.instances[resource].replicas.items():
                    if replica.syncing_from is not None:
                        yield node.name, number, replica

    def replication(self, node: str, peer: str, resource: str, volume: int) -> ReplicationState:
        """State of one volume's replication, as the node sees it."""
        if not self.linked(node, peer, resource) or not self._having([peer], resource, volume):
            return ReplicationState.OFF
        if self.replica(node, resource, volume).syncing_from == peer:
            return ReplicationState.SYNC_TARGET
        if self.replica(peer, resource, volume).syncing_from == node:
            return ReplicationState.SYNC_SOURCE
        return ReplicationState.ESTABLISHED

    # Quorum

    def before_loss(self) -> Before:
        """How things are before connections are lost."""
        return {
            (node.name, name): (len(self._reached(node.name, name)), self.fencing.disks(node.name, name))
            for node in self.nodes.values()
            for name in node.instances
        }

    def after_loss(self, before: Before) -> None:
        """Majority, as DRBD 9 counts it: who loses its peers one after the other stays quorate, who loses the
        majority at once does not. And fencing."""
        for (node, name), (reached, disks) in before.items():
            instance = self.nodes[node].instances.get(name)
            if instance is None:
                continue
            self.fencing.disconnected(node, name, disks)
            if self.version < (9,) or len(self.members(instance.spec)) < 3:
                continue
            lost = reached - len(self._reached(node, name))
            if lost and 2 * (reached - lost) <= reached:
                instance.quorum = instance.quorum and lost == 1 and instance.role is Role.PRIMARY
        self.touch()

    # What the nodes' twins need

    def attach(self, node: str, spec: ResourceSpec, *, fencing: bool = False) -> Instance:
        """Bring a resource, or what it lacks, up on a node: attach its disks, connect. A disk that cannot be
        attached is refused, and its volume stays up without it."""
        instance = self.nodes[node].instances.setdefault(spec.name, Instance(spec))
        instance.fencing = fencing
        if not instance.replicas:
            instance.quorum = self.version < (9,) or len(self.members(spec)) < 3
        instance.standalone.clear()
        instance.spec = spec
        for number in instance.replicas.keys() - {v.number for v in spec.volumes}:
            assert not instance.replicas[number].opens, "a volume that is open cannot be removed"
            del instance.replicas[number]
        before = set(instance.replicas)
        bad = False
        for volume in (v for v in spec.volumes if v.number not in before):
            path = volume.disks.get(node)
            disk = None if path is None else self.disk(node, path)
            bad = bad or (disk is not None and not disk.failed and disk.metadata is None)
            usable = disk is not None and not disk.failed and disk.metadata is not None
            replica = Replica(spec.minor(volume), disk if usable else None)
            instance.replicas[volume.number] = replica
            self.fencing.attached(instance, node, volume.number, replica)
        if set(instance.replicas) != before:
            self.grow(node, spec.name)
        self.connect_all()
        if bad:
            raise Refused(
                "drbd-no-metadata",
                f"resource {spec.name}: No valid meta-data signature found. (119)",
                "create meta-data first",
            )
        return instance

    def promoted(self, node: str, resource: str) -> None:
        """Begin a new generation if peers are away: what follows is not theirs."""
        instance = self.nodes[node].instances[resource]
        reached = self._reached(node, resource)
        away = [n for n in instance.spec.replicas if n not in reached]
        for number in instance.replicas:
            self._new_generation(resource, number, self._having(reached, resource, number), away)
        self.touch()

    def grow(self, node: str, resource: str) -> None:
        """Take what the smallest disk of a volume offers now; called when it comes up and on resize."""
        nodes = self._reached(node, resource)
        peers = metadata.max_peers(self.nodes[node].instances[resource].spec, self.version)
        for number in self.nodes[node].instances[resource].replicas:
            replicas = [self.replica(n, resource, number) for n in self._having(nodes, resource, number)]
            sizes = [metadata.usable_size(r.disk.size, peers) for r in replicas if r.disk is not None]
            for replica in replicas:
                replica.size = min(sizes, default=None)
        self.touch()

    def new_generation(self) -> int:
        """The name of a data generation that nobody has yet."""
        return next(self._generations)

    def reached(self, node: str, resource: str) -> list[str]:
        """This node and the peers it is connected to."""
        return self._reached(node, resource)
