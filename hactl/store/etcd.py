"""The cluster's store in etcd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hactl.errors import Refused
from hactl.store.etcd_lease import EtcdLease
from hactl.store.etcd_members import Limits, Member, Members, Tls
from hactl.store.etcd_rpc import LEADER_NEEDED, rpc
from hactl.store.etcd_verdict import COMPACTED
from hactl.store.etcd_watch import EtcdWatch, item_of
from hactl.store.protocol import CONFLICT, Delete, Item, Snapshot, Unchanged, Write
from hactl.store.request import checked, first_after

__all__ = ["EtcdStore", "Limits", "Tls"]


class EtcdStore:
    """:class:`hactl.store.protocol.Store` on the members at ``endpoints`` (``https://ADDRESS:PORT``).

    ``page``: keys read at a time. Certificates are read here, and again by ``follow``. Raises as
    :class:`hactl.store.etcd_members.Members` does; connects with the first call.
    """

    def __init__(
        self, endpoints: Sequence[str], tls: Tls, *, limits: Limits | None = None, page: int = 1000
    ) -> None:
        self._members = Members(endpoints, tls, limits or Limits())
        self._page = page
        self._watches: set[EtcdWatch] = set()
        self._leases: set[EtcdLease] = set()

    def follow(self, endpoints: Sequence[str], tls: Tls) -> None:
        """From now on use these members and certificates; what is under way, watches too, goes on."""
        self._members.follow(endpoints, tls)

    async def get(self, key: str) -> Item | None:
        response = await self._range(f"reading {key}", rpc.RangeRequest(key=key.encode()))
        return item_of(response.kvs[0]) if response.kvs else None

    async def read(self, prefix: str) -> Snapshot:
        while True:
            try:
                return await self._pages(prefix)
            except Refused as error:
                # Compacted between two pages: what was read so far is worth nothing. Compactions are minutes
                # apart, so this ends.
                if error.code != COMPACTED:
                    raise

    async def _pages(self, prefix: str) -> Snapshot:
        start, end = prefix.encode() or b"\0", first_after(prefix)
        items: dict[str, Item] = {}
        revision = 0
        while True:
            request = rpc.RangeRequest(key=start, range_end=end, limit=self._page, revision=revision)
            response = await self._range(f"reading {prefix}", request)
            # The first page says at which revision it was read; the others are read at the same.
            revision = revision or response.header.revision
            items.update((item.key, item) for item in map(item_of, response.kvs))
            if not response.more:
                return Snapshot(items, revision)
            start = response.kvs[-1].key + b"\0"

    async def _range(self, what: str, request: Any) -> Any:
        async def call(member: Member, seconds: float) -> Any:
            return await member.kv.Range(request, timeout=seconds, metadata=LEADER_NEEDED)

        return await self._members.ask(what, call)

    async def commit(self, conditions: Iterable[Unchanged], writes: Iterable[Write]) -> int:
        known, wanted = checked(conditions, writes)
        request = rpc.TxnRequest(
            compare=[_compare(condition) for condition in known],
            success=[_operation(write) for write in wanted],
            # What to tell the loser of the race.
            failure=[
                rpc.RequestOp(request_range=rpc.RangeRequest(key=condition.key.encode(), keys_only=True))
                for condition in known
            ],
        )

        async def call(member: Member, seconds: float) -> Any:
            return await member.kv.Txn(request, timeout=seconds, metadata=LEADER_NEEDED)

        what = f"writing {_named(wanted)}"
        response = await self._members.ask(what, call, repeatable=not wanted)
        if response.succeeded:
            return int(response.header.revision)
        changed = [
            condition.key
            for condition, found in zip(known, response.responses, strict=True)
            if _revision(found) != condition.revision
        ]
        raise conflict(what, changed)

    def watch(self, prefix: str, after: int) -> EtcdWatch:
        watch = EtcdWatch(self._members, prefix, after, self.read, self._watches.discard)
        self._watches.add(watch)
        return watch

    async def lease(self, ttl: int) -> EtcdLease:
        lease = await EtcdLease.granted(self._members, ttl, self._leases.discard)
        self._leases.add(lease)
        return lease

    async def close(self) -> None:
        for watch in tuple(self._watches):
            await watch.aclose()
        for lease in tuple(self._leases):
            await lease.abandon()
        await self._members.close()


def conflict(what: str, changed: Iterable[str]) -> Refused:
    """The refusal of a transaction whose conditions on the keys ``changed`` did not hold."""
    return Refused(
        CONFLICT,
        f"{what}: changed by somebody else in the meantime: {', '.join(changed)}",
        "read again and redo the change",
    )


def _named(writes: Sequence[Write]) -> str:
    if not writes:
        return "nothing"
    return writes[0].key if len(writes) == 1 else f"{writes[0].key} and {len(writes) - 1} more"


def _compare(condition: Unchanged) -> Any:
    # A key that does not exist compares as one written at revision 0.
    return rpc.Compare(
        key=condition.key.encode(),
        target=rpc.Compare.MOD,
        result=rpc.Compare.EQUAL,
        mod_revision=condition.revision,
    )


def _operation(write: Write) -> Any:
    if isinstance(write, Delete):
        return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=write.key.encode()))
    return rpc.RequestOp(
        request_put=rpc.PutRequest(key=write.key.encode(), value=write.value, lease=write.lease or 0)
    )


def _revision(found: Any) -> int:
    kvs = found.response_range.kvs
    return int(kvs[0].mod_revision) if kvs else 0
