"""Switchovers on three nodes under load; with kills, lost answers and cut links."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from hactl.agents.memory_peers import Killed
from hactl.agents.states import OrderedRole
from hactl.alua.states import AccessState
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.target.gates import Mode
from hactl.target.memory_gates import Write
from tests.unit.agents_world import NODES, R0, Initiator, World, active, cluster, refused


async def test_comes_up_from_nothing_and_then_has_nothing_to_do() -> None:
    world = await World(cluster(2)).up()
    for node in NODES:
        assert await world.agents[node].keepers[R0].pending() == ()
        assert world.agents[node].keepers[R0].reason is None
    assert world.roles() == dict.fromkeys(NODES, "standby")
    skips = [node for node, _, step in world.steps if step == "SkipInitialSync"]
    assert skips == ["n1"]
    done = len(world.steps)
    await world.converge(2)
    assert len(world.steps) == done


async def test_promote_and_status_of_all() -> None:
    world = await active(World())
    assert world.open_at() == ["n1"]
    for node in NODES:
        assert world.agents[node].keepers[R0].active_node == "n1"
        assert await world.agents[node].keepers[R0].pending() == ()


async def test_ten_switchovers_under_load_lose_nothing() -> None:
    world = await active(World())
    initiator = Initiator(world)
    writing = asyncio.create_task(initiator.run())
    for turn in range(10):
        source, to = ("n1", "n2") if turn % 2 == 0 else ("n2", "n1")
        await world.agents[source].switchover(R0, to)
        assert world.open_at() == [to]
        await world.agents[to].settled()
        await world.converge(1)
        await asyncio.sleep(0)
    initiator.stop = True
    await writing
    initiator.check()
    assert initiator.acknowledged
    assert initiator.retried
    await world.converge()
    assert all([await world.agents[n].keepers[R0].pending() == () for n in NODES])


async def test_order_at_a_standby_node_is_passed_on() -> None:
    world = await active(World())
    await world.agents["n3"].switchover(R0, "n2")
    assert world.open_at() == ["n2"]


async def settles(world: World, initiator: Initiator, writing: asyncio.Task[None]) -> None:
    """After restarting what died one node serves, nothing is lost, and it goes on from there."""
    await world.restart_dead()
    for _ in range(6):
        world.tick(4)
        await world.converge(1)
    await world.converge(3)
    (serving,) = world.open_at()
    assert serving in {"n1", "n2"}
    assert world.roles()[serving] == "active"
    other = "n2" if serving == "n1" else "n1"
    assert world.roles()[other] == "standby"
    assert world.modes()[other] is Mode.CLOSED
    await world.agents[serving].switchover(R0, other)
    assert world.open_at() == [other]
    initiator.stop = True
    async with asyncio.timeout(5):
        await writing
    initiator.check()


def steps_of_switchover(node: str) -> list[int]:
    async def count() -> int:
        world = await active(World())
        before = len(world.steps)
        await world.agents["n1"].switchover(R0, "n2")
        return len([s for s in world.steps[before:] if s[0] == node])

    return list(range(asyncio.run(count())))


@pytest.mark.parametrize(
    ("node", "step"), [(node, step) for node in ("n1", "n2") for step in steps_of_switchover(node)]
)
async def test_agent_killed_after_every_step(node: str, step: int) -> None:
    world = await active(World())
    initiator = Initiator(world)
    writing = asyncio.create_task(initiator.run())
    left = step

    def kill(where: str, what: str) -> bool:
        nonlocal left
        if where != node:
            return False
        left -= 1
        return left < 0

    world.kill = kill
    died = False
    try:
        await world.agents["n1"].switchover(R0, "n2")
    except Killed:
        died = True
    except HactlError:
        died = node == "n2"
    assert died or "n2" not in world.network.services
    await settles(world, initiator, writing)


@pytest.mark.parametrize("step", range(4))
async def test_agent_killed_after_every_step_of_going_back(step: int) -> None:
    world = await active(World(cluster(2)))
    initiator = Initiator(world)
    writing = asyncio.create_task(initiator.run())
    world.machines["n2"].drbd.fail["primary"] = [Refused("drbd", "(-2) Need access to UpToDate data")]
    going_back: list[str] = []

    def kill(node: str, what: str) -> bool:
        if node == "n1" and (what == "DrbdPrimary" or going_back):
            going_back.append(what)
        return len(going_back) > step

    world.kill = kill
    with contextlib.suppress(Killed, HactlError):
        await world.agents["n1"].switchover(R0, "n2")
    assert going_back == ["DrbdPrimary", "OpenGate", "OpenGate", "journal:active"][: step + 1]
    await settles(world, initiator, writing)


@pytest.mark.parametrize("both_at", range(6))
async def test_both_agents_die(both_at: int) -> None:
    world = await active(World())
    initiator = Initiator(world)
    writing = asyncio.create_task(initiator.run())
    left = both_at

    def kill(where: str, what: str) -> bool:
        nonlocal left
        left -= 1
        return left < 0

    world.kill = kill
    with pytest.raises((Killed, HactlError)):
        await world.agents["n1"].switchover(R0, "n2")
    world.network.services.pop("n1", None)
    world.network.services.pop("n2", None)
    await settles(world, initiator, writing)


async def test_lost_answers_are_asked_for_again() -> None:
    world = await active(World())
    world.network.lose["n1", "n2", "promote"] = 3
    initiator = Initiator(world)
    writing = asyncio.create_task(initiator.run())
    await asyncio.sleep(0)
    await world.agents["n1"].switchover(R0, "n2")
    assert world.open_at() == ["n2"]
    assert len([q for q in world.network.asked if q[2] == "promote"]) == 4
    await settles(world, initiator, writing)


@pytest.mark.parametrize(("node", "change"), [("n1", 1), ("n1", 2), ("n2", 1)])
async def test_gate_change_is_interrupted_half_way(node: str, change: int) -> None:
    world = await active(World())
    initiator = Initiator(world)
    writing = asyncio.create_task(initiator.run())
    if change == 1:
        world.machines[node].gates.interrupt()
    else:
        gates = world.machines[node].gates

        def once() -> None:
            gates.closing = lambda: None
            gates.interrupt()

        gates.closing = once
    with contextlib.suppress(HactlError):
        await world.agents["n1"].switchover(R0, "n2")
    await settles(world, initiator, writing)


async def test_all_answers_lost_until_time_is_up_but_the_peer_says_it_is_active() -> None:
    world = await active(World())
    world.network.lose["n1", "n2", "promote"] = 1000
    await world.agents["n1"].switchover(R0, "n2")
    assert world.open_at() == ["n2"]
    assert world.modes()["n1"] is Mode.CLOSED


async def test_successor_fails_and_held_writes_complete_where_they_were() -> None:
    world = await active(World())
    world.machines["n2"].drbd.fail["primary"] = [Refused("drbd", "(-2) Need access to UpToDate data")]
    held: list[Write] = []

    def write_while_held(node: str, step: str) -> bool:
        if (node, step) == ("n1", "HoldGate"):
            held.append(world.write("n1", 1, "77"))
        return False

    world.kill = write_while_held
    error = await refused(world.agents["n1"].switchover(R0, "n2"))
    assert isinstance(error, Failed)
    assert error.code == "rolled-back"
    assert "UpToDate" in error.message
    assert world.open_at() == ["n1"]
    assert [write.state for write in held] == ["done"]
    assert world.read(1) == "77"
    await world.converge(2)
    assert world.roles() == {"n1": "active", "n2": "standby", "n3": "standby"}


async def test_gate_of_successor_does_not_open() -> None:
    world = await active(World())
    world.machines["n2"].gates.fail = [Failed("gate", "no memory")]
    error = await refused(world.agents["n1"].switchover(R0, "n2"))
    assert error.code == "rolled-back"
    assert world.open_at() == ["n1"]


async def test_held_writes_fail_only_when_the_successor_is_reported() -> None:
    world = await active(World())
    reports: list[tuple[str, dict[str, AccessState]]] = []
    held: list[Write] = []

    def write_while_held(node: str, step: str) -> bool:
        if (node, step) == ("n1", "HoldGate"):
            held.append(world.write("n1", 1, "77"))
        return False

    world.kill = write_while_held
    world.machines["n1"].gates.closing = lambda: reports.extend((n, world.alua(n)) for n in ("n1", "n2"))
    await world.agents["n1"].switchover(R0, "n2")
    view = {
        "n1": AccessState.STANDBY,
        "n2": AccessState.ACTIVE_OPTIMIZED,
        "n3": AccessState.STANDBY,
    }
    assert reports == [("n1", view), ("n2", view)]
    assert [write.state for write in held] == ["failed"]


async def test_secondary_is_refused_and_io_goes_on() -> None:
    world = await active(World())
    world.machines["n1"].drbd.fail["secondary"] = [Refused("drbd", "(-12) Device is held open by someone")]
    error = await refused(world.agents["n1"].switchover(R0, "n2"))
    assert "held open" in error.message
    assert world.open_at() == ["n1"]
    assert world.roles()["n1"] == "active"
    assert world.agents["n1"].keepers[R0].record.handover is None


async def test_cluster_network_cut_during_the_handover_drbd_decides() -> None:
    world = await active(World())

    def cut(node: str, step: str) -> bool:
        if (node, step) == ("n2", "DrbdPrimary"):
            world.network.cut.add(frozenset({"n1", "n2"}))
        return False

    world.kill = cut
    error = await refused(world.agents["n1"].switchover(R0, "n2"))
    assert isinstance(error, Unknown)
    assert world.open_at() == ["n2"]
    assert world.roles()["n1"] == "demoted"
    for _ in range(3):
        world.tick(1)
        await world.converge(1)
    assert world.open_at() == ["n2"]
    world.network.cut.clear()
    await world.converge(2)
    assert world.roles() == {"n1": "standby", "n2": "active", "n3": "standby"}


async def test_question_never_got_through_so_going_back_is_safe_without_drbd() -> None:
    world = await active(World())

    def cut(node: str, step: str) -> bool:
        if (node, step) == ("n1", "DrbdSecondary"):
            world.network.cut.add(frozenset({"n1", "n2"}))
            world.drbd.cut("n1", "n2")
        return False

    world.kill = cut
    assert (await refused(world.agents["n1"].switchover(R0, "n2"))).code == "rolled-back"
    assert world.open_at() == ["n1"]


async def test_unknown_and_disconnected_stays_demoted_and_says_so() -> None:
    world = await active(World())
    world.network.lose["n1", "n2", "promote"] = 1000
    world.machines["n2"].drbd.fail["primary"] = [Failed("drbd", "no")] * 1000

    def cut(node: str, step: str) -> bool:
        if (node, step) == ("n2", "journal:active"):
            world.network.cut.add(frozenset({"n1", "n2"}))
            world.drbd.cut("n1", "n2")
        return False

    world.kill = cut
    error = await refused(world.agents["n1"].switchover(R0, "n2"))
    assert isinstance(error, Unknown)
    assert world.open_at() == []
    world.kill = lambda node, step: False
    for _ in range(8):
        world.tick(4)
        await world.converge(1)
    assert world.open_at() == []
    keeper = world.agents["n1"].keepers[R0]
    assert keeper.record.role is OrderedRole.DEMOTED
    assert keeper.reason is not None
    assert "not to be promoted by itself" in keeper.reason
    assert world.modes()["n1"] is Mode.CLOSED
    # An operator, or Pacemaker after fencing, may.
    await world.agents["n1"].promote(R0)
    assert world.open_at() == ["n1"]
