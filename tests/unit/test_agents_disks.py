"""Disks that cannot be used: their resource is left alone and says why, the others go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hactl.agents.disks import unsettled
from hactl.agents.serve import Api
from hactl.model.preflight import BlockDevice, Signature
from hactl.model.spec import ClusterSpec
from hactl.replication.memory_model import MetaData
from hactl.replication.state import DiskState, ResourceState, Role, Volume
from hactl.target.gates import gate_name
from tests.unit.agents_world import NODES, R0, World, active, cluster, refused

DISK = "/dev/vd0"
ROOMY = 1 << 40


def two_resources() -> ClusterSpec:
    """r0 on /dev/vd0 and r1 on /dev/vd9."""
    spec = cluster()
    (r0,) = spec.resources
    r1 = r0.model_copy(
        update={
            "name": "r1",
            "id": 2,
            "iqn": "iqn.2024-01.example:r1",
            "volumes": (r0.volumes[0].model_copy(update={"disks": dict.fromkeys(("n1", "n2"), "/dev/vd9")}),),
        }
    )
    return spec.model_copy(update={"resources": (r0, r1)})


def ext4(world: World) -> None:
    world.drbd.disk("n1", DISK).signature = "ext4"


def strange_drbd(world: World) -> None:
    world.drbd.disk("n1", DISK).metadata = MetaData()


def device(**what: object) -> Callable[[World], None]:
    found = {"path": DISK, "size": ROOMY, **what}

    def set_up(world: World) -> None:
        world.machines["n1"].disks.devices[DISK] = BlockDevice(**found)  # type: ignore[arg-type]  # by name

    return set_up


BAD = [
    ("disk-missing", device(exists=False, is_block=False)),
    ("disk-not-block", device(is_block=False)),
    ("disk-read-only", device(read_only=True)),
    ("disk-too-small", device(size=64 << 20)),
    ("disk-mounted", device(mountpoints=("/srv",))),
    ("disk-held", device(holders=("/dev/md0 (raid1)",))),
    ("disk-has-data", device(signatures=(Signature("gpt", "partition-table"),))),
    ("disk-has-data", ext4),
    ("disk-has-drbd", strange_drbd),
    ("disk-in-use", device(in_use_by=("other", 0))),
]


@pytest.mark.parametrize(("code", "set_up"), BAD)
async def test_resource_of_a_bad_disk_is_left_alone(code: str, set_up: Callable[[World], None]) -> None:
    world = World(two_resources())
    set_up(world)
    await world.up()
    machine = world.machines["n1"]
    assert not await machine.drbd.configured(world.spec, world.spec.resource(R0))
    assert R0 not in await machine.drbd.observe()
    assert set(await machine.gates.observe()) == {gate_name("r1", 0)}
    assert not machine.fs.exists("iscsi/iqn.2024-01.example:r0")
    assert {step for node, name, step in world.steps if node == "n1" and name == R0} == set()
    # The other resource has come up on all nodes.
    for node in NODES:
        assert await world.agents[node].keepers["r1"].pending() == ()
    document = await Api(world.agents["n1"]).status()
    bad, good = document["resources"]
    problem = bad["problems"][0]
    assert (problem["code"], bad["pending"]) == (code, [])
    assert problem["message"] in bad["reason"]
    assert problem["hint"] in bad["reason"]
    assert (good["problems"], good["reason"]) == ([], None)
    error = await refused(world.agents["n1"].promote(R0))
    assert (error.code, problem["message"] in error.message) == ("not-ready", True)


async def test_a_disk_that_is_there_later_is_taken_at_the_next_pass() -> None:
    world = World()
    device(exists=False, is_block=False)(world)
    await world.up()
    assert world.steps == [s for s in world.steps if s[0] != "n1"]
    world.machines["n1"].disks.devices.clear()
    await world.converge()
    for node in NODES:
        assert await world.agents[node].keepers[R0].pending() == ()
    await world.agents["n1"].promote(R0)
    assert world.open_at() == ["n1"]


async def test_own_meta_data_is_known_by_the_journal_or_by_the_resource_file() -> None:
    world = await World().up()
    machine = world.machines["n1"]
    await machine.drbd.down(R0)
    await world.converge()
    assert await world.agents["n1"].keepers[R0].pending() == ()
    # Without both it may be anybody's.
    await machine.drbd.down(R0)
    await machine.drbd.remove_config(R0)
    machine.journal.remove(R0)
    await world.start("n1")
    await world.converge()
    (problem,) = (await world.agents["n1"].keepers[R0].observe()).problems
    assert problem.code == "disk-has-drbd"
    assert R0 not in await machine.drbd.observe()


async def test_bad_disk_of_a_new_volume_leaves_the_old_one_served() -> None:
    world = await active(World())
    world.drbd.disk("n1", "/dev/vd1").signature = "ext4"
    world.spec = cluster(2)
    for node in NODES:
        await world.start(node)
    await world.converge(3)
    assert world.open_at() == ["n1"]
    assert world.roles()["n1"] == "active"
    reason = world.agents["n1"].keepers[R0]
    assert [p.code for p in (await reason.observe()).problems] == ["disk-has-data"]
    assert gate_name(R0, 1) not in await world.machines["n1"].gates.observe()


async def test_a_disk_that_cannot_be_looked_at_is_a_problem_of_its_resource_only() -> None:
    world = World(two_resources())
    world.machines["n1"].disks.unreadable.add(DISK)
    await world.up()
    document = await Api(world.agents["n1"]).status()
    assert [[p["code"] for p in r["problems"]] for r in document["resources"]] == [["disk-unreadable"], []]


def test_which_disks_are_judged() -> None:
    (spec,) = cluster(2).resources
    volume = Volume(16, DiskState.DISKLESS)
    state = ResourceState(R0, Role.SECONDARY, volumes={0: volume})
    assert [v.number for v in unsettled(spec, "n1", None, {0: DISK, 1: "/dev/vd1"})] == [0, 1]
    assert [v.number for v in unsettled(spec, "n1", state, {0: DISK})] == [1]
    # A disk that was replaced in the specification is a new one.
    assert [v.number for v in unsettled(spec, "n1", state, {0: "/dev/old"})] == [0, 1]
    assert unsettled(spec, "n3", None, {}) == ()
