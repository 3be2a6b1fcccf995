"""The iSCSI PDUs that a session without error recovery needs (RFC 7143 11). Pure.

Every PDU is a frozen dataclass; where its fields lie in the basic header segment of 48 bytes stands with
each field. :func:`encode` and :func:`decode` are each other's inverse; reserved bits are written as 0 and not
looked at, as RFC 7143 11 asks. Sequence numbers and task tags are unsigned 32-bit numbers.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

HEADER = 48
"""Bytes of the basic header segment."""

NO_TAG = 0xFFFFFFFF
"""The task tag that stands for none (RFC 7143 11.2.1.8)."""


class PduError(Exception):
    """What came is not a PDU that this side knows; the text says why."""


class _Number:
    """An unsigned big-endian number."""

    def __init__(self, offset: int, size: int) -> None:
        self.offset, self.size = offset, size

    def put(self, header: bytearray, value: int) -> None:
        header[self.offset : self.offset + self.size] = value.to_bytes(self.size, "big")

    def get(self, header: bytes) -> int:
        return int.from_bytes(header[self.offset : self.offset + self.size], "big")


class _Bits:
    """Some bits of one byte; a single one reads as a bool."""

    def __init__(self, offset: int, shift: int, width: int = 1) -> None:
        self.offset, self.shift, self.mask = offset, shift, (1 << width) - 1

    def put(self, header: bytearray, value: int) -> None:
        if not 0 <= value <= self.mask:
            raise ValueError(f"{value} does not fit into {self.mask.bit_length()} bits")
        header[self.offset] |= value << self.shift

    def get(self, header: bytes) -> int:
        value = header[self.offset] >> self.shift & self.mask
        return bool(value) if self.mask == 1 else value


class _Bytes:
    """Bytes as they are."""

    def __init__(self, offset: int, size: int) -> None:
        self.offset, self.size = offset, size

    def put(self, header: bytearray, value: bytes) -> None:
        if len(value) != self.size:
            raise ValueError(f"{len(value)} bytes instead of {self.size}")
        header[self.offset : self.offset + self.size] = value

    def get(self, header: bytes) -> bytes:
        return header[self.offset : self.offset + self.size]


_PLACE = "place"


def _u8(offset: int) -> Mapping[str, Any]:
    return {_PLACE: _Number(offset, 1)}


def _u16(offset: int) -> Mapping[str, Any]:
    return {_PLACE: _Number(offset, 2)}


def _u32(offset: int) -> Mapping[str, Any]:
    return {_PLACE: _Number(offset, 4)}


def _bit(offset: int, shift: int, width: int = 1) -> Mapping[str, Any]:
    return {_PLACE: _Bits(offset, shift, width)}


def _raw(offset: int, size: int) -> Mapping[str, Any]:
    return {_PLACE: _Bytes(offset, size)}


@dataclass(frozen=True)
class Pdu:
    """What all have. ``tag`` is the initiator task tag, ``data`` the data segment without its padding."""

    opcode: ClassVar[int]
    data: bytes = b""
    tag: int = field(default=NO_TAG, metadata=_u32(16))


@dataclass(frozen=True)
class FromInitiator(Pdu):
    """The sequence numbers of an initiator's PDUs."""

    immediate: bool = field(default=False, metadata=_bit(0, 6))
    cmd_sn: int = field(default=0, metadata=_u32(24))
    exp_stat_sn: int = field(default=0, metadata=_u32(28))


@dataclass(frozen=True)
class FromTarget(Pdu):
    """The sequence numbers of a target's PDUs."""

    stat_sn: int = field(default=0, metadata=_u32(24))
    exp_cmd_sn: int = field(default=0, metadata=_u32(28))
    max_cmd_sn: int = field(default=0, metadata=_u32(32))


@dataclass(frozen=True)
class NopOut(FromInitiator):
    """RFC 7143 11.18."""

    opcode: ClassVar[int] = 0x00
    lun: bytes = field(default=bytes(8), metadata=_raw(8, 8))
    final: bool = field(default=True, metadata=_bit(1, 7))
    target_tag: int = field(default=NO_TAG, metadata=_u32(20))


