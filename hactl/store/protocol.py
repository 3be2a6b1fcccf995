"""What hactl asks of the cluster's store; kept by ``etcd.EtcdStore`` and ``memory.MemoryStore``.

Words and guarantees are etcd's (KV API, version 3.4 and newer): one revision counter for the whole store,
reads and transactions are linearizable, a transaction is all or nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

CONFLICT = "store-conflict"
"""Code of the refusal that says: a condition of the transaction did not hold; nothing was written."""

UNREACHABLE = "store-unreachable"
"""Code of the refusal that says: no member with a quorum was reached in time, and nothing was written."""

OUTCOME_UNKNOWN = "store-unknown"
"""Code of :class:`hactl.errors.Unknown`: sent, not answered; the transaction may have been carried out, or
may still be."""

LEASE_LOST = "lease-lost"
"""Code of the refusal that says: the lease that a key should be put under has run out."""

TOO_LARGE = "store-too-large"
"""Code of the refusal that says: the store's members do not take a transaction of that many keys or bytes;
etcd's own limits are 128 keys (``max-txn-ops``) and 1.5 MiB (``max-request-bytes``)."""

FULL = "store-full"
"""Code of the refusal that says: the store's quota of disk space is used up; it takes deletions only."""

DENIED = "store-denied"
"""Code of the refusal that says: a member was reached, but does not let this client do it."""

REJECTED = "store-rejected"
"""Code of the refusal that says: a member said no for a reason that no other member would see otherwise."""


@dataclass(frozen=True)
class Item:
    """A key's value, and the revision at which it was written last."""

    key: str
    value: bytes = field(repr=False)
    revision: int


@dataclass(frozen=True)
class Snapshot:
    """All keys under a prefix as they were at ``revision`` of the store."""

    items: Mapping[str, Item]
    revision: int


@dataclass(frozen=True)
class Unchanged:
    """Condition: ``key`` was written last at ``revision``; 0: there is no such key."""

    key: str
    revision: int


@dataclass(frozen=True)
class Put:
    """Write ``key``; with ``lease`` it goes when the lease ends."""

    key: str
    value: bytes = field(repr=False)
    lease: int | None = None


@dataclass(frozen=True)
class Delete:
    """Remove ``key``; no error if there is none."""

    key: str


Write = Put | Delete


@dataclass(frozen=True)
class Changes:
    """What one or more consecutive transactions did under a watched prefix: the last value of each key
    touched, None for a key removed. ``revision``: of the last transaction told."""

    items: Mapping[str, Item | None]
    revision: int


@dataclass(frozen=True)
class Reset:
    """Changes in between are not known any more (compaction): forget everything, this is how it is now."""

    snapshot: Snapshot


class Lease(Protocol):
    """A lease that is kept alive in the background until ``revoke``.

    The owner considers it lost ``ttl`` seconds after it *sent* the last renewal that was answered. Others see
    its keys go later, never earlier: at most 1 s after that while etcd keeps its leader (it looks every half
    second). A new leader does not know how much was left and gives every lease its whole ``ttl`` and an
    election's time again, so each change of leader in between can add ``ttl`` and two elections.
    """

    @property
    def id(self) -> int: ...

    @property
    def ttl(self) -> float:
        """Seconds, as granted: etcd raises what is shorter than one and a half elections (2 s)."""
        ...

    @property
    def remaining(self) -> float:
        """Seconds for which the owner may rely on it, 0 if it is lost; monotonic clock, no I/O."""
        ...

    async def lost(self) -> None:
        """Return once it is lost or revoked, or the store was closed."""
        ...

    async def revoke(self) -> None:
        """End it; its keys go at once if the store can be reached, else by themselves."""
        ...


class Watch(Protocol):
    """Changes as they come. Waiting for one may be cancelled and taken up again with nothing lost; the end
    comes only after ``aclose`` or after the store was closed."""

    def __aiter__(self) -> AsyncIterator[Changes | Reset]: ...

    async def __anext__(self) -> Changes | Reset: ...

    async def aclose(self) -> None:
        """End it and what it holds; for :func:`contextlib.aclosing`."""
        ...


class Store(Protocol):
    """The cluster's store.

    Reads may raise :class:`hactl.errors.Refused` with :data:`UNREACHABLE`. They are retried within the given
    time limits by the store itself; transactions never are once they may have been carried out.
    """

    async def get(self, key: str) -> Item | None:
        """One key, linearizable."""
        ...

    async def read(self, prefix: str) -> Snapshot:
        """All keys under a prefix at one revision, however many pages that takes."""
        ...

    async def commit(self, conditions: Iterable[Unchanged], writes: Iterable[Write]) -> int:
        """Carry out all ``writes`` in one transaction if all ``conditions`` hold; the revision of it, or the
        store's if it changed nothing.

        :class:`hactl.errors.Refused` with :data:`CONFLICT`, :data:`UNREACHABLE`, :data:`LEASE_LOST`,
        :data:`TOO_LARGE`, :data:`FULL`, :data:`DENIED` or :data:`REJECTED`: nothing was written.
        :class:`hactl.errors.Unknown` with :data:`OUTCOME_UNKNOWN`. ValueError: two writes of one key.
        """
        ...

    def watch(self, prefix: str, after: int) -> Watch:
        """Everything that is written under a prefix after revision ``after``, in order, nothing left out,
        nothing twice; reconnects by itself for as long as it is iterated.

        A :class:`Reset` comes where that cannot be had: compaction, or ``after`` is a revision that the store
        has not reached (it was restored from a backup).
        """
        ...

    async def lease(self, ttl: int) -> Lease:
        """A new lease of ``ttl`` seconds, kept alive until it is revoked."""
        ...

    async def close(self) -> None:
        """End all watches and leases' renewals; leases run out by themselves. What is asked afterwards is
        refused with :data:`UNREACHABLE`."""
        ...
