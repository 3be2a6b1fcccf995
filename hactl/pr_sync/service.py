"""Persistent reservations of all units of this node: brings each unit in step, keeps it so, and says when its
initiators may use it.

A unit is exported only after its log was read; it is offered to initiators only after this node has applied
the log to its end and is a member, so that nothing is committed without it any more. Neither the death of
this process nor that of the store ends it: a member stays one until it leaves, or is said to be down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import structlog

from hactl.agents.clock import Clock
from hactl.errors import Failed, HactlError, Refused
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.pr_sync.aptpl import import_lines
from hactl.pr_sync.capture.protocol import Capture, Held, Mounted
from hactl.pr_sync.clear import Cleared, clear
from hactl.pr_sync.commands import GENERATIONS
from hactl.pr_sync.kept import FOLDER, Kept
from hactl.pr_sync.kernel import UnitKernel
from hactl.pr_sync.log import LOST, PrLog, prefix
from hactl.pr_sync.records import Head, decode_head
from hactl.pr_sync.state import State
from hactl.pr_sync.sync import Limits, Members, UnitSync
from hactl.pr_sync.units import Unit, units_of
from hactl.store.protocol import Reset, Store

AGAIN = (0.5, 1.0, 2.0, 5.0)
"""Seconds between two tries at what failed."""

_log = structlog.get_logger("hactl.pr")


class Kernel(UnitKernel, Protocol):
    """A unit as the service has it."""

    unit: Unit
    opened: bool

    def arrived(self, held: Held) -> None: ...

    async def count_up(self, times: int) -> None: ...

    async def shut(self) -> None: ...


class Node(Protocol):
    """What the service asks of the agent."""

    async def attend_to(self, resource: str) -> None:
        """Bring the resource's part of LIO's tree to what :meth:`Reservations.tree` says now."""
        ...

    def exported(self, resource: str) -> bool:
        """Whether LIO's tree has the resource's target."""
        ...

    async def close_doors(self, resource: str) -> None:
        """Disable the other nodes' portal groups, which an agent that was killed may have left enabled."""
        ...


