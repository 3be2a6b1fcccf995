"""In-memory twin of DRBD on one node; keeps :class:`hactl.replication.protocol.Replication`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection

from hactl.errors import Failed, Refused
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.replication import config, metadata
from hactl.replication.drbd import why_not_new
from hactl.replication.memory_cluster import MemoryDrbdCluster
from hactl.replication.memory_model import JUST_CREATED, Disk, Instance, MetaData, Node
from hactl.replication.state import (
    Connection,
    ConnectionState,
    DiskState,
    PeerVolume,
    ResourceState,
    Role,
    Volume,
)

__all__ = ["MemoryDrbd", "MemoryDrbdCluster"]


class MemoryDrbd:
    """DRBD on one node of a :class:`MemoryDrbdCluster`. A node that is powered off refuses everything."""

    def __init__(self, cluster: MemoryDrbdCluster, node: str) -> None:
        self.cluster = cluster
        self.node = node

    async def version(self) -> tuple[int, int, int]:
        return self.cluster.version

    async def observe(self) -> dict[str, ResourceState]:
        instances = self._me.instances
        return {name: self._state(name, instance) for name, instance in instances.items()}

    async def watch(self) -> AsyncGenerator[dict[str, ResourceState] | None]:
        last: dict[str, ResourceState] | None = None
        while True:
            revision = self.cluster.revision
            now = await self.observe()
            if now != last:
                last = now
                yield dict(now)
            if self.cluster.revision == revision:
                await self.cluster.changed()

    def device(self, minor: int) -> str:
        return f"/dev/drbd{minor}"

    async def configured(self, cluster: ClusterSpec, resource: ResourceSpec) -> bool:
        text = config.render(cluster, resource, self.cluster.version)
        file = self._me.files.get(resource.name)
        return file is not None and file[0] == text

    async def write_config(self, cluster: ClusterSpec, resource: ResourceSpec) -> None:
        text = config.render(cluster, resource, self.cluster.version)
        self._me.files[resource.name] = (text, resource)

    async def remove_config(self, name: str) -> None:
        self._me.files.pop(name, None)

    async def placed(self, name: str) -> dict[int, str]:
        file = self._me.files.get(name)
        volumes = file[1].volumes if file is not None else ()
        return {v.number: v.disks[self.node] for v in volumes if self.node in v.disks}

    async def has_metadata(self, resource: ResourceSpec, volume: int) -> bool:
        return self.cluster.disk(self.node, self._path(resource, volume)).metadata is not None

    async def create_metadata(self, resource: ResourceSpec, volume: int) -> None:
        path = self._path(resource, volume)
        disk = self._bare(resource, volume)
        if disk.signature is not None:
            raise Refused(
                "drbd-disk-not-empty",
                f"resource {resource.name}: {path} carries a signature of {disk.signature}",
            )
        self._require_room(resource, volume)
        disk.metadata = MetaData()
        self.cluster.touch()

    async def adopt_metadata(self, resource: ResourceSpec, volume: int) -> None:
        disk = self._bare(resource, volume)
        self._require_room(resource, volume)
        disk.metadata = MetaData(
            generation=self.cluster.new_generation(),
            consistent=True,
            dirty=dict.fromkeys(n for n in self.cluster.members(resource) if n != self.node),
        )
        self.cluster.touch()

    def _bare(self, resource: ResourceSpec, volume: int) -> Disk:
        """The local disk of a volume, which has no meta-data."""
        path = self._path(resource, volume)
        disk = self.cluster.disk(self.node, path)
        if disk.metadata is not None:
            raise Refused(
                "drbd-metadata-exists", f"resource {resource.name}: {path} carries DRBD meta-data already"
            )
        return disk

    def _require_room(self, resource: ResourceSpec, volume: int) -> None:
        path = self._path(resource, volume)
        disk = self.cluster.disk(self.node, path)
        size = resource.volume(volume).size
        needed = metadata.required_disk_size(size, metadata.max_peers(resource, self.cluster.version))
        if disk.size < needed:
            raise Refused(
                "drbd-disk-too-small",
                f"resource {resource.name}: {path} has {disk.size} bytes, and the volume with meta-data"
                f" needs {needed}",
            )

    async def wipe_metadata(self, name: str, minor: int, disk: str) -> None:
        replicas = [r for i in self._me.instances.values() for r in i.replicas.values()]
        found = self.cluster.disk(self.node, disk)
        if any(r.minor == minor for r in replicas):
            raise Refused(
                "drbd-in-use", f"resource {name}: minor {minor} is configured", "take the resource down first"
            )
        if any(r.disk is found for r in replicas):
            raise Refused(
                "drbd-disk-busy",
                f"resource {name}: {disk} is in use by something else",
                "free the disk, or name another one",
            )
        found.metadata = None
        self.cluster.touch()

    async def up(self, name: str) -> None:
        file = self._me.files.get(name)
        if file is None:
            raise Failed("drbd-failed", f"resource {name}: not defined in your config")
        self.cluster.attach(self.node, file[1], fencing="fencing resource-and-stonith;" in file[0])

    async def down(self, name: str) -> None:
        instance = self._me.instances.get(name)
        if instance is None:
            return
        if any(r.opens for r in instance.replicas.values()):
            raise _in_use(name)
        # A node that leaves a primary in good order knows that its data is old from now on.
        for peer in self.cluster.reached(self.node, name):
            if peer != self.node and self.cluster.nodes[peer].instances[name].role is Role.PRIMARY:
                for replica in instance.replicas.values():
                    if replica.disk is not None and replica.disk.metadata is not None:
                        replica.disk.metadata.outdated = True
        before = self.cluster.before_loss()
        self.cluster.fencing.note(self.node)
        del self._me.instances[name]
        self.cluster.after_loss(before)

    async def skip_initial_sync(self, name: str, volumes: Collection[int]) -> None:
        state = (await self.observe()).get(name)
        reason = why_not_new(state, volumes)
        if reason:
            raise Refused("drbd-not-new", f"resource {name}: cannot skip the first copy: {reason}")
        nodes = self.cluster.reached(self.node, name)
        disks = [
            replica.disk
            for n in nodes
            for number, replica in self.cluster.nodes[n].instances[name].replicas.items()
            if number in volumes
        ]
        datas = [d.metadata for d in disks if d is not None and d.metadata is not None]
        if any(d.generation != JUST_CREATED for d in datas):
            raise Refused("drbd-refused", f"resource {name}: there is a data generation already")
        generation = self.cluster.new_generation()
        for data in datas:
            data.generation, data.consistent, data.dirty = generation, True, {}
        self.cluster.touch()

    async def primary(self, name: str) -> None:
        instance = self._up(name)
        if instance.role is not Role.PRIMARY:
            await self.cluster.fencing.before_primary(self.node, name)
        nodes = self.cluster.reached(self.node, name)
        for peer in nodes:
            if peer != self.node and self.cluster.nodes[peer].instances[name].role is Role.PRIMARY:
                raise Refused(
                    "drbd-primary-elsewhere",
                    f"resource {name}: Multiple primaries not allowed by config (-1)",
                    "demote the resource on the other node first",
                )
        for number in instance.replicas:
            states = [self.cluster.peer_disk(n, name, number) for n in nodes]
            if DiskState.UP_TO_DATE not in states:
                raise Refused(
                    "drbd-not-uptodate",
                    f"resource {name}: Need access to UpToDate data (-2)",
                    "connect a node whose data is up to date, or wait until the resync is done",
                )
        if instance.role is not Role.PRIMARY and self.cluster.fencing.unsettled(self.node, name):
            raise Refused(
                "drbd-peer-not-outdated",
                f"resource {name}: Refusing to be Primary while peer is not outdated (-7)",
                "fence the peer first",
            )
        if not instance.quorum:
            raise Refused(
                "drbd-no-quorum", f"resource {name}: No quorum (-22)", "bring back a majority of the nodes"
            )
        if instance.role is not Role.PRIMARY:
            instance.role = Role.PRIMARY
            self.cluster.promoted(self.node, name)

    async def secondary(self, name: str) -> None:
        instance = self._up(name)
        if any(r.opens for r in instance.replicas.values()):
            raise _in_use(name)
        instance.role = Role.SECONDARY
        self.cluster.touch()

    async def outdate(self, name: str) -> None:
        instance = self._up(name)
        if len(self.cluster.reached(self.node, name)) > 1:
            return
        if not self.cluster.fencing.outdate(instance):
            raise Refused(
                "drbd-not-uptodate",
                f"resource {name}: Need access to UpToDate data (-2)",
                "connect a node whose data is up to date, or wait until the resync is done",
            )
        self.cluster.touch()

    async def resume(self, name: str) -> None:
        self._up(name).frozen = False
        self.cluster.touch()

    async def resize(self, name: str) -> None:
        instance = self._up(name)
        if len(self.cluster.reached(self.node, name)) < len(self.cluster.members(instance.spec)):
            raise Refused("drbd-refused", f"resource {name}: not all peers are connected")
        self.cluster.grow(self.node, name)

    def find(self, device: str) -> tuple[str, int]:
        """Resource and volume of a device that is up here; :class:`hactl.errors.Refused` if there is none."""
        for name, instance in self._me.instances.items():
            for number, replica in instance.replicas.items():
                if self.device(replica.minor) == device:
                    return name, number
        raise Refused("gate-no-device", f"{device}: No such file or directory")

    def size(self, name: str, volume: int) -> int:
        """Bytes a device offers, 0 if none of its disks is up."""
        return self._me.instances[name].replicas[volume].size or 0

    @property
    def _me(self) -> Node:
        node = self.cluster.nodes[self.node]
        if not node.alive:
            raise Failed("node-off", f"node {self.node} is powered off")
        return node

    def _up(self, name: str) -> Instance:
        instance = self._me.instances.get(name)
        if instance is None:
            raise Refused(
                "drbd-not-configured",
                f"resource {name}: Unknown resource (158)",
                "bring the resource up first",
            )
        return instance

    def _path(self, resource: ResourceSpec, number: int) -> str:
        for volume in resource.volumes:
            if volume.number == number and self.node in volume.disks:
                return volume.disks[self.node]
        raise Refused(
            "drbd-no-disk", f"resource {resource.name}: volume {number} has no disk on node {self.node}"
        )

    def _state(self, name: str, instance: Instance) -> ResourceState:
        peers = [n for n in self.cluster.members(instance.spec) if n != self.node]
        return ResourceState(
            name=name,
            role=instance.role,
            suspended=self.cluster.suspended(self.node, name),
            volumes={
                number: Volume(
                    replica.minor,
                    self.cluster.state_of(self.node, name, number),
                    replica.size,
                    instance.quorum,
                )
                for number, replica in instance.replicas.items()
            },
            connections={peer: self._connection(name, peer, instance) for peer in peers},
        )

    def _connection(self, name: str, peer: str, instance: Instance) -> Connection:
        state = self.cluster.connection(self.node, peer, name)
        if state is not ConnectionState.CONNECTED:
            off = {
                n: PeerVolume(
                    self.cluster.replication(self.node, peer, name, n),
                    self.cluster.fencing.peer_disk(self.node, peer, name, n),
                )
                for n in instance.replicas
            }
            return Connection(peer, state, Role.UNKNOWN, off)
        volumes = {
            n: PeerVolume(
                self.cluster.replication(self.node, peer, name, n), self.cluster.peer_disk(peer, name, n)
            )
            for n in instance.replicas
        }
        return Connection(peer, state, self.cluster.nodes[peer].instances[name].role, volumes)


def _in_use(name: str) -> Refused:
    return Refused(
        "drbd-in-use",
        f"resource {name}: Device is held open by someone (-12)",
        "close the gate, or end what has the device open",
    )
