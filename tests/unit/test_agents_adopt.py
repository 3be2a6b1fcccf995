"""A disk that has data from before hactl: taken over as it is, once, and copied to the others."""

from __future__ import annotations

from typing import Any

import pytest

from hactl.agents.adoption import Volumes
from hactl.agents.agent import Agent
from hactl.agents.memory_peers import Killed
from hactl.agents.plan import plan
from hactl.agents.states import troubles
from hactl.errors import Failed
from hactl.model.edit_adopt import adopt, adopted
from hactl.model.preflight import BlockDevice
from hactl.model.spec import ClusterSpec
from hactl.replication.memory_model import MetaData
from hactl.replication.metadata import required_disk_size
from hactl.replication.state import DiskState
from tests.unit.agents_world import NODES, R0, World, cluster, refused
from tests.unit.test_agents_update import reboot

SIZE = 64 << 20
NEED = required_disk_size(SIZE, 1)
DATA = {n: f"before-{n}" for n in range(5)}


def disk_of(volume: int = 0) -> str:
    return f"/dev/vd{volume}"


class Adopting(World):
    """A world in which agents tell what they have carried out, as main.py has them do with the store."""

    async def start(self, node: str) -> Agent:
        agent = await super().start(node)

        async def done(over: Volumes) -> None:
            desired = self.desired()
            for resource, which in over.items():
                desired = adopted(desired, resource, node, which)
            self.update(desired.cluster, self.leftovers)

        agent.adoptions.done = done
        return agent


def make(volumes: int = 1, *, node: str = "n1", size: int = NEED, kind: str = "disk") -> Adopting:
    """Three nodes with r0, whose data are on the disks of ``node`` already."""
    world = Adopting(cluster(volumes))
    world.spec = adopt(world.desired(), R0, node).cluster
    for number in range(volumes):
        disk = world.drbd.disk(node, disk_of(number))
        disk.size, disk.kind, disk.signature = size, kind, "ext4"
        disk.blocks = dict(DATA)
    return world


async def start_all(world: Adopting) -> Adopting:
    for node in NODES:
        if node not in world.network.services:
            await world.start(node)
    return world


async def settle(world: Adopting) -> None:
    """Converge, and tell what was carried out, as the agent's task does."""
    for _ in range(3):
        await world.converge(4)
        for node in NODES:
            if node in world.network.services:
                await world.agents[node].clean()


def said(spec: ClusterSpec) -> list[str | None]:
    return [v.adopt for v in spec.resource(R0).volumes]


def states(world: Adopting, volume: int = 0) -> dict[str, DiskState]:
    return {node: world.drbd.state_of(node, R0, volume) for node in ("n1", "n2")}


def taken(world: Adopting, node: str) -> list[str]:
    return [step for where, _, step in world.steps if where == node]


@pytest.mark.parametrize("node", ["n1", "n2"])
async def test_the_data_stay_and_are_copied(node: str) -> None:
    """Also where the node with the data is not the one that declares brand-new replicas equal."""
    other = "n2" if node == "n1" else "n1"
    world = await start_all(make(node=node))
    await settle(world)
    assert states(world) == {node: DiskState.UP_TO_DATE, other: DiskState.INCONSISTENT}
    assert world.drbd.disk(node, disk_of()).blocks == DATA
    assert world.drbd.disk(other, disk_of()).blocks == {}
    assert "SkipInitialSync" not in taken(world, "n1") + taken(world, "n2")
    assert said(world.spec) == [None], "it was carried out"
    assert world.agents[node].keepers[R0].record.adopting == frozenset()
    await world.agents[node].promote(R0)
    assert world.read(3) == DATA[3]
    assert world.drbd.resync(R0) == len(DATA)
    assert states(world) == dict.fromkeys((node, other), DiskState.UP_TO_DATE)
    assert world.drbd.disk(other, disk_of()).blocks == DATA
    await settle(world)
    await world.agents[node].switchover(R0, other)
    assert world.open_at() == [other]
    assert world.read(4) == DATA[4]


async def test_the_empty_replica_is_not_promoted_before_the_copy_is_done() -> None:
    world = await start_all(make())
    await settle(world)
    world.drbd.resync(R0, blocks=2)
    world.drbd.crash("n1")
    world.network.services.pop("n1")
    world.tick(100)
    await world.converge()
    error = await refused(world.agents["n2"].promote(R0))
    assert (error.code, "Inconsistent, not UpToDate" in error.message) == ("not-ready", True)


