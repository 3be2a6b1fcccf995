"""The kernel's twin for PR synchronisation: one unit that initiators send commands to, after the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from hactl.errors import Failed, Refused
from hactl.pr_sync.commands import GENERATIONS, Command, Outcome
from hactl.pr_sync.kernel import CONFLICTS, OCCUPIED, Removal, Waiting
from hactl.pr_sync.model import apply
from hactl.pr_sync.state import Action, Hidden, Nexus, State
from hactl.pr_sync.units import Unit

_LATE = (Action.CLEAR, Action.PREEMPT, Action.PREEMPT_AND_ABORT)
"""What counts PRgeneration up after its write to the APTPL file."""


class SessionCut(Exception):
    """The connection has ended before the command was answered."""


@dataclass
class _Held:
    waiting: Waiting
    answer: asyncio.Future[bool]
    counts: bool
    nexus: Nexus


class MemoryUnit:
    """Keeps :class:`hactl.pr_sync.kernel.UnitKernel`. ``now``: seconds of the agent's clock; ``changed`` is
    called when a command begins to wait; ``node``: where it is, if that is to be looked at."""

    def __init__(
        self, unit: Unit, now: Callable[[], float], changed: Callable[[], None], node: str = ""
    ) -> None:
        self.unit = unit
        self.node = node
        self.state = State()
        self.rebuilt = 0
        self._now = now
        self._changed = changed
        self._held: dict[str, _Held] = {}
        self._next = 0
        self._connections: dict[object, asyncio.Lock] = {}
        self._away: list[frozenset[str] | None] = []
        """Who is cut off; None: all."""
        self.cuts: list[frozenset[str] | None] = []

    async def send(self, command: Command) -> Outcome:
        """As an initiator: back with the answer, or :class:`SessionCut`. One command at a time on a nexus."""
        async with self._connections.setdefault(command.nexus, asyncio.Lock()):
            if self._is_cut(command.nexus.initiator):
                raise SessionCut(str(command))
            outcome = self._execute(command)
            if not outcome.good:
                return outcome
            held = self._hold(command)
            if not await held.answer:
                raise SessionCut(str(command))
            return outcome

    def _execute(self, command: Command) -> Outcome:
        before = self.state
        outcome, after = apply(before, command, self.unit.acting)
        if outcome.good and command.action in _LATE:
            # The counter follows when the command is let go.
            after = replace(after, generation=before.generation)
        self.state = after
        return outcome

    def _hold(self, command: Command) -> _Held:
        number = str(self._next)
        self._next += 1
        waiting = Waiting(number, self._now(), command.action is Action.CLEAR)
        answer = asyncio.get_running_loop().create_future()
        held = _Held(waiting, answer, command.action in _LATE, command.nexus)
        self._held[number] = held
        self._changed()
        return held

    def _count(self) -> None:
        self.state = replace(self.state, generation=(self.state.generation + 1) % GENERATIONS)

    # As the agent sees it

    def waiting(self) -> tuple[Waiting, ...]:
        return tuple(h.waiting for h in self._held.values())

    async def release(self, ids: Collection[str]) -> None:
        for number in ids:
            held = self._held.pop(number, None)
            if held is None:
                continue
            if held.counts:
                self._count()
            if not held.answer.done():
                held.answer.set_result(True)

    async def read(self, known: State) -> State:  # noqa: ARG002 - it knows all itself
        await asyncio.sleep(0)
        return replace(self.state, hidden=Hidden())

    async def replay(self, command: Command, removal: Removal | None = None) -> None:
        await asyncio.sleep(0)
        nexus = command.nexus
        if self.node and nexus.rtpi == self.unit.port(self.node).rtpi and not self._is_cut(nexus.initiator):
            raise AssertionError(f"{nexus} would lose its session")
        if removal is not None and not self._held.keys() <= removal.besides:
            raise Refused(OCCUPIED, "commands wait")
        before = self.state.registrations
        outcome = self._execute(command)
        used = {held.nexus for held in self._held.values()}
        stuck = used & (before.keys() - self.state.registrations.keys())
        if removal is not None and stuck:
            raise AssertionError(f"LIO would wait, and everybody with it, for commands of {stuck}")
        if not outcome.good:
            raise Failed(CONFLICTS, f"{command.action.name} is answered {outcome.status.name}")
        if command.action in _LATE:
            self._count()

    async def count_up(self, times: int) -> None:
        await asyncio.sleep(0)
        for _ in range(times):
            self._count()

    @property
    def cutting(self) -> bool:
        """Somebody is cut off."""
        return bool(self._away)

    def _is_cut(self, initiator: str) -> bool:
        return any(names is None or initiator in names for names in self._away)

    @asynccontextmanager
    async def cut(self, ids: Collection[str], initiators: frozenset[str] | None) -> AsyncIterator[None]:
        self.cuts.append(initiators)
        self._away.append(initiators)
        try:
            for held in self._held.values():
                if self._is_cut(held.nexus.initiator) and not held.answer.done():
                    held.answer.set_result(False)
            await asyncio.sleep(0)
            # Who is not cut off hears what is let go.
            await self.release(ids)
            yield
        finally:
            self._away.remove(initiators)

    async def rebuild(self, state: State) -> None:
        self.hang_up()
        self.state = replace(state, hidden=Hidden())
        self.rebuilt += 1

    def hang_up(self) -> None:
        """End all connections."""
        for held in self._held.values():
            if not held.answer.done():
                held.answer.set_result(False)
        self._held.clear()
