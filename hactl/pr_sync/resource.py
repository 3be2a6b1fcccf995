"""The persistent reservations of one resource on this node, from nothing to serving: what LIO's tree of it
shall be, its units in step with their logs, and membership.

A unit is exported only after its log was read; it is offered to initiators only after this node has applied
the log to its end and is a member, so that nothing is committed without it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.pr_sync.aptpl import import_lines
from hactl.pr_sync.around import Around, KeptUnit, Tree
from hactl.pr_sync.commands import GENERATIONS
from hactl.pr_sync.log import LOST
from hactl.pr_sync.own import MOST_COUNTS, without_strangers
from hactl.pr_sync.records import Head
from hactl.pr_sync.state import State

AGAIN = (0.5, 1.0, 2.0, 5.0)
"""Seconds between two tries at what failed."""

_log = structlog.get_logger("hactl.pr")


class ResourceKeeping:
    """One resource. ``tree`` is None until the logs of its units were read; ``member``: initiators may use it
    here."""

    def __init__(self, name: str, units: dict[str, KeptUnit], around: Around) -> None:
        self.name = name
        self.units = units
        self.tree: Tree | None = None
        self.member = False
        self.problem: HactlError | None = None
        self._around = around
        self._task: asyncio.Task[None] | None = None
        self._made = False
        """Its units are in LIO's tree, with what their syncs say."""
        self._changing = asyncio.Lock()
        """Held by whoever takes its units down, or makes them."""

    def begin(self) -> None:
        """Bring it up, if nobody does so."""
        if self._task is None or self._task.done():
            self._made = False
            self._task = self._around.spawn(self._bring_up())

    @property
    def began(self) -> bool:
        """It was begun once."""
        return self._task is not None

    async def end(self) -> None:
        """What keeps it ends; the kernel goes on."""
        tasks = [t for t in (self._task, *(u.task for u in self.units.values())) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in self.units.values():
            await one.kernel.shut()

    # From nothing to serving

    async def _bring_up(self) -> None:
        tries = 0
        while True:
            try:
                async with self._changing:
                    await self._start()
                    self._made = True
                self.problem = None
                return
            except HactlError as error:
                if self.problem is None or self.problem.code != error.code:
                    _log.warning("reservations are not in step", resource=self.name, error=str(error))
                self.problem = error
                await self._around.clock.sleep(AGAIN[min(tries, len(AGAIN) - 1)])
                tries += 1

    async def _start(self) -> None:
        agent = self._around.agent
        if self.tree is None and agent.exported(self.name):
            kept = {serial: self._around.kept.read(serial) for serial in self.units}
            if any(kept.values()) and agent.serving(self.name):
                # The kernel has gone on while this process was away. A unit that nothing was kept of is new.
                await self._resume({s: h or Head() for s, h in kept.items()})
                if self.withdrawn:
                    await self._step_out()
                return
            # Made by somebody who kept no log, or only half made.
            self.tree = Tree(absent=True)
            await agent.attend_to(self.name)
        heads = {serial: await self._around.log.head(serial) for serial in self.units}
        self.tree = Tree(imports=self._imports({s: h.state for s, h in heads.items()}))
        await self._make_anew(heads)
        await self._enter()

    async def _resume(self, kept: dict[str, Head]) -> None:
        await self._around.agent.close_doors(self.name)
        await self._around.agent.check_directory()
        self.tree = Tree(open=True, imports=self._imports({s: h.state for s, h in kept.items()}))
        self.member = True
        for serial, one in self.units.items():
            one.kernel.opened = True
            await one.sync.start(kept[serial])
            self._run(one)
        if any(head == Head() for head in kept.values()):
            await self._around.agent.attend_to(self.name)
            await self._join()
        self._around.spawn(self._check())

    async def _check(self) -> None:
        """Whether somebody has said meanwhile that this node is down."""
        while self.member:
            try:
                for serial in self.units:
                    if self._around.node not in await self._around.log.members(serial):
                        self.expelled()
                return
            except HactlError:
                await self._around.clock.sleep(AGAIN[-1])

    def shown(self, tree: Tree) -> Tree:
        """``tree`` with what would have to be imported now, should somebody take the unit's export away."""
        if not (self.member or (self.withdrawn and self._made)):
            return tree
        imports = self._imports({s: one.sync.head.state for s, one in self.units.items()})
        return Tree(tree.open, tree.absent, imports)

    def _run(self, one: KeptUnit) -> None:
        if one.task is None or one.task.done():
            one.task = self._around.spawn(one.sync.run())

    def _imports(self, states: dict[str, State]) -> dict[int, tuple[str, ...]]:
        imports = {}
        for serial, one in self.units.items():
            # A host that has lost its access since has no place to import to.
            state = without_strangers(states[serial], one.unit.access)
            imports[one.unit.volume] = import_lines(state, one.unit.places)
        return imports

    async def _make_anew(self, heads: dict[str, Head]) -> None:
        """The resource's tree with its units' registrations, closed to initiators."""
        await self._around.agent.claim_directory()
        await self._around.agent.attend_to(self.name)
        if not self._around.agent.exported(self.name):
            raise Failed(
                "not-exported",
                f"{self.name} is not exported on this node yet",
                "hactl status says what is missing",
            )
        # Not before: with the backstores it has come to stay.
        await self._around.agent.check_directory()
        for serial, one in self.units.items():
            wanted = without_strangers(heads[serial].state, one.unit.access)
            if not await self._counted_up(one, wanted):
                # Something else than this import has made it.
                await self._take_down()
                raise Failed(
                    "reservations-differ",
                    f"unit {one.unit.name} has not the reservations that it was given",
                    "it is made anew",
                )
            await one.sync.start(heads[serial])

    async def _counted_up(self, one: KeptUnit, wanted: State) -> bool:
        """Bring PRgeneration, which in a new kernel begins with the number of registrations, to where it was.
        Whether the unit has the state now."""
        found = await one.kernel.read(wanted)
        if not found.same_but_generation(wanted):
            return False
        if (found.generation - wanted.generation) % GENERATIONS <= MOST_COUNTS:
            # The kernel goes on counting for as long as the unit lives: the other nodes follow.
            return True
        await one.kernel.count_up((wanted.generation - found.generation) % GENERATIONS)
        return await one.kernel.read(wanted) == wanted

    async def _close(self) -> None:
        for one in self.units.values():
            one.kernel.opened = False
            await one.kernel.shut()

    async def _take_down(self) -> None:
        await self._close()
        self.tree = Tree(absent=True)
        await self._around.agent.attend_to(self.name)

    async def _enter(self) -> None:
        """Be a member for all its units, then let initiators in."""
        for one in self.units.values():
            self._run(one)
        if not self.withdrawn:
            await self._join()
            self.member = True
            await self._open()
        if self.withdrawn:
            # It may have been stopped only while this went on.
            await self._step_out()

    # Stopped, and started again

    @property
    def withdrawn(self) -> bool:
        """It is stopped on this node."""
        return self._around.agent.withdrawn(self.name)

    async def withdraw(self) -> None:
        """Shut the port and leave the members; the agent says already that it is withdrawn. Replaying goes
        on, so that coming back is quick."""
        # At once, also if somebody is bringing it up and takes his time.
        await self._around.agent.shut_port(self.name)
        async with self._changing:
            await self._step_out()

    async def _step_out(self) -> None:
        self.member = False
        if self.tree is not None:
            self.tree.open = False
        await self._around.agent.shut_port(self.name)
        await self._close()
        for one in self.units.values():
            await one.sync.away()
        if not await self._left():
            self._around.spawn(self._leave_later())

    async def _left(self) -> bool:
        """Whether it is certain that this node is no member of any of its units. While it is, others wait for
        it with every command."""

        async def leave(serial: str) -> bool:
            try:
                async with asyncio.timeout(1):
                    await self._around.log.leave(serial)
            except (HactlError, TimeoutError):
                return False
            return True

        return all(await asyncio.gather(*map(leave, self.units)))

    async def _leave_later(self) -> None:
        tries = 0
        left = False
        while not left:
            await self._around.clock.sleep(AGAIN[min(tries, len(AGAIN) - 1)])
            tries += 1
            async with self._changing:
                left = not self.withdrawn or await self._left()

    def rejoin(self) -> None:
        """The agent says that it is not withdrawn any more: apply the whole log, then let initiators in."""
        self._around.spawn(self._back_in())

    async def _back_in(self) -> None:
        async with self._changing:
            if self.withdrawn or self.member or not self._made:
                # What is still being brought up finds out by itself.
                return
            try:
                for one in self.units.values():
                    await one.sync.start(one.sync.head)
                await self._enter()
                self.problem = None
            except HactlError as error:
                self.problem = error
                self.begin()

    async def _open(self) -> None:
        assert self.tree is not None
        self.tree.open = True
        for one in self.units.values():
            one.kernel.opened = True
        await self._around.agent.attend_to(self.name)

    async def _join(self) -> None:
        for serial, one in self.units.items():
            while True:
                try:
                    await self._around.log.join(serial, one.sync.head)
                    break
                except Refused as error:
                    if error.code != LOST:
                        raise
                    head = await self._around.log.head(serial)
                    await one.sync.reach(head.index)

    # When something is wrong

    def expelled(self) -> None:
        """Somebody has said that this node is down: what was committed since may be missing here."""
        if self.member:
            _log.warning("taken out of the members", resource=self.name)
            self.member = False
            self._around.spawn(self._come_back())

    async def _come_back(self) -> None:
        async with self._changing:
            try:
                if self.tree is not None:
                    self.tree.open = False
                await self._close()
                await self._around.agent.attend_to(self.name)
                await self._enter()
            except HactlError as error:
                self.problem = error
                self.begin()

    async def rebuild(self, serial: str, state: State) -> None:
        """Make a unit anew with this state, and with it the others of the resource, each with its own. Back
        when the kernel has it; initiators come in a moment later."""
        async with self._changing:
            try:
                states = {s: one.sync.head.state for s, one in self.units.items()} | {serial: state}
                # Until it has this state, it is not what its units' syncs say.
                self.member = self._made = False
                await self._around.agent.shut_port(self.name)
                left = await self._leave()
                await self._take_down()
                self.tree = Tree(imports=self._imports(states))
                await self._around.agent.attend_to(self.name)
                for name, one in self.units.items():
                    await self._counted_up(one, without_strangers(states[name], one.unit.access))
                    if name != serial:
                        await one.sync.start(one.sync.head)
            except HactlError:
                # Half taken down: from here on it is brought up like one that was never there.
                self.begin()
                raise
        self._around.spawn(self._come_in(join=left))

    async def _leave(self) -> bool:
        """With the port down nobody has to wait for this node, least of all those who were first. False
        without the store: then it is a member still, and nobody commits anything."""
        left = False
        for name, one in self.units.items():
            try:
                async with asyncio.timeout(1):
                    await self._around.log.leave(name)
                left = True
            except (Unknown, TimeoutError):
                left = True
            except Refused:
                continue
            await one.sync.away()
        return left

    async def _come_in(self, *, join: bool) -> None:
        async with self._changing:
            self._made = True
            try:
                if join:
                    await self._enter()
                else:
                    self.member = True
                    await self._open()
                    if self.withdrawn:
                        await self._step_out()
            except HactlError as error:
                self.problem = error
                self.begin()

    async def confirm(self, gone: Iterable[str], seconds: float) -> None:
        """The nodes ``gone`` are down, as somebody says who knows. Back when they are members no more and
        this node, which has to be one, has the log's end; :class:`Refused` ``reservations-behind``, or as by
        the store."""
        for serial, one in self.units.items():
            for node in gone:
                await self._around.log.expel(serial, node)
            if self._around.node not in await self._around.log.members(serial):
                raise Refused(
                    "reservations-behind",
                    f"{self._around.node} was taken out of the members of unit {one.unit.name}",
                    "wait until it has applied what it has missed: hactl pr show",
                )
            head = await self._around.log.head(serial)
            try:
                async with asyncio.timeout(seconds):
                    await one.sync.reach(head.index)
            except TimeoutError:
                raise Refused(
                    "reservations-behind",
                    f"unit {one.unit.name} has the log up to {one.sync.head.index}, not {head.index}",
                    "try again, or see the journal of hactl-agent",
                ) from None