async def test_a_logical_volume_is_made_larger_first() -> None:
    world = make(size=SIZE, kind="lvm")
    await start_all(world)
    await settle(world)
    found = world.drbd.disk("n1", disk_of())
    assert found.size >= NEED
    assert found.blocks == DATA
    assert states(world)["n1"] is DiskState.UP_TO_DATE
    steps = taken(world, "n1")
    assert steps.index("EnlargeDisk") < steps.index("AdoptDisk") < steps.index("WriteDrbdConfig")


async def test_a_volume_group_without_room() -> None:
    world = make(size=SIZE, kind="lvm")
    world.machines["n1"].backing.spare = 0
    await start_all(world)
    await settle(world)
    assert "has to grow" in str(world.agents["n1"].keepers[R0].reason)
    assert world.drbd.disk("n1", disk_of()).metadata is None


async def problems(world: Adopting, node: str = "n1") -> list[str]:
    return [p.code for p in (await world.agents[node].keepers[R0].observe()).problems]


def untouched(world: Adopting, node: str = "n1") -> bool:
    disk = world.drbd.disk(node, disk_of())
    return disk.metadata is None and disk.blocks == DATA and R0 not in world.drbd.nodes[node].files


async def test_a_disk_without_room_is_refused_with_what_is_missing() -> None:
    world = await start_all(make(size=NEED - 4096))
    await settle(world)
    (problem,) = (await world.agents["n1"].keepers[R0].observe()).problems
    assert (problem.code, "make it 4096 bytes larger" in problem.hint) == ("disk-too-small", True)
    assert untouched(world)


async def test_a_disk_that_targetcli_still_exports_is_refused_until_it_lets_go() -> None:
    world = make(size=SIZE, kind="lvm")
    world.drbd.disk("n1", disk_of()).exported = "block/data"
    await start_all(world)
    await settle(world)
    (problem,) = (await world.agents["n1"].keepers[R0].observe()).problems
    assert problem.code == "disk-exported"
    assert "targetcli /backstores/block delete data" in problem.hint
    assert untouched(world)
    assert world.drbd.disk("n1", disk_of()).size == SIZE, "nor was it enlarged"
    world.drbd.disk("n1", disk_of()).exported = None
    await settle(world)
    assert states(world)["n1"] is DiskState.UP_TO_DATE


@pytest.mark.parametrize(
    ("device", "code"),
    [
        ({"claimed": True}, "disk-busy"),
        ({"mountpoints": ("/srv",), "claimed": True}, "disk-mounted"),
        ({"holders": ("/dev/mapper/x (crypt)",), "claimed": True}, "disk-held"),
        ({"read_only": True}, "disk-read-only"),
        ({"exists": False, "is_block": False}, "disk-missing"),
    ],
)
async def test_a_disk_that_somebody_else_has_is_left_alone(device: dict[str, Any], code: str) -> None:
    world = make()
    found: dict[str, Any] = {"path": disk_of(), "size": NEED, **device}
    world.machines["n1"].disks.devices[disk_of()] = BlockDevice(**found)
    await start_all(world)
    await settle(world)
    assert await problems(world) == [code]
    assert untouched(world)


async def test_partitions_are_a_part_of_the_data() -> None:
    world = make()
    parts = ("/dev/vd0p1 (part)", "/dev/vd0p2 (part)")
    world.machines["n1"].disks.devices[disk_of()] = BlockDevice(path=disk_of(), size=NEED, holders=parts)
    await world.start("n1")
    await world.start("n2")
    await world.converge()
    assert await problems(world) == []


async def test_nothing_is_done_before_the_other_replica_is_known_to_be_brand_new() -> None:
    world = make()
    await world.start("n1")
    await world.converge()
    assert untouched(world)
    keeper = world.agents["n1"].keepers[R0]
    observed = await keeper.observe()
    assert plan(keeper.desired(), observed) == ()
    assert any("the agent on n2 has not said yet" in t for t in troubles(keeper.desired(), observed))
    await start_all(world)
    await settle(world)
    assert states(world)["n1"] is DiskState.UP_TO_DATE


async def test_data_on_the_other_disk_too_is_refused() -> None:
    world = make()
    world.drbd.disk("n2", disk_of()).signature = "xfs"
    await start_all(world)
    await settle(world)
    assert await problems(world, "n2") == ["disk-has-data"]
    assert world.drbd.disk("n2", disk_of()).metadata is None
    assert untouched(world)


async def test_metadata_of_somebody_is_not_taken_for_its_own() -> None:
    world = make()
    world.drbd.disk("n1", disk_of()).metadata = MetaData(generation=77, consistent=True)
    await start_all(world)
    await settle(world)
    assert await problems(world) == ["disk-has-drbd"]
    assert R0 not in world.drbd.nodes["n1"].files


