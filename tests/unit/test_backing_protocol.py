"""From a specification to the disks a node's pools have to provide; and the twin beside DRBD's."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from hactl.backing.memory import MemoryBacking
from hactl.backing.protocol import (
    BackingDisk,
    DiskState,
    PoolState,
    backing_disks,
    device_size,
    leftover_disk,
)
from hactl.errors import Refused
from hactl.model.desired import Leftover
from hactl.model.spec import (
    Addresses,
    ClusterSpec,
    FilesPool,
    LvmPool,
    LvmThinPool,
    NodeSpec,
    PoolSpec,
    ResourceSpec,
    VolumeSpec,
)
from hactl.replication.memory import MemoryDrbd
from hactl.replication.memory_cluster import MemoryDrbdCluster
from hactl.replication.metadata import usable_size

GB = 1 << 30
FAST = PoolSpec(name="fast", lvm=LvmPool(vg="vg0"))
THIN = PoolSpec(name="thin", lvm_thin=LvmThinPool(vg="vg0", thin_pool="tp"))
TRIAL = PoolSpec(name="trial", files=FilesPool(path="/srv"))


def node(name: str, number: int, *pools: PoolSpec) -> NodeSpec:
    ip = ip_address(f"192.0.2.{number}")
    return NodeSpec(
        name=name, id=number, addresses=Addresses(cluster=ip, replication=ip, storage=(ip,)), pools=pools
    )


N1, N2 = node("n1", 1, FAST, THIN), node("n2", 2, TRIAL)
R0 = ResourceSpec(
    name="r0",
    id=1,
    iqn="iqn.2026-11.org.example:r0",
    nodes=("n1", "n2"),
    volumes=(
        VolumeSpec(number=0, lun=0, size=GB, disks={"n1": "pool:fast", "n2": "pool:trial"}),
        VolumeSpec(number=1, lun=1, size=2 * GB, disks={"n1": "/dev/vdb", "n2": "pool:trial"}),
    ),
)
CLUSTER = ClusterSpec(name="c", nodes=(N1, N2), resources=(R0,))


def leftover(disk: str | None, *, destroy: bool = True) -> Leftover:
    return Leftover(
        node="n1",
        resource="r0",
        volume=0,
        resource_id=1,
        minor=16,
        port=7001,
        iqn=R0.iqn,
        serial="0" * 32,
        disk=disk,
        device=None,
        destroy=destroy,
    )


@pytest.mark.parametrize("version", [(8, 4, 11), (9, 2, 16)])
def test_disks_hold_the_volume_and_drbds_meta_data(version: tuple[int, int, int]) -> None:
    (disk,) = backing_disks(N1, R0, version)
    peers = 1 if version < (9,) else 7
    assert (disk.resource, disk.volume, disk.pool) == ("r0", 0, FAST)
    assert usable_size(disk.size, peers) >= GB
    assert disk.size == device_size(GB, peers) <= device_size(GB)
    assert [d.volume for d in backing_disks(N2, R0, version)] == [0, 1]


def test_disks_are_where_the_specification_says() -> None:
    resolved = CLUSTER.resolved().resource("r0")
    for spec in (N1, N2):
        for disk in backing_disks(spec, R0, (8, 4, 11)):
            assert disk.device == resolved.volumes[disk.volume].disks[spec.name]


def test_leftovers_that_have_storage_to_remove() -> None:
    found = leftover_disk(CLUSTER, leftover("pool:fast"))
    assert found is not None
    assert (found.key, found.pool, found.device) == (("r0", 0), FAST, "/dev/vg0/hactl.r0.0")
    assert leftover_disk(CLUSTER, leftover("pool:fast", destroy=False)) is None
    assert leftover_disk(CLUSTER, leftover("/dev/vdb")) is None
    assert leftover_disk(CLUSTER, leftover(None)) is None
    with pytest.raises(KeyError):
        leftover_disk(CLUSTER, leftover("pool:gone"))


def test_room_is_counted_in_extents() -> None:
    thick = PoolState(size=100, free=20, extent=8)
    assert thick.room_for(16)
    assert not thick.room_for(17)
    thin = PoolState(size=100, free=1, extent=8, thin=True)
    assert thin.room_for(1000)
    assert not PoolState(size=100, free=0, extent=8, thin=True).room_for(1)


def test_what_satisfies() -> None:
    disk = BackingDisk("r0", 0, FAST, 10)
    assert DiskState(10, ready=True).satisfies(disk)
    assert not DiskState(9, ready=True).satisfies(disk)
    assert not DiskState(10, ready=False).satisfies(disk)
    assert not DiskState(10, ready=True, ours=False).satisfies(disk)


async def test_the_twins_disks_are_those_of_drbds_twin() -> None:
    drbd = MemoryDrbdCluster(("n1", "n2"))
    backing = MemoryBacking({"fast": 10 * GB, "thin": 10 * GB}, drbd=drbd, node="n1")
    (disk,) = backing_disks(N1, R0, drbd.version)
    await backing.ensure(disk)
    one = R0.model_copy(update={"volumes": R0.volumes[:1]})
    cluster = CLUSTER.model_copy(update={"resources": (one,)}).resolved()
    resource = cluster.resource("r0")
    dm = MemoryDrbd(drbd, "n1")
    await dm.write_config(cluster, resource)
    await dm.create_metadata(resource, 0)
    await dm.up("r0")
    size = dm.size("r0", 0)
    assert size >= GB
    with pytest.raises(Refused) as caught:
        await backing.remove(disk)
    assert caught.value.code == "backing-in-use"
    await backing.ensure(BackingDisk("r0", 0, FAST, 2 * disk.size))
    await dm.down("r0")
    await dm.up("r0")
    assert dm.size("r0", 0) > size
    await dm.down("r0")
    await backing.remove(disk)
    assert backing.devices() == set()
    await backing.ensure(disk)
    assert not await dm.has_metadata(resource, 0), "a new disk is an empty one"
    backing.lose(disk)
    with pytest.raises(Refused) as caught:
        await backing.ensure(disk, create=False)
    assert caught.value.code == "backing-missing"


async def test_two_pools_of_a_volume_group_in_the_twin() -> None:
    backing = MemoryBacking({"fast": GB, "thin": GB})
    await backing.ensure(BackingDisk("r0", 0, FAST, 1))
    with pytest.raises(Refused) as caught:
        await backing.ensure(BackingDisk("r0", 0, THIN, 1))
    assert caught.value.code == "backing-foreign"
    states = await backing.observe([FAST, THIN, TRIAL])
    assert set(states) == {"fast", "thin"}
    assert states["thin"].disks["r0", 0].ours is False
