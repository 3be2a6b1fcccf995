"""What shall be on one node, as it changes: which resources it keeps, and which it has to let go of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from hactl.agents import execute as executing
from hactl.agents.adoption import Adoptions
from hactl.agents.calm import Calm, Expected
from hactl.agents.difference import About, abouts, difference
from hactl.agents.follow import Follower, States
from hactl.agents.journal import Record
from hactl.agents.keeper import Keeper
from hactl.agents.kit import Kit, Timings
from hactl.agents.leftovers import Leftovers
from hactl.agents.news import News
from hactl.agents.observe import NOTHING, Common, Subject, observe, observe_roles
from hactl.agents.peers import PeerResource
from hactl.agents.reach_watch import StorageWatch
from hactl.agents.resource import Wanted
from hactl.agents.restore import restored
from hactl.agents.retire import Leaving
from hactl.agents.states import Aspect, OrderedRole
from hactl.backing.protocol import backing_disks
from hactl.errors import HactlError
from hactl.model.desired import Desired

_AGAIN = 1.0
"""Seconds until a resource that is not as it shall be is looked at again; doubled each time."""
_TAKES_OVER = frozenset({Aspect.DRBD, Aspect.GATES})
"""What tells a successor how far its predecessor got."""
_AT_ONCE = 16
"""Resources that are worked on at the same time: each may have a program running."""
_log = structlog.get_logger("hactl.agent")


class Reporter(Protocol):
    """A part of the agent that goes on by itself: ``problem`` is what keeps it from its work, if anything."""

    @property
    def problem(self) -> str | None: ...


class Following:
    """One node. ``start`` once, ``update`` whenever what shall be has changed; passes do what follows."""

    def __init__(
        self,
        desired: Desired,
        node: str,
        kit: Kit,
        *,
        timings: Timings | None = None,
        after_step: executing.AfterStep = executing.nothing,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node = node
        self.kit = kit
        self.timings = timings or Timings()
        self.wake = asyncio.Event()
        self.calm = Calm()
        self.follower = Follower(kit.drbd)
        self.news = News()
        self.views: dict[str, dict[str, PeerResource] | None] = {}
        self.keepers: dict[str, Keeper] = {}
        self.leaving: dict[str, Leaving] = {}
        self.leftovers = Leftovers(kit, node, after_step)
        self.adoptions = Adoptions(after_step)
        self.storage = StorageWatch(self)
        self.reporters: list[Reporter] = [self.storage, self.adoptions]
        self._expected = Expected(self.calm)
        self._after_step = after_step
        self._seconds = seconds
        self._touched: set[str] = set()
        self._again: dict[str, tuple[float, float]] = {}
        self._all_at: float | None = None
        self._states: States | None = None
        self._version: tuple[int, int, int] = (0, 0, 0)
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._background: set[asyncio.Task[None]] = set()
        self._abouts: dict[str, About] = {}
        self._down: set[tuple[str, str, int]] = set()
        """Leftovers whose resource has been taken down."""
        self._take(desired)

    def _take(self, desired: Desired) -> None:
        self.desired = desired
        self.cluster = desired.cluster.resolved()
        self._abouts = abouts(desired.cluster, self.node)
        self._specs = {r.name: r for r in self.cluster.resources}
        self._pooled = {r.name: r for r in desired.cluster.resources}
        others = {n.name for n in self.cluster.nodes if n.name != self.node}
        for node in self.views.keys() - others:
            del self.views[node]
        for node in others - self.views.keys():
            self.views[node] = None
        self.kit.peers.follow(self.cluster)

    # From a predecessor to a successor

    async def start(self) -> None:
        """Take over from the predecessor: journal and kernel tell how things stand. Changes nothing in the
        kernel."""
        self._version = await self.kit.drbd.version()
        journal = self.kit.journal.read()
        common = await observe_roles(self.kit)
        for name in self._abouts:
            await self._keep(name, journal.get(name), common)
        for name in journal.keys() - self._abouts.keys():
            self.leaving[name] = Leaving(name)
        self._leave_leftovers()

    async def _keep(self, name: str, old: Record | None, common: Common) -> None:
        clock = self.kit.clock
        wanted = self._wanted(name)
        blank = Record(OrderedRole.STANDBY, clock.boot(), clock.now())
        subject = Subject(wanted.cluster, self.node, wanted.spec, (old or blank).fresh)
        observed = await observe(self.kit, subject, aspects=_TAKES_OVER, common=common)
        record = restored(old, observed, boot=clock.boot(), now=clock.now())
        if record != old:
            self.kit.journal.write(name, record)
        self.keepers[name] = Keeper(
            self.kit,
            self.node,
            wanted,
            record,
            timings=self.timings,
            views=self.views,
            follower=self.follower,
            after_step=self._after_step,
        )

    def _wanted(self, name: str) -> Wanted:
        node = self.desired.cluster.node(self.node)
        return Wanted(self.cluster, self._specs[name], backing_disks(node, self._pooled[name], self._version))

    # What shall be

    def update(self, desired: Desired) -> None:
        """From now on it shall be like this. Only what differs is looked at, by the next pass; a resource
        that an order is being carried out on changes when that has ended."""
        old = self._abouts
        self._take(desired)
        found = difference(old, self._abouts)
        for name in found.gone:
            self._leave(name)
        for name in found.come & self.leaving.keys():
            self._stay(name)
        for name in found.changed & self.keepers.keys():
            self.keepers[name].offer(self._wanted(name))
            before, after = old[name].spec, self._abouts[name].spec
            if (before.iqn, before.id) != (after.iqn, after.id):
                # What is left of the old target is found only by a look at the whole tree.
                self._all_at = None
        for name in self._abouts.keys() & self.keepers.keys() - found.changed - found.come:
            self.keepers[name].same(self.cluster)
        self._leave_leftovers()
        if found.come | found.changed | found.gone:
            _log.info(
                "desired state changed",
                generation=desired.generation,
                **{k: sorted(getattr(found, k)) for k in ("come", "changed", "gone")},
            )
            self.touch(*found.come, *found.changed, *found.gone)

    def _stay(self, name: str) -> None:
        """It is back before anything was done; one that is being taken down has to come anew."""
        left = self.leaving[name]
        if left.keeper is not None and not left.started:
            del self.leaving[name]
            self.keepers[name] = left.keeper
            left.keeper.offer(self._wanted(name))

    def _leave(self, name: str) -> None:
        keeper = self.keepers.pop(name, None)
        self._again.pop(name, None)
        self._down = {key for key in self._down if key[1] != name}
        if keeper is not None:
            self.leaving[name] = Leaving.of(keeper.spec, keeper)
            self.news.add(name)

    def _leave_leftovers(self) -> None:
        self._down &= {left.key for left in self.desired.leftovers}
        for leftover in self.leftovers.pending(self.desired):
            name = leftover.resource
            if name in self._abouts or leftover.key in self._down:
                continue
            self.touch(name)
            found = self.leaving.setdefault(name, Leaving.left(leftover))
            found.iqn, found.id = leftover.iqn, leftover.resource_id
            found.volumes |= {leftover.volume}
        self.leftovers.event.set()

    async def _come(self) -> None:
        """Keepers for resources that have none yet; those of a name that is still leaving wait."""
        for name in sorted(self._abouts.keys() - self.keepers.keys() - self.leaving.keys()):
            await self._guard(name, self._keep(name, None, NOTHING))
            if name not in self.keepers:
                self._look_later(name)

    async def clean(self) -> None:
        """Clear away what is left of what was taken down, and what was said of disks that are taken over;
        what cannot be is tried again next time."""
        await self.adoptions.report(self.keepers.values())
        kept = {name: keeper.spec for name, keeper in self.keepers.items()}
        missing = self._abouts.keys() - self.keepers.keys()
        await self.leftovers.clean(self.desired, self.cluster, kept, {*self.leaving, *missing})

    def reasons(self) -> tuple[str, ...]:
        """What keeps the agent as a whole from doing all it should."""
        return tuple(r.problem for r in self.reporters if r.problem is not None)

    # When to look at what

    def touch(self, *names: str) -> None:
        """Something about these resources has changed: look at them soon."""
        self._touched.update(names)
        self.wake.set()

    def _look_later(self, name: str) -> None:
        _, delay = self._again.get(name, (0.0, _AGAIN / 2))
        delay = min(delay * 2, self.timings.reconcile)
        self._again[name] = self._seconds() + delay, delay

    async def _guard(self, what: str, work: Awaitable[None]) -> HactlError | None:
        try:
            await work
        except HactlError as error:
            _log.warning("not done", resource=what, code=error.code, error=str(error))
            return error
        return None
