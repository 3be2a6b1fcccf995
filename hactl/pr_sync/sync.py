"""Keeps one unit's persistent reservations on this node in step with the log.

The kernel is asked what the state is; the log says what it should be. What the kernel has and the log has not
is what initiators did here: it is committed, applied by every other member, and only then answered. What the
log has and the kernel has not is what initiators did elsewhere: it is replayed. Both at once goes as long as
it does not matter in which order they happened; otherwise this node has lost a race: the initiators that wait
here are cut off without an answer, and what they did is taken back. So is what cannot be committed in time.
Where that cannot be done one by one, the unit is made anew with the log's state.
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
from hactl.pr_sync.commands import GENERATIONS, Command
from hactl.pr_sync.deadline import Deadline
from hactl.pr_sync.derive import commutes
from hactl.pr_sync.kernel import OCCUPIED, Removal, UnitKernel
from hactl.pr_sync.log import LOST, PrLog
from hactl.pr_sync.model import NotGood, replay
from hactl.pr_sync.own import MOST_COUNTS, NOTHING, Counter, Done, done, without_strangers
from hactl.pr_sync.records import Entry, Head
from hactl.pr_sync.rules import KernelUndefined
from hactl.pr_sync.state import Action, State
from hactl.pr_sync.suspects import Suspects, senders
from hactl.pr_sync.undo import Place, robbed, undo
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
        self._pause = limits.again
        self._owed = 0
        """What commands that were taken back have counted, and the log has not."""
        self._taken_back: int | None = None
        """Index after which this process took commands back."""
        self._spread = 0
        """Up to here the log has to be everywhere before a command is let go."""
        self._suspects = Suspects()
        self._present: tuple[str, ...] = ()
        """The commands that may have brought about what the last look saw."""
        self._deadline = Deadline(self._left)
        self._away = False
        self._moved = asyncio.Condition()

    # From outside

    def poke(self, index: int = 0) -> None:
        """There is news: a command waits, or the log has entry ``index``."""
        self._latest = max(self._latest, index)
        self._wake.set()
        self._news.set()
        self._deadline.moved()

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
        self._owed, self._taken_back = 0, None
        # Whether the others had it was perhaps to be found out by a process that is no more.
        self._spread = head.index
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
        try:
            async with self._deadline.kept():
                await self._step()
        except _RaceLost as lost:
            await self._start_over(str(lost))
        except TimeoutError:
            if self._left() <= 0:
                await self._too_late()
            else:
                # It was set for commands that were let go meanwhile.
                self.poke()

    def _left(self) -> float:
        """Seconds until the oldest command that waits has to be ended; infinite if none waits."""
        since = min((w.since for w in self._kernel.waiting()), default=float("inf"))
        return self._limits.answer + since - self._clock.now()

    async def _step(self) -> None:
        while True:
            try:
                await self._catch_up()
                seen, mine = await self._look()
                await self._publish(mine)
                if seen and self._spread:
                    # What was committed may not be everywhere: the store or this process was away since.
                    await self._everywhere(self._spread)
                await self._kernel.release(seen)
                self._suspects.forget(seen)
                self._look_again(len(seen), doubtful=_may_count(mine))
                return
            except Refused as error:
                if error.code != LOST:
                    raise
                self._latest = max(self._latest, self.head.index + 1)

    def _look_again(self, let_go: int, *, doubtful: bool = False) -> None:
        """CLEAR and PREEMPT count a moment after they were let go; how often is not known before. And a host
        that loses its access keeps its registrations until the agent has taken the access away. ``doubtful``:
        one of those let go may have counted by now, and the other nodes do not know of it."""
        now = self._clock.now()
        if let_go:
            self._uncounted += let_go
            self._counted_by = now + self._limits.look
            self._pause = self._limits.again / 32 if doubtful else self._limits.again
        elif now >= self._counted_by:
            self._uncounted = 0
        else:
            self._pause = min(self._pause * 2, self._limits.again * 2)
        waits = self._uncounted and self._pause <= self._limits.again
        if waits or without_strangers(self.head.state, self.unit.access) != self.head.state:
            self._due = asyncio.get_running_loop().time() + min(self._pause, self._limits.again)

    async def _look(self) -> tuple[tuple[str, ...], Done]:
        """What initiators did here that the log does not have, and the commands that waited before the state
        was read: whatever they did is in it."""
        until = self._clock.now() + self._limits.settle
        while True:
            self._news.clear()
            seen = tuple(w.id for w in self._kernel.waiting())
            state = await self._kernel.read(self.head.state)
            # Of those that came meanwhile the state may have something too.
            self._present = tuple(w.id for w in self._kernel.waiting())
            port, counter = self._port, Counter(self._owed, self._uncounted)
            mine = done(self.head.state, state, self._kernel.waiting(), self.unit, port, counter)
            if mine is not None:
                return seen, mine
            # A command changes the state a moment before it waits, and LIO reads the state bit by bit.
            left = until - self._clock.now()
            if left <= 0:
                raise _RaceLost("no commands that wait lead from the log's state to the kernel's")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._limits.again)):
                    await self._news.wait()

    @property
    def _port(self) -> int:
        return self.unit.port(self.node).rtpi

    async def _publish(self, mine: Done) -> None:
        """Commit what initiators did here, if they did, and have it applied everywhere."""
        if mine == NOTHING:
            return
        before, after, commands = self.head.state, mine.left, None
        if after is None:
            after, commands = self._after(mine.commands, mine.count), mine.commands
        head = await self._log.append(self.unit.serial, self.head, commands, after)
        if mine.left is None:
            self._owed = 0
        self._spread = head.index
        self._suspects.note(self._present, before, after, self._port)
        await self._at(head)
        await self._everywhere(head.index)

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
        if entry.commands is None:
            await self._follow_state(entry)
            return
        reached = self._after(entry.commands)
        count = (entry.generation - reached.generation) % GENERATIONS
        after = replace(reached, generation=entry.generation)
        own = frozenset(c.nexus.initiator for c in entry.commands if c.nexus.rtpi == self._port)
        if own and await self._has(after):
            # It was here, before this agent was started or cut short. Those who wait may have sent it.
            self._spread = entry.index
            self._suspects.note([w.id for w in self._kernel.waiting()], self.head.state, after, self._port)
            await self._at(Head(entry.index, entry.id, after, entry.revision))
            return
        gone = self.head.state.registrations.keys() - after.registrations.keys()
        victims = frozenset(n.initiator for n in gone if n.rtpi == self._port)
        while True:
            waiting = await self._make_way(entry, victims)
            removal = Removal(victims, waiting) if victims else None
            async with self._kernel.cut((), own) if own else contextlib.nullcontext():
                if await self._replayed(entry.index, entry.commands, removal):
                    break
        if entry.node == self.node:
            # Its commit was cut short: the kernel has counted these already.
            known = min(count, self._owed)
            self._owed -= known
            count -= known
        if 0 < count <= MOST_COUNTS:
            await self._kernel.count_up(count)
        await self._at(Head(entry.index, entry.id, after, entry.revision))

    async def _replayed(self, index: int, commands: Sequence[Command], removal: Removal | None) -> bool:
        """Whether these were replayed. If not, nothing was, as a command has begun to wait that may be in the
        way."""
        for number, command in enumerate(commands):
            try:
                await self._kernel.replay(_strict(command), removal)
            except HactlError as error:
                if error.code == OCCUPIED and not number:
                    return False
                raise _RaceLost(f"entry {index} cannot be replayed: {error}") from error
        return True

    async def _has(self, after: State) -> bool:
        """Whether the kernel has an entry of this node's own, which leads to this state: it has, unless what
        initiators did was taken back after its commit was cut short."""
        state = await self._kernel.read(self.head.state)
        if state.same_but_generation(after):
            return True
        return not state.same_but_generation(self.head.state) and self._taken_back != self.head.index

    async def _make_way(self, entry: Entry, victims: frozenset[str] = frozenset()) -> frozenset[str]:
        """What initiators did here comes after the entry, or is taken back; so is what may have been sent by
        ``victims``, who lose a registration by it. The commands that wait then."""
        while True:
            seen, mine = await self._look()
            commands = entry.commands or ()
            before = self.head.state
            if commutes(before, commands, mine.commands, self.unit.acting) is not None:
                state = self._after(mine.commands, mine.count) if mine.left is None else mine.left
                alone = len(seen) == 1 and self._present == seen
                names = senders(before, state, self._port) if alone else None
                if not victims or not seen or (names is not None and not names & victims):
                    return frozenset(seen)
            _log.warning("others were first", unit=self.unit.name, index=entry.index, node=entry.node)
            with self._deadline.suspended():
                await self._take_back(seen, mine)

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
        """Back when every member has applied the log up to ``index``, or is none any more. Only then may what
        it contains be answered: if this is cut short, it begins again."""
        members = await self._log.members(self.unit.serial)
        async with asyncio.TaskGroup() as group:
            for node in members - {self.node}:
                group.create_task(self._one(node, index))
        if self._spread <= index:
            self._spread = 0

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
        """An answer would come too late: end the connections instead. What was committed stays, and is
        applied by the others sooner or later."""
        _log.warning("commands cannot be answered in time", unit=self.unit.name)
        ids = [w.id for w in self._kernel.waiting()]
        try:
            seen, mine = await self._look()
            await self._take_back(seen, mine, unsure=True)
        except _RaceLost as lost:
            await self._start_over(str(lost))
        except HactlError:
            # What they did is found by the next round, with nobody who waits for it.
            async with self._kernel.cut(ids, None):
                self._suspects.forget(ids)
            raise
        self.poke()

    async def _take_back(self, seen: Sequence[str], mine: Done, *, unsure: bool = False) -> None:
        """End the connections of those who wait, and bring the kernel to the state of the log that it had
        before they came, by commands in their names. `_RaceLost` if that cannot be done. ``unsure``: it may
        have been committed."""
        logged = self.head
        before = self._after(mine.commands, mine.count) if mine.left is None else mine.left
        self._suspects.note(self._present, logged.state, before, self._port)
        names = self._suspects.of(seen)
        commands = self._undoing(before, names)
        if commands is None and names is not None:
            names |= robbed(before, logged.state, self._port)
            commands = self._undoing(before, names)
        if commands is None:
            raise _RaceLost("what was done cannot be taken back by itself")
        async with self._kernel.cut(seen, names):
            self._suspects.forget(seen)
            self._look_again(len(seen))
            if mine == NOTHING:
                return
            if unsure and commands and await self._committed(before):
                return
            self._taken_back = logged.index
            try:
                for command in commands:
                    await self._kernel.replay(command)
            except HactlError as error:
                raise _RaceLost(f"what was done cannot be taken back: {error}") from error
            undone = replay(before, commands, self.unit.acting)
            self._owed = (undone.generation - logged.state.generation) % GENERATIONS
            await self._look()
        _log.info("taken back", unit=self.unit.name, commands=len(commands))

    async def _committed(self, before: State) -> bool:
        """Whether the commit that was cut short is in the log."""
        head = await self._end()
        if head.index != self.head.index + 1 or not before.same_but_generation(head.state):
            return False
        await self._at(head)
        return True

    def _undoing(self, before: State, names: frozenset[str] | None) -> tuple[Command, ...] | None:
        access, port = self.unit.access, self._port
        return undo(before, self.head.state, Place(access, port, access[port] if names is None else names))

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


def _may_count(mine: Done) -> bool:
    """Whether there is an unregistration among the commands, which may have been a PREEMPT: that looks the
    same until LIO has counted it, which it does after it was let go."""
    return any(
        c.action in (Action.REGISTER, Action.REGISTER_AND_IGNORE_EXISTING_KEY) and not c.service_action_key
        for c in mine.commands
    )


def _strict(command: Command) -> Command:
    """As it is replayed: PREEMPT as PREEMPT AND ABORT. The state cannot tell which of the two it was, and
    stopping the commands of the victim that are queued is the safe reading (SPC-4 5.13.11.2.6)."""
    if command.action is not Action.PREEMPT:
        return command
    return replace(command, action=Action.PREEMPT_AND_ABORT)
