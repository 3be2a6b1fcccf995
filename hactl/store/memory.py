"""The store's twin in memory: several clients on one state, with faults to order."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum

from hactl.errors import Refused, Unknown
from hactl.store.protocol import (
    CONFLICT,
    LEASE_LOST,
    OUTCOME_UNKNOWN,
    TOO_LARGE,
    UNREACHABLE,
    Changes,
    Delete,
    Item,
    Put,
    Reset,
    Snapshot,
    Unchanged,
    Write,
)
from hactl.store.request import checked

_Transaction = tuple[tuple[Unchanged, ...], tuple[Write, ...]]


class Fault(Enum):
    """What becomes of a transaction whose answer does not arrive."""

    DROPPED = "never carried out"
    DONE = "carried out"
    LATER = "carried out, if its conditions still hold, when ``MemoryState.deliver`` is called"


@dataclass
class _Grant:
    owner: MemoryStore
    ttl: float
    until: float
    kept: bool = True
    keys: set[str] = field(default_factory=set)


class MemoryState:
    """What the members of a store hold together.

    ``now``: seconds of an injected clock. ``grace``: seconds for which a lease outlives what its owner
    believes. ``max_ops``: the most keys of a transaction. Time that passed shows with the next use of the
    state, or at once by ``settle``.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, *, grace: float = 1.0, max_ops: int | None = None
    ) -> None:
        self.now = now
        self.grace = grace
        self.max_ops = max_ops
        self.revision = 1
        self.items: dict[str, Item] = {}
        self.compacted = 0
        """Changes of this revision and newer ones are known."""
        self._history: list[Changes] = []
        self._grants: dict[int, _Grant] = {}
        self._next_lease = 7000
        self._late: deque[_Transaction] = deque()
        self._news = asyncio.Event()

    # What a test does to it

    def compact(self) -> None:
        """Forget the history up to now."""
        self.compacted = self.revision
        self._history = [changes for changes in self._history if changes.revision >= self.compacted]

    def deliver(self) -> None:
        """Carry out what was sent and has not arrived yet (:attr:`Fault.LATER`), in order."""
        while self._late:
            with contextlib.suppress(Refused):
                self.apply(*self._late.popleft())

    def settle(self) -> None:
        """Let the time that passed have its effect: leases of clients that can be reached are renewed, others
        run out."""
        now = self.now()
        for number, grant in list(self._grants.items()):
            if grant.kept and grant.owner.reachable:
                grant.until = now + grant.ttl
            elif grant.kept and now >= grant.until:
                # Never renewed again, though the store still has it for a while.
                self.abandon(number)
            if now >= grant.until + self.grace:
                self.end_lease(number)

    # What clients do with it

    def apply(self, conditions: tuple[Unchanged, ...], writes: tuple[Write, ...]) -> int:
        """One transaction; its revision. Raises :class:`Refused`."""
        if self.max_ops is not None and max(len(conditions), len(writes)) > self.max_ops:
            raise Refused(TOO_LARGE, f"more than {self.max_ops} keys in a transaction", "change less at once")
        changed = [c.key for c in conditions if self._written(c.key) != c.revision]
        if changed:
            raise Refused(
                CONFLICT, f"changed by somebody else in the meantime: {', '.join(changed)}", "read again"
            )
        for write in writes:
            if isinstance(write, Put) and write.lease is not None and write.lease not in self._grants:
                raise Refused(LEASE_LOST, f"{write.key}: the lease has run out", "get a new one")
        self._carry_out(writes)
        return self.revision

    def _written(self, key: str) -> int:
        item = self.items.get(key)
        return item.revision if item else 0

    def _carry_out(self, writes: Iterable[Write]) -> None:
        effective = [w for w in writes if isinstance(w, Put) or w.key in self.items]
        if not effective:
            return
        self.revision += 1
        told: dict[str, Item | None] = {}
        for write in effective:
            for grant in self._grants.values():
                grant.keys.discard(write.key)
            if isinstance(write, Delete):
                del self.items[write.key]
                told[write.key] = None
            else:
                told[write.key] = self.items[write.key] = Item(write.key, write.value, self.revision)
                if write.lease is not None:
                    self._grants[write.lease].keys.add(write.key)
        self._history.append(Changes(told, self.revision))
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        self._news.set()
        self._news = asyncio.Event()

    def later(self, conditions: tuple[Unchanged, ...], writes: tuple[Write, ...]) -> None:
        self._late.append((conditions, writes))

    def snapshot(self, prefix: str) -> Snapshot:
        found = {key: item for key, item in sorted(self.items.items()) if key.startswith(prefix)}
        return Snapshot(found, self.revision)

    def after(self, prefix: str, revision: int) -> Changes | Reset | None:
        """The first thing to tell after ``revision``, if there is one."""
        if revision + 1 < self.compacted or revision > self.revision:
            return Reset(self.snapshot(prefix))
        for changes in self._history:
            if changes.revision > revision:
                items = {key: item for key, item in changes.items.items() if key.startswith(prefix)}
                if items:
                    return Changes(items, changes.revision)
        return None

    async def news(self) -> None:
        """Return when something happened, or a lease may have run out."""
        now = self.now()
        ends = [g.until if now < g.until else g.until + self.grace for g in self._grants.values()]
        wait = max(min(ends, default=math.inf) - now, 0.01)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(wait) else wait):
                await self._news.wait()
        self.settle()

    def grant(self, owner: MemoryStore, ttl: float) -> int:
        self._next_lease += 1
        self._grants[self._next_lease] = _Grant(owner, ttl, self.now() + ttl)
        return self._next_lease

    def remaining(self, number: int) -> float:
        """What the lease's owner may count on."""
        grant = self._grants.get(number)
        return max(grant.until - self.now(), 0.0) if grant and grant.kept else 0.0

    def abandon(self, number: int) -> None:
        """No more renewals."""
        if number in self._grants:
            self._grants[number].kept = False
        self.wake()

    def end_lease(self, number: int) -> None:
        grant = self._grants.pop(number, None)
        if grant is not None:
            self._carry_out([Delete(key) for key in sorted(grant.keys)])
        self.wake()