@dataclass(frozen=True)
class ScsiCommand(FromInitiator):
    """RFC 7143 11.3. ``length`` is the expected data transfer length, ``attribute`` 1 for SIMPLE."""

    opcode: ClassVar[int] = 0x01
    final: bool = field(default=True, metadata=_bit(1, 7))
    read: bool = field(default=False, metadata=_bit(1, 6))
    write: bool = field(default=False, metadata=_bit(1, 5))
    attribute: int = field(default=1, metadata=_bit(1, 0, 3))
    lun: bytes = field(default=bytes(8), metadata=_raw(8, 8))
    length: int = field(default=0, metadata=_u32(20))
    cdb: bytes = field(default=bytes(16), metadata=_raw(32, 16))


@dataclass(frozen=True)
class LoginRequest(FromInitiator):
    """RFC 7143 11.12. Stages: 0 security, 1 operational, 3 full feature."""

    opcode: ClassVar[int] = 0x03
    transit: bool = field(default=False, metadata=_bit(1, 7))
    more: bool = field(default=False, metadata=_bit(1, 6))
    stage: int = field(default=0, metadata=_bit(1, 2, 2))
    next_stage: int = field(default=0, metadata=_bit(1, 0, 2))
    version_max: int = field(default=0, metadata=_u8(2))
    version_min: int = field(default=0, metadata=_u8(3))
    isid: bytes = field(default=bytes(6), metadata=_raw(8, 6))
    tsih: int = field(default=0, metadata=_u16(14))
    connection: int = field(default=0, metadata=_u16(20))


@dataclass(frozen=True)
class DataOut(FromInitiator):
    """RFC 7143 11.7. It has no CmdSN; that field stays 0."""

    opcode: ClassVar[int] = 0x05
    final: bool = field(default=True, metadata=_bit(1, 7))
    lun: bytes = field(default=bytes(8), metadata=_raw(8, 8))
    target_tag: int = field(default=NO_TAG, metadata=_u32(20))
    data_sn: int = field(default=0, metadata=_u32(36))
    offset: int = field(default=0, metadata=_u32(40))


@dataclass(frozen=True)
class LogoutRequest(FromInitiator):
    """RFC 7143 11.14. ``reason`` 0 closes the session."""

    opcode: ClassVar[int] = 0x06
    final: bool = field(default=True, metadata=_bit(1, 7))
    reason: int = field(default=0, metadata=_bit(1, 0, 7))
    connection: int = field(default=0, metadata=_u16(20))


@dataclass(frozen=True)
class NopIn(FromTarget):
    """RFC 7143 11.19. A ``target_tag`` asks for an answer."""

    opcode: ClassVar[int] = 0x20
    final: bool = field(default=True, metadata=_bit(1, 7))
    lun: bytes = field(default=bytes(8), metadata=_raw(8, 8))
    target_tag: int = field(default=NO_TAG, metadata=_u32(20))


@dataclass(frozen=True)
class ScsiResponse(FromTarget):
    """RFC 7143 11.4. ``response`` 0: completed at the target, so that ``status`` is valid."""

    opcode: ClassVar[int] = 0x21
    final: bool = field(default=True, metadata=_bit(1, 7))
    overflow: bool = field(default=False, metadata=_bit(1, 2))
    underflow: bool = field(default=False, metadata=_bit(1, 1))
    response: int = field(default=0, metadata=_u8(2))
    status: int = field(default=0, metadata=_u8(3))
    exp_data_sn: int = field(default=0, metadata=_u32(36))
    residual: int = field(default=0, metadata=_u32(44))


@dataclass(frozen=True)
class LoginResponse(FromTarget):
    """RFC 7143 11.13."""

    opcode: ClassVar[int] = 0x23
    transit: bool = field(default=False, metadata=_bit(1, 7))
    more: bool = field(default=False, metadata=_bit(1, 6))
    stage: int = field(default=0, metadata=_bit(1, 2, 2))
    next_stage: int = field(default=0, metadata=_bit(1, 0, 2))
    isid: bytes = field(default=bytes(6), metadata=_raw(8, 6))
    tsih: int = field(default=0, metadata=_u16(14))
    status_class: int = field(default=0, metadata=_u8(36))
    status_detail: int = field(default=0, metadata=_u8(37))


