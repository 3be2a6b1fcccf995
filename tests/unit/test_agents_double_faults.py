"""A second fault or order in the middle of a first: no two open gates, nothing let go to the wrong place."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from hactl.agents.kit import Kit
from hactl.agents.memory_peers import Killed
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.target.gates import Mode, gate_name
from tests.unit.agents_world import R0, World, active, cluster, refused


async def died_before_asking() -> World:
    """n1's agent died in a switchover, demoted but before it asked n2; then n2 was promoted by order."""
    world = await active(World())
    world.kill = lambda node, step: node == "n1" and step == "DrbdSecondary"
    with pytest.raises(Killed):
        await world.agents["n1"].switchover(R0, "n2")
    world.kill = lambda node, step: False
    await world.agents["n2"].promote(R0)
    assert world.open_at() == ["n2"]
    return world


async def test_an_old_handover_does_not_outlive_the_role_it_belonged_to() -> None:
    world = await died_before_asking()
    await world.start("n1")
    await world.converge(4)
    world.drbd.cut("n1", "n2")
    await world.converge(3)
    assert world.open_at() == ["n2"]


async def test_a_handover_is_not_taken_back_blindly_while_drbd_cannot_arbitrate() -> None:
    world = await died_before_asking()
    world.drbd.cut("n1", "n2")
    await world.start("n1")
    await world.converge(3)
    assert world.open_at() == ["n2"]


async def test_a_peer_that_is_primary_without_serving_everything_is_active_too() -> None:
    world = await active(World(spec=cluster(2)))
    await world.machines["n1"].gates.close(gate_name(R0, 1))
    world.drbd.cut("n1", "n2")
    with pytest.raises(Refused):
        await world.agents["n2"].promote(R0)
    assert world.open_at(0) == ["n1"]


async def test_what_was_heard_before_does_not_let_go_what_is_held_now() -> None:
    world = await active(World(), "n2")
    await world.agents["n2"].switchover(R0, "n1")  # n1 has not asked n2 how it is since
    await world.agents["n1"].demote(R0)
    assert world.modes()["n1"] is Mode.HELD


async def test_there_and_back_at_once() -> None:
    world = await active(World(), "n2")
    await world.agents["n2"].switchover(R0, "n1")
    seen = []
    world.machines["n1"].gates.closing = lambda: seen.append(world.modes()["n2"])
    await world.agents["n1"].switchover(R0, "n2")
    assert seen == [Mode.OPEN]


class NoAnswers:
    """Peers whose answers to orders get lost; the first promotion arrives, and goes on by itself."""

    def __init__(self, peers: Any) -> None:
        self._peers = peers
        self.under_way: list[asyncio.Task[None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peers, name)

    async def promote(self, node: str, resource: str, handover: str) -> None:
        if not self.under_way:
            self.under_way.append(asyncio.create_task(self._peers.promote(node, resource, handover)))
            for _ in range(20):
                await asyncio.sleep(0)
        raise Unknown("peer-lost", "no answer")

    async def abort(self, node: str, resource: str, handover: str) -> bool:
        raise Unknown("peer-lost", "no answer")


async def test_the_link_dies_while_both_become_primary() -> None:
    world = World()
    lossy: list[NoAnswers] = []

    def wrap(node: str, kit: Kit) -> Kit:
        if node != "n1":
            return kit
        lossy.append(NoAnswers(kit.peers))
        return replace(kit, peers=lossy[-1])

    world.wrap = wrap
    await active(world)
    drbd, other = world.machines["n1"].drbd, world.machines["n2"].drbd
    other.may_promote.clear()
    real = drbd.primary

    async def primary(name: str) -> None:
        # It waits for the peer's word; the connection times out, and both kernels do without.
        world.drbd.cut("n1", "n2")
        await real(name)

    drbd.primary = primary  # type: ignore[method-assign]  # a fault of this one moment
    await refused(world.agents["n1"].switchover(R0, "n2"))
    other.may_promote.set()
    for task in lossy[0].under_way:
        await asyncio.gather(task, return_exceptions=True)
    assert len(world.open_at()) < 2


async def test_a_failed_promotion_of_an_active_node_takes_nothing_down() -> None:
    world = await active(World(spec=cluster(2)))
    await world.machines["n1"].gates.close(gate_name(R0, 1))
    world.machines["n1"].gates.fail = [Failed("gate-backing-too-small", "volume 1 has no room")]
    with pytest.raises(HactlError):
        await world.agents["n1"].promote(R0)
    assert world.open_at(0) == ["n1"]


async def test_a_node_alive_with_newer_data_is_not_passed_over() -> None:
    world = await active(World())
    assert await world.write("n1", 0, "old").ended() == "done"
    world.drbd.cut("n1", "n2")
    await world.converge(2)
    assert await world.write("n1", 0, "new").ended() == "done"
    await world.agents["n1"].demote(R0)
    with pytest.raises(Refused) as error:
        await world.agents["n2"].promote(R0)
    assert error.value.code == "not-connected"
    assert world.open_at() == []


async def test_going_back_that_fails_is_not_told_as_nothing_changed() -> None:
    world = await active(World())
    drbd = world.machines["n1"].drbd
    real = drbd.secondary

    async def secondary(name: str) -> None:
        await real(name)
        world.drbd.cut("n1", "n2")

    drbd.secondary = secondary  # type: ignore[method-assign]  # a fault of this one moment
    drbd.fail["primary"] = [Refused("drbd-in-transit", "try later")]
    with pytest.raises(Unknown):
        await world.agents["n1"].switchover(R0, "n2")
    assert world.agents["n1"].wake.is_set()


def without_resources(world: World) -> None:
    world.spec = world.spec.model_copy(update={"resources": ()})


async def changes_while_held(world: World) -> list[str]:
    """What of LIO's tree n1's next agent changes while the gate holds I/O."""
    exports, seen = world.machines["n1"].exports, []
    real = exports.apply

    async def apply(change: Any) -> None:
        if world.modes().get("n1") is Mode.HELD:
            seen.append(type(change).__name__)
        await real(change)

    exports.apply = apply  # type: ignore[method-assign]  # to look at this one pass
    agent = await world.start("n1")
    await agent.reconcile()
    return seen


async def test_lio_is_left_alone_while_a_gate_holds() -> None:
    world = await active(World())
    await world.agents["n1"].demote(R0)
    assert world.write("n1", 0, "waits").state == "pending"
    resource = world.spec.resources[0]
    changed = (resource.model_copy(update={"hosts": ()}),)
    world.spec = world.spec.model_copy(update={"resources": changed})
    assert await changes_while_held(world) == []


async def test_a_retired_resource_lets_go_before_lio_does() -> None:
    world = await active(World())
    await world.agents["n1"].demote(R0)
    assert world.write("n1", 0, "waits").state == "pending"
    without_resources(world)
    assert await changes_while_held(world) == []


async def test_taking_down_goes_on_after_a_kill() -> None:
    world = await World().up()
    world.network.services.pop("n1")
    without_resources(world)
    agent = await world.start("n1")
    machine = world.machines["n1"]
    real = machine.drbd.down

    async def down(name: str) -> None:
        raise Killed("in the middle")

    machine.drbd.down = down  # type: ignore[method-assign]  # killed at this one moment
    with pytest.raises(Killed):
        await agent.reconcile()
    machine.drbd.down = real  # type: ignore[method-assign]  # the next agent lives
    agent = await world.start("n1")
    await agent.reconcile()
    await agent.reconcile()
    assert await machine.drbd.observe() == {}
    assert list(world.drbd.nodes["n1"].files) == []
    assert machine.journal.read() == {}
