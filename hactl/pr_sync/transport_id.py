"""TransportIDs (SPC-4 7.6.4): how parameter data names an initiator port. Pure.

Only those of iSCSI are taken apart (7.6.4.6): format 00b is an iSCSI name alone, format 01b a name and an
ISID. Those of other protocols are kept as they came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hactl.errors import Failed

ISCSI = 0x5
"""Protocol identifier of iSCSI (SPC-4 7.6.1)."""

FIXED_LENGTH = 24
"""Bytes of a TransportID of every protocol but iSCSI (SPC-4 7.6.4.2 to 7.6.4.9)."""

LEAST_ADDITIONAL = 20
"""Least ADDITIONAL LENGTH of an iSCSI TransportID (SPC-4 7.6.4.6). LIO: asks for it, but sends less where
a name is short."""

LONGEST = 4 + 244
"""Bytes of the longest one that LIO makes: 223 bytes of name, the separator, 15 of ISID, a null byte."""

LONGEST_NAME = 223
"""Bytes of the longest iSCSI name (RFC 7143 4.2.7.1)."""

LONGEST_ISID = 15
"""LIO: keeps any text of up to 15 bytes that SPEC_I_PT or REGISTER AND MOVE gives as an ISID."""

_SEPARATOR = b",i,0x"
_KNOWN_PROTOCOLS = frozenset(range(0x0, 0xB)) - {ISCSI}
_NAME = re.compile(r"[^\x00-\x20,\x7f\ud800-\udfff]+\Z")
_ISID = re.compile(r"[!-+\--~]+\Z")


@dataclass(frozen=True, order=True)
class IscsiPort:
    """An iSCSI initiator device (``isid`` empty, format 00b) or initiator port (format 01b).

    ``isid`` of a session is 12 lower-case hex digits. One that came in the parameter list of another
    initiator's REGISTER (SPEC_I_PT) or REGISTER AND MOVE may be other printable text without a comma: LIO
    keeps it, and no session ever matches it.
    """

    initiator: str
    isid: str = ""


@dataclass(frozen=True)
class Raw:
    """A TransportID of another protocol, or of a reserved iSCSI format, as it came."""

    data: bytes

    @property
    def protocol(self) -> int:
        """The PROTOCOL IDENTIFIER field."""
        return self.data[0] & 0x0F


TransportId = IscsiPort | Raw


def usable_name(initiator: str) -> bool:
    """Whether LIO can hold the name and import it again: no comma, space or control byte, 1 to 223 bytes."""
    return bool(_NAME.match(initiator)) and len(initiator.encode()) <= LONGEST_NAME


def usable_isid(isid: str) -> bool:
    """Whether LIO can hold the ISID and import it again: printable, no comma, 1 to 15 bytes."""
    return bool(_ISID.match(isid)) and len(isid) <= LONGEST_ISID


def encode(transport_id: TransportId, *, least: int = LEAST_ADDITIONAL) -> bytes:
    """The bytes of it.

    ``least``: of ADDITIONAL LENGTH; 0 gives what LIO sends. An unusable name or ISID is a `ValueError`, since
    it cannot have come from a kernel or from a checked specification.
    """
    if isinstance(transport_id, Raw):
        return transport_id.data
    if not usable_name(transport_id.initiator):
        raise ValueError(f"not an iSCSI name: {transport_id.initiator!r}")
    text = transport_id.initiator.encode()
    if transport_id.isid:
        if not usable_isid(transport_id.isid):
            raise ValueError(f"not an ISID: {transport_id.isid!r}")
        text += _SEPARATOR + transport_id.isid.encode("ascii")
    # At least one null byte ends the text, and the whole is a multiple of four.
    length = max(len(text) + 4 - len(text) % 4, least)
    first = (0x40 if transport_id.isid else 0x00) | ISCSI
    return bytes([first, 0]) + length.to_bytes(2, "big") + text.ljust(length, b"\0")


def decode(data: bytes) -> TransportId:
    """The TransportID that takes up all of ``data``; `Failed` ``pr-transport-id`` if it is not one.

    The padding is not looked at: the text ends at the first null byte (SPC-4 7.6.4.6).
    """
    if len(data) < 4:
        raise _bad("it is shorter than its header", data)
    if data[0] & 0x0F != ISCSI or data[0] & 0xC0 not in (0x00, 0x40):
        return Raw(bytes(data))
    length = int.from_bytes(data[2:4], "big")
    if len(data) != 4 + length:
        raise _bad(f"it says that {length} bytes follow, but there are {len(data) - 4}", data)
    text, null, _ = data[4:].partition(b"\0")
    if not null:
        raise _bad("its text does not end in a null byte", data)
    name, separator, isid = text, b"", b""
    if data[0] & 0xC0 == 0x40:
        name, separator, isid = text.partition(_SEPARATOR)
        if not separator:
            raise _bad("it has no ISID", data)
    try:
        port = IscsiPort(name.decode("utf-8"), isid.decode("ascii"))
    except UnicodeDecodeError:
        raise _bad("its text is not UTF-8, or its ISID not ASCII", data) from None
    if not usable_name(port.initiator):
        raise _bad("it has no proper iSCSI name", data)
    if separator and not usable_isid(port.isid):
        raise _bad("it has no proper ISID", data)
    return port


def split(data: bytes) -> tuple[TransportId, ...]:
    """The TransportIDs of a list of them without gaps (SPC-4 6.16.3); `Failed` ``pr-transport-id``."""
    found: list[TransportId] = []
    while data:
        length = _length(data)
        if length > len(data):
            raise _bad("the list ends within it", data)
        found.append(decode(data[:length]))
        data = data[length:]
    return tuple(found)


def _length(data: bytes) -> int:
    if len(data) < 4:
        raise _bad("the list ends within its header", data)
    protocol = data[0] & 0x0F
    if protocol == ISCSI:
        return 4 + int.from_bytes(data[2:4], "big")
    if protocol in _KNOWN_PROTOCOLS:
        return FIXED_LENGTH
    raise _bad(f"nobody knows how long one of protocol {protocol:#x} is", data)


def _bad(reason: str, data: bytes) -> Failed:
    return Failed(
        "pr-transport-id",
        f"a TransportID cannot be read: {reason}: {data[:64].hex()}",
        "an initiator sent it or the kernel made it up; see which initiator registered last",
    )
