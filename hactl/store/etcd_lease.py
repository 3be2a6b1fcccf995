"""A lease in etcd, renewed in the background."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import grpc

from hactl.errors import Refused
from hactl.log import Log
from hactl.store.etcd_members import Elsewhere, Member, Members, words
from hactl.store.etcd_rpc import LEADER_NEEDED, rpc
from hactl.store.protocol import LEASE_LOST

_log = Log()


def _now() -> float:
    # Goes on while the machine is suspended, as etcd's own time does elsewhere.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class EtcdLease:
    """:class:`hactl.store.protocol.Lease`: renewed after each third of its time, so that two tries at two
    members fit in before it is lost."""

    def __init__(
        self, members: Members, lease_id: int, ttl: float, sent: float, ended: Callable[[EtcdLease], None]
    ) -> None:
        self._members = members
        self._id = lease_id
        self._ttl = ttl
        self._until = sent + ttl
        self._ended = ended
        self._lost = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep(), name=f"lease {lease_id:x}")

    @classmethod
    async def granted(cls, members: Members, ttl: int, ended: Callable[[EtcdLease], None]) -> EtcdLease:
        """A new lease. One that was granted without our hearing of it has no keys and runs out."""
        sent = 0.0

        async def call(member: Member, seconds: float) -> Any:
            nonlocal sent
            sent = _now()
            request = rpc.LeaseGrantRequest(TTL=ttl)
            return await member.lease.LeaseGrant(request, timeout=seconds, metadata=LEADER_NEEDED)

        response = await members.ask("getting a lease", call)
        return cls(members, response.ID, float(response.TTL), sent, ended)

    @property
    def id(self) -> int:
        return self._id

    @property
    def ttl(self) -> float:
        return self._ttl

    @property
    def remaining(self) -> float:
        return 0.0 if self._lost.is_set() else max(self._until - _now(), 0.0)

    async def lost(self) -> None:
        await self._lost.wait()

    async def _keep(self) -> None:
        third = self._ttl / 3
        try:
            while self.remaining > 0:
                await asyncio.sleep(min(third, self.remaining))
                # Not a moment longer than it is ours: whoever waits for its loss must hear of it in time.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.remaining):
                        if not await self._renewed(third):
                            return
        finally:
            self._lost.set()
            self._ended(self)
            _log.info("store-lease-ended", lease=f"{self._id:x}")

    async def _renewed(self, attempt: float) -> bool:
        """Whether it still exists, as far as anybody could be asked."""
        sent = 0.0

        async def call(member: Member, seconds: float) -> int:
            nonlocal sent
            sent = _now()
            stream = member.lease.LeaseKeepAlive(timeout=seconds, metadata=LEADER_NEEDED)
            try:
                await stream.write(rpc.LeaseKeepAliveRequest(ID=self._id))
                await stream.done_writing()
                response = await stream.read()
                if response is grpc.aio.EOF:
                    raise Elsewhere("ended the renewal without an answer")
                return int(response.TTL)
            except asyncio.InvalidStateError as error:
                raise Elsewhere(words(error)) from error
            finally:
                stream.cancel()

        limit = min(attempt, self._members.limits.attempt)
        try:
            left = await self._members.ask("renewing a lease", call, total=self.remaining, attempt=limit)
        except Refused as error:
            # Nobody answered; it is tried again for as long as it lasts.
            return error.code != LEASE_LOST
        if left <= 0:
            return False
        self._until = sent + self._ttl
        return True

    async def revoke(self) -> None:
        await self.abandon()

        async def call(member: Member, seconds: float) -> Any:
            request = rpc.LeaseRevokeRequest(ID=self._id)
            return await member.lease.LeaseRevoke(request, timeout=seconds, metadata=LEADER_NEEDED)

        # Unreachable, or gone already: it ends by itself.
        with contextlib.suppress(Refused):
            await self._members.ask("revoking a lease", call)

    async def abandon(self) -> None:
        """Renew no more; the owner considers it lost from now on."""
        self._keeping.cancel()
        await asyncio.wait({self._keeping})
        self._lost.set()
        self._ended(self)
