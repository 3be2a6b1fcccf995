"""What others see of a node in the store: that it lives, and what it observes; all under one lease.

Nothing of the agent's own work waits for this.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

import structlog

import hactl
from hactl.agents.news import News
from hactl.errors import HactlError
from hactl.model.records import prefix
from hactl.store.protocol import LEASE_LOST, Delete, Lease, Put, Store, Write

SCHEMA = 1
TTL = 10
"""Seconds after which a node that does not renew its lease is no member any more."""
_BATCH = 64
"""Keys in a transaction: well below what a store takes."""
_PAUSE = 1.0
"""Seconds between two batches of news: a resync would otherwise write at every step."""
_OBSERVE = 5.0
"""Seconds to look at a resource; one that hangs must not keep the others from being told of."""
_BACKOFF = (1.0, 2.0, 5.0)
_log = structlog.get_logger("hactl.agent")

Document = Callable[[str], Awaitable[dict[str, Any] | None]]
"""Status document of a resource; None if the node does not have it (any more)."""


def member_key(cluster: str, node: str) -> str:
    """Key of a node that lives."""
    return f"{prefix(cluster)}members/{node}"


def observed_key(cluster: str, node: str, resource: str) -> str:
    """Key of what a node observes of a resource."""
    return f"{prefix(cluster)}observed/{node}/{resource}"


class Membership:
    """Keeps the keys of one node. ``boot`` is the id of its kernel's boot, ``since`` when the agent started
    (ISO 8601). ``names`` gives the resources the node has, ``news`` those to look at again."""

    def __init__(
        self,
        store: Store,
        cluster: str,
        node: str,
        *,
        boot: str,
        since: str,
        document: Document,
        names: Callable[[], Collection[str]],
        news: News,
        pause: float = _PAUSE,
        backoff: tuple[float, ...] = _BACKOFF,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._node = node
        self._boot = boot
        self._since = since
        self._document = document
        self._names = names
        self._news = news
        self._pause = pause
        self._backoff = backoff
        self._problem: HactlError | None = None

    @property
    def problem(self) -> str | None:
        """Why other nodes do not see this one in the store."""
        return None if self._problem is None else f"not a member in the store: {self._problem}"

    async def run(self) -> None:
        """Keep them until cancelled; then they go at once, if the store can be reached."""
        attempt = 0
        while True:
            lease: Lease | None = None
            try:
                lease = await self._store.lease(TTL)
                await self._enter(lease)
                self._problem, attempt = None, 0
                await self._tell(lease)
                _log.warning("the lease was lost", node=self._node)
            except HactlError as error:
                if self._problem is None or self._problem.code != error.code:
                    _log.warning("not a member in the store", code=error.code, error=str(error))
                self._problem = error
            finally:
                if lease is not None:
                    await self._leave(lease)
            await asyncio.sleep(self._backoff[min(attempt, len(self._backoff) - 1)])
            attempt += 1

    async def _leave(self, lease: Lease) -> None:
        with contextlib.suppress(HactlError, TimeoutError):
            async with asyncio.timeout(1):
                await lease.revoke()

    async def _enter(self, lease: Lease) -> None:
        value = {"version": hactl.__version__, "boot": self._boot, "since": self._since}
        await self._store.commit((), [Put(member_key(self._cluster, self._node), _bytes(value), lease.id)])

    async def _tell(self, lease: Lease) -> None:
        """Write what has changed, until the lease is lost."""
        written: dict[str, bytes] = {}
        self._news.add(*self._names())
        lost = asyncio.ensure_future(lease.lost())
        try:
            while not lost.done():
                news = asyncio.ensure_future(self._news.event.wait())
                await asyncio.wait({lost, news}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                names = self._news.take()
                try:
                    await self._write(lease, written, names)
                    self._problem = None
                except HactlError as error:
                    if error.code == LEASE_LOST:
                        return
                    self._problem = error
                    # Written or not: all of it once more.
                    written.update(dict.fromkeys(names, b""))
                    self._news.add(*names)
                await asyncio.wait({lost}, timeout=self._pause)
        finally:
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)

    async def _write(self, lease: Lease, written: dict[str, bytes], names: Iterable[str]) -> None:
        """Write what of ``names`` differs from what is ``written``."""
        left = sorted(names)
        while left:
            batch, left = left[:_BATCH], left[_BATCH:]
            values = {name: await self._value(name) for name in batch}
            changed = {name: value for name, value in values.items() if value != written.get(name)}
            writes: list[Write] = []
            for name, value in changed.items():
                key = observed_key(self._cluster, self._node, name)
                writes.append(Delete(key) if value is None else Put(key, value, lease.id))
            if writes:
                await self._store.commit((), writes)
            for name, value in changed.items():
                if value is None:
                    written.pop(name, None)
                else:
                    written[name] = value

    async def _value(self, name: str) -> bytes | None:
        try:
            async with asyncio.timeout(_OBSERVE):
                found = await self._document(name)
        except (HactlError, OSError, TimeoutError) as error:
            found = {"name": name, "reason": f"cannot be looked at: {error}"}
        return None if found is None else _bytes(found)


def _bytes(value: dict[str, Any]) -> bytes:
    return json.dumps({"schema": SCHEMA, **value}, sort_keys=True, separators=(",", ":")).encode()