@dataclass
class Tree:
    """What LIO's tree of a resource shall be; see :class:`hactl.target.tree.PrTree`. ``absent``: it is taken
    down, to be made anew."""

    open: bool = False
    absent: bool = False
    imports: dict[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reached:
    """How far this node is with a unit. ``member``: initiators may use it here."""

    head: Head
    member: bool
    problem: HactlError | None


@dataclass
class _Unit:
    unit: Unit
    kernel: Kernel
    sync: UnitSync
    task: asyncio.Task[None] | None = None


@dataclass
class _Resource:
    name: str
    units: dict[str, _Unit]
    tree: Tree | None = None
    """None until the logs of its units were read."""
    task: asyncio.Task[None] | None = None
    member: bool = False
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever takes its units down, or makes them."""
    problem: HactlError | None = None


class Reservations:
    """``make`` gives the kernel's side of a unit, whose second argument is called when a command waits."""

    def __init__(
        self,
        node: str,
        cluster: str,
        store: Store,
        capture: Capture,
        members: Members,
        clock: Clock,
        agent: Node,
        make: Callable[[Unit, Callable[[], None]], Kernel],
        *,
        folder: Path = FOLDER,
        limits: Limits | None = None,
    ) -> None:
        self.node = node
        self._store = store
        self._prefix = prefix(cluster)
        self._log = PrLog(store, cluster, node)
        self._capture = capture
        self._members = members
        self._clock = clock
        self._agent = agent
        self._make = make
        self._kept = Kept(clock.boot(), folder)
        self._limits = limits or Limits()
        self._resources: dict[str, _Resource] = {}
        self._gone: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]] = asyncio.create_task

    # What others ask

    def tree(self, spec: ResourceSpec) -> Tree | None:
        """What LIO's tree of a resource shall be; None if its reservations concern this node alone.

        :class:`Refused` ``reservations-unknown`` while the log could not be read.
        """
        if len(spec.nodes) < 2:
            return None
        resource = self._resources.get(spec.name)
        if resource is None or resource.tree is None:
            why = f": {resource.problem.message}" if resource is not None and resource.problem else ""
            raise Refused(
                "reservations-unknown",
                f"the persistent reservations of {spec.name} are not known yet{why}",
                "the unit is exported as soon as the cluster's store has told them; see hactl cluster status",
            )
        return resource.tree

    def unready(self, resource: str) -> str | None:
        """Why this node must not become active for a resource; None if it may."""
        found = self._resources.get(resource)
        if found is None or found.member:
            return None
        why = f": {found.problem.message}" if found.problem else ""
        return f"persistent reservations of {resource} are not in step on {self.node}{why}"

    async def applied(self, serial: str, index: int) -> None:
        """A member asks: back when this node's kernel has the log's entry ``index``."""
        sync = self._sync(serial)
        if sync is None:
            raise Refused("unknown-unit", f"{self.node} does not export unit {serial}", "see hactl status")
        await sync.reach(index)

    async def confirm(self, resource: str, gone: Iterable[str]) -> None:
        """This node is about to become active, and the nodes ``gone`` are down, as somebody says who knows.

        Back when they are members no more and this node has the log's end; :class:`Refused` if it is none
        itself, or as by the store.
        """
        why = self.unready(resource)
        if why is not None:
            raise Refused("reservations-behind", why, "hactl status says what is missing")
        found = self._resources.get(resource)
        for serial, one in found.units.items() if found is not None else ():
            for node in gone:
                await self._log.expel(serial, node)
            if self.node not in await self._log.members(serial):
                raise Refused(
                    "reservations-behind",
                    f"{self.node} was taken out of the members of unit {one.unit.name}",
                    "restart hactl-agent there: it applies what it has missed",
                )
            head = await self._log.head(serial)
            try:
                async with asyncio.timeout(self._limits.answer):
                    await one.sync.reach(head.index)
            except TimeoutError:
                raise Refused(
                    "reservations-behind",
                    f"unit {one.unit.name} has the log up to {one.sync.head.index}, not {head.index}",
                    "try again, or see the journal of hactl-agent",
                ) from None

    def heads(self, resource: str) -> dict[int, Head]:
        """The point of the log that each volume of a resource is at, on this node."""
        found = self._resources.get(resource)
        return {} if found is None else {u.unit.volume: u.sync.head for u in found.units.values()}

    def reached(self, resource: str) -> dict[int, Reached]:
        """How far each volume of a resource is on this node."""
        found = self._resources.get(resource)
        if found is None:
            return {}
        return {
            one.unit.volume: Reached(one.sync.head, found.member, one.sync.problem or found.problem)
            for one in found.units.values()
        }

    async def clear(self, unit: Unit) -> Cleared:
        """Take all registrations and the reservation of a unit away, on all nodes; this one need not export
        it. Errors as by :func:`hactl.pr_sync.clear.clear`."""

        async def applied(node: str, serial: str, index: int) -> None:
            if node == self.node:
                await self.applied(serial, index)
            else:
                await self._members.applied(node, serial, index)

        return await clear(self._log, unit, applied)

    @property
    def problem(self) -> str | None:
        """What is wrong, of all of it."""
        for resource in self._resources.values():
            for error in (resource.problem, *(u.sync.problem for u in resource.units.values())):
                if error is not None:
                    return f"reservations of {resource.name}: {error.message}"
        return None

    # What shall be

    def update(self, cluster: ClusterSpec) -> None:
        """These are the units now. A unit of which nothing but its ports or hosts has changed goes on."""
        wanted = {r.name: r for r in cluster.resources if self.node in r.nodes and len(r.nodes) > 1}
        for name in self._resources.keys() - wanted.keys():
            self._drop(self._resources.pop(name), ())
        for name, spec in wanted.items():
            units = {u.serial: u for u in units_of(cluster, spec)}
            found = self._resources.get(name)
            if found is not None and found.units.keys() != units.keys():
                # Begins again, and finds in the kernel what there is already.
                self._drop(self._resources.pop(name), units)
                found = None
            if found is None:
                made = {serial: self._one(unit) for serial, unit in units.items()}
                self._resources[name] = _Resource(name, made)
                continue
            for serial, unit in units.items():
                one = found.units[serial]
                if one.unit != unit:
                    one.unit = one.sync.unit = one.kernel.unit = unit
                    one.sync.poke()
        self._changed.set()

    def _one(self, unit: Unit) -> _Unit:
        def changed() -> None:
            sync.poke()

        def applied(head: Head) -> None:
            self._kept.write(unit.serial, head)

        kernel = self._make(unit, changed)
        sync = UnitSync(unit, self.node, kernel, self._log, self._members, self._clock, self._limits, applied)
        return _Unit(unit, kernel, sync)

    def _drop(self, resource: _Resource, stay: Container[str]) -> None:
        """End what keeps a resource; of its units, those that do not ``stay`` are this node's no more."""
        tasks = [t for t in (resource.task, *(u.task for u in resource.units.values())) if t is not None]
        for task in tasks:
            task.cancel()

        async def leave() -> None:
            await asyncio.gather(*tasks, return_exceptions=True)
            for serial, one in resource.units.items():
                await one.kernel.shut()
                if serial not in stay:
                    with contextlib.suppress(HactlError):
                        await self._log.leave(serial)
                    self._kept.forget(serial)

        self._background(leave())

    def _background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._gone.add(task)
        task.add_done_callback(self._gone.discard)

    # At work

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                # What is not a HactlError is a bug, and ends the agent: it starts afresh.
                self._spawn = group.create_task
                group.create_task(self._hear())
                group.create_task(self._follow())
                while True:
                    self._changed.clear()
                    await self._tell_units()
                    for resource in self._resources.values():
                        if resource.task is None:
                            resource.task = group.create_task(self._bring_up(resource))
                    await self._changed.wait()
        finally:
            for resource in self._resources.values():
                for one in resource.units.values():
                    if one.task is not None:
                        one.task.cancel()
                    await one.kernel.shut()

    async def _tell_units(self) -> None:
        """Before anything of them is exported: what the kernel writes of them from then on waits."""
        await self._capture.set_units(s for r in self._resources.values() for s in r.units)

    async def _hear(self) -> None:
        async for event in self._capture:
            match event:
                case Held():
                    self._arrived(event)
                case Mounted():
                    for resource in self._resources.values():
                        for one in resource.units.values():
                            one.sync.poke()

    def _arrived(self, held: Held) -> None:
        if not held.serial:
            # The capture lost its list, and does not know whose it is. Answering it could be wrong, so it
            # waits until its initiator gives up; what it did is found by looking.
            _log.error("a command waits of which the unit is not known", thread=held.thread)
            for resource in self._resources.values():
                for one in resource.units.values():
                    one.sync.poke()
            return
        for resource in self._resources.values():
            if held.serial in resource.units:
                resource.units[held.serial].kernel.arrived(held)

    async def _follow(self) -> None:
        """The log, as it grows."""
        while True:
            try:
                snapshot = await self._store.read(self._prefix)
                for key in snapshot.items:
                    self._heard(key, snapshot.items[key].value)
                async with aclosing(self._store.watch(self._prefix, snapshot.revision)) as watch:
                    async for news in watch:
                        items = news.snapshot.items if isinstance(news, Reset) else news.items
                        for key, item in items.items():
                            if item is not None:
                                self._heard(key, item.value)
                            elif key.endswith(f"/members/{self.node}"):
                                self._expelled(self._log.serial_of(key))
            except HactlError as error:
                _log.info("the log cannot be followed", error=str(error))
            await self._clock.sleep(AGAIN[1])

    def _heard(self, key: str, value: bytes) -> None:
        if not key.endswith("/head"):
            return
        sync = self._sync(self._log.serial_of(key))
        if sync is not None:
            with contextlib.suppress(HactlError, ValueError):
                sync.poke(decode_head(key, value, 0).index)

    def _expelled(self, serial: str) -> None:
        """Somebody has said that this node is down: what was committed since may be missing here."""
        for resource in self._resources.values():
            if serial in resource.units and resource.member:
                _log.warning("taken out of the members", resource=resource.name)
                resource.member = False
                self._spawn(self._come_back(resource))

    async def _come_back(self, resource: _Resource) -> None:
        async with resource.changing:
            try:
                if resource.tree is not None:
                    resource.tree.open = False
                for one in resource.units.values():
                    one.kernel.opened = False
                    await one.kernel.shut()
                await self._agent.attend_to(resource.name)
                await self._enter(resource)
            except HactlError as error:
                resource.problem = error
                if resource.task is None or resource.task.done():
                    resource.task = self._spawn(self._bring_up(resource))

    def _sync(self, serial: str) -> UnitSync | None:
        for resource in self._resources.values():
            if serial in resource.units:
                return resource.units[serial].sync
        return None

    # A resource, from nothing to serving

    async def _bring_up(self, resource: _Resource) -> None:
        tries = 0
        while True:
            try:
                async with resource.changing:
                    await self._start(resource)
                resource.problem = None
                return
            except HactlError as error:
                if resource.problem is None or resource.problem.code != error.code:
                    _log.warning("reservations are not in step", resource=resource.name, error=str(error))
                resource.problem = error
                await self._clock.sleep(AGAIN[min(tries, len(AGAIN) - 1)])
                tries += 1

    async def _start(self, resource: _Resource) -> None:
        if resource.tree is None:
            kept = {serial: self._kept.read(serial) for serial in resource.units}
            if self._agent.exported(resource.name) and any(kept.values()):
                # The kernel has gone on while this process was away. A unit that nothing was kept of is new.
                await self._resume(resource, {s: h or Head() for s, h in kept.items()})
                return
            heads = {serial: await self._log.head(serial) for serial in resource.units}
            if self._agent.exported(resource.name):
                # Made by somebody who kept no log.
                resource.tree = Tree(absent=True)
                await self._agent.attend_to(resource.name)
            resource.tree = self._with_imports(resource, {s: h.state for s, h in heads.items()})
        else:
            heads = {serial: await self._log.head(serial) for serial in resource.units}
            resource.tree = self._with_imports(resource, {s: h.state for s, h in heads.items()})
        await self._make_anew(resource, heads)
        await self._enter(resource)

    async def _resume(self, resource: _Resource, kept: dict[str, Head]) -> None:
        await self._agent.close_doors(resource.name)
        imports = self._with_imports(resource, {s: h.state for s, h in kept.items()}).imports
        resource.tree = Tree(open=True, imports=imports)
        resource.member = True
        for serial, one in resource.units.items():
            one.kernel.opened = True
            await one.sync.start(kept[serial])
            one.task = self._spawn(one.sync.run())
        if any(head == Head() for head in kept.values()):
            await self._agent.attend_to(resource.name)
            await self._join(resource)

    def _with_imports(self, resource: _Resource, states: dict[str, State]) -> Tree:
        imports = {}
        for serial, one in resource.units.items():
            imports[one.unit.volume] = import_lines(states[serial], one.unit.places)
        return Tree(imports=imports)

    async def _make_anew(self, resource: _Resource, heads: dict[str, Head]) -> None:
        """The resource's tree with its units' registrations, closed to initiators."""
        await self._agent.attend_to(resource.name)
        if not self._agent.exported(resource.name):
            raise Failed(
                "not-exported",
                f"{resource.name} is not exported on this node yet",
                "hactl status says what is missing",
            )
        for serial, one in resource.units.items():
            head = heads[serial]
            found = await one.kernel.read(head.state)
            missing = (head.state.generation - found.generation) % GENERATIONS
            if found.same_but_generation(head.state) and missing:
                await one.kernel.count_up(missing)
                found = await one.kernel.read(head.state)
            if found != head.state:
                # Something else than this import has made it.
                await self._take_down(resource)
                raise Failed(
                    "reservations-differ",
                    f"unit {one.unit.name} has not the reservations that it was given",
                    "it is made anew",
                )
            await one.sync.start(head)

    async def _take_down(self, resource: _Resource) -> None:
        for one in resource.units.values():
            one.kernel.opened = False
            await one.kernel.shut()
        imports = resource.tree.imports if resource.tree is not None else {}
        resource.tree = Tree(absent=True, imports=imports)
        await self._agent.attend_to(resource.name)
        resource.tree = Tree(imports=imports)

    async def _enter(self, resource: _Resource) -> None:
        """Be a member for all its units, then let initiators in."""
        for one in resource.units.values():
            if one.task is None:
                one.task = self._spawn(one.sync.run())
        await self._join(resource)
        resource.member = True
        assert resource.tree is not None
        resource.tree.open = True
        for one in resource.units.values():
            one.kernel.opened = True
        await self._agent.attend_to(resource.name)

    async def _join(self, resource: _Resource) -> None:
        for serial, one in resource.units.items():
            while True:
                try:
                    await self._log.join(serial, one.sync.head)
                    break
                except Refused as error:
                    if error.code != LOST:
                        raise
                    head = await self._log.head(serial)
                    await one.sync.reach(head.index)

    async def rebuild(self, unit: Unit, state: State) -> None:
        """Make a unit anew with this state, and with it the others of its resource, each with its own."""
        resource = self._resources[unit.resource]
        async with resource.changing:
            try:
                await self._rebuild(resource, unit, state)
            except HactlError:
                # Half taken down: from here on it is brought up like one that was never there.
                resource.member = False
                if resource.task is None or resource.task.done():
                    resource.task = self._spawn(self._bring_up(resource))
                raise

    async def _rebuild(self, resource: _Resource, unit: Unit, state: State) -> None:
        heads = {serial: one.sync.head for serial, one in resource.units.items()}
        heads[unit.serial] = Head(heads[unit.serial].index, heads[unit.serial].id, state)
        await self._take_down(resource)
        resource.tree = self._with_imports(resource, {s: h.state for s, h in heads.items()})
        await self._agent.attend_to(resource.name)
        for serial, one in resource.units.items():
            found = await one.kernel.read(heads[serial].state)
            missing = (heads[serial].state.generation - found.generation) % GENERATIONS
            if missing:
                await one.kernel.count_up(missing)
            one.kernel.opened = True
        resource.tree.open = True
        await self._agent.attend_to(resource.name)
