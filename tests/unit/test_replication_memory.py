"""The in-memory cluster: what a test may rely on when it cuts links, crashes nodes and fails disks."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from hactl.errors import Failed, HactlError, Refused
from hactl.replication.memory import MemoryDrbd
from hactl.replication.memory_cluster import MemoryDrbdCluster
from hactl.replication.state import ConnectionState, DiskState, ReplicationState, Role
from hactl.target.gates import Mode
from hactl.target.memory_gates import MemoryGates
from tests.unit.replication_spec import cluster, resource

V9 = (9, 2, 16)
SPEC = resource()
THREE = resource(nodes=("n1", "n2", "n3"))


class World:
    def __init__(self, version: tuple[int, int, int] = (8, 4, 11)) -> None:
        self.cluster = MemoryDrbdCluster(("n1", "n2", "n3"), version)
        self.spec = THREE if version >= (9,) else SPEC
        self.drbd = {n: MemoryDrbd(self.cluster, n) for n in self.cluster.nodes}

    async def start(self) -> None:
        members = self.cluster.members(self.spec)
        for node in members:
            await self.drbd[node].write_config(cluster(self.spec), self.spec)
            if node in self.spec.replicas:
                await self.drbd[node].create_metadata(self.spec, 0)
            await self.drbd[node].up("r0")
        await self.drbd["n1"].skip_initial_sync("r0", (0,))

    def write(self, node: str, value: str, block: int = 0) -> None:
        self.cluster.write(node, "r0", 0, block, value)

    def read(self, node: str, block: int = 0) -> str | None:
        return self.cluster.read(node, "r0", 0, block)

    def disk(self, node: str) -> DiskState:
        return self.cluster.state_of(node, "r0", 0)


@pytest.fixture
async def world() -> World:
    world = World()
    await world.start()
    return world


@pytest.fixture
async def three() -> World:
    world = World(V9)
    await world.start()
    return world


async def test_a_write_is_on_both_disks(world: World) -> None:
    await world.drbd["n1"].primary("r0")
    world.write("n1", "x")
    await world.drbd["n1"].secondary("r0")
    await world.drbd["n2"].primary("r0")
    assert world.read("n2") == "x"


async def test_one_primary_while_connected(world: World) -> None:
    await world.drbd["n1"].primary("r0")
    with pytest.raises(Refused) as caught:
        await world.drbd["n2"].primary("r0")
    assert caught.value.code == "drbd-primary-elsewhere"
    with pytest.raises(Refused):
        world.write("n2", "x")


async def test_no_secondary_while_open(world: World) -> None:
    await world.drbd["n1"].primary("r0")
    world.cluster.open("n1", "r0", 0)
    with pytest.raises(Refused) as caught:
        await world.drbd["n1"].secondary("r0")
    assert caught.value.code == "drbd-in-use"
    world.cluster.release("n1", "r0", 0)
    await world.drbd["n1"].secondary("r0")


async def test_resync_after_a_cut_step_by_step(world: World) -> None:
    await world.drbd["n1"].primary("r0")
    world.cluster.cut("n1", "n2")
    for block in range(4):
        world.write("n1", f"v{block}", block)
    world.cluster.heal("n1", "n2")
    assert world.disk("n2") is DiskState.INCONSISTENT
    state = (await world.drbd["n2"].observe())["r0"]
    assert state.connections["n1"].volumes[0].replication is ReplicationState.SYNC_TARGET
    assert world.cluster.resync("r0", 3) == 3
    assert world.disk("n2") is DiskState.INCONSISTENT
    assert world.cluster.resync("r0") == 1
    assert world.disk("n2") is DiskState.UP_TO_DATE
    await world.drbd["n1"].secondary("r0")
    await world.drbd["n2"].primary("r0")
    assert [world.read("n2", b) for b in range(4)] == ["v0", "v1", "v2", "v3"]


async def test_writes_during_an_interrupted_resync_are_not_lost(world: World) -> None:
    await world.drbd["n1"].primary("r0")
    world.cluster.cut("n1", "n2")
    for block in range(4):
        world.write("n1", "old", block)
    world.cluster.heal("n1", "n2")
    world.cluster.resync("r0", 2)
    world.write("n1", "during", 3)
    world.cluster.cut("n1", "n2")
    world.write("n1", "alone", 0)
    with pytest.raises(Refused) as caught:
        await world.drbd["n2"].primary("r0")
    assert caught.value.code == "drbd-not-uptodate"
    world.cluster.heal("n1", "n2")
    world.cluster.resync("r0")
    await world.drbd["n1"].secondary("r0")
    await world.drbd["n2"].primary("r0")
    assert [world.read("n2", b) for b in range(4)] == ["alone", "old", "old", "during"]


async def test_a_crashed_primary_comes_back_as_the_target(world: World) -> None:
    await world.drbd["n1"].primary("r0")
    world.write("n1", "before")
    world.cluster.crash("n1")
    await world.drbd["n2"].primary("r0")
    world.write("n2", "after")
    with pytest.raises(Failed):
        await world.drbd["n1"].observe()
    world.cluster.boot("n1")
    await world.drbd["n1"].up("r0")
    world.cluster.resync("r0")
    assert world.disk("n1") is DiskState.UP_TO_DATE
    assert world.read("n1") == "after"


async def test_data_that_diverged_does_not_connect(world: World) -> None:
    world.cluster.cut("n1", "n2")
    for node in ("n1", "n2"):
        await world.drbd[node].primary("r0")
        world.write(node, node)
    world.cluster.heal("n1", "n2")
    for node, peer in (("n1", "n2"), ("n2", "n1")):
        state = (await world.drbd[node].observe())["r0"]
        assert state.connections[peer].state is ConnectionState.STANDALONE
        assert world.read(node) == node


async def test_a_secondary_that_left_a_primary_is_outdated(world: World) -> None:
    await world.drbd["n1"].primary("r0")
    await world.drbd["n2"].down("r0")
    world.cluster.cut("n1", "n2")
    await world.drbd["n2"].up("r0")
    assert world.disk("n2") is DiskState.OUTDATED
    with pytest.raises(Refused):
        await world.drbd["n2"].primary("r0")
    world.cluster.heal("n1", "n2")
    assert world.disk("n2") is DiskState.UP_TO_DATE


async def test_a_failed_disk_is_served_by_the_peer(world: World) -> None:
    await world.drbd["n1"].primary("r0")
    world.cluster.fail_disk("n1", "/dev/vdb")
    assert world.disk("n1") is DiskState.DISKLESS
    world.write("n1", "x")
    assert world.read("n1") == "x"
    world.cluster.cut("n1", "n2")
    with pytest.raises(Failed):
        world.write("n1", "y")


async def test_the_first_copy_is_skipped_once(world: World) -> None:
    with pytest.raises(Refused):
        await world.drbd["n1"].skip_initial_sync("r0", (0,))


async def test_who_loses_the_majority_at_once_is_suspended(three: World) -> None:
    await three.drbd["n1"].primary("r0")
    three.cluster.isolate("n1")
    state = (await three.drbd["n1"].observe())["r0"]
    assert state.suspended == "quorum"
    assert not state.volumes[0].quorum
    with pytest.raises(Refused) as caught:
        three.write("n1", "x")
    assert caught.value.code == "drbd-suspended"
    await three.drbd["n2"].primary("r0")
    three.write("n2", "y")


async def test_who_loses_its_peers_in_turn_stays_quorate(three: World) -> None:
    """As recorded of DRBD 9.2.16, states 13 and 18."""
    await three.drbd["n1"].primary("r0")
    three.cluster.cut("n1", "n2")
    three.cluster.cut("n1", "n3")
    three.write("n1", "x")
    with pytest.raises(Refused):
        await three.drbd["n2"].secondary("r9")


async def test_a_diskless_node_can_be_primary(three: World) -> None:
    await three.drbd["n3"].primary("r0")
    three.write("n3", "x")
    assert three.read("n3") == "x"
    assert (await three.drbd["n3"].observe())["r0"].volumes[0].disk is DiskState.DISKLESS


async def test_watch_wakes_up(world: World) -> None:
    async with contextlib.aclosing(world.drbd["n2"].watch()) as watch:
        first = await anext(watch)
        assert first is not None
        assert first["r0"].connections["n1"].role is Role.SECONDARY
        waiting = asyncio.ensure_future(anext(watch))
        await world.drbd["n1"].primary("r0")
        second = await waiting
        assert second is not None
        assert second["r0"].connections["n1"].role is Role.PRIMARY


async def test_resize_takes_what_both_disks_offer(world: World) -> None:
    before = (await world.drbd["n1"].observe())["r0"].volumes[0].size
    assert before is not None
    for node in ("n1", "n2"):
        world.cluster.disk(node, "/dev/vdb").size *= 2
    await world.drbd["n1"].resize("r0")
    after = (await world.drbd["n2"].observe())["r0"].volumes[0].size
    assert after is not None
    assert after > before
    world.cluster.cut("n1", "n2")
    with pytest.raises(Refused):
        await world.drbd["n1"].resize("r0")


async def test_a_gate_keeps_drbd_open_only_while_it_is_open(world: World) -> None:
    gates = MemoryGates(world.drbd["n1"])
    await gates.create("g", 8 << 20)
    with pytest.raises(Failed):
        await gates.open("g", "/dev/drbd16")
    await world.drbd["n1"].primary("r0")
    await gates.open("g", "/dev/drbd16")
    with pytest.raises(Refused):
        await world.drbd["n1"].secondary("r0")
    await gates.hold("g")
    write = gates.write("g", 0, "held")
    await world.drbd["n1"].secondary("r0")
    await world.drbd["n1"].primary("r0")
    await gates.open("g", "/dev/drbd16")
    assert await write.ended() == "done"
    assert gates.read("g", 0) == "held"


async def test_an_interrupted_change_can_be_made_again(world: World) -> None:
    gates = MemoryGates(world.drbd["n1"])
    await gates.create("g", 8 << 20)
    await world.drbd["n1"].primary("r0")
    gates.interrupt()
    with pytest.raises(HactlError):
        await gates.open("g", "/dev/drbd16")
    assert (await gates.observe())["g"].mode is Mode.SUSPENDED
    write = gates.write("g", 0, "x")
    assert write.state == "pending"
    await gates.open("g", "/dev/drbd16")
    assert write.state == "done"
    await gates.close("g")
    await world.drbd["n1"].secondary("r0")


async def test_suspended_io_is_in_flight_until_drbd_goes_on(three: World) -> None:
    gates = MemoryGates(three.drbd["n1"])
    await gates.create("g", 8 << 20)
    await three.drbd["n1"].primary("r0")
    await gates.open("g", "/dev/drbd16")
    three.cluster.isolate("n1")
    write = gates.write("g", 0, "x")
    assert write.state == "pending"
    with pytest.raises(Failed) as caught:
        await gates.hold("g")
    assert caught.value.code == "gate-io-in-flight"
    assert (await gates.observe())["g"].mode is Mode.OPEN
    three.cluster.heal("n1", "n2")
    assert await write.ended() == "done"


async def test_a_crash_ends_what_was_pending(world: World) -> None:
    gates = MemoryGates(world.drbd["n1"])
    await gates.create("g", 8 << 20)
    await gates.hold("g")
    write = gates.write("g", 0, "x")
    world.cluster.crash("n1")
    gates.forget()
    assert await write.ended() == "failed"
    assert await gates.observe() == {}