class MemoryStore:
    """:class:`hactl.store.protocol.Store` on a state shared with other clients.

    ``reachable``: whether this client reaches the store; its leases are renewed while it does. ``faults``:
    what becomes of the next transactions, one each; then all is well again.
    """

    def __init__(self, state: MemoryState | None = None) -> None:
        self.state = state or MemoryState()
        self.faults: deque[Fault] = deque()
        self._reachable = True
        self._closed = False
        self._leases: list[int] = []
        self._watches: set[MemoryWatch] = set()

    def client(self) -> MemoryStore:
        """Another client of the same state."""
        return MemoryStore(self.state)

    @property
    def reachable(self) -> bool:
        return self._reachable

    @reachable.setter
    def reachable(self, value: bool) -> None:
        # What was so up to now counts for the time up to now.
        self.state.settle()
        self._reachable = value
        self.state.wake()

    async def arrive(self) -> None:
        """Wait as for an answer. Raises :class:`Refused` if there is none."""
        await asyncio.sleep(0)
        self.state.settle()
        if not self.reachable or self._closed:
            raise Refused(UNREACHABLE, "no member of the store can be reached", "is the network up?")

    async def get(self, key: str) -> Item | None:
        await self.arrive()
        return self.state.items.get(key)

    async def read(self, prefix: str) -> Snapshot:
        await self.arrive()
        return self.state.snapshot(prefix)

    async def commit(self, conditions: Iterable[Unchanged], writes: Iterable[Write]) -> int:
        known, wanted = checked(conditions, writes)
        await self.arrive()
        if not self.faults:
            return self.state.apply(known, wanted)
        fault = self.faults.popleft()
        if fault is Fault.DONE:
            with contextlib.suppress(Refused):
                self.state.apply(known, wanted)
        elif fault is Fault.LATER:
            self.state.later(known, wanted)
        raise Unknown(OUTCOME_UNKNOWN, "sent, not answered", "read again before trying again")

    def watch(self, prefix: str, after: int) -> MemoryWatch:
        watch = MemoryWatch(self, prefix, after, self._watches.discard)
        self._watches.add(watch)
        return watch

    async def lease(self, ttl: int) -> MemoryLease:
        await self.arrive()
        # As etcd: not shorter than one and a half elections.
        lease = MemoryLease(self, self.state.grant(self, float(max(ttl, 2))), float(max(ttl, 2)))
        self._leases.append(lease.id)
        return lease

    async def close(self) -> None:
        self.state.settle()
        self._closed = True
        for number in self._leases:
            self.state.abandon(number)
        for watch in tuple(self._watches):
            await watch.aclose()


class MemoryWatch:
    """:class:`hactl.store.protocol.Watch` on the state; hears nothing while its client is cut off."""

    def __init__(
        self, store: MemoryStore, prefix: str, after: int, ended: Callable[[MemoryWatch], None]
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._after = after
        self._ended = ended
        self._closed = False

    def __aiter__(self) -> MemoryWatch:
        return self

    async def __anext__(self) -> Changes | Reset:
        state = self._store.state
        await asyncio.sleep(0)
        state.settle()
        while not self._closed:
            told = state.after(self._prefix, self._after) if self._store.reachable else None
            if told is not None:
                self._after = told.snapshot.revision if isinstance(told, Reset) else told.revision
                return told
            await state.news()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._closed = True
        self._ended(self)
        self._store.state.wake()


class MemoryLease:
    """:class:`hactl.store.protocol.Lease` on the state."""

    def __init__(self, store: MemoryStore, number: int, ttl: float) -> None:
        self._store = store
        self._number = number
        self._ttl = ttl

    @property
    def id(self) -> int:
        return self._number

    @property
    def ttl(self) -> float:
        return self._ttl

    @property
    def remaining(self) -> float:
        self._store.state.settle()
        return self._store.state.remaining(self._number)

    async def lost(self) -> None:
        while self.remaining > 0:
            await self._store.state.news()

    async def revoke(self) -> None:
        state = self._store.state
        state.abandon(self._number)
        await asyncio.sleep(0)
        if self._store.reachable:
            state.end_lease(self._number)
