"""A watch on etcd that outlives its connection: it remembers the revision it told last and goes on from
there, on whatever member answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from hactl.errors import Refused
from hactl.log import Log
from hactl.store.etcd_members import Member, Members, words
from hactl.store.etcd_rpc import LEADER_NEEDED, rpc
from hactl.store.protocol import Changes, Item, Reset, Snapshot
from hactl.store.request import first_after

_log = Log()
_PAUSE = (0.05, 1.0)
"""Seconds between attempts to connect: the first, and the longest."""


class _Lost(Exception):
    """The stream is of no use any more; the text says why."""


class _Forgotten(Exception):
    """What comes next is not to be had any more."""


def item_of(kv: Any) -> Item:
    """A key as etcd's KeyValue has it."""
    return Item(kv.key.decode(), kv.value, kv.mod_revision)


class _Stream:
    """One Watch call. A read that was begun is kept over cancellation: cancelling it would end the call."""

    def __init__(self, member: Member, silence: float) -> None:
        self.member = member
        self._silence = silence
        self._call = member.watch.Watch(metadata=LEADER_NEEDED)
        self._reading: asyncio.Future[Any] | None = None

    async def write(self, request: Any) -> None:
        try:
            async with asyncio.timeout(self._silence):
                await self._call.write(request)
        except TimeoutError:
            raise _Lost(f"took no request for {self._silence:g} s") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise _Lost(words(error)) from None

    async def read(self, seconds: float) -> Any:
        """The next response, or None if there was none in time."""
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
        await asyncio.wait({self._reading}, timeout=seconds)
        if not self._reading.done():
            return None
        reading, self._reading = self._reading, None
        if reading.cancelled():
            raise _Lost("ended here")
        try:
            response = reading.result()
        except grpc.aio.AioRpcError as error:
            raise _Lost(words(error)) from None
        if response is grpc.aio.EOF:
            raise _Lost("ended by the member")
        self.member.answered()
        return response

    async def news(self) -> Any:
        """The next response, however long it takes, from a member that shows signs of life meanwhile.

        etcd answers a request for progress at once, also while it has no leader; the metadata see to that
        case. Unlike gRPC's own pings these may be as frequent as we like.
        """
        while True:
            response = await self.read(self._silence)
            if response is not None:
                return response
            await self.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))
            response = await self.read(self._silence)
            if response is None:
                raise _Lost(f"silent for {2 * self._silence:g} s")
            return response

    async def close(self) -> None:
        self._call.cancel()
        reading = self._reading
        if reading is not None:
            await asyncio.wait({reading})
            if not reading.cancelled():
                # Looked at, or asyncio complains that nobody did.
                reading.exception()


class EtcdWatch:
    """:class:`hactl.store.protocol.Watch` on etcd."""

    def __init__(
        self,
        members: Members,
        prefix: str,
        after: int,
        read: Callable[[str], Awaitable[Snapshot]],
        ended: Callable[[EtcdWatch], None],
    ) -> None:
        self._members = members
        self._prefix = prefix
        self._after = after
        self._read = read
        self._ended = ended
        self._stream: _Stream | None = None
        self._anew = False
        """Read everything: changes after ``_after`` are not to be had any more."""
        self._pause = _PAUSE[0]
        self._closed = asyncio.Event()

    def __aiter__(self) -> EtcdWatch:
        return self

    async def __anext__(self) -> Changes | Reset:
        while not self._closed.is_set():
            try:
                if self._anew:
                    snapshot = await self._read(self._prefix)
                    self._after, self._anew = snapshot.revision, False
                    return Reset(snapshot)
                if self._stream is None:
                    self._stream = await self._connected()
                    continue
                told = self._understood(await self._stream.news())
            except _Forgotten:
                self._anew = True
                await self._drop()
                continue
            except (_Lost, Refused) as error:
                await self._broken(str(error))
                continue
            if told is not None:
                return told
        raise StopAsyncIteration

    async def _connected(self) -> _Stream:
        """A stream that has confirmed the watch."""
        member = self._members.current
        stream = _Stream(member, self._members.limits.silence)
        try:
            create = rpc.WatchCreateRequest(
                key=self._prefix.encode() or b"\0",
                range_end=first_after(self._prefix),
                start_revision=self._after + 1,
                progress_notify=True,
            )
            await stream.write(rpc.WatchRequest(create_request=create))
            response = await stream.read(self._members.limits.attempt)
            if response is None:
                raise _Lost("did not confirm a watch in time")
            if response.canceled and not response.compact_revision:
                raise _Lost(f"refused a watch: {response.cancel_reason}")
            # A member that lags behind; or one that was restored from a backup, with all the others.
            behind = response.header.revision < self._after
            if behind and (await self._read(self._prefix)).revision < self._after:
                raise _Forgotten
        except BaseException as error:
            await stream.close()
            if isinstance(error, _Lost):
                self._members.leave(member, f"watch: {error}")
            raise
        self._pause = _PAUSE[0]
        return stream

    def _understood(self, response: Any) -> Changes | None:
        """What a response tells, if anything; its revision is where to go on from."""
        if response.canceled:
            if not response.compact_revision:
                raise _Lost(f"watch ended by the member: {response.cancel_reason}")
            raise _Forgotten
        if response.watch_id < 0:
            # The answer to our own request for progress. It may overtake changes on their way (etcd before
            # 3.4.25 and 3.5.8), so it is a sign of life and no more.
            return None
        if not response.events:
            # Sent by etcd unasked, in order with the changes: there were none up to this revision.
            self._after = max(self._after, response.header.revision)
            return None
        items: dict[str, Item | None] = {}
        for event in response.events:
            item = item_of(event.kv)
            items[item.key] = item if event.type == rpc.Event.PUT else None
        # Without fragments, which are not asked for, a response holds whole transactions.
        self._after = int(response.events[-1].kv.mod_revision)
        return Changes(items, self._after)

    async def _broken(self, reason: str) -> None:
        stream = self._stream
        await self._drop()
        if stream is not None and not self._closed.is_set():
            self._members.leave(stream.member, f"watch: {reason}")
            return
        pause = self._pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads reconnects, keeps no secret
        self._pause = min(2 * self._pause, _PAUSE[1])
        try:
            async with asyncio.timeout(pause):
                await self._closed.wait()
        except TimeoutError:
            _log.info("store-watch-reconnects", prefix=self._prefix, after=self._after, reason=reason)

    async def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def aclose(self) -> None:
        self._closed.set()
        self._ended(self)
        await self._drop()
