"""What cannot be committed in time leaves no trace, and nobody else notices."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hactl.pr_sync.commands import Command
from hactl.pr_sync.memory_kernel import SessionCut
from hactl.pr_sync.state import Action, State, Type
from hactl.pr_sync.sync import Limits
from hactl.store.memory import Fault
from tests.unit.pr_world import INITIATORS, World, register, vanish_after_a_commit, world
from tests.unit.test_pr_sync import good, states_agree

SHORT = Limits(answer=0.3, again=0.001, look=0.01)
RO = Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY


def reach(w: World, *, store: bool) -> None:
    for one in w.stores.values():
        one.reachable = store


def shown(state: State) -> State:
    return replace(state, generation=0)


async def test_only_the_sender_is_cut_and_what_it_did_is_taken_back() -> None:
    async with world(2, SHORT) as w:
        a, b = w.nexus(0, "n1"), w.nexus(1, "n1")
        kernel = w.kernels["n1"]
        await good(w, "n1", register(a, 1))
        await good(w, "n1", register(b, 2))
        before = shown(kernel.state)
        reach(w, store=False)
        for command in (
            Command(a, Action.RESERVE, 1, type=RO),
            Command(a, Action.REGISTER, 1, 3),
            Command(a, Action.REGISTER, 1, 0),
        ):
            with pytest.raises(SessionCut):
                await kernel.send(command)
            await w.until(lambda: shown(kernel.state) == before and not kernel.cutting)
        # The removal may have been somebody else's doing.
        only_a = frozenset({a.initiator})
        assert kernel.cuts == [only_a, only_a, only_a | {b.initiator}]
        # What changes nothing is answered all the time.
        assert (await kernel.send(Command(b, Action.RELEASE, 2, type=RO))).good
        reach(w, store=True)
        await w.settled()
        states_agree(w)
        await good(w, "n1", Command(a, Action.RESERVE, 1, type=RO))
        assert (kernel.rebuilt, w.kernels["n2"].rebuilt) == (0, 0)


async def test_a_host_that_was_not_registered_is_taken_back_many_times() -> None:
    async with world(2, SHORT) as w:
        kernel = w.kernels["n1"]
        reach(w, store=False)
        for turn in range(4):
            with pytest.raises(SessionCut):
                await kernel.send(register(w.nexus(0, "n1"), turn + 1))
            await w.until(lambda: not kernel.state.registrations and not kernel.cutting)
        assert kernel.state.generation == 4
        reach(w, store=True)
        # The log learns what the kernel has counted, with the next command or by itself.
        await good(w, "n1", register(w.nexus(0, "n1"), 9))
        await w.settled()
        states_agree(w)
        assert kernel.cuts == [frozenset({INITIATORS[0]})] * 4
        assert kernel.rebuilt == 0


async def test_two_that_wait_at_once_are_both_taken_back() -> None:
    async with world(2, SHORT) as w:
        kernel = w.kernels["n1"]
        a, b = w.nexus(0, "n1"), w.nexus(1, "n1")
        reach(w, store=False)
        outcomes = await asyncio.gather(
            kernel.send(register(a, 1)), kernel.send(register(b, 2)), return_exceptions=True
        )
        assert [type(o) for o in outcomes] == [SessionCut, SessionCut]
        await w.until(lambda: not kernel.state.registrations)
        reach(w, store=True)
        await w.settled()
        states_agree(w)
        assert kernel.rebuilt == 0


async def test_a_commit_that_comes_to_light_later_is_carried_out_again() -> None:
    async with world(2, SHORT) as w:
        kernel = w.kernels["n1"]
        a = w.nexus(0, "n1")
        await good(w, "n1", register(a, 1))
        store = w.stores["n1"]
        sync = w.network.syncs["n1"]
        store.faults.append(Fault.DONE)
        vanish_after_a_commit(store)
        with pytest.raises(SessionCut):
            await kernel.send(Command(a, Action.RESERVE, 1, type=RO))
        await w.until(lambda: kernel.state.reservation is None)
        assert (await w.log("n2").head(w.unit.serial)).index == 2
        store.reachable = True
        sync.poke(2)
        await w.settled()
        states_agree(w)
        assert kernel.state.reservation is not None
        assert kernel.rebuilt == 0


async def test_nothing_is_answered_while_it_is_not_known_that_all_have_it() -> None:
    async with world(3, Limits(answer=5, again=0.001)) as w:
        a = w.nexus(0, "n1")
        await good(w, "n1", register(a, 1))
        kernel, store = w.kernels["n1"], w.stores["n1"]
        w.tasks["n2"].cancel()
        vanish_after_a_commit(store)
        sent = asyncio.create_task(kernel.send(Command(a, Action.RESERVE, 1, type=RO)))
        # Committed, and then nobody tells which nodes have to have it.
        await w.until(lambda: w.network.syncs["n1"].head.index == 2)
        await w.until(lambda: w.network.syncs["n1"].problem is not None)
        assert not sent.done()
        store.reachable = True
        await w.until(lambda: w.network.syncs["n3"].head.index == 2)
        assert not sent.done()
        w.tasks["n2"] = asyncio.create_task(w.network.syncs["n2"].run())
        assert (await sent).good
        assert w.kernels["n2"].state.reservation is not None


async def test_a_command_that_comes_while_a_member_is_silent_is_ended_in_time() -> None:
    async with world(2, Limits(answer=0.2, again=0.001, look=0.01)) as w:
        a, b = w.nexus(0, "n1"), w.nexus(1, "n1")
        kernel = w.kernels["n1"]
        await good(w, "n1", register(a, 1))
        w.tasks["n2"].cancel()
        # The counter went on by itself; the log learns it, and waits for the other node.
        await kernel.count_up(1)
        w.network.syncs["n1"].poke()
        await w.until(lambda: w.network.syncs["n1"].head.index == 2)
        with pytest.raises(SessionCut):
            async with asyncio.timeout(10):
                await kernel.send(register(b, 2))
        assert kernel.rebuilt == 0


async def test_where_it_cannot_be_taken_back_the_unit_is_made_anew() -> None:
    async with world(2, SHORT) as w:
        a, other = w.nexus(0, "n1"), w.nexus(0, "n1", isid=2)
        kernel = w.kernels["n1"]
        await good(w, "n1", register(a, 1))
        await good(w, "n1", Command(a, Action.RESERVE, 1, type=RO))
        reach(w, store=False)
        # Its unregistration would make LIO forget the other one (hactl.pr_sync.rules.Table.remove).
        with pytest.raises(SessionCut):
            await kernel.send(register(other, 2))
        await w.until(lambda: kernel.rebuilt == 1)
        assert set(kernel.state.registrations) == {a}
        reach(w, store=True)
        await w.settled()
        states_agree(w)
