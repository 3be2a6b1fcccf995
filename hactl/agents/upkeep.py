"""Keeps every resource of one node as it shall be: when to look at what, and passes over all, or a few."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable, Mapping
from typing import Any

import structlog

from hactl.agents import switchover
from hactl.agents.following import Following
from hactl.agents.keeper import Keeper
from hactl.agents.kit import OTHERS
from hactl.agents.observe import NOTHING, Common, Gates, by_resource, observe_node
from hactl.agents.peers import PeerResource
from hactl.agents.retire import Leaving, gates_of, let_go, take_down, unexport, unknown
from hactl.backing.protocol import PoolState
from hactl.errors import HactlError

_MANY = 8
"""One resource in so many: from there on the node is looked at as a whole, which is cheaper."""
_log = structlog.get_logger("hactl.agent")


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all at the same time; if one raises, no other goes on behind the back of whoever is told."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class Upkeep(Following):
    """Passes over all resources of one node, or a few; ``attend`` again and again."""

    # When to look at what

    def noticed(self) -> None:
        """DRBD's event stream has told something: look at what it was about."""
        states, known = self.follower.states, self._states
        if states is None or known is None:
            # Interrupted: what it tells next is compared with what was known before. Or everything is still
            # to be looked at for the first time.
            return
        self._states = states
        changed = {
            name
            for name in known.keys() | states.keys()
            if known.get(name) is not states.get(name) and known.get(name) != states.get(name)
        }
        if changed & self.keepers.keys():
            self.touch(*(changed & self.keepers.keys()))

    async def attend(self) -> None:
        """One pass over what is due."""
        now = self._seconds()
        due = {name for name, (at, _) in self._again.items() if at <= now} | self._touched
        due |= {name for name, keeper in self.keepers.items() if keeper.holding or keeper.hands_over()}
        if self._all_at is None or now >= self._all_at or len(due) * _MANY > len(self.keepers) + _MANY:
            await self.reconcile()
        elif due:
            self._touched.clear()
            await self._some(due)

    def next_pass(self) -> float:
        """Seconds until ``attend`` has something to do without an event."""
        now = self._seconds()
        seconds = 0.0 if self._all_at is None else self._all_at - now
        for at, _ in self._again.values():
            seconds = min(seconds, at - now)
        for keeper in self.keepers.values():
            if keeper.hands_over():
                seconds = min(seconds, self.timings.ask)
            elif keeper.holding:
                left = keeper.record.since + self.timings.hold - self.kit.clock.now()
                seconds = min(seconds, max(left, 0.0) + 0.05, 1.0)
        return max(seconds, 0.0)

    # Passes

    async def poll(self, names: Collection[str] = (), nodes: Collection[str] | None = None) -> None:
        """Ask every other agent, or those of ``nodes``, how it is, with all its resources, or these."""

        async def ask(node: str) -> None:
            # One that did not answer last time tells everything.
            only = frozenset(names) if self.views[node] is not None else frozenset[str]()
            answer: dict[str, PeerResource] | None
            try:
                answer = await self.kit.peers.status(node, only)
            except HactlError as error:
                if self.views.get(node) is not None:
                    _log.warning("peer does not answer", peer=node, error=str(error))
                answer = None
            if node not in self.views:
                return
            view = self.views[node]
            if answer is not None and view is not None and only:
                # Nothing else is touched: another question may have been answered meanwhile.
                for name in only - answer.keys():
                    view.pop(name, None)
                view.update(answer)
            else:
                self.views[node] = None if answer is None or only else answer

        await asyncio.gather(*(ask(node) for node in tuple(self.views) if nodes is None or node in nodes))

    async def reconcile(self) -> None:
        """One pass over everything; what fails is logged, kept as the resource's reason, and tried again."""
        self._touched.clear()
        self._all_at = self._seconds() + self.timings.reconcile
        self._again = {n: v for n, v in self._again.items() if n in self._abouts or n in self.leaving}
        await self.poll()
        await self._come()
        keepers = tuple(self.keepers.values())
        for keeper in keepers:
            if keeper.operation is None and not keeper.lock.locked() and keeper.name not in self._expected:
                keeper.adopt()
        # Counted before the node is looked at: what changed since then is looked at by itself.
        seen = [keeper.changes for keeper in keepers]
        common = await self.look(pools=True)
        self._states = dict(common.drbd or {})
        # An exception other than HactlError is a bug, and ends the agent: I/O goes on, and it starts afresh.
        await _all(self._attend(k, common, n) for k, n in zip(keepers, seen, strict=True))
        await self._guard("retired resources", self._retire_all(common))

    async def _some(self, names: set[str]) -> None:
        await self.poll(names)
        if self._abouts.keys() - self.keepers.keys() - self.leaving.keys():
            await self._come()
        for name in names - self._abouts.keys() - self.leaving.keys():
            self._again.pop(name, None)
        keepers = [self.keepers[name] for name in sorted(names) if name in self.keepers]
        await _all(self._attend(k, NOTHING, k.changes) for k in keepers)
        for name in sorted(names & self.leaving.keys()):
            await self._retire(self.leaving[name], None)

    async def look(self, *, pools: bool = False) -> Common:
        """The node as a whole; ``pools`` too, if a resource has to be provided with disks."""
        known: Mapping[str, PoolState] | None = None
        wanted = {d.pool.name: d.pool for k in self.keepers.values() for d in k.unprovided} if pools else {}
        if wanted:
            try:
                known = await self.kit.backing.observe(wanted.values())
            except HactlError as error:
                _log.warning("pools cannot be looked at", error=str(error))
        here = [(k.cluster, k.spec) for k in self.keepers.values()]
        leaving = {name: left.iqn for name, left in self.leaving.items() if left.iqn is not None}
        # Those that are wanted and have no keeper yet: what there is of them is not to be taken away.
        coming = {name: self._abouts[name].spec.iqn for name in self._abouts.keys() - self.keepers.keys()}
        leaving = {**coming, **leaving}
        return await observe_node(self.kit, here, leaving, self.follower.states, known)

    def _adopt(self, keeper: Keeper) -> None:
        old = keeper.spec
        keeper.adopt()
        if (old.iqn, old.id) != (keeper.spec.iqn, keeper.spec.id):
            # As in ``update``, only that it had to wait until now.
            self._all_at = None

    async def _attend(self, keeper: Keeper, common: Common, seen: int) -> None:
        if keeper.operation is not None or keeper.name in self._expected:
            self._look_later(keeper.name)
            return
        async with self._places, keeper.lock:
            if self.keepers.get(keeper.name) is not keeper:
                return
            self._adopt(keeper)
            if keeper.changes != seen:
                common = NOTHING
            before = keeper.reason
            if keeper.hands_over():
                await self._guard(keeper.name, switchover.resume(keeper))
                if not keeper.hands_over():
                    before = keeper.reason = None
                    self._announce(keeper)
                    common = NOTHING
            error = await self._guard(keeper.name, keeper.reconcile(common))
            if error is not None:
                keeper.reason = str(error)
            elif keeper.reason == before and not keeper.hands_over():
                keeper.reason = None
            if error is not None or keeper.unfinished or keeper.offered:
                self._look_later(keeper.name)
            else:
                self._again.pop(keeper.name, None)
        self.news.add(keeper.name)
        if self.desired.leftovers or keeper.taken_over:
            self.leftovers.event.set()

    # What is to go

    async def _retire_all(self, common: Common) -> None:
        gates: Gates = common.gates or by_resource(await self.kit.gates.observe())
        strangers = unknown(gates, {*self.keepers, *self.leaving, *self._abouts})
        for name in strangers:
            self.leaving[name] = Leaving(name)
        exports = common.exports
        blind = [left for left in self.leaving.values() if left.iqn is None]
        for left in blind:
            await let_go(self.kit, gates.get(left.name, {}))
        others = exports.get(OTHERS, ()) if exports is not None else None
        if isinstance(others, HactlError):
            raise others
        if others is not None:
            await unexport(self.kit, others)
        for left in tuple(self.leaving.values()):
            if left.iqn is not None or others is not None:
                await self._retire(left, common)

    async def _retire(self, left: Leaving, common: Common | None) -> None:
        """Take one resource down; of one whose place in LIO's tree is not known that was cleared just now."""
        if left.busy or (left.iqn is None and common is None):
            self._look_later(left.name)
            return
        lock = left.keeper.lock if left.keeper is not None else asyncio.Lock()
        left.started = True
        async with lock:
            error = await self._guard(left.name, self._take_down(left))
            if left.keeper is not None and error is None:
                left.keeper.retired = True
        left.reason = str(error) if error is not None else None
        if error is not None:
            self._look_later(left.name)
            return
        self.leaving.pop(left.name, None)
        self._again.pop(left.name, None)
        self._down |= {p.key for p in self.leftovers.pending(self.desired) if p.resource == left.name}
        self.leftovers.event.set()
        self.news.add(left.name)
        # One of that name may have come meanwhile; and what it leaves behind can be cleared away.
        self.touch(left.name)

    async def _take_down(self, left: Leaving) -> None:
        if left.iqn is not None and left.id is not None:
            await let_go(self.kit, await gates_of(self.kit, left))
            changes = await self.kit.exports.pending_gone(left.name, left.iqn, left.id)
            await unexport(self.kit, changes)
        await take_down(self.kit, left, self._after_step)

    # Telling others

    def _announce(self, keeper: Keeper, knows: str = "") -> None:
        """Tell the others who is active, without waiting: they ask by themselves sooner or later. ``knows``
        is a node that knows already."""
        active = keeper.active_node
        if active is None:
            return

        async def tell(node: str) -> None:
            # What it sets off on both sides must not delay a node that has still to let go of held I/O.
            await self.calm.returned(self.timings.calm)
            try:
                await self.kit.peers.announce(node, keeper.name, active)
            except HactlError as error:
                _log.info("not announced", peer=node, resource=keeper.name, error=str(error))

        for node in keeper.peers_of():
            if node == knows:
                continue
            task = asyncio.create_task(tell(node))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def settled(self) -> None:
        """Wait until nothing started in the background is left."""
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)

    async def close(self) -> None:
        """End what was started in the background."""
        for task in self._background:
            task.cancel()
        await self.settled()
