"""The members of etcd's cluster as one: whom to ask, whom to ask next, and what is certain when nobody
answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

import grpc
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from hactl.errors import Refused, Unknown
from hactl.log import Log
from hactl.store.etcd_rpc import LEADER_NEEDED, OPTIONS, rpc
from hactl.store.etcd_verdict import Outcome, judge
from hactl.store.protocol import OUTCOME_UNKNOWN, UNREACHABLE

_log = Log()
T = TypeVar("T")
_HINT = "is hactl-etcd.service up on most of the store's nodes, and the cluster network?"


@dataclass(frozen=True)
class Tls:
    """Files in PEM form: the authority that signed the members, and this client's certificate and key."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    total: float = 5.0
    """A whole call, all tries of it."""
    attempt: float = 2.0
    """One try of what may be tried again elsewhere."""
    answer: float = 3.0
    """To wait for the answer to what may not. What was on its way to a leader that is gone is not answered
    within etcd's own 7 s, so more patience helps with slow disks only."""
    connect: float = 1.0
    """To connect to a member, or to hear from one that has been silent."""
    silence: float = 2.0
    """A watch without news asks its member for a sign of life after this, and waits this long for it."""


_FRESH = 1.0
"""Seconds for which a member that answered is taken for alive."""


class Elsewhere(Exception):
    """Certainly not carried out by the member asked; the text says why."""


