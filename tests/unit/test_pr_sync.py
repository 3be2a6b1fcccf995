"""Reservations in step: what one node's initiators do is everywhere before they hear of it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from hactl.pr_sync.commands import Command, Status
from hactl.pr_sync.memory_kernel import SessionCut
from hactl.pr_sync.own import without_strangers
from hactl.pr_sync.state import Action, Nexus, Type
from hactl.pr_sync.sync import Limits
from tests.unit.pr_world import NODES, World, register, world


def states_agree(w: World) -> None:
    shown = {name: kernel.state for name, kernel in w.kernels.items()}
    assert len(set(shown.values())) == 1, shown


async def good(w: World, node: str, command: Command) -> None:
    """Answered GOOD, and by then it is everywhere."""
    outcome = await w.kernels[node].send(command)
    assert outcome.status is Status.GOOD, (command, outcome)
    after = {name: kernel.state for name, kernel in w.kernels.items()}
    assert len({replace(s, generation=0) for s in after.values()}) == 1, after


@pytest.mark.parametrize("nodes", [1, 2, 3])
async def test_each_service_action_is_everywhere_before_it_is_answered(nodes: int) -> None:
    async with world(nodes) as w:
        first, last = NODES[0], NODES[nodes - 1]
        a, b = w.nexus(0, first), w.nexus(1, last)
        await good(w, first, register(a, 0xA))
        await good(w, last, register(b, 0xB))
        await good(w, first, Command(a, Action.RESERVE, 0xA, type=Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY))
        assert {k.state.reservation.holder for k in w.kernels.values() if k.state.reservation} == {a}
        await good(w, first, Command(a, Action.RELEASE, 0xA, type=Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY))
        await good(w, first, Command(a, Action.RESERVE, 0xA, type=Type.WRITE_EXCLUSIVE))
        await good(w, last, Command(b, Action.PREEMPT, 0xB, 0xA, type=Type.WRITE_EXCLUSIVE))
        assert {k.state.reservation.holder for k in w.kernels.values() if k.state.reservation} == {b}
        await good(w, first, register(a, 0xAA))
        await good(w, last, Command(b, Action.CLEAR, 0xB))
        await w.settled()
        states_agree(w)
        assert w.kernels[first].state.registrations == {}
        head = await w.log(first).head(w.unit.serial)
        assert head.state == w.kernels[first].state
        entries = await w.log(first).entries(w.unit.serial, 0)
        assert [c.action for e in entries for c in e.commands or ()] == [
            Action.REGISTER,
            Action.REGISTER,
            Action.RESERVE,
            Action.RELEASE,
            Action.RESERVE,
            Action.PREEMPT_AND_ABORT,
            Action.REGISTER,
            Action.CLEAR,
        ]
        assert all(k.rebuilt == 0 for k in w.kernels.values())


async def test_a_clear_by_the_only_registrant_is_known_for_one() -> None:
    async with world(2) as w:
        a = w.nexus(0, "n1")
        await good(w, "n1", register(a, 1))
        await good(w, "n1", Command(a, Action.CLEAR, 1))
        head = await w.log("n1").head(w.unit.serial)
        assert (head.index, head.state.generation) == (2, 2)
        await w.until(lambda: w.kernels["n1"].state == w.kernels["n2"].state == head.state)
        (entry,) = await w.log("n1").entries(w.unit.serial, 1)
        assert [c.action for c in entry.commands or ()] == [Action.CLEAR]


async def test_two_hosts_register_at_the_same_moment_and_nobody_is_cut() -> None:
    async with world(2) as w:
        for turn in range(30):
            a, b = w.nexus(0, "n1", turn + 1), w.nexus(1, "n2", turn + 1)
            outcomes = await asyncio.gather(
                w.kernels["n1"].send(register(a, turn + 1)), w.kernels["n2"].send(register(b, turn + 1))
            )
            assert [o.status for o in outcomes] == [Status.GOOD, Status.GOOD]
        await w.settled()
        states_agree(w)
        assert len(w.kernels["n1"].state.registrations) == 60
        assert [k.rebuilt for k in w.kernels.values()] == [0, 0]


async def test_of_two_that_reserve_at_the_same_moment_one_has_it() -> None:
    async with world(2) as w:
        a, b = w.nexus(0, "n1"), w.nexus(1, "n2")
        await good(w, "n1", register(a, 1))
        await good(w, "n2", register(b, 2))
        for _ in range(10):
            sent = [
                w.kernels["n1"].send(Command(a, Action.RESERVE, 1, type=1)),
                w.kernels["n2"].send(Command(b, Action.RESERVE, 2, type=1)),
            ]
            outcomes = await asyncio.gather(*sent, return_exceptions=True)
            winners = [o for o in outcomes if not isinstance(o, BaseException) and o.good]
            assert len(winners) == 1, outcomes
            assert all(isinstance(o, SessionCut) or not isinstance(o, BaseException) for o in outcomes)
            await w.settled()
            states_agree(w)
            held = w.kernels["n1"].state.reservation
            assert held is not None
            assert held.holder is not None
            node, key = ("n1", 1) if held.holder == a else ("n2", 2)
            await good(w, node, Command(held.holder, Action.RELEASE, key, type=1))


async def test_without_the_store_nothing_is_answered_good_and_nothing_is_left() -> None:
    async with world(2, Limits(answer=0.05, again=0.001, look=0.01)) as w:
        a = w.nexus(0, "n1")
        await good(w, "n1", register(a, 1))
        for store in w.stores.values():
            store.reachable = False
        with pytest.raises(SessionCut):
            await w.kernels["n1"].send(Command(a, Action.RESERVE, 1, type=1))
        await w.until(lambda: w.kernels["n1"].state.reservation is None)
        for store in w.stores.values():
            store.reachable = True
        await w.settled()
        states_agree(w)
        # With the store back, it works by itself.
        await good(w, "n1", Command(a, Action.RESERVE, 1, type=1))


async def test_a_member_that_does_not_answer_is_waited_for_until_it_is_said_to_be_gone() -> None:
    async with world(2, Limits(answer=0.5, again=0.001)) as w:
        a = w.nexus(0, "n1")
        await good(w, "n1", register(a, 1))
        w.tasks["n2"].cancel()
        sync, kernel = w.network.syncs.pop("n2"), w.kernels.pop("n2")
        with pytest.raises(SessionCut):
            await w.kernels["n1"].send(Command(a, Action.RESERVE, 1, type=1))
        assert kernel.state.reservation is None
        # It was committed, so it stays, and the node will find it.
        assert w.kernels["n1"].state.reservation is not None
        await w.log("n1").expel(w.unit.serial, "n2")
        await good(w, "n1", Command(a, Action.RELEASE, 1, type=1))
        await good(w, "n1", Command(a, Action.RESERVE, 1, type=3))
        # Back again, it applies what it has missed before it is a member.
        w.network.syncs["n2"], w.kernels["n2"] = sync, kernel
        w.tasks["n2"] = asyncio.create_task(sync.run())
        head = await w.log("n2").head(w.unit.serial)
        await sync.reach(head.index)
        await w.log("n2").join(w.unit.serial, sync.head)
        await w.settled()
        states_agree(w)


async def test_a_host_that_loses_its_access_loses_its_registrations_everywhere() -> None:
    async with world(3) as w:
        a, b = w.nexus(0, "n1"), w.nexus(1, "n2")
        await good(w, "n1", register(a, 1))
        await good(w, "n2", register(b, 2))
        await good(w, "n1", Command(a, Action.RESERVE, 1, type=5))
        unit = replace(w.unit, mapped={name: 0 for name in w.unit.mapped if name != a.initiator})
        for name, kernel in w.kernels.items():
            # As LIO does when the ACL is removed: without a write, and without counting.
            kernel.unit = w.network.syncs[name].unit = unit
            kernel.state = without_strangers(kernel.state, unit.access)
            w.network.syncs[name].poke()
        await w.until(lambda: all(s.head.index == 4 for s in w.network.syncs.values()))
        await w.settled()
        states_agree(w)
        assert set(w.kernels["n3"].state.registrations) == {b}
        assert w.kernels["n3"].state.reservation is None
        assert [k.rebuilt for k in w.kernels.values()] == [0, 0, 0]
        await good(w, "n2", Command(b, Action.RESERVE, 2, type=5))


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_at_the_same_time_all_agree_in_the_end(seed: int) -> None:
    chance = random.Random(seed)
    async with world(3, Limits(answer=2, again=0.001)) as w:
        keys: dict[Nexus, int] = {}

        async def host(number: int) -> None:
            nexus = w.nexus(number, NODES[number % 3])
            node, key = w.unit.at(nexus.rtpi).node, number + 1
            keys[nexus] = key
            for _ in range(12):
                command = chance.choice(
                    [
                        register(nexus, key),
                        Command(nexus, Action.RESERVE, key, type=chance.choice([1, 3, 5])),
                        Command(nexus, Action.RELEASE, key, type=chance.choice([1, 3, 5])),
                        Command(nexus, Action.PREEMPT, key, chance.choice([1, 2, 3]), type=1),
                        Command(nexus, Action.REGISTER, key, 0),
                        Command(nexus, Action.CLEAR, key),
                    ]
                )
                try:
                    await w.kernels[node].send(command)
                except SessionCut:
                    await asyncio.sleep(0)
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)

        await asyncio.gather(*(host(number) for number in range(3)))
        await w.settled()
        states_agree(w)
        head = await w.log("n1").head(w.unit.serial)
        assert head.state == w.kernels["n1"].state
