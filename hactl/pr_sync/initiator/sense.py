"""SCSI status and sense data, and how a LUN is written. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Status(IntEnum):
    """SAM-5 5.3.1."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40

    def __str__(self) -> str:
        return self.name.replace("_", " ")


class SenseKey(IntEnum):
    """SPC-4 4.5.6, table 43."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    RESERVED = 0xC
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


class SenseError(Exception):
    """Sense data that nobody could read."""


@dataclass(frozen=True)
class Sense:
    """``deferred``: the error is of an earlier command, so this one was not carried out (SPC-4 4.5.5)."""

    key: SenseKey
    asc: int
    ascq: int
    deferred: bool = False

    def __str__(self) -> str:
        kind = ", deferred" if self.deferred else ""
        return f"{self.key.name.replace('_', ' ')} {self.asc:02x}/{self.ascq:02x}{kind}"


def decode_sense(data: bytes) -> Sense:
    """Read fixed (SPC-4 4.5.3) or descriptor (4.5.2) sense data; raises :class:`SenseError`.

    Fixed data may end before the additional sense code, which is then 00/00.
    """
    code = data[0] & 0x7F if data else 0
    if code in (0x70, 0x71) and len(data) >= 3:
        # The eighth byte says how many follow; what lies beyond is not sense data.
        end = 8 + data[7] if len(data) > 7 else 3
        asc, ascq = (data[i] if i < min(end, len(data)) else 0 for i in (12, 13))
        return Sense(SenseKey(data[2] & 0x0F), asc, ascq, code == 0x71)
    if code in (0x72, 0x73) and len(data) >= 4:
        return Sense(SenseKey(data[1] & 0x0F), data[2], data[3], code == 0x73)
    raise SenseError(f"sense data that nobody could read: {data[:20].hex() or 'none'}")


def encode_lun(number: int) -> bytes:
    """The eight bytes of a LUN: peripheral addressing up to 255, flat space up to 16383 (SAM-5 4.7.7).

    LIO takes the addressing method of a flat LUN for part of the number (``scsilun_to_int``), so that one
    above 255 is not found there; the LUNs of hactl are below.
    """
    if not 0 <= number < 0x4000:
        raise ValueError(f"LUN {number} is not between 0 and 16383")
    return (number if number < 0x100 else 0x4000 | number).to_bytes(2, "big") + bytes(6)


def decode_lun(data: bytes) -> int:
    """The number of a LUN with one level; raises ValueError for any other."""
    word = int.from_bytes(data[:2], "big")
    method, number = word >> 14, word & 0x3FFF
    if len(data) != 8 or any(data[2:]) or method not in (0, 1) or (method == 0 and number > 0xFF):
        raise ValueError(f"not a LUN of one level: {data.hex()}")
    return number
