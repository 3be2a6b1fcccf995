"""Orders other than a switchover, reboots and restarts, and refusals, which change nothing."""

from __future__ import annotations

import asyncio

import pytest

from hactl.agents.exports import LioExports
from hactl.errors import Failed, Refused
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
    machine.exports = LioExports(machine.fs, "n1")
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


async def test_held_io_is_let_go_in_time_even_if_nothing_can_be_reported() -> None:
    world = await active(World())
    await world.agents["n1"].demote(R0)
    write = world.write("n1", 1, "5")
    exports = world.machines["n1"].exports
    asked = []

    async def fail(*arguments: object) -> None:
        asked.append(world.modes()["n1"])
        raise Failed("configfs-eio", "cannot write alua_access_state")

    exports.set_states = fail  # type: ignore[method-assign,assignment]  # a kernel that refuses for good
    await world.converge(1)
    assert (write.state, asked) == ("pending", [])
    world.tick(21)
    await world.converge(1)
    assert (write.state, asked) == ("failed", [Mode.HELD])
    assert world.modes()["n1"] is Mode.CLOSED
    reason = world.agents["n1"].keepers[R0].reason
    assert reason is not None
    assert "alua_access_state" in reason


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), Failed("alua-state-unknown", "strange")])
async def test_states_that_cannot_be_read_are_the_resources_reason(error: Exception) -> None:
    world = await active(World())
    fs = world.machines["n1"].fs
    real = fs.read

    def read(path: str) -> str:
        if path.endswith("alua_access_state") and "hactl-n" in path:
            raise error
        return real(path)

    fs.read = read  # type: ignore[method-assign]  # a fault of the kernel's
    await world.converge(1)
    reason = world.agents["n1"].keepers[R0].reason
    assert reason is not None
    assert str(error) in reason
    # It goes on serving, and can be demoted.
    assert world.open_at() == ["n1"]
    await world.agents["n1"].demote(R0)
    assert world.modes()["n1"] is Mode.HELD
    world.tick(21)
    await world.converge(1)
    assert world.modes()["n1"] is Mode.CLOSED
    fs.read = real  # type: ignore[method-assign]  # the end of it
    await world.converge(2)
    assert world.agents["n1"].keepers[R0].reason is None


async def test_only_the_last_switchovers_called_off_are_remembered() -> None:
    world = await active(World())
    agent = world.agents["n2"]
    for number in range(100):
        assert await agent.on_abort("n1", R0, f"id-{number}") is False
    assert len(agent._called_off[R0]) < 50
    assert (await refused(agent.on_promote("n1", R0, "id-99"))).code == "switchover-aborted"
    world.update(world.spec.model_copy(update={"resources": ()}))
    await world.converge(1)
    assert (await refused(agent.on_abort("n1", R0, "id-1"))).code == "unknown-resource"


async def test_nothing_is_announced_after_the_end() -> None:
    world = await World().up()
    agent = world.agents["n1"]
    with agent.calm.moment():
        await agent.promote(R0)
        assert agent._background
        await agent.close()
    assert agent._background == set()
    assert ("n1", "n2", "announce") not in world.network.asked


@pytest.mark.parametrize("order", ["promote", "demote"])
async def test_an_order_for_another_node_is_passed_on(order: str) -> None:
    world = await active(World())
    if order == "promote":
        await world.agents["n1"].demote(R0)
        await world.agents["n3"].order("promote", R0, "n2")
        assert world.open_at() == ["n2"]
    else:
        await world.agents["n3"].order("demote", R0, "n1")
        assert world.modes()["n1"] is Mode.HELD
    world.network.cut.add(frozenset({"n1", "n3"}))
    assert (await refused(world.agents["n3"].order(order, R0, "n1"))).code == "peer-unreachable"
    assert (await refused(world.agents["n3"].order(order, R0, "n9"))).code == "unknown-node"
    assert (await refused(world.agents["n3"].order("dance", R0, "n1"))).code == "bad-request"


async def test_a_switchover_is_passed_on_by_a_node_that_does_not_have_the_resource() -> None:
    world = await active(World())
    (r0,) = world.spec.resources
    spec = world.spec.model_copy(update={"resources": (r0.model_copy(update={"nodes": ("n1", "n2")}),)})
    world.update(spec)
    await world.converge(2)
    await world.agents["n3"].switchover(R0, "n2")
    assert world.open_at() == ["n2"]
    assert (await refused(world.agents["n3"].switchover(R0, "n2"))).code == "already-active"
    assert (await refused(world.agents["n3"].switchover("r9", "n2"))).code == "unknown-resource"
    await world.agents["n2"].demote(R0)
    assert (await refused(world.agents["n3"].switchover(R0, "n1"))).code == "not-active"


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
        await world.start(node)
    await world.converge(4)
    assert (world.open_at(0), world.open_at(1)) == (["n1"], [])
    assert [s for s in world.steps if s[2] == "SkipInitialSync"] == [("n1", R0, "SkipInitialSync")]
    assert world.roles()["n1"] == "active"
