"""Disks from pools, and what is left of volumes that were removed: cleared away when nothing uses it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from hactl.agents.memory_peers import Killed
from hactl.backing.protocol import backing_disks
from hactl.errors import Refused, Unknown
from hactl.model.desired import Leftover
from hactl.model.leave import leftovers
from hactl.model.spec import ClusterSpec, FilesPool, LvmPool, PoolSpec
from hactl.replication.metadata import required_disk_size
from hactl.replication.state import DiskState
from hactl.target.gates import gate_name
from tests.unit.agents_world import NODES, R0, World, active, cluster
from tests.unit.test_agents_update import having, in_order, nothing_left, reboot

POOLS = (
    PoolSpec(name="fast", lvm=LvmPool(vg="vg0")),
    PoolSpec(name="files", files=FilesPool(path="/srv/hactl")),
)
DEVICES = {"fast": "/dev/vg0/hactl.r0.0", "files": "/dev/hactl/r0.0"}


def pooled(pool: str = "fast", size: int = 64 << 20) -> ClusterSpec:
    """r0's disks come from a pool of each node."""
    spec = cluster()
    nodes = tuple(n.model_copy(update={"pools": POOLS}) for n in spec.nodes)
    (r0,) = spec.resources
    disks = dict.fromkeys(("n1", "n2"), f"pool:{pool}")
    volume = r0.volumes[0].model_copy(update={"disks": disks, "size": size})
    return spec.model_copy(
        update={"nodes": nodes, "resources": (r0.model_copy(update={"volumes": (volume,)}),)}
    )


def left_of(spec: ClusterSpec, *, destroy: bool, nodes: Sequence[str] = NODES) -> tuple[Leftover, ...]:
    """What r0 leaves behind."""
    r0 = spec.resource(R0)
    return leftovers(spec, r0, r0.volumes, nodes, destroy=destroy)


async def disks(world: World, node: str) -> dict[str, set[Any]]:
    """What the node's pools hold, by pool."""
    found = await world.machines[node].backing.observe(POOLS)
    return {name: set(state.disks) for name, state in found.items()}


