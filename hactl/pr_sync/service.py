"""Persistent reservations of all units of this node: what keeps each in step, and what others ask of it.

Neither the death of this process nor that of the store ends it: a member stays one until it leaves, or is
said to be down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from hactl.agents.clock import Clock
from hactl.errors import HactlError, Refused
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.pr_sync.around import Around, KeptUnit, Kernel, Node, Tree
from hactl.pr_sync.capture.protocol import Capture, Held, Mounted
from hactl.pr_sync.clear import Cleared, clear
from hactl.pr_sync.kept import FOLDER, Kept
from hactl.pr_sync.log import PrLog, prefix
from hactl.pr_sync.records import Head, decode_head
from hactl.pr_sync.resource import AGAIN, ResourceKeeping
from hactl.pr_sync.state import State
from hactl.pr_sync.sync import Limits, Members, UnitSync
from hactl.pr_sync.units import Unit, units_of
from hactl.store.protocol import Reset, Store

_log = structlog.get_logger("hactl.pr")


@dataclass(frozen=True)
class Reached:
    """How far this node is with a unit. ``member``: initiators may use it here."""

    head: Head
    member: bool
    problem: HactlError | None


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
        self._make = make
        self._kept = Kept(clock.boot(), folder)
        self._limits = limits or Limits()
        self._resources: dict[str, ResourceKeeping] = {}
        self._gone: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._around = Around(node, self._log, agent, self._kept, clock, self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # What is not a HactlError is a bug, and ends the agent: it starts afresh.
        assert self._group is not None
        return self._group.create_task(work)

    # What others ask

    def tree(self, spec: ResourceSpec) -> Tree:
        """What LIO's tree of a resource shall be.

        :class:`Refused` ``reservations-unknown`` while the log could not be read.
        """
        resource = self._resources.get(spec.name)
        if resource is None or resource.tree is None:
            why = f": {resource.problem.message}" if resource is not None and resource.problem else ""
            raise Refused(
                "reservations-unknown",
                f"the persistent reservations of {spec.name} are not known yet{why}",
                "the unit is exported as soon as the cluster's store has told them; see hactl cluster status",
            )
        return resource.shown(resource.tree)

    def unready(self, resource: str) -> str | None:
        """Why this node must not become active for a resource; None if it may."""
        found = self._resources.get(resource)
        if found is None or found.member:
            return None
        if found.withdrawn:
            return f"{resource} is stopped on {self.node}"
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
        if found is not None:
            await found.confirm(gone, self._limits.answer)

    async def withdraw(self, resource: str) -> None:
        """The agent's record says that the resource is stopped here: shut its port and leave the members.
        Back when the port is shut."""
        found = self._resources.get(resource)
        if found is not None:
            await found.withdraw()

    async def rejoin(self, resource: str) -> None:
        """The agent's record does not say so any more. What comes of it is told by :meth:`unready`."""
        found = self._resources.get(resource)
        if found is not None:
            found.rejoin()

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
        wanted = {r.name: r for r in cluster.resources if self.node in r.nodes}
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
                self._resources[name] = ResourceKeeping(name, made, self._around)
                continue
            for serial, unit in units.items():
                if found.units[serial].unit != unit:
                    found.units[serial].change(unit)
        self._changed.set()

    def _one(self, unit: Unit) -> KeptUnit:
        def changed() -> None:
            sync.poke()

        def applied(head: Head) -> None:
            self._kept.write(unit.serial, head)

        kernel = self._make(unit, changed)
        sync = UnitSync(unit, self.node, kernel, self._log, self._members, self._clock, self._limits, applied)
        return KeptUnit(unit, kernel, sync)

    def _drop(self, resource: ResourceKeeping, stay: Container[str]) -> None:
        """End what keeps a resource; of its units, those that do not ``stay`` are this node's no more."""

        async def leave() -> None:
            await resource.end()
            for serial in resource.units:
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
                self._group = group
                group.create_task(self._hear())
                group.create_task(self._follow())
                while True:
                    self._changed.clear()
                    await self._tell_units()
                    for resource in self._resources.values():
                        if not resource.began:
                            resource.begin()
                    await self._changed.wait()
        finally:
            self._group = None
            for resource in self._resources.values():
                await resource.end()

    async def _tell_units(self) -> None:
        """Before anything of them is exported: what the kernel writes of them from then on waits."""
        await self._capture.set_units(s for r in self._resources.values() for s in r.units)

    async def _hear(self) -> None:
        async for event in self._capture:
            match event:
                case Held():
                    self._arrived(event)
                case Mounted():
                    for one in self._units():
                        one.sync.poke()

    def _arrived(self, held: Held) -> None:
        if not held.serial:
            # The capture lost its list, and does not know whose it is. Answering it could be wrong, so it
            # waits until its initiator gives up; what it did is found by looking.
            _log.error("a command waits of which the unit is not known", thread=held.thread)
            for one in self._units():
                one.sync.poke()
            return
        for one in self._units():
            if one.unit.serial == held.serial:
                one.kernel.arrived(held)

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
        for resource in self._resources.values():
            if serial in resource.units:
                resource.expelled()

    def _units(self) -> Iterator[KeptUnit]:
        for resource in self._resources.values():
            yield from resource.units.values()

    def _sync(self, serial: str) -> UnitSync | None:
        return next((one.sync for one in self._units() if one.unit.serial == serial), None)

    async def rebuild(self, unit: Unit, state: State) -> None:
        """A unit of this node has to be made anew with this state."""
        await self._resources[unit.resource].rebuild(unit.serial, state)
