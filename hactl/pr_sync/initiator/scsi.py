"""The SCSI commands that hactl sends as an initiator (SPC-4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum

from hactl.alua.states import AccessState
from hactl.errors import Failed
from hactl.pr_sync.initiator.sense import SenseKey, Status
from hactl.pr_sync.initiator.session import Result, Session
from hactl.pr_sync.state import Action

_SPARE = 64
"""Bytes left free in the last page of a buffer.

LIO checks a READ FULL STATUS descriptor's TransportID against the space left, but neither the rest of the
descriptor nor the header, so it writes up to 32 bytes behind the buffer when not all of them fit. Where an
allocation length leaves this much of the page, that overrun stays in it.
"""

ROOM = 4096 - _SPARE
"""Bytes: the allocation length that parameter data are asked for with at first."""

LONGEST = (1 << 16) - _SPARE
"""Bytes: the largest allocation length used."""

_LONGEST_DESCRIPTOR = 24 + 252
"""Bytes of one READ FULL STATUS descriptor with the longest iSCSI TransportID (SPC-4 6.15.5 and 7.6.4.7)."""


class PrIn(IntEnum):
    """Service actions of PERSISTENT RESERVE IN (SPC-4 6.15.1, table 204)."""

    READ_KEYS = 0x00
    READ_RESERVATION = 0x01
    REPORT_CAPABILITIES = 0x02
    READ_FULL_STATUS = 0x03


class ScsiFailed(Failed):
    """A command ended with another status than GOOD, which is in ``result``."""

    def __init__(self, command: str, session: Session, result: Result) -> None:
        self.result = result
        super().__init__(
            "scsi-failed", f"{command} as {session.name}: {result}", "see the state of the logical unit there"
        )


@dataclass(frozen=True)
class Patience:
    """How often a command is sent again that the target has not carried out.

    ``attentions``: unit attentions put up with; a new session finds those that were pending for its ACL and
    LUN (LIO keys them so, not by ISID). ``delays``: seconds before each try after BUSY or TASK SET FULL.
    """

    attentions: int = 16
    delays: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep


PATIENT = Patience()
ONCE = Patience(attentions=0, delays=())
"""Shows what the target answers at first."""


async def execute(
    session: Session,
    cdb: bytes,
    *,
    lun: int = 0,
    data_out: bytes = b"",
    data_in: int = 0,
    timeout: float | None = None,
    patience: Patience = PATIENT,
) -> Result:
    """Send a command, and again while the answer says that it was not carried out for a passing reason.

    That is UNIT ATTENTION (SAM-5 5.14), a deferred error, BUSY and TASK SET FULL (5.3.1); when ``patience``
    is used up, the last answer is returned. A command whose outcome is unknown is never sent again: Unknown
    passes through, as do the other errors of :meth:`Session.command`. ``timeout``: seconds for each try.
    """
    delays = iter(patience.delays)
    attentions = 0
    while True:
        result = await session.command(cdb, lun=lun, data_out=data_out, data_in=data_in, timeout=timeout)
        if result.sense and (result.sense.key is SenseKey.UNIT_ATTENTION or result.sense.deferred):
            attentions += 1
            if attentions > patience.attentions:
                return result
        elif result.status in (Status.BUSY, Status.TASK_SET_FULL):
            delay = next(delays, None)
            if delay is None:
                return result
            await patience.pause(delay)
        else:
            return result


async def unit_ready(session: Session, *, lun: int = 0, patience: Patience = PATIENT) -> Result:
    """TEST UNIT READY (SPC-4 6.47): GOOD, or why not, for example NOT READY 04/0b on a standby path."""
    return await execute(session, bytes(6), lun=lun, patience=patience)


async def inquiry(session: Session, *, lun: int = 0, page: int | None = None) -> bytes:
    """INQUIRY (SPC-4 6.6): standard data, or a vital product data page with its header of four bytes."""
    cdb = bytes([0x12, page is not None, page or 0]) + (0x1000).to_bytes(2, "big") + bytes(1)
    data = await _read(session, "INQUIRY", cdb, lun, 0x1000)
    if page is None:
        return _whole("INQUIRY", data, 5, 5 + data[4] if len(data) > 4 else 5)
    if len(data) > 1 and data[1] != page:
        raise _short("INQUIRY", f"page {data[1]:02x} instead of {page:02x}")
    return _whole("INQUIRY", data, 4, 4 + int.from_bytes(data[2:4], "big"))


async def report_luns(session: Session) -> tuple[int, ...]:
    """REPORT LUNS (SPC-4 6.33): the LUNs of the nexus, ascending. LIO lists only those mapped in its ACL."""
    cdb = bytes([0xA0, 0, 0, 0, 0, 0]) + LONGEST.to_bytes(4, "big") + bytes(2)
    data = await _read(session, "REPORT LUNS", cdb, 0, LONGEST)
    data = _whole("REPORT LUNS", data, 8, 8 + int.from_bytes(data[:4], "big"))
    # LIO writes its number without an addressing method, so the two bytes are taken as they are.
    return tuple(sorted(int.from_bytes(data[at : at + 2], "big") & 0x3FFF for at in range(8, len(data), 8)))


@dataclass(frozen=True)
class PortGroup:
    """One target port group as REPORT TARGET PORT GROUPS shows it; ``ports`` are RTPIs."""

    id: int
    state: AccessState
    preferred: bool
    ports: tuple[int, ...]


async def report_target_port_groups(session: Session, *, lun: int = 0) -> tuple[PortGroup, ...]:
    """REPORT TARGET PORT GROUPS with the length-only header (SPC-4 6.37)."""
    name = "REPORT TARGET PORT GROUPS"
    cdb = bytes([0xA3, 0x0A, 0, 0, 0, 0]) + (0x4000).to_bytes(4, "big") + bytes(2)
    data = await _read(session, name, cdb, lun, 0x4000)
    data = _whole(name, data, 4, 4 + int.from_bytes(data[:4], "big"))
    groups = []
    at = 4
    while at < len(data):
        head = data[at : at + 8]
        end = at + 8 + 4 * (head[7] if len(head) == 8 else 0)
        if len(head) < 8 or end > len(data):
            raise _short(name, "a descriptor that ends too early")
        try:
            state = AccessState(head[0] & 0x0F)
        except ValueError:
            raise _short(name, f"access state {head[0] & 0x0F:x}") from None
        ports = tuple(int.from_bytes(data[i + 2 : i + 4], "big") for i in range(at + 8, end, 4))
        groups.append(PortGroup(int.from_bytes(head[2:4], "big"), state, bool(head[0] & 0x80), ports))
        at = end
    return tuple(groups)


async def persistent_reserve_in(session: Session, action: PrIn, *, lun: int = 0, room: int = ROOM) -> bytes:
    """PERSISTENT RESERVE IN (SPC-4 6.15): the parameter data, whole.

    LIO leaves out of READ FULL STATUS what does not fit, and its length with it, so an answer that comes
    near ``room`` bytes is asked for again with :data:`LONGEST`; one near that too (some 700 registrations)
    raises Failed ``scsi-bad-data``. Raises :class:`ScsiFailed`, also for RESERVATION CONFLICT, which LIO
    answers while an SPC-2 RESERVE is held.
    """
    name = f"PERSISTENT RESERVE IN, {action.name.replace('_', ' ')}"
    while True:
        cdb = bytes([0x5E, action, 0, 0, 0, 0, 0]) + room.to_bytes(2, "big") + bytes(1)
        data = await _read(session, name, cdb, lun, room)
        # REPORT CAPABILITIES counts itself, in two bytes; the others what follows a header of eight.
        if action is PrIn.REPORT_CAPABILITIES:
            return _whole(name, data, 8, int.from_bytes(data[:2], "big"))
        length = 8 + int.from_bytes(data[4:8], "big")
        if length + _LONGEST_DESCRIPTOR > room:
            if room < LONGEST:
                room = LONGEST
                continue
            raise _short(name, f"{length} bytes, so close to {room} that some may be missing")
        return _whole(name, data, 8, length)


async def persistent_reserve_out(
    session: Session,
    action: Action,
    parameters: bytes,
    *,
    type: int = 0,  # noqa: A002  SPC-4's own word
    lun: int = 0,
    timeout: float | None = None,
    patience: Patience = PATIENT,
) -> Result:
    """PERSISTENT RESERVE OUT (SPC-4 6.16) with scope LU; ``parameters`` is the parameter list.

    Returns every answer, GOOD or not: RESERVATION CONFLICT is one. Raises Unknown if no answer came; it was
    not sent again then, and may or may not have taken effect.
    """
    cdb = bytes([0x5F, action, type & 0x0F, 0, 0]) + len(parameters).to_bytes(4, "big") + bytes(1)
    return await execute(session, cdb, lun=lun, data_out=parameters, timeout=timeout, patience=patience)


async def _read(session: Session, name: str, cdb: bytes, lun: int, room: int) -> bytes:
    result = await execute(session, cdb, lun=lun, data_in=room)
    if result.status is not Status.GOOD:
        raise ScsiFailed(name, session, result)
    return result.data


def _whole(name: str, data: bytes, head: int, length: int) -> bytes:
    """Cut to the length that the data itself gives; raises Failed if there is less."""
    if len(data) < max(head, length):
        raise _short(name, f"{len(data)} bytes of {max(head, length)}")
    return data[:length]


def _short(name: str, reason: str) -> Failed:
    return Failed("scsi-bad-data", f"{name} returned data that is not understood: {reason}", "report it")
