"""Opening an iSCSI session under any initiator name and ISID."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hactl.errors import Failed
from hactl.pr_sync.initiator.chap import Credentials
from hactl.pr_sync.initiator.login import (
    MAX_RECEIVE,
    Answer,
    Ask,
    LoginError,
    Offer,
    Parameters,
    broken,
    decode_keys,
    encode_keys,
    negotiate,
    refusal,
)
from hactl.pr_sync.initiator.pdu import LoginRequest, LoginResponse, PduError
from hactl.pr_sync.initiator.session import Session
from hactl.pr_sync.initiator.wire import Wire

_CMD_SN = 1
_TEXT_MAX = 1 << 16

TIMEOUT = 5.0
"""Seconds for a login, and for a command that names no other limit."""


def split_portal(portal: str) -> tuple[str, int]:
    """Address and port of a portal as configfs names it: ``127.0.0.1:3260`` or ``[::1]:3260``."""
    address, colon, port = portal.rpartition(":")
    if not colon or not address or not port.isdigit():
        raise ValueError(f"not a portal: {portal!r}")
    return address.removeprefix("[").removesuffix("]"), int(port)


async def log_in(
    portal: str,
    target: str,
    initiator: str,
    isid: str,
    *,
    chap: Credentials | None = None,
    portal_group: int | None = None,
    digests: tuple[str, ...] = ("None", "CRC32C"),
    timeout: float = TIMEOUT,
    randomness: Callable[[int], bytes] = os.urandom,
) -> Session:
    """Log in and return the session, which its owner has to end (``logout`` or ``close``).

    ``isid``: 12 hex digits. The session *is* the I_T nexus of that initiator and ISID at the portal's
    group. A login takes the place of a live session with the same name, ISID and portal group (session
    reinstatement, RFC 7143 6.3.5): LIO ends that one, waits for its commands and only then answers. So the
    ISID of a session that somebody still uses on that portal group must never be passed here, not even
    without the right credentials: LIO ends the older session before it refuses a login that skipped CHAP.

    ``portal_group``: the tag that the target has to answer with. ``timeout``: seconds for the login as a
    whole, and for each command later.

    Raises Refused ``iscsi-refused``, ``iscsi-target-unproven``, ``iscsi-wrong-portal-group``; Failed
    ``iscsi-unreachable``, ``iscsi-lost``, ``iscsi-protocol``.
    """
    offer = Offer(target, initiator, isid, chap, portal_group, digests)
    address, port = split_portal(portal)
    wire: Wire | None = None
    done = False
    try:
        async with asyncio.timeout(timeout):
            wire = Wire(*await _connect(address, port, portal))
            parameters, stat_sn = await _login(wire, offer, randomness)
        session = Session(
            wire,
            parameters,
            name=f"{initiator} at {target} ({portal})",
            cmd_sn=_CMD_SN,
            stat_sn=stat_sn,
            timeout=timeout,
        )
        done = True
        return session
    except (LoginError, PduError) as error:
        raise broken(offer, error) from None
    except TimeoutError:
        hint = "an older session of the same name and ISID may have to end first; see what holds its commands"
        raise Failed(
            "iscsi-lost", f"{portal} did not log {initiator} in within {timeout:g} s", hint
        ) from None
    except (EOFError, OSError) as error:
        hint = "see the kernel's log for why it was closed"
        reason = "the connection was closed" if isinstance(error, EOFError) else str(error)
        raise Failed("iscsi-lost", f"login of {initiator} to {portal}: {reason}", hint) from None
    finally:
        if wire is not None and not done:
            wire.abort()


@asynccontextmanager
async def open_session(
    portal: str,
    target: str,
    initiator: str,
    isid: str,
    *,
    chap: Credentials | None = None,
    portal_group: int | None = None,
    digests: tuple[str, ...] = ("None", "CRC32C"),
    timeout: float = TIMEOUT,
    randomness: Callable[[int], bytes] = os.urandom,
) -> AsyncIterator[Session]:
    """Log in as :func:`log_in` does; log out at the end, or reset the connection if the block raises."""
    session = await log_in(
        portal,
        target,
        initiator,
        isid,
        chap=chap,
        portal_group=portal_group,
        digests=digests,
        timeout=timeout,
        randomness=randomness,
    )
    try:
        yield session
        await session.logout()
    finally:
        session.abort()
        await session.close()


async def _connect(address: str, port: int, portal: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    try:
        return await asyncio.open_connection(address, port)
    except OSError as error:
        hint = "see that the portal exists in the target's tree and that its address is this machine's"
        raise Failed("iscsi-unreachable", f"no connection to {portal}: {error}", hint) from None


async def _login(wire: Wire, offer: Offer, randomness: Callable[[int], bytes]) -> tuple[Parameters, int]:
    """Negotiate; returns what was agreed on and the next StatSN."""
    talk = _Talk(wire, offer)
    negotiation = negotiate(offer, randomness)
    ask = next(negotiation)
    while True:
        answer = await talk.say(ask)
        try:
            ask = negotiation.send(answer)
        except StopIteration as end:
            parameters: Parameters = end.value
            break
    if talk.tsih == 0:
        raise LoginError("a session without a handle")
    wire.header_digest = parameters.header_digest
    wire.data_digest = parameters.data_digest
    wire.max_receive = MAX_RECEIVE
    return parameters, talk.stat_sn


class _Talk:
    """Carries requests and answers of a login, in as many PDUs as they take."""

    def __init__(self, wire: Wire, offer: Offer) -> None:
        self._wire, self._offer = wire, offer
        self.stat_sn = 0
        self.tsih = 0

    async def say(self, ask: Ask) -> Answer:
        transit = ask.next_stage is not None
        text = b""
        response = await self._exchange(ask, transit, encode_keys(ask.keys))
        while response.more:
            # The rest of a long answer is asked for with an empty request (RFC 7143 11.13.1).
            text += response.data
            if response.transit or len(text) > _TEXT_MAX:
                raise LoginError("an answer that does not end")
            response = await self._exchange(ask, False, b"")
        if response.transit and response.next_stage != ask.next_stage:
            raise LoginError(f"the target goes on to stage {response.next_stage}, which was not asked for")
        next_stage = response.next_stage if response.transit else None
        self.tsih = response.tsih
        return Answer(response.stage, next_stage, decode_keys(text + response.data))

    async def _exchange(self, ask: Ask, transit: bool, data: bytes) -> LoginResponse:
        isid = bytes.fromhex(self._offer.isid)
        self._wire.write(
            LoginRequest(
                data=data,
                tag=0,
                immediate=True,
                cmd_sn=_CMD_SN,
                exp_stat_sn=self.stat_sn,
                transit=transit,
                stage=ask.stage,
                next_stage=(ask.next_stage or 0) if transit else 0,
                isid=isid,
            )
        )
        await self._wire.drain()
        response = await self._wire.read()
        if not isinstance(response, LoginResponse):
            raise LoginError(f"{type(response).__name__} during login")
        if response.status_class != 0:
            raise refusal(self._offer, response.status_class, response.status_detail)
        if response.tag != 0 or response.isid != isid:
            raise LoginError("an answer to another login")
        self.stat_sn = (response.stat_sn + 1) % (1 << 32)
        return response
