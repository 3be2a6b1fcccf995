"""Orders other than a switchover, reboots and restarts, and refusals, which change nothing."""

from __future__ import annotations

import asyncio

import pytest

from hactl.agents.exports import LioExports
from hactl.errors import Refused
from hactl.replication.memory_model import MetaData
from hactl.target.gates import Mode
from hactl.target.memory import MemoryConfigFs
from tests.unit.agents_world import NODES, R0, World, active, cluster, refused


async def test_demote_holds_then_closes_and_promote_elsewhere_ends_it() -> None:
    world = await active(World())
    await world.agents["n1"].demote(R0)
    assert world.modes()["n1"] is Mode.HELD
    write = world.write("n1", 1, "5")
    await world.converge(1)
    assert world.modes()["n1"] is Mode.HELD
    await world.agents["n2"].promote(R0)
    await world.converge(2)
    assert write.state == "failed"
    assert world.roles() == {"n1": "standby", "n2": "active", "n3": "standby"}
    await world.agents["n2"].demote(R0)
    world.tick(21)
    await world.converge(2)
    assert world.modes()["n2"] is Mode.CLOSED
    assert world.open_at() == []


async def test_reboot_of_the_active_node_makes_it_standby() -> None:
    world = await active(World())
    machine = world.machines["n1"]
    world.drbd.crash("n1")
    machine.gates.forget()
    world.drbd.boot("n1")
    machine.fs = MemoryConfigFs()
    machine.exports = LioExports(machine.fs, world.spec, "n1")
    machine.clock.boot_id = "boot-2"
    world.network.services.pop("n1")
    await world.start("n1")
    await world.converge(3)
    assert world.roles()["n1"] == "standby"
    assert world.open_at() == []
    await world.agents["n2"].promote(R0)
    assert world.open_at() == ["n2"]


async def test_restart_of_the_active_agent_changes_nothing() -> None:
    world = await active(World())
    before = await world.seen()
    world.network.services.pop("n1")
    await world.start("n1")
    await world.converge(2)
    assert await world.seen() == before


async def test_lost_journal_of_an_active_node() -> None:
    world = await active(World())
    world.machines["n1"].journal.remove(R0)
    await world.start("n1")
    await world.converge(2)
    assert world.roles()["n1"] == "active"
    assert world.open_at() == ["n1"]


def resync(world: World) -> None:
    world.drbd.cut("n1", "n2")
    world.write("n1", 1, "not on n2")
    world.drbd.heal("n1", "n2")


def disable_tpg(world: World) -> None:
    world.machines["n2"].fs.write("iscsi/iqn.2024-01.example:r0/tpgt_2/enable", "0")


@pytest.mark.parametrize(
    ("where", "to", "code", "prepare"),
    [
        ("n1", "n9", "unknown-node", None),
        ("n1", "n3", "not-a-replica", None),
        ("n1", "n1", "already-active", None),
        ("n3", "n1", "already-active", None),
        ("n3", "n9", "unknown-node", None),
        ("n1", "n2", "peer-unreachable", lambda w: w.network.cut.add(frozenset({"n1", "n2"}))),
        ("n1", "n2", "not-connected", lambda w: w.drbd.cut("n1", "n2")),
        ("n1", "n2", "resyncing", resync),
        ("n1", "n2", "peer-not-uptodate", lambda w: w.drbd.fail_disk("n2", "/dev/vd0")),
        ("n1", "n2", "not-ready", disable_tpg),
        ("n1", "n2", "not-ready", lambda w: w.machines["n2"].gates.forget()),
    ],
)
async def test_refusals_change_nothing(where: str, to: str, code: str, prepare: object) -> None:
    world = await active(World())
    if callable(prepare):
        prepare(world)
    before = await world.seen()
    error = await refused(world.agents[where].switchover(R0, to))
    assert isinstance(error, Refused)
    assert error.code == code
    assert await world.seen() == before


async def test_promote_is_refused_where_it_must_be() -> None:
    world = await active(World())
    before = await world.seen()
    assert (await refused(world.agents["n2"].promote(R0))).code == "active-elsewhere"
    assert (await refused(world.agents["n3"].promote(R0))).code in {"active-elsewhere", "not-ready"}
    assert (await refused(world.agents["n1"].promote("r9"))).code == "unknown-resource"
    world.network.cut.add(frozenset({"n1", "n2"}))
    # The agent of n1 does not answer, yet DRBD knows.
    assert (await refused(world.agents["n2"].promote(R0))).code == "not-ready"
    assert await world.seen() == before


async def test_one_operation_at_a_time() -> None:
    world = await active(World())
    may = world.machines["n2"].drbd.may_promote
    may.clear()
    first = asyncio.create_task(world.agents["n1"].switchover(R0, "n2"))
    secondary = asyncio.Event()

    def note(node: str, step: str) -> bool:
        if step == "DrbdSecondary":
            secondary.set()
        return False

    world.kill = note
    await secondary.wait()
    assert (await refused(world.agents["n1"].demote(R0))).code == "busy"
    may.set()
    await first
    assert world.open_at() == ["n2"]
    await world.agents["n1"].demote(R0)
    assert world.open_at() == ["n2"]
    assert world.roles()["n1"] == "standby"


async def test_resource_that_is_not_wanted_any_more_is_taken_down() -> None:
    world = await active(World())
    somebody_elses = await world.machines["n3"].gates.create("not-hactl", 4096)
    world.spec = world.spec.model_copy(update={"resources": ()})
    for node in NODES:
        machine = world.machines[node]
        machine.exports = LioExports(machine.fs, world.spec, node)
        await world.start(node)
    await world.converge(3)
    for node in NODES:
        machine = world.machines[node]
        assert await machine.drbd.observe() == {}
        assert machine.journal.read() == {}
        assert not [name for name in machine.fs.listdir("iscsi") if name.startswith("iqn.")]
        assert set(await machine.gates.observe()) == ({somebody_elses.name} if node == "n3" else set())
    assert world.drbd.disk("n1", "/dev/vd0").metadata is not None


async def test_volume_added_to_an_active_resource_is_served_too() -> None:
    world = await active(World())
    world.write("n1", 1, "5")
    world.spec = cluster(2)
    for node in NODES:
        world.restart_with(node, world.spec)
        await world.start(node)
    await world.converge(4)
    assert world.open_at(0) == ["n1"]
    assert world.open_at(1) == ["n1"]
    assert world.read(1) == "5"
    assert [s for s in world.steps if s[2] == "SkipInitialSync"] == [("n1", R0, "SkipInitialSync")] * 2
    for node in NODES:
        assert world.agents[node].keepers[R0].reason is None
        assert await world.agents[node].keepers[R0].pending() == ()
    await world.agents["n1"].switchover(R0, "n2")
    assert world.open_at(1) == ["n2"]


async def test_joining_volume_with_data_on_one_side_is_left_to_an_operator() -> None:
    world = await active(World())
    world.drbd.disk("n2", "/dev/vd1").metadata = MetaData()
    world.spec = cluster(2)
    for node in NODES:
        world.restart_with(node, world.spec)
        await world.start(node)
    await world.converge(4)
    assert (world.open_at(0), world.open_at(1)) == (["n1"], [])
    assert [s for s in world.steps if s[2] == "SkipInitialSync"] == [("n1", R0, "SkipInitialSync")]
    assert world.roles()["n1"] == "active"
