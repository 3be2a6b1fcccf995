"""Commands at the same time, the store gone or its answers lost, agents killed: at every step what is
answered GOOD is on all members, and in the end all agree."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Collection, Coroutine
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from hactl.pr_sync.commands import Command
from hactl.pr_sync.memory_kernel import MemoryUnit, SessionCut
from hactl.pr_sync.records import Head, decode_entry
from hactl.pr_sync.state import Action, State
from hactl.pr_sync.sync import Limits, UnitSync
from hactl.store.memory import Fault
from tests.unit.pr_world import NODES, LoopClock, World, vanish_after_a_commit, world

LIMITS = Limits(answer=0.03, again=0.001, look=0.01, settle=0.01)
node_names = st.sampled_from(NODES)
keys = st.sampled_from((1, 2, 3))
types = st.sampled_from((1, 3, 5, 7))


class Selector(selectors.SelectSelector):
    """Nobody waits: time goes on by as much as there is to wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen again"
        # A little also when somebody goes on at once: whoever polls without sleeping has to come to an end.
        self.now += max(timeout, 1e-4)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """Every run of the same steps is the same."""

    def __init__(self) -> None:
        self.selector = Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


def shown(state: State) -> State:
    return replace(state, generation=0)


class Nodes(RuleBasedStateMachine):
    """Three nodes with three hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.context = world(3, LIMITS)
        self.w: World = self.run(self.context.__aenter__())
        self.wrong: list[str] = []
        self.sent: list[asyncio.Task[None]] = []
        self.kept: dict[str, Head] = {}
        """What a node whose agent is dead had."""
        for name, kernel in self.w.kernels.items():
            self.watch(name, kernel)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    # What must hold whenever something is let go

    def watch(self, name: str, kernel: MemoryUnit) -> None:
        release = kernel.release

        async def watched(ids: Collection[str]) -> None:
            self.let_go(name, kernel, ids)
            await release(ids)

        kernel.release = watched  # type: ignore[method-assign]

    def let_go(self, name: str, kernel: MemoryUnit, ids: Collection[str]) -> None:
        answered = [kernel._held[one] for one in ids if one in kernel._held]
        if all(held.answer.done() for held in answered):
            return
        if kernel.cutting:
            self.wrong.append(f"{name}: one that is cut off with others hears an answer")
        head = self.w.network.syncs[name].head
        last = max((i for i, node in self.entries() if node == name and i <= head.index), default=0)
        for other, index in self.reached().items():
            if index < last:
                self.wrong.append(f"{name} answers, and {other} has {index}, not {last}")
        if kernel._held.keys() <= set(ids) and shown(kernel.state) != shown(head.state):
            self.wrong.append(f"{name} answers with {kernel.state}, and the log has {head}")

    def entries(self) -> list[tuple[int, str]]:
        found = []
        for key, item in self.w.state.items.items():
            if "/log/" in key:
                entry = decode_entry(key, item.value, 0)
                if entry.commands:
                    found.append((entry.index, entry.node))
        return found

    def reached(self) -> dict[str, int]:
        members = {key.rpartition("/")[2] for key in self.w.state.items if "/members/" in key}
        heads = {name: sync.head for name, sync in self.w.network.syncs.items()} | self.kept
        return {name: heads[name].index for name in members}

    # What happens

    @rule(
        host=st.integers(0, 2),
        node=node_names,
        action=st.sampled_from(
            (
                Action.REGISTER_AND_IGNORE_EXISTING_KEY,
                Action.REGISTER_AND_IGNORE_EXISTING_KEY,
                Action.REGISTER,
                Action.RESERVE,
                Action.RELEASE,
                Action.PREEMPT,
                Action.CLEAR,
            )
        ),
        other=keys,
        type_=types,
    )
    def send(self, host: int, node: str, action: Action, other: int, type_: int) -> None:
        nexus, key = self.w.nexus(host, node), host + 1
        match action:
            case Action.REGISTER_AND_IGNORE_EXISTING_KEY:
                command = Command(nexus, action, 0, key)
            case Action.REGISTER:
                command = Command(nexus, action, key, 0)
            case _:
                command = Command(nexus, action, key, other if action is Action.PREEMPT else 0, type_)

        async def sending() -> None:
            try:
                await self.w.kernels[node].send(command)
            except SessionCut:
                return

        self.sent.append(self.loop.create_task(sending()))
        self.some_time(0.0)

    @rule(seconds=st.sampled_from((0.0, 0.0, 0.002, 0.01, 0.05)))
    def some_time(self, seconds: float) -> None:
        async def passing() -> None:
            latest = max((index for index, _ in self.entries()), default=0)
            for name, sync in self.w.network.syncs.items():
                if self.w.stores[name].reachable:
                    sync.poke(latest)
            await asyncio.sleep(seconds)

        self.run(passing())
        assert not self.wrong

    @rule(nodes=st.sets(node_names, min_size=1), reachable=st.booleans())
    def store(self, nodes: set[str], reachable: bool) -> None:
        for name in nodes:
            self.w.stores[name].reachable = reachable

    @rule(node=node_names, fault=st.sampled_from((Fault.DONE, Fault.LATER)))
    def lose_an_answer(self, node: str, fault: Fault) -> None:
        self.w.stores[node].faults.append(fault)

    @rule(node=node_names)
    def vanish_after_a_commit(self, node: str) -> None:
        """The next commit is answered, and nothing after it."""
        vanish_after_a_commit(self.w.stores[node])

    @rule(node=node_names)
    def kill(self, node: str) -> None:
        sync = self.w.network.syncs.pop(node, None)
        if sync is None:
            return
        self.kept[node] = sync.head

        async def killing() -> None:
            task = self.w.tasks[node]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # Who asked it hears that it is gone.
            self.kept[node] = sync.head
            await sync.away()

        self.run(killing())

    @rule(node=node_names)
    def start(self, node: str) -> None:
        if node not in self.kept:
            return

        async def starting() -> None:
            w = self.w
            kernel, log = w.kernels[node], w.log(node)
            sync = UnitSync(w.unit, node, kernel, log, w.network.of(node), LoopClock(), LIMITS)
            head = self.kept.pop(node)
            w.network.syncs[node] = sync
            await sync.start(head)
            w.tasks[node] = asyncio.create_task(sync.run())

        self.run(starting())

    def teardown(self) -> None:
        try:
            for store in self.w.stores.values():
                store.faults.clear()
                store.__dict__.pop("commit", None)
            # What is under way comes to its end, whatever that is.
            self.run(asyncio.sleep(0.01))
            for name, store in self.w.stores.items():
                store.reachable = True
                self.start(name)
            self.run(self.quiet())
            assert not self.wrong
            states = {name: kernel.state for name, kernel in self.w.kernels.items()}
            assert len(set(states.values())) == 1, states
        finally:
            self.run(self.context.__aexit__(None, None, None))
            for task in self.sent:
                task.cancel()
            self.run(asyncio.sleep(0))
            self.loop.close()

    async def quiet(self) -> None:
        await self.w.settled()
        async with asyncio.timeout(10):
            await asyncio.gather(*self.sent)
        await self.w.settled()


Nodes.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestNodes = Nodes.TestCase
