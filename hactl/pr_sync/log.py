"""The PR log of each unit in the cluster's store: what every node applies, in one order.

Keys, below ``/hactl-pr/CLUSTER/SERIAL/``: ``head`` holds the state after the last entry, so that nobody has
to read from the beginning; ``log/INDEX`` the last entries; ``members/NODE`` stands for each node whose
target port is up. An entry is written by compare-and-swap on ``head``, so there is one order. A node that
joins writes its key on the condition that the head is the one it has applied: whatever is committed later
finds it among the members.

These keys are not below the prefix of the desired state: reading that must not get slower with every
reservation.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from hactl.errors import Refused, Unknown
from hactl.pr_sync.commands import Command
from hactl.pr_sync.records import Entry, Head, decode_entry, decode_head, encode_entry, encode_head
from hactl.pr_sync.state import State
from hactl.store.protocol import CONFLICT, Delete, Put, Store, Unchanged, Write

KEEP = 512
"""Entries that are kept: for ``hactl pr history``, and for nodes that lag behind by no more than that."""

_AT_ONCE = 100
"""Keys removed in one transaction of the store."""

LOST = "pr-race-lost"
"""Code of the refusal that says: another entry came first; nothing was written."""


def prefix(cluster: str) -> str:
    """Of everything that is logged in a cluster."""
    return f"/hactl-pr/{cluster}/"


def _random_id() -> str:
    return secrets.token_hex(8)


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class PrLog:
    """The logs of a cluster's units as one node writes and reads them.

    All may raise what :class:`hactl.store.protocol.Store` raises when it cannot be reached.
    """

    def __init__(
        self,
        store: Store,
        cluster: str,
        node: str,
        *,
        now: Callable[[], str] = _utc,
        new_id: Callable[[], str] = _random_id,
    ) -> None:
        self._store = store
        self._prefix = prefix(cluster)
        self._node = node
        self._now = now
        self._new_id = new_id

    def serial_of(self, key: str) -> str:
        """The unit that a key of the log is about."""
        return key.removeprefix(self._prefix).partition("/")[0]

    async def head(self, serial: str) -> Head:
        """The end of a unit's log; an empty one if nothing was ever logged."""
        key = self._head(serial)
        item = await self._store.get(key)
        return Head() if item is None else decode_head(key, item.value, item.revision)

    async def entries(self, serial: str, after: int) -> tuple[Entry, ...]:
        """The entries that are kept, from ``after`` + 1 on or from the oldest one."""
        found = await self._store.read(f"{self._prefix}{serial}/log/")
        first = self._entry(serial, after + 1)
        return tuple(
            decode_entry(key, item.value, item.revision)
            for key, item in sorted(found.items.items())
            if key >= first
        )

    async def append(self, serial: str, head: Head, commands: Iterable[Command] | None, state: State) -> Head:
        """Commit the next entry on ``head``; the new end of the log.

        :class:`Refused` :data:`LOST` if another entry came first. An answer that was lost is asked for
        again: the condition makes that harmless, and the head tells who wrote it. :class:`Unknown` if the
        store cannot be reached any more to find out.
        """
        index, written = head.index + 1, self._new_id()
        entry = Entry(
            index,
            written,
            self._node,
            self._now(),
            state.generation,
            None if commands is None else tuple(commands),
        )
        after = Head(index, written, state)
        key = self._head(serial)
        writes: list[Write] = [
            Put(key, encode_head(after)),
            Put(self._entry(serial, index), encode_entry(entry)),
        ]
        if index > KEEP:
            writes.append(Delete(self._entry(serial, index - KEEP)))
        unsure: Unknown | None = None
        while True:
            try:
                revision = await self._store.commit([Unchanged(key, head.revision)], writes)
                return Head(index, written, state, revision)
            except Unknown as error:
                # It was carried out, or it can be now, or another came first: the next try tells.
                unsure = error
            except Refused as error:
                if error.code != CONFLICT:
                    # A refusal of the second try says nothing of the first.
                    raise unsure or error from error
                now = await self.head(serial)
                if now.id == written:
                    return now
                for one in await self.entries(serial, head.index):
                    if one.id == written:
                        # Ours, and others' on it: from here on it is theirs to be applied.
                        return Head(index, written, state, one.revision)
                raise Refused(
                    LOST,
                    f"entry {index} of the PR log of unit {serial} is of another node",
                    "apply it, and try again on it",
                ) from error

    # Members

    async def members(self, serial: str) -> frozenset[str]:
        """The nodes whose target port of the unit may be up."""
        start = f"{self._prefix}{serial}/members/"
        found = await self._store.read(start)
        return frozenset(key.removeprefix(start) for key in found.items)

    async def join(self, serial: str, head: Head) -> None:
        """Become a member, having applied ``head``; :class:`Refused` :data:`LOST` if there is more."""
        try:
            await self._store.commit(
                [Unchanged(self._head(serial), head.revision)], [Put(self._member(serial, self._node), b"{}")]
            )
        except Refused as error:
            if error.code != CONFLICT:
                raise
            raise Refused(
                LOST, f"the PR log of unit {serial} has gone on", "apply it, and join again"
            ) from error

    async def leave(self, serial: str) -> None:
        """Be a member no more; the target port is down already."""
        await self.expel(serial, self._node)

    async def expel(self, serial: str, node: str) -> None:
        """Take out a node that is known to be down: somebody who knows has said so. Its lease alone says
        that its agent is gone; the kernel goes on serving without it."""
        await self._store.commit([], [Delete(self._member(serial, node))])

    async def forget(self, serial: str) -> None:
        """Remove all that is kept of a unit that is no more. May be repeated; the head goes last."""
        keys = sorted((await self._store.read(f"{self._prefix}{serial}/")).items)
        keys.sort(key=lambda key: key == self._head(serial))
        for at in range(0, len(keys), _AT_ONCE):
            await self._store.commit([], [Delete(key) for key in keys[at : at + _AT_ONCE]])

    def _head(self, serial: str) -> str:
        return f"{self._prefix}{serial}/head"

    def _entry(self, serial: str, index: int) -> str:
        return f"{self._prefix}{serial}/log/{index:012d}"

    def _member(self, serial: str, node: str) -> str:
        return f"{self._prefix}{serial}/members/{node}"