@dataclass(frozen=True)
class DataIn(FromTarget):
    """RFC 7143 11.7. ``has_status``: ends the command, with ``status``, as a SCSI response would."""

    opcode: ClassVar[int] = 0x25
    final: bool = field(default=True, metadata=_bit(1, 7))
    acknowledge: bool = field(default=False, metadata=_bit(1, 6))
    overflow: bool = field(default=False, metadata=_bit(1, 2))
    underflow: bool = field(default=False, metadata=_bit(1, 1))
    has_status: bool = field(default=False, metadata=_bit(1, 0))
    status: int = field(default=0, metadata=_u8(3))
    lun: bytes = field(default=bytes(8), metadata=_raw(8, 8))
    target_tag: int = field(default=NO_TAG, metadata=_u32(20))
    data_sn: int = field(default=0, metadata=_u32(36))
    offset: int = field(default=0, metadata=_u32(40))
    residual: int = field(default=0, metadata=_u32(44))


@dataclass(frozen=True)
class LogoutResponse(FromTarget):
    """RFC 7143 11.15. ``response`` 0: closed."""

    opcode: ClassVar[int] = 0x26
    final: bool = field(default=True, metadata=_bit(1, 7))
    response: int = field(default=0, metadata=_u8(2))


@dataclass(frozen=True)
class ReadyToTransfer(FromTarget):
    """RFC 7143 11.8: the target wants ``length`` bytes of the command's data from ``offset`` on."""

    opcode: ClassVar[int] = 0x31
    final: bool = field(default=True, metadata=_bit(1, 7))
    lun: bytes = field(default=bytes(8), metadata=_raw(8, 8))
    target_tag: int = field(default=NO_TAG, metadata=_u32(20))
    r2t_sn: int = field(default=0, metadata=_u32(36))
    offset: int = field(default=0, metadata=_u32(40))
    length: int = field(default=0, metadata=_u32(44))


@dataclass(frozen=True)
class AsyncMessage(FromTarget):
    """RFC 7143 11.9."""

    opcode: ClassVar[int] = 0x32
    final: bool = field(default=True, metadata=_bit(1, 7))
    lun: bytes = field(default=bytes(8), metadata=_raw(8, 8))
    event: int = field(default=0, metadata=_u8(36))


@dataclass(frozen=True)
class Reject(FromTarget):
    """RFC 7143 11.17. The data segment is the header that was rejected."""

    opcode: ClassVar[int] = 0x3F
    final: bool = field(default=True, metadata=_bit(1, 7))
    reason: int = field(default=0, metadata=_u8(2))


_ALL: tuple[type[Pdu], ...] = (
    NopOut, ScsiCommand, LoginRequest, DataOut, LogoutRequest,
    NopIn, ScsiResponse, LoginResponse, DataIn, LogoutResponse, ReadyToTransfer, AsyncMessage, Reject,
)  # fmt: skip
_BY_OPCODE = {kind.opcode: kind for kind in _ALL}
_PLACES = {
    kind: tuple((f.name, f.metadata[_PLACE]) for f in dataclasses.fields(kind) if _PLACE in f.metadata)
    for kind in _ALL
}


@dataclass(frozen=True)
class Sizes:
    """What follows a header: bytes of additional header segments, and of the data segment unpadded."""

    additional: int
    data: int

    @property
    def padding(self) -> int:
        """Bytes that fill the data segment up to a multiple of four."""
        return -self.data % 4


def sizes(header: bytes) -> Sizes:
    """How much belongs to the PDU that begins with these 48 bytes."""
    word = struct.unpack_from(">I", header, 4)[0]
    return Sizes((word >> 24) * 4, word & 0xFFFFFF)


def encode(pdu: Pdu) -> tuple[bytes, bytes]:
    """Header and padded data segment, without digests. Raises ValueError for a field that does not fit."""
    header = bytearray(HEADER)
    header[0] = pdu.opcode
    header[5:8] = len(pdu.data).to_bytes(3, "big")
    for name, place in _PLACES[type(pdu)]:
        place.put(header, getattr(pdu, name))
    return bytes(header), pdu.data + bytes(-len(pdu.data) % 4)


def decode(header: bytes, data: bytes = b"") -> Pdu:
    """The PDU of a header of 48 bytes and its data segment without padding; raises :class:`PduError`."""
    if len(header) != HEADER:
        raise PduError(f"a header of {len(header)} bytes instead of {HEADER}")
    opcode = header[0] & 0x3F
    kind = _BY_OPCODE.get(opcode)
    if kind is None:
        raise PduError(f"opcode 0x{opcode:02x} is not known")
    if sizes(header).data != len(data):
        raise PduError(f"{len(data)} bytes of data instead of {sizes(header).data}")
    fields: dict[str, Any] = {name: place.get(header) for name, place in _PLACES[kind]}
    return kind(data=data, **fields)