class Member:
    """One endpoint, its connection and etcd's services there. Made inside the event loop."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials) -> None:
        self.endpoint = endpoint
        self._channel = grpc.aio.secure_channel(urlsplit(endpoint).netloc, credentials, options=OPTIONS)
        self.kv = rpc.KVStub(self._channel)
        self.watch = rpc.WatchStub(self._channel)
        self.lease = rpc.LeaseStub(self._channel)
        self._answered: float | None = None
        self._failing = False

    def answered(self) -> None:
        """Note a sign of life."""
        self._answered = time.monotonic()
        self._failing = False

    def failed(self, reason: str) -> None:
        """Note that it did not answer; logged once until it does."""
        if not self._failing:
            _log.warning("store-member-failed", member=self.endpoint, reason=reason)
        self._failing = True

    async def alive(self, seconds: float) -> None:
        """Return once the member is connected and known to be alive. Raises :class:`Elsewhere`.

        So that what cannot be repeated is not sent to a member that is gone: what fails here was certainly
        not sent.
        """
        connected = self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY
        if connected and self._answered is not None and time.monotonic() - self._answered < _FRESH:
            return
        try:
            request = rpc.RangeRequest(key=b"\0", limit=1, keys_only=True, serializable=True)
            await self.kv.Range(request, timeout=seconds, metadata=LEADER_NEEDED)
        except grpc.aio.AioRpcError as error:
            raise Elsewhere(words(error)) from error
        self.answered()

    async def close(self) -> None:
        await self._channel.close()


def words(error: grpc.aio.AioRpcError | asyncio.InvalidStateError) -> str:
    """A failed call in one line: code and details, or what gRPC says to whoever uses a call that ended."""
    if isinstance(error, asyncio.InvalidStateError):
        return str(error)
    return f"{error.code().name.lower().replace('_', ' ')}: {error.details()}"


class Members:
    """Sticks to one member for as long as it answers, and goes on to the next when it does not.

    ``endpoints``: ``https://ADDRESS:PORT`` each, the preferred one first; each member's certificate must be
    for its address. Raises ValueError on other endpoints and :class:`hactl.errors.Refused` with
    :data:`hactl.store.protocol.UNREACHABLE` if a file of ``tls`` cannot be read.
    """

    def __init__(self, endpoints: Sequence[str], tls: Tls, limits: Limits) -> None:
        self.limits = limits
        self._endpoints = _checked(endpoints)
        self._credentials = _credentials(tls)
        self._members: list[Member] = []
        self._left: list[Member] = []
        self._at = 0
        self._closed = False

    def follow(self, endpoints: Sequence[str], tls: Tls) -> None:
        """From now on ask these members and show these certificates; raises as at the beginning.

        What is under way goes on where it is: closing a connection would cancel it.
        """
        self._endpoints, self._credentials = _checked(endpoints), _credentials(tls)
        self._left += self._members
        self._members, self._at = [], 0

    @property
    def current(self) -> Member:
        """Whom to ask now."""
        if self._closed:
            self._refuse_closed()
        if not self._members:
            self._members = [Member(endpoint, self._credentials) for endpoint in self._endpoints]
        return self._members[self._at]

    def leave(self, member: Member, reason: str) -> None:
        """Ask the next one from now on, unless somebody moved on already."""
        if self._members and member is self._members[self._at]:
            self._at = (self._at + 1) % len(self._members)
        member.failed(reason)

    async def ask(
        self,
        what: str,
        call: Callable[[Member, float], Awaitable[T]],
        *,
        repeatable: bool = True,
        total: float | None = None,
        attempt: float | None = None,
    ) -> T:
        """What ``call`` returns, which gets the member to ask and the seconds it has.

        ``repeatable``: doing it twice does no harm; else it is sent again only if it certainly was not
        carried out. Raises :class:`hactl.errors.Refused` and, only if not repeatable,
        :class:`hactl.errors.Unknown`. ``what``: for their messages.
        """
        limit = self.limits.total if total is None else total
        end = time.monotonic() + limit
        reasons: dict[str, str] = {}
        try:
            async for attempt_ in AsyncRetrying(
                retry=retry_if_exception_type(Elsewhere),
                stop=stop_after_delay(limit),
                wait=wait_random_exponential(multiplier=0.02, max=0.5),
                reraise=True,
            ):
                with attempt_:
                    member = self.current
                    left = max(end - time.monotonic(), 0.05)
                    try:
                        if repeatable:
                            seconds = min(left, self.limits.attempt if attempt is None else attempt)
                        else:
                            await member.alive(min(left, self.limits.connect))
                            seconds = min(max(end - time.monotonic(), 0.05), self.limits.answer)
                        return await self._once(what, member, call, seconds, repeatable)
                    except Elsewhere as error:
                        reasons[member.endpoint] = str(error)
                        self.leave(member, str(error))
                        raise
        except Elsewhere:
            tried = "; ".join(f"{endpoint}: {reason}" for endpoint, reason in reasons.items())
            raise Refused(
                UNREACHABLE, f"{what}: no member of the store took it within {limit:g} s: {tried}", _HINT
            ) from None
        raise AssertionError("a retry loop that neither returned nor raised")

    async def _once(
        self,
        what: str,
        member: Member,
        call: Callable[[Member, float], Awaitable[T]],
        seconds: float,
        repeatable: bool,
    ) -> T:
        try:
            answer = await call(member, seconds)
        except grpc.aio.AioRpcError as error:
            verdict = judge(error.details() or "")
            if verdict.outcome is Outcome.ELSEWHERE or (repeatable and verdict.outcome is Outcome.UNKNOWN):
                raise Elsewhere(words(error)) from error
            if verdict.outcome is Outcome.REFUSED:
                member.answered()
                raise Refused(
                    verdict.code, f"{what}: {member.endpoint}: {error.details()}", verdict.hint
                ) from error
            self.leave(member, words(error))
            raise Unknown(
                OUTCOME_UNKNOWN,
                f"{what}: sent to {member.endpoint}, and no clear answer came back: {words(error)}",
                "read again before trying again: it may have been carried out",
            ) from error
        except asyncio.CancelledError:
            # Closing a channel cancels what waits on it; that is not the cancellation of whoever called.
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            if repeatable:
                self._refuse_closed()
            raise Unknown(
                OUTCOME_UNKNOWN, f"{what}: the store was closed before the answer came", "read again"
            ) from None
        member.answered()
        return answer

    def _refuse_closed(self) -> NoReturn:
        raise Refused(UNREACHABLE, "the connection to the store was closed by this program", "open it again")

    async def close(self) -> None:
        """End all connections and what waits on them."""
        self._closed = True
        for member in (*self._members, *self._left):
            await member.close()


def _checked(endpoints: Sequence[str]) -> tuple[str, ...]:
    for endpoint in endpoints:
        parts = urlsplit(endpoint)
        if parts.scheme != "https" or not parts.hostname or not parts.port or parts.path:
            raise ValueError(f"not of the form https://ADDRESS:PORT: {endpoint}")
    if not endpoints:
        raise ValueError("no endpoint of the store")
    return tuple(endpoints)


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    try:
        return grpc.ssl_channel_credentials(
            root_certificates=tls.ca.read_bytes(),
            private_key=tls.key.read_bytes(),
            certificate_chain=tls.cert.read_bytes(),
        )
    except OSError as error:
        raise Refused(
            UNREACHABLE,
            f"cannot read {error.filename}, which the store's members want: {error.strerror}",
            "is this node part of the cluster, and this command run as root?",
        ) from error