async def test_what_was_carried_out_is_never_done_again() -> None:
    """A disk with old data comes in the place of the one that was taken over: it is not said to be good."""
    world = await start_all(make())
    await settle(world)
    world.drbd.resync(R0)
    await world.agents["n1"].promote(R0)
    await world.write("n1", 1, "after").ended()
    await world.agents["n1"].switchover(R0, "n2")
    # Even if somebody says it again, or nobody could be told that it was done.
    for again in (False, True):
        if again:
            world.update(adopt(world.desired(), R0, "n1").cluster)
        await reboot(world, "n1")
        old = world.drbd.disk("n1", disk_of())
        old.metadata, old.signature, old.blocks = None, "ext4", dict(DATA)
        await start_all(world)
        await settle(world)
        assert world.drbd.disk("n1", disk_of()).metadata is None
        assert (await problems(world))[0] == ("adopt-over" if again else "disk-has-data")
        assert world.open_at() == ["n2"]


async def test_the_word_of_a_node_that_lost_its_memory_counts_only_beside_an_empty_replica() -> None:
    world = await start_all(make())
    await settle(world)
    world.drbd.resync(R0)
    await world.agents["n1"].promote(R0)
    await world.agents["n1"].switchover(R0, "n2")
    world.update(adopt(world.desired(), R0, "n1").cluster)
    await reboot(world, "n1")
    # Installed anew: no resource file and no journal, and a disk with something old on it.
    world.drbd.nodes["n1"].files.clear()
    world.machines["n1"].journal.remove(R0)
    old = world.drbd.disk("n1", disk_of())
    old.metadata, old.signature, old.blocks = None, "ext4", dict(DATA)
    await start_all(world)
    await settle(world)
    assert untouched(world)
    assert world.drbd.state_of("n2", R0, 0) is DiskState.UP_TO_DATE


async def test_a_store_that_is_away_is_told_later() -> None:
    world = await start_all(make())
    tell = world.agents["n1"].adoptions.done

    async def away(_: Volumes) -> None:
        raise Failed("store-unreachable", "no majority")

    world.agents["n1"].adoptions.done = away
    await settle(world)
    assert states(world)["n1"] is DiskState.UP_TO_DATE
    assert said(world.spec) == ["n1"]
    assert "cannot be noted" in str(world.agents["n1"].adoptions.problem)
    assert any("cannot be noted" in reason for reason in world.agents["n1"].reasons())
    world.agents["n1"].adoptions.done = tell
    await settle(world)
    assert said(world.spec) == [None]
    assert world.agents["n1"].adoptions.problem is None


async def test_taken_back_before_it_was_begun() -> None:
    world = make()
    await world.start("n1")
    await world.converge()
    world.update(adopted(world.desired(), R0, "n1").cluster)
    await start_all(world)
    await settle(world)
    assert await problems(world) == ["disk-has-data"]
    assert untouched(world)


@pytest.mark.parametrize("node", ["n1", "n2"])
@pytest.mark.parametrize("lost", ["process", "power"])
async def test_every_kill_ends_in_the_same_place(node: str, lost: str) -> None:
    """Each agent dies after each of its steps, but those of LIO's tree: the one with the data, and the one
    that is copied to."""
    volumes = 2
    whole = await start_all(make(volumes, size=SIZE, kind="lvm"))
    await settle(whole)
    steps = taken(whole, node)
    places = [k for k, step in enumerate(steps) if step not in ("ApplyTarget", "SetAlua")]
    assert len(places) > 8
    for place in places:
        world = make(volumes, size=SIZE, kind="lvm")
        kill_at(world, node, place)
        await until_killed(world)
        assert node not in world.network.services
        if lost == "power":
            await reboot(world, node)
        world.kill = lambda where, step: False
        await start_all(world)
        await settle(world)
        where = f"{node} after {steps[place]} ({place})"
        for number in range(volumes):
            good = {"n1": DiskState.UP_TO_DATE, "n2": DiskState.INCONSISTENT}
            assert states(world, number) == good, where
            assert world.drbd.disk("n1", disk_of(number)).blocks == DATA, where
        assert said(world.spec) == [None] * volumes, where
        assert world.drbd.resync(R0) == len(DATA) * volumes, where


def kill_at(world: Adopting, node: str, place: int) -> None:
    """Have an agent die after so many of its steps."""
    world.kill = lambda where, _: where == node and len(taken(world, node)) > place


async def until_killed(world: Adopting) -> None:
    try:
        await start_all(world)
        await settle(world)
    except Killed:
        pass
