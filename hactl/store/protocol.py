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

    ``ttl``: seconds. Others see its keys go at the latest ``ttl`` plus one election after
    the owner's last renewal; the owner considers it lost earlier: ``ttl`` seconds after it *sent* the last
    renewal that was answered.
    """

    @property
    def id(self) -> int: ...

    @property
    def ttl(self) -> float: ...

    @property
    def remaining(self) -> float:
        """Seconds for which the owner may rely on it, 0 if it is lost; monotonic clock, no I/O."""
        ...

    async def lost(self) -> None:
        """Return once it is lost or revoked."""
        ...

    async def revoke(self) -> None:
        """End it; its keys go at once if the store can be reached, else by themselves."""
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
        """Carry out all ``writes`` in one transaction if all ``conditions`` hold; the revision of it.

        :class:`hactl.errors.Refused` with :data:`CONFLICT`, :data:`UNREACHABLE` or :data:`LEASE_LOST`:
        nothing was written. :class:`hactl.errors.Unknown` with :data:`OUTCOME_UNKNOWN`.
        """
        ...

    def watch(self, prefix: str, after: int) -> AsyncIterator[Changes | Reset]:
        """Everything that is written under a prefix after revision ``after``, in order, nothing left out,
        nothing twice; reconnects by itself for as long as it is iterated."""
        ...

    async def lease(self, ttl: int) -> Lease:
        """A new lease of ``ttl`` seconds, kept alive until it is revoked."""
        ...

    async def close(self) -> None:
        """End all watches and leases' renewals; leases run out by themselves."""
        ...
