"""What happens while initiators wait in a switchover: counted, so that it stays little."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from hactl.agents.agent import Agent
from hactl.agents.calm import Calm, Expected
from hactl.agents.follow import Follower
from hactl.agents.kit import Kit, Timings
from hactl.agents.switchover import behind
from hactl.errors import Failed
from hactl.replication.memory import MemoryDrbd, MemoryDrbdCluster
from hactl.replication.state import Role
from tests.unit.agents_world import NODES, R0, World, active, cluster, refused

Log = list[tuple[str, str]]


class Counted:
    """An adapter that notes each call before it makes it."""

    def __init__(self, inner: Any, note: Callable[[str], None]) -> None:
        self._inner = inner
        self._note = note

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            self._note(name)
            return found(*arguments, **more)

        return call


@contextlib.asynccontextmanager
async def followed(agents: dict[str, Agent]) -> AsyncIterator[None]:
    """Every agent reads its DRBD's event stream, as ``main`` has them do."""
    told = {node: asyncio.Event() for node in agents}
    tasks = [asyncio.create_task(agent.follower.follow(told[node].set)) for node, agent in agents.items()]
    for event in told.values():
        await event.wait()
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def counted(world: World) -> Log:
    """Put counters between agents that are started from now on and their adapters."""
    log: Log = []

    def wrap(node: str, kit: Kit) -> Kit:
        def counter(kind: str) -> Any:
            return Counted(getattr(kit, kind), lambda name: log.append((node, f"{kind}.{name}")))

        return replace(
            kit, **{f.name: counter(f.name) for f in fields(kit) if f.name not in ("clock", "standing")}
        )

    world.wrap = wrap
    return log


def pause(log: Log) -> Log:
    """From the first call that holds I/O on n1 to the last one that fails what is held."""
    ends = [n for n, call in enumerate(log) if call == ("n1", "gates.close")]
    return log[log.index(("n1", "gates.hold")) : ends[-1] + 1]


@pytest.mark.parametrize("volumes", [1, 3])
async def test_few_operations_while_io_is_held(volumes: int) -> None:
    world = await active(World(cluster(volumes), Timings(rest=0.2)))
    log = counted(world)
    for node in NODES:
        await world.start(node)
    await world.converge(2)
    async with followed(world.agents):
        log.clear()
        await world.agents["n1"].switchover(R0, "n2")
        counts = Counter(pause(log))
        await world.agents["n2"].settled()
    free = {"drbd.device", "gates.observe", "exports.states", "journal.write"}
    # These start a program or touch the kernel; each is needed once, a gate's once for each volume.
    assert {call: n for call, n in counts.items() if call[1] not in free} == {
        ("n1", "gates.hold"): volumes,
        ("n1", "drbd.secondary"): 1,
        ("n2", "drbd.primary"): 1,
        ("n2", "gates.open"): volumes,
        ("n2", "exports.set_states"): 1,
        ("n1", "exports.set_states"): 1,
        ("n1", "gates.close"): volumes,
        ("n1", "peers.promote"): 1,
    }
    # These are reads, or writes to memory.
    assert {call: n for call, n in counts.items() if call[1] in free - {"drbd.device"}} == {
        ("n1", "gates.observe"): 4,
        ("n1", "exports.states"): 1,
        ("n1", "journal.write"): 2,
        ("n2", "gates.observe"): 2 + volumes,
        ("n2", "exports.states"): 1,
        ("n2", "journal.write"): 1,
    }
    assert world.open_at(volumes - 1) == ["n2"]


async def test_gates_of_a_resource_are_held_at_the_same_time() -> None:
    world = await active(World(cluster(2)))
    gates = world.machines["n1"].gates
    both = asyncio.Barrier(2)
    hold = gates.hold

    async def meet(name: str) -> None:
        async with asyncio.timeout(5):
            await both.wait()
        await hold(name)

    gates.hold = meet  # type: ignore[method-assign]  # the twin's own, and a barrier before it
    await world.agents["n1"].switchover(R0, "n2")
    assert world.open_at(1) == ["n2"]


async def test_connection_lost_while_io_was_held_is_a_way_back() -> None:
    world = await active(World())

    def cut(node: str, step: str) -> bool:
        if (node, step) == ("n1", "HoldGate"):
            # Lost before, and noticed now: what was written meanwhile is on n1 only.
            world.drbd.cut("n1", "n2")
        return False

    world.kill = cut
    async with followed(world.agents):
        error = await refused(world.agents["n1"].switchover(R0, "n2"))
    assert (type(error), error.code) == (Failed, "rolled-back")
    assert world.open_at() == ["n1"]
    assert "promote" not in [q for _, _, q in world.network.asked]
    assert world.agents["n1"].keepers[R0].record.handover is None


async def test_who_is_behind() -> None:
    world = await active(World())
    state = (await world.machines["n1"].drbd.observe())[R0]
    assert behind(state, "n2") is None
    assert behind(state, "n3") is not None
    assert behind(None, "n2") is not None


async def test_a_prepared_node_leaves_the_resource_alone_until_the_order_comes() -> None:
    world = await active(World())
    agent = world.agents["n2"]
    assert await agent.on_ready("n1", R0, "id") == ()
    world.steps.clear()
    world.machines["n2"].fs.write("iscsi/iqn.2024-01.example:r0/tpgt_2/enable", "0")
    await agent.reconcile()
    assert world.steps == []
    assert await agent.on_abort("n1", R0, "id") is False
    await agent.reconcile()
    assert ("n2", R0, "ApplyTarget") in world.steps


async def test_follower_asks_drbd_when_the_stream_does_not_tell() -> None:
    drbd = MemoryDrbd(MemoryDrbdCluster(("n1", "n2")), "n1")
    (spec,) = cluster().resources
    await drbd.write_config(cluster(), spec)
    await drbd.create_metadata(spec, 0)
    await drbd.up(R0)
    follower = Follower(drbd)

    def primary(state: Any) -> bool:
        return bool(state.role is Role.PRIMARY)

    found = await follower.until(R0, primary)
    assert found is not None
    assert found.role is Role.SECONDARY
    assert await follower.until("r9", primary) is None
    told = asyncio.Event()
    task = asyncio.create_task(follower.follow(told.set))
    await told.wait()
    assert follower.states is not None
    found = await follower.until(R0, primary, seconds=0.01)
    assert found is not None
    assert found.role is Role.SECONDARY
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert follower.states is None


async def test_calm_returns_when_the_last_moment_is_over() -> None:
    calm = Calm()
    expected = Expected(calm)
    await calm.returned(0)
    expected.expect(R0, "a", 60)
    expected.expect(R0, "b", 60)
    assert (R0 in expected, expected.of(R0)) == (True, "b")
    order: list[str] = []

    async def wait() -> None:
        await calm.returned(60)
        order.append("calm")

    waiting: Awaitable[None] = asyncio.create_task(wait())
    with calm.moment():
        expected.over(R0)
        await asyncio.sleep(0)
        order.append("moment")
    await waiting
    assert order == ["moment", "calm"]
    assert expected.of(R0) is None
    expected.expect(R0, "c", 0)
    await calm.returned(60)
    assert R0 not in expected
    with calm.moment():
        # One that is stuck does not stop the rest.
        await calm.returned(0.01)
