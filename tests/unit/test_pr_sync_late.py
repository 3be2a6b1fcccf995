"""What comes late: the counter, which follows a CLEAR only some time after the agent let it go; and commands
of those whose registrations are about to go."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from hactl.pr_sync.commands import Command, Outcome, Status
from hactl.pr_sync.kernel import Removal
from hactl.pr_sync.memory_kernel import MemoryUnit, SessionCut
from hactl.pr_sync.state import Action
from hactl.pr_sync.sync import Limits
from tests.unit.pr_world import register, world


async def test_a_register_right_after_a_clear_by_the_only_registrant_cuts_nobody() -> None:
    async with world(2) as w:
        kernel, sync = w.kernels["n1"], w.network.syncs["n1"]
        a, b = w.nexus(0, "n1"), w.nexus(1, "n1")
        assert (await kernel.send(register(a, 1))).status is Status.GOOD
        let_go = asyncio.Event()

        async def release_late(ids: Collection[str]) -> None:
            """As the kernel does: let go is one moment, counted and answered a later one."""
            for number in ids:
                seen[number] = kernel._held.pop(number)
            if ids:
                let_go.set()

        seen: dict[str, Any] = {}
        kernel.release = release_late  # type: ignore[method-assign]
        clear = asyncio.create_task(kernel.send(Command(a, Action.CLEAR, 1)))
        await let_go.wait()
        # The agent looks again (its own entry came back, say) before the kernel has counted.
        for _ in range(3):
            sync.poke()
            await asyncio.sleep(0.01)
        del kernel.release
        assert isinstance(kernel, MemoryUnit)
        kernel._count()
        for held in seen.values():
            held.answer.set_result(True)
        assert (await clear).status is Status.GOOD
        assert (await kernel.send(register(b, 2))).status is Status.GOOD
        assert kernel.rebuilt == 0


async def test_a_preempt_that_looked_like_an_unregistration_is_counted_everywhere_soon() -> None:
    async with world(2, Limits(answer=20, again=16)) as w:
        a, b = w.nexus(0, "n1"), w.nexus(1, "n1")
        kernel = w.kernels["n1"]
        assert (await kernel.send(register(a, 1))).good
        assert (await kernel.send(register(b, 2))).good
        assert (await kernel.send(Command(b, Action.PREEMPT, 2, 1, type=1))).good
        assert kernel.state.generation == 3
        # Much sooner than after the time for which is waited otherwise.
        async with asyncio.timeout(8):
            await w.until(lambda: w.kernels["n2"].state == kernel.state)


class Hurried(MemoryUnit):
    """Its initiator sends one more command at the worst moment: when the agent has looked, and is about to
    replay what ends the initiator's registration."""

    late: asyncio.Task[Outcome] | None = None

    async def replay(self, command: Command, removal: Removal | None = None) -> None:
        if command.action is Action.PREEMPT_AND_ABORT and self.late is None:
            victim = next(n for n in self.state.registrations if n.rtpi == self.unit.port(self.node).rtpi)
            assert removal == Removal(frozenset({victim.initiator}))
            self.late = asyncio.create_task(self.send(register(victim, 9)))
            while not self.waiting():  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
        await super().replay(command, removal)


async def test_what_a_held_command_uses_is_not_removed_while_it_waits() -> None:
    async with world(2) as w:
        victim, other = w.nexus(0, "n1"), w.nexus(1, "n2")
        here, there = w.kernels["n1"], w.kernels["n2"]
        here.__class__ = Hurried
        assert isinstance(here, Hurried)
        assert (await here.send(register(victim, 1))).good
        assert (await there.send(register(other, 2))).good
        assert (await there.send(Command(other, Action.PREEMPT, 2, 1, type=1))).good
        # It came second: its connection was cut, and what it did is taken back.
        assert here.late is not None
        with pytest.raises(SessionCut):
            await here.late
        assert here.cuts == [frozenset({victim.initiator})]
        assert here.rebuilt == 0
        await w.settled()
        assert {n: r.key for n, r in there.state.registrations.items()} == {other: 2}
