"""Keeps one unit's persistent reservations on this node in step with the log.

The kernel is asked what the state is; the log says what it should be. What the kernel has and the log has not
is what initiators did here: it is committed, applied by every other member, and only then answered. What the
log has and the kernel has not is what initiators did elsewhere: it is replayed. Both at once goes as long as
it does not matter in which order they happened; otherwise this node has lost a race: the initiators that wait
here are cut off without an answer, and the unit is given the log's state.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from hactl.agents.clock import Clock
from hactl.errors import HactlError, Refused
from hactl.pr_sync.commands import GENERATIONS, Access, Command
from hactl.pr_sync.derive import Unexplained, commutes, counted, explain
from hactl.pr_sync.kernel import UnitKernel, Waiting
from hactl.pr_sync.log import LOST, PrLog
from hactl.pr_sync.model import NotGood, apply, replay
from hactl.pr_sync.records import Entry, Head
from hactl.pr_sync.rules import KernelUndefined
from hactl.pr_sync.state import Action, State
from hactl.pr_sync.units import Unit

_log = structlog.get_logger("hactl.pr")


class Members(Protocol):
    """The other nodes, as far as the log of a unit is concerned."""

    async def applied(self, node: str, serial: str, index: int) -> None:
        """Back when the node has applied the log up to ``index``; raises if that is not known."""
        ...


@dataclass(frozen=True)
class Limits:
    """Seconds. ``answer``: an initiator gives a silent connection up after 5 s or so; what was not brought
    about by then is ended. ``again``: between two tries at something that cannot be awaited. ``look``: for a
    look at the log when something went wrong. ``settle``: for the kernel's state to make sense. ``follow``:
    for a change of the configuration to come to this node too."""

    answer: float = 4.0
    again: float = 0.1
    look: float = 1.0
    settle: float = 0.5
    follow: float = 3.0


MOST_COUNTS = 1000
"""By how much PRgeneration is brought up in one step of the log; more than that is no lag."""


@dataclass(frozen=True)
class Done:
    """What initiators did: commands, and ``count`` more of PRgeneration than these explain. A CLEAR of the
    only registrant looks like its unregistration, until it was let go and has counted."""

    commands: tuple[Command, ...]
    count: int = 0
    left: State | None = None
    """Nobody did anything, but hosts lost their access, and their registrations with it: what is left."""


NOTHING = Done(())


class _RaceLost(Exception):
    """The kernel's state cannot be brought to the log's by replaying."""


class UnitSync:
    """One unit. ``start`` once, with the kernel at some point of the log; then ``run``. ``applied`` is told
    of each point that is reached."""

    def __init__(
        self,
        unit: Unit,
        node: str,
        kernel: UnitKernel,
        log: PrLog,
        members: Members,
        clock: Clock,
        limits: Limits = Limits(),
        applied: Callable[[Head], None] = lambda _: None,
    ) -> None:
        self.unit = unit
        self.node = node
        self._kernel = kernel
        self._log = log
        self._members = members
        self._clock = clock
        self._limits = limits
        self._applied = applied
        self.head = Head()
        """What this node's kernel has."""
        self.problem: HactlError | None = None
        self._latest = 0
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._due: float | None = None
        self._uncounted = 0
        self._counted_by = 0.0
        self._away = False
        self._moved = asyncio.Condition()

    # From outside

    def poke(self, index: int = 0) -> None:
        """There is news: a command waits, or the log has entry ``index``."""
        self._latest = max(self._latest, index)
        self._wake.set()
        self._news.set()

    async def reach(self, index: int) -> None:
        """Back when the kernel has what the log says up to ``index``; :class:`Refused` ``pr-away`` if nobody
        waits for this node."""
        self.poke(index)
        async with self._moved:
            await self._moved.wait_for(lambda: self.head.index >= index or self._away)
            if self.head.index < index:
                raise Refused(
                    "pr-away",
                    f"{self.node} is no member of {self.unit.name} just now",
                    "it comes back when it has applied the log",
                )

    async def away(self) -> None:
        """This node's port is down, and it is no member: nobody has to wait for it. Until ``start``."""
        async with self._moved:
            self._away = True
            self._moved.notify_all()

    async def start(self, head: Head) -> None:
        """The kernel has the state of ``head`` (it was imported, or it was there)."""
        self._away = False
        await self._at(head)
        self.poke()

    async def run(self) -> None:
        """Until cancelled. What goes wrong is a ``problem``, and tried again."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._due):
                    await self._wake.wait()
            self._wake.clear()
            self._due = None
            try:
                await self._round()
                self.problem = None
            except HactlError as error:
                if self.problem is None:
                    _log.warning("reservations are not in step", unit=self.unit.name, error=str(error))
                self.problem = error
                await self._clock.sleep(self._limits.again)
                self._wake.set()

    # One round

    async def _round(self) -> None:
        waiting = self._kernel.waiting()
        try:
            if not waiting:
                await self._step()
                return
            left = self._limits.answer - (self._clock.now() - min(w.since for w in waiting))
            async with asyncio.timeout(max(left, 0.0)):
                await self._step()
        except _RaceLost as lost:
            await self._start_over(str(lost))
        except TimeoutError:
            await self._too_late()

    async def _step(self) -> None:
        while True:
            try:
                await self._catch_up()
                seen, mine = await self._look()
                await self._publish(mine)
                await self._kernel.release(seen)
                self._look_again(len(seen))
                return
            except Refused as error:
                if error.code != LOST:
                    raise
                self._latest = max(self._latest, self.head.index + 1)

    def _look_again(self, let_go: int) -> None:
        """CLEAR and PREEMPT count a moment after they were let go; how often is not known before. And a host
        that loses its access keeps its registrations until the agent has taken the access away."""
        now = self._clock.now()
        if let_go:
            self._uncounted += let_go
            self._counted_by = now + self._limits.look
        elif now >= self._counted_by:
            self._uncounted = 0
        access = self.unit.access
        if let_go or without_strangers(self.head.state, access) != self.head.state:
            self._due = asyncio.get_running_loop().time() + self._limits.again

    async def _look(self) -> tuple[tuple[str, ...], Done]:
        """What initiators did here that the log does not have, and the commands that waited before the state
        was read: whatever they did is in it."""
        until = self._clock.now() + self._limits.settle
        while True:
            self._news.clear()
            seen = tuple(w.id for w in self._kernel.waiting())
            state = await self._kernel.read(self.head.state)
            mine = self._mine(state, self._kernel.waiting())
            if mine is not None:
                return seen, mine
            # A command changes the state a moment before it waits, and LIO reads the state bit by bit.
            left = until - self._clock.now()
            if left <= 0:
                raise _RaceLost("no commands that wait lead from the log's state to the kernel's")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._limits.again)):
                    await self._news.wait()

    async def _publish(self, mine: Done) -> None:
        """Commit what initiators did here, if they did, and have it applied everywhere."""
        if mine == NOTHING:
            return
        after, commands = mine.left, None
        if after is None:
            after, commands = self._after(mine.commands, mine.count), mine.commands
        await self._at(await self._log.append(self.unit.serial, self.head, commands, after))
        await self._everywhere(self.head.index)

    def _mine(self, state: State, commands_waiting: Sequence[Waiting]) -> Done | None:
        """What initiators did on this node's port to get from the log's state to the kernel's, while these
        commands wait; None if they cannot have."""
        known, waiting = self.head.state, len(commands_waiting)
        if any(w.clears for w in commands_waiting) and not state.registrations:
            cleared = self._cleared(state)
            if cleared is not None:
                return cleared
        if state.same_but_generation(known):
            ahead = (state.generation - known.generation) % GENERATIONS
            if not waiting and 0 < ahead <= MOST_COUNTS:
                return Done((), ahead)
            if not ahead or -ahead % GENERATIONS <= max(waiting, 1):
                # The counter may lag behind what was committed and let go only just now.
                return NOTHING
        left = without_strangers(known, self.unit.access)
        if not waiting and left != known and state == left:
            return Done((), left=left)
        port = self.unit.port(self.node).rtpi
        for count in range(self._uncounted + 1):
            # What was let go a moment ago may have counted only now.
            less = replace(state, generation=(state.generation - count) % GENERATIONS)
            with contextlib.suppress(Unexplained):
                commands = explain(known, less, self.unit.access, port, held=waiting > 0, limit=waiting)
                if all(c.nexus.rtpi == port for c in commands):
                    return Done(commands, count)
        return None

    def _cleared(self, state: State) -> Done | None:
        """A CLEAR of anybody registered here, if that leads to ``state``. Without knowing that it is one, the
        only registrant's looks like its unregistration, until it has counted."""
        known, port = self.head.state, self.unit.port(self.node).rtpi
        for nexus, registration in known.registrations.items():
            if nexus.rtpi == port and nexus.isid:
                command = Command(replace(nexus, copy=0), Action.CLEAR, registration.key)
                outcome, after = apply(known, command, self.unit.acting)
                if outcome.good and counted(state, [command]) == after:
                    return Done((command,))
        return None

    def _after(self, commands: Sequence[Command], count: int = 0) -> State:
        try:
            state = replay(self.head.state, commands, self.unit.acting)
        except (NotGood, KernelUndefined) as error:
            raise _RaceLost(f"the log does not allow what happened: {error}") from error
        return replace(state, generation=(state.generation + count) % GENERATIONS)

    async def _catch_up(self) -> None:
        while self._latest > self.head.index:
            entries = await self._log.entries(self.unit.serial, self.head.index)
            if not entries or entries[0].index != self.head.index + 1:
                head = await self._log.head(self.unit.serial)
                if head.index <= self.head.index:
                    self._latest = self.head.index
                    return
                raise _RaceLost(f"the log is kept from entry {head.index} only")
            for entry in entries:
                await self._apply(entry)

    async def _apply(self, entry: Entry) -> None:
        port = self.unit.port(self.node).rtpi
        if entry.commands is None:
            await self._follow_state(entry)
            return
        if any(c.nexus.rtpi == port for c in entry.commands):
            # It was here, before this agent was started or cut short.
            raise _RaceLost(f"entry {entry.index} cannot be replayed")
        _, mine = await self._look()
        if commutes(self.head.state, entry.commands, mine.commands, self.unit.acting) is None:
            raise _RaceLost(f"{entry.node} was first with entry {entry.index}")
        reached = self._after(entry.commands)
        count = (entry.generation - reached.generation) % GENERATIONS
        for command in entry.commands:
            try:
                await self._kernel.replay(_strict(command))
            except HactlError as error:
                raise _RaceLost(f"entry {entry.index} cannot be replayed: {error}") from error
        if 0 < count <= MOST_COUNTS:
            await self._kernel.count_up(count)
        after = self._after(entry.commands, count)
        await self._at(Head(entry.index, entry.id, after, entry.revision))

    async def _follow_state(self, entry: Entry) -> None:
        """An entry without commands: hosts lost their access. This kernel drops their registrations too, as
        soon as the new configuration is here."""
        head = await self._log.head(self.unit.serial)
        until = self._clock.now() + self._limits.follow
        while head.index == entry.index and self._clock.now() < until:
            if (await self._kernel.read(head.state)).same_but_generation(head.state):
                await self._at(head)
                return
            await self._clock.sleep(self._limits.again)
        raise _RaceLost(f"entry {entry.index} has no commands")

    async def _everywhere(self, index: int) -> None:
        """Back when every member has applied the log up to ``index``, or is none any more."""
        members = await self._log.members(self.unit.serial)
        async with asyncio.TaskGroup() as group:
            for node in members - {self.node}:
                group.create_task(self._one(node, index))

    async def _one(self, node: str, index: int) -> None:
        while True:
            try:
                await self._members.applied(node, self.unit.serial, index)
                return
            except HactlError as error:
                _log.info("not applied yet", unit=self.unit.name, node=node, index=index, error=str(error))
            await self._clock.sleep(self._limits.again)
            with contextlib.suppress(HactlError):
                if node not in await self._log.members(self.unit.serial):
                    return

    # What goes wrong

    async def _start_over(self, why: str) -> None:
        """This node's initiators come second, or what they did cannot be committed: cut them off, and take
        the log's state."""
        _log.warning("reservations are rebuilt from the log", unit=self.unit.name, reason=why)
        head = await self._end()
        await self._kernel.rebuild(head.state)
        await self.start(head)

    async def _too_late(self) -> None:
        """An answer would come too late: end the connection instead. What was committed stays, and is applied
        by the others sooner or later; what was not is found by the next round, with nobody who waits for
        it."""
        _log.warning("commands cannot be answered in time", unit=self.unit.name)
        await self._cut()
        head = await self._end()
        if head.index > self.head.index:
            state = await self._kernel.read(head.state)
            if state.same_but_generation(head.state):
                await self._at(head)
        self.poke(head.index)

    async def _cut(self) -> None:
        await self._kernel.cut()
        await self._kernel.release([w.id for w in self._kernel.waiting()])

    async def _end(self) -> Head:
        """The end of the log, or what this node knows of it: the last commit may have been cut short after it
        was sent."""
        with contextlib.suppress(HactlError, TimeoutError):
            async with asyncio.timeout(self._limits.look):
                return await self._log.head(self.unit.serial)
        return self.head

    async def _at(self, head: Head) -> None:
        self._applied(head)
        async with self._moved:
            self.head = head
            self._moved.notify_all()


def without_strangers(state: State, access: Access) -> State:
    """What LIO leaves of a state when initiators lose their access: their registrations go, and with the
    holder's its reservation. Nothing is counted and nothing is written to the APTPL file."""
    stay = {n: r for n, r in state.registrations.items() if n.initiator in access.get(n.rtpi, frozenset())}
    if len(stay) == len(state.registrations):
        return state
    held = state.reservation
    if held is not None and (held.holder not in stay if held.holder is not None else not stay):
        held = None
    hidden = state.hidden if state.hidden.anchor in stay else replace(state.hidden, anchor=None)
    return State(state.generation, stay, held, hidden)


def _strict(command: Command) -> Command:
    """As it is replayed: PREEMPT as PREEMPT AND ABORT. The state cannot tell which of the two it was, and
    stopping the commands of the victim that are queued is the safe reading (SPC-4 5.13.11.2.6)."""
    if command.action is not Action.PREEMPT:
        return command
    return replace(command, action=Action.PREEMPT_AND_ABORT)
