"""The desired state in a store: read as a whole, changed by edits, watched.

Every change is one transaction on the condition that nobody changed anything since the state was read that
the edit began with (the revision of ``config``). So changes are serialised, and what
:func:`hactl.model.check.check` says of the whole holds in the store at every revision. A change that does not
fit into one transaction is refused: half of it could be a state that nobody asked for.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

import tenacity

from hactl.errors import Refused, Unknown
from hactl.model import records
from hactl.model.check import check
from hactl.model.desired import Change, Desired
from hactl.model.spec import ClusterSpec
from hactl.model.values import refusal
from hactl.store.protocol import CONFLICT, TOO_LARGE, Delete, Put, Reset, Snapshot, Store, Unchanged, Write

Edit = Callable[[Desired], Desired]
"""Gives the new state, or the same if there is nothing to change; :class:`Refused` if it cannot be. May be
called several times, as its result may come too late."""

MAX_OPERATIONS = 10_000
"""The most keys of a transaction; hactl's etcd is started with ``--max-txn-ops=10240``."""

MAX_BYTES = 1_400_000
"""The most bytes of keys and values in a transaction; etcd takes requests of 1.5 MiB."""

ATTEMPTS = 30
"""How often a change is tried when others come first each time."""


def _random_id() -> str:
    return secrets.token_hex(8)


def _utc() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Origin:
    """Who makes a change (the node it is made from), and where its time and its id come from."""

    who: str
    now: Callable[[], datetime] = _utc
    new_id: Callable[[], str] = _random_id

    def change(self, id: str, what: str, before: Change | None) -> Change:  # noqa: A002 - as the record calls it
        """The change's record; ``what`` in one line, so that no line break in a name can fake another."""
        line = " ".join(what.encode(errors="replace").decode().split())[:200]
        recent = (*(before.recent if before is not None else ()), id)[-records.RECENT :]
        return Change(id, self.now().isoformat(timespec="seconds"), self.who, line, recent)


async def read(store: Store, cluster: str) -> Desired:
    """The desired state of a cluster.

    :class:`Refused` with ``no-cluster``, ``schema-newer`` or ``record-damaged``, or as by
    :meth:`hactl.store.protocol.Store.read`.
    """
    return _joined(cluster, await store.read(records.prefix(cluster)))


def _joined(cluster: str, snapshot: Snapshot) -> Desired:
    return records.join(cluster, _items(cluster, snapshot), snapshot.revision)


def _items(cluster: str, snapshot: Snapshot) -> dict[str, bytes]:
    start = records.prefix(cluster)
    items = {key.removeprefix(start): item.value for key, item in snapshot.items.items()}
    return {key: value for key, value in items.items() if records.is_desired(key)}


async def create(
    store: Store,
    cluster: ClusterSpec,
    origin: Origin,
    *,
    what: str = "cluster created",
    max_replicas: int | None = None,
) -> Desired:
    """Write the first state of a cluster; :class:`Refused` ``cluster-exists`` if the store has one of that
    name."""
    snapshot = await store.read(records.prefix(cluster.name))
    if _items(cluster.name, snapshot):
        raise _exists(cluster.name)
    change = origin.change(origin.new_id(), what, None)
    wanted = Desired(cluster).ordered()
    _check(wanted, max_replicas)
    writes: dict[str, bytes | None] = {**records.split(wanted), records.CONFIG: records.config(1, change)}
    try:
        await _commit(store, cluster.name, 0, writes)
    except Refused as error:
        if error.code == CONFLICT:
            raise _exists(cluster.name) from None
        raise
    except Unknown:
        found = await _after_unknown(store, cluster.name)
        if found is None or found.change is None or change.id not in found.change.recent:
            raise
    return await read(store, cluster.name)


def _exists(name: str) -> Refused:
    return Refused(
        "cluster-exists",
        f"the store has a cluster {name} already",
        "join it instead: hactl cluster join TOKEN",
    )


async def _after_unknown(store: Store, cluster: str) -> Desired | None:
    try:
        return await read(store, cluster)
    except Refused:
        return None


async def change(
    store: Store,
    cluster: str,
    edit: Edit,
    *,
    what: str,
    origin: Origin,
    max_replicas: int | None = None,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Desired:
    """Carry out an edit; the state afterwards (as it was, if the edit changes nothing).

    ``what``: one line without secrets. ``max_replicas`` as for :func:`hactl.model.check.check`. When somebody
    else was faster, the edit is made anew on what they left, so that it may then be refused. ``pause`` sleeps
    between attempts, for tests.

    :class:`Refused` from the edit, from the check of the whole, with ``store-too-large``, or
    ``store-conflict`` after :data:`ATTEMPTS`: nothing was written. :class:`Unknown` only if the store does
    not tell whether the change was made.
    """
    attempt = _Attempt(store, cluster, edit, what, origin, max_replicas)
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(_AgainError),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.01, max=1),
        sleep=pause,
    )
    try:
        return await retrying(attempt)
    except tenacity.RetryError as error:
        last = error.last_attempt.exception()
        assert isinstance(last, _AgainError)
        raise (attempt.unknown or last.why) from None