class Told:
    """Stands for the store: takes note of the leftovers that are gone, and tells every agent."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fail: list[Unknown] = []
        for agent in world.agents.values():
            agent.leftovers.done = self.done

    async def done(self, gone: Sequence[Leftover]) -> None:
        kept = tuple(left for left in self.world.leftovers if left not in gone)
        self.world.update(self.world.spec, kept)
        if self.fail:
            raise self.fail.pop()


async def settle(world: World) -> None:
    """Let every living agent do what is due and clear up."""
    for _ in range(3):
        await world.attend(3)
        for node in NODES:
            if node in world.network.services:
                await world.agents[node].clean()


@pytest.mark.parametrize("pool", DEVICES)
async def test_disks_come_from_the_pool_before_anything_uses_them(pool: str) -> None:
    world = await active(World(pooled(pool)))
    await in_order(world)
    first = [step for node, _, step in world.steps if node == "n1"][:3]
    assert first == ["EnsureDisk", "WriteDrbdConfig", "CreateGate"]
    for node in ("n1", "n2"):
        assert (await disks(world, node))[pool] == {(R0, 0)}
        assert await world.machines[node].drbd.placed(R0) == {0: DEVICES[pool]}
    assert await disks(world, "n3") == {"fast": set(), "files": set()}
    assert world.open_at() == ["n1"]


async def test_a_pool_that_is_not_there_is_the_resources_reason() -> None:
    world = World(pooled())
    del world.machines["n2"].backing.sizes["fast"]
    await world.up()
    keeper = world.agents["n2"].keepers[R0]
    assert keeper.reason is not None
    assert "pool fast" in keeper.reason
    assert await world.machines["n2"].drbd.placed(R0) == {}
    world.machines["n2"].backing.sizes["fast"] = 1 << 40
    await world.converge()
    await in_order(world)


async def test_disks_grow_before_the_volume_does() -> None:
    world = await active(World(pooled()))
    assert await world.write("n1", 1, "5").ended() == "done"
    world.update(pooled(size=256 << 20))
    await world.attend()
    await in_order(world)
    for node in ("n1", "n2"):
        (state,) = (await world.machines[node].backing.observe(POOLS[:1])).values()
        assert state.disks[R0, 0].size >= required_disk_size(256 << 20, 1)
    for machine in world.machines.values():
        assert (await machine.gates.observe())[gate_name(R0, 0)].size == 256 << 20
    assert world.read(1) == "5"


async def test_after_a_reboot_disks_are_attached_again() -> None:
    world = await active(World(pooled("files")))
    world.machines["n2"].backing.reboot()
    await reboot(world, "n2")
    world.steps.clear()
    await world.start("n2")
    await world.attend()
    await in_order(world)
    assert ("n2", R0, "EnsureDisk") in world.steps
    assert ("n2", R0, "CreateMetadata") not in world.steps
    state = (await world.machines["n2"].drbd.observe())[R0]
    assert state.volumes[0].disk is DiskState.UP_TO_DATE


async def test_a_disk_that_had_data_is_not_replaced_by_an_empty_one() -> None:
    world = await active(World(pooled()))
    await reboot(world, "n2")
    machine = world.machines["n2"]
    (disk,) = backing_disks(world.spec.node("n2"), world.spec.resource(R0), world.drbd.version)
    machine.backing.lose(disk)
    await world.start("n2")
    await world.attend()
    reason = world.agents["n2"].keepers[R0].reason
    assert reason is not None
    assert "does not exist in pool fast any more" in reason
    assert await machine.drbd.observe() == {}
    assert world.open_at() == ["n1"]


@pytest.mark.parametrize("destroy", [True, False])
async def test_a_removed_resource_leaves_what_it_was_told_to_leave(destroy: bool) -> None:
    world = await active(World(pooled()))
    told = Told(world)
    world.update(having(world.spec), left_of(world.spec, destroy=destroy))
    told.fail.append(Unknown("store-unknown", "sent, not answered"))
    await settle(world)
    await in_order(world)
    await nothing_left(world, R0)
    assert world.leftovers == ()
    for node in ("n1", "n2"):
        assert (await disks(world, node))["fast"] == (set() if destroy else {(R0, 0)})
    for node in NODES:
        assert world.agents[node].leftovers.pending(world.desired()) == ()


async def test_a_plain_disk_is_wiped_of_drbds_meta_data_and_of_nothing_else() -> None:
    world = await active(World())
    Told(world)
    assert await world.write("n1", 3, "data").ended() == "done"
    world.update(having(world.spec), left_of(world.spec, destroy=True))
    await settle(world)
    assert world.leftovers == ()
    for node in ("n1", "n2"):
        disk = world.drbd.disk(node, "/dev/vd0")
        assert disk.metadata is None
        assert disk.blocks == {3: "data"}


async def test_a_volume_that_leaves_is_cleared_away_while_the_others_serve() -> None:
    world = await active(World(cluster(2)))
    Told(world)
    r0 = world.spec.resource(R0)
    left = leftovers(world.spec, r0, r0.volumes[1:], NODES, destroy=True)
    world.update(cluster(1), left)
    await settle(world)
    await in_order(world)
    assert world.leftovers == ()
    assert world.drbd.disk("n1", "/dev/vd1").metadata is None
    assert world.drbd.disk("n1", "/dev/vd0").metadata is not None
    assert world.open_at() == ["n1"]


@pytest.mark.parametrize("rebooted", [False, True])
async def test_a_node_that_was_down_when_the_resource_was_deleted(rebooted: bool) -> None:
    world = await active(World(pooled()))
    world.network.services.pop("n2")
    if rebooted:
        await reboot(world, "n2")
    told = Told(world)
    world.update(having(world.spec), left_of(world.spec, destroy=True))
    await settle(world)
    assert {left.node for left in world.leftovers} == {"n2"}
    await world.start("n2")
    world.agents["n2"].leftovers.done = told.done
    await settle(world)
    await in_order(world)
    await nothing_left(world, R0)
    assert world.leftovers == ()
    assert (await disks(world, "n2"))["fast"] == set()


async def test_what_is_in_use_is_not_removed() -> None:
    world = await active(World(pooled()))
    Told(world)
    machine = world.machines["n2"]
    machine.backing.opened.add(DEVICES["fast"])
    world.update(having(world.spec), left_of(world.spec, destroy=True))
    await settle(world)
    (left,) = world.leftovers
    assert left.node == "n2"
    assert "in use" in world.agents["n2"].leftovers.reasons[left.key]
    machine.backing.opened.clear()
    await settle(world)
    assert world.leftovers == ()


async def test_a_disk_that_is_wanted_again_is_not_wiped() -> None:
    world = await active(World())
    Told(world)
    (r0,) = world.spec.resources
    left = left_of(world.spec, destroy=True, nodes=("n1",))
    world.update(having(world.spec, r0.model_copy(update={"name": "r1", "id": 2, "iqn": r0.iqn + "1"})), left)
    await settle(world)
    assert world.drbd.disk("n1", "/dev/vd0").metadata is not None
    assert world.leftovers == left
    assert "wanted for another volume" in world.agents["n1"].leftovers.reasons[left[0].key]


async def test_a_pool_that_is_gone_is_told_of() -> None:
    world = await active(World(pooled()))
    Told(world)
    left = left_of(world.spec, destroy=True, nodes=("n1",))
    world.update(cluster().model_copy(update={"resources": ()}), left)
    await settle(world)
    assert world.leftovers == left
    assert "no node or pool" in world.agents["n1"].leftovers.reasons[left[0].key]


async def test_a_kill_between_any_two_steps_of_removing() -> None:
    world = await active(World(pooled()))
    world.steps.clear()
    Told(world)
    world.update(having(world.spec), left_of(world.spec, destroy=True))
    await settle(world)
    steps = [step for node, _, step in world.steps if node == "n1"]
    assert steps[-2:] == ["leftover:removed", "leftover:done"]
    for number in range(len(steps)):
        world = await active(World(pooled()))
        told = Told(world)
        counted = itertools.count()
        world.kill = lambda node, step: node == "n1" and next(counted) == number  # noqa: B023 - in this round
        world.update(having(world.spec), left_of(world.spec, destroy=True))
        with contextlib.suppress(Killed):
            await settle(world)
        await world.restart_dead()
        for agent in world.agents.values():
            agent.leftovers.done = told.done
        await settle(world)
        await in_order(world)
        await nothing_left(world, R0)
        assert world.leftovers == ()
        assert (await disks(world, "n1"))["fast"] == set()


async def test_without_anybody_to_tell_it_stays_and_is_told_of() -> None:
    world = await active(World(pooled()))
    told = Told(world)

    async def refuse(gone: Sequence[Leftover]) -> None:
        raise Refused("store-unreachable", "no member of the store can be reached")

    world.agents["n1"].leftovers.done = refuse
    world.update(having(world.spec), left_of(world.spec, destroy=True))
    await settle(world)
    (left,) = world.leftovers
    assert (left.node, (await disks(world, "n1"))["fast"]) == ("n1", set())
    assert "no member" in world.agents["n1"].leftovers.reasons[left.key]
    world.agents["n1"].leftovers.done = told.done
    await settle(world)
    assert world.leftovers == ()