class _AgainError(Exception):
    """Not done; ``why`` is what to say if it is not tried again."""

    def __init__(self, why: Refused | Unknown) -> None:
        self.why = why


class _Attempt:
    """One change, tried until it is known what became of it; all attempts carry the same id."""

    def __init__(
        self, store: Store, cluster: str, edit: Edit, what: str, origin: Origin, max_replicas: int | None
    ) -> None:
        self.store = store
        self.cluster = cluster
        self.edit = edit
        self.what = what
        self.origin = origin
        self.max_replicas = max_replicas
        self.id = origin.new_id()
        self.unknown: Unknown | None = None
        """Set once an attempt's outcome was not told; that began at these:"""
        self.config = 0
        self.generation = 0

    async def __call__(self) -> Desired:
        now, config = await self._read()
        if self.unknown is None:
            return await self._try(now, config)
        if now.change is not None and self.id in now.change.recent:
            return now
        if now.generation - self.generation > records.RECENT:
            # Too many changes since to tell whether this one was among them.
            raise self.unknown
        if config != self.config:
            # The transaction came too late, and its condition will never hold again.
            self.unknown = None
            return await self._try(now, config)
        # It may still arrive; what is tried now has the same condition, so that one of the two is refused.
        # Anything but an attempt would leave it open whether it does.
        try:
            done = await self._try(now, config)
        except Refused as error:
            raise self.unknown from error
        if done is now:
            raise self.unknown
        return done

    async def _try(self, now: Desired, config: int) -> Desired:
        new = self.edit(now)
        if new.same(now):
            return now
        new = new.ordered()
        _check(new, self.max_replicas, now.cluster)
        made = self.origin.change(self.id, self.what, now.change)
        generation = now.generation + 1
        writes = {**records.differences(now, new), records.CONFIG: records.config(generation, made)}
        try:
            revision = await _commit(self.store, self.cluster, config, writes)
        except Refused as error:
            if error.code != CONFLICT:
                raise
            why = Refused(
                CONFLICT, "others change the cluster all the time; nothing was written", "try again"
            )
            raise _AgainError(why) from None
        except Unknown as error:
            self.unknown, self.config, self.generation = error, config, now.generation
            raise _AgainError(error) from None
        return Desired(new.cluster, new.leftovers, generation, revision, made)

    async def _read(self) -> tuple[Desired, int]:
        """State, and the revision of ``config``."""
        try:
            snapshot = await self.store.read(records.prefix(self.cluster))
        except Refused:
            if self.unknown is not None:
                raise self.unknown from None
            raise
        now = _joined(self.cluster, snapshot)
        return now, snapshot.items[records.prefix(self.cluster) + records.CONFIG].revision


def _check(desired: Desired, max_replicas: int | None, before: ClusterSpec | None = None) -> None:
    problems = check(desired.cluster, desired.leftovers, max_replicas=max_replicas, before=before)
    if problems:
        raise refusal(problems[:5], "", desired.cluster.model_dump(mode="json", include=_NAMES))


_NAMES = {
    "nodes": {"__all__": {"name"}},
    "hosts": {"__all__": {"name"}},
    "resources": {"__all__": {"name"}},
}


async def _commit(store: Store, cluster: str, config: int, writes: dict[str, bytes | None]) -> int:
    start = records.prefix(cluster)
    size = sum(len(start) + len(key) + len(value or b"") + 32 for key, value in writes.items())
    if len(writes) > MAX_OPERATIONS or size > MAX_BYTES:
        raise Refused(
            TOO_LARGE,
            f"the change writes {len(writes)} keys with {size >> 10} KiB at once; the store takes "
            f"{MAX_OPERATIONS} keys and {MAX_BYTES >> 10} KiB",
            "make it in several steps, such as by applying a file with a part of the resources first",
        )
    operations: list[Write] = [
        Delete(start + key) if value is None else Put(start + key, value) for key, value in writes.items()
    ]
    return await store.commit([Unchanged(start + records.CONFIG, config)], operations)


async def watch(store: Store, cluster: str, after: Desired) -> AsyncGenerator[Desired, None]:
    """Each state after ``after``, in order; states may be passed over, the newest never.

    Only what a change wrote is parsed; everything else is the same object as in the state before, so that
    ``is`` finds what differs. :class:`Refused` as by :func:`read` when a record cannot be understood; then
    read and watch again.
    """
    start = records.prefix(cluster)
    state = after
    async with aclosing(store.watch(start, after.revision)) as told:
        async for news in told:
            if isinstance(news, Reset):
                state = records.reuse(state, _joined(cluster, news.snapshot))
                yield state
                continue
            changes = {
                name: None if item is None else item.value
                for key, item in news.items.items()
                if records.is_desired(name := key.removeprefix(start))
            }
            # What agents report of themselves lies under the same prefix, and is no news here.
            if changes:
                state = records.apply(state, changes, news.revision)
                yield state
