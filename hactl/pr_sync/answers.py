"""Parameter data of PERSISTENT RESERVE IN (SPC-4 6.15). Pure.

For each service action there is a value, with ``encode`` (a target's end) and ``decode`` (an initiator's).
The module ``full_status`` turns READ FULL STATUS into a `State` and back.

Decoding is strict about lengths and lets an answer be followed by anything (an allocation that was longer):
what contradicts itself raises `Failed` ``pr-data``, what is cut ``pr-answer-cut``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hactl.errors import Failed
from hactl.pr_sync import transport_id
from hactl.pr_sync.parameters import MOST_ALLOCATION
from hactl.pr_sync.state import Type
from hactl.pr_sync.transport_id import TransportId

_TYPES = {type_.value: type_ for type_ in Type}


@dataclass(frozen=True)
class Keys:
    """READ KEYS (SPC-4 6.15.2): ``keys`` in the target's order, one for each registration."""

    generation: int
    keys: tuple[int, ...]

    def encode(self) -> bytes:
        """The whole of it; a target sends as much as was asked for."""
        return _header(self.generation, b"".join(key.to_bytes(8, "big") for key in self.keys))

    @classmethod
    def decode(cls, data: bytes) -> Keys:
        """The opposite of `encode`."""
        generation, body = _body(data)
        if len(body) % 8:
            raise bad_data(f"{len(body)} bytes of keys", data)
        keys = tuple(int.from_bytes(body[at : at + 8], "big") for at in range(0, len(body), 8))
        return cls(generation, keys)


@dataclass(frozen=True)
class Held:
    """READ RESERVATION (SPC-4 6.15.3). ``type`` is None, and ``key`` 0, when there is no reservation.

    ``key`` is 0 for an all-registrants type, too (SPC-4 5.13.10). Scope is always the logical unit.
    """

    generation: int
    type: Type | None = None
    key: int = 0

    def encode(self) -> bytes:
        """The whole of it."""
        if self.type is None:
            return _header(self.generation, b"")
        return _header(self.generation, self.key.to_bytes(8, "big") + bytes(5) + bytes([self.type, 0, 0]))

    @classmethod
    def decode(cls, data: bytes) -> Held:
        """The opposite of `encode`."""
        generation, body = _body(data)
        if not body:
            return cls(generation)
        if len(body) != 16:
            raise bad_data(f"{len(body)} bytes of reservation", data)
        return cls(generation, reservation_type(body[13], data), int.from_bytes(body[0:8], "big"))


@dataclass(frozen=True)
class Capabilities:
    """REPORT CAPABILITIES (SPC-4 6.15.4). ``types`` is None when the target does not say which it has."""

    replaces_lost: bool = False
    compatible_handling: bool = True
    spec_i_pt: bool = True
    all_tg_pt: bool = True
    aptpl: bool = True
    aptpl_active: bool = False
    allow_commands: int = 1
    types: frozenset[Type] | None = frozenset(Type)

    def encode(self) -> bytes:
        """The eight bytes of it; the values as constructed are those of LIO."""
        bits = self.replaces_lost << 7 | self.compatible_handling << 4 | self.spec_i_pt << 3
        bits |= self.all_tg_pt << 2 | self.aptpl
        mask = 0 if self.types is None else sum(bit for bit, type_ in _MASK if type_ in self.types)
        more = (self.types is not None) << 7 | self.allow_commands << 4 | self.aptpl_active
        return bytes([0, 8, bits, more]) + mask.to_bytes(2, "big") + bytes(2)

    @classmethod
    def decode(cls, data: bytes) -> Capabilities:
        """The opposite of `encode`. Unknown bits are let pass: later standards add some."""
        if len(data) < 8 or int.from_bytes(data[0:2], "big") != 8:
            raise bad_data("capabilities are 8 bytes", data)
        mask = int.from_bytes(data[4:6], "big")
        return cls(
            replaces_lost=bool(data[2] & 0x80),
            compatible_handling=bool(data[2] & 0x10),
            spec_i_pt=bool(data[2] & 0x08),
            all_tg_pt=bool(data[2] & 0x04),
            aptpl=bool(data[2] & 0x01),
            aptpl_active=bool(data[3] & 0x01),
            allow_commands=data[3] >> 4 & 0x7,
            types=frozenset(type_ for bit, type_ in _MASK if mask & bit) if data[3] & 0x80 else None,
        )


_MASK = (
    (0x8000, Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS),
    (0x4000, Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY),
    (0x2000, Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY),
    (0x0800, Type.EXCLUSIVE_ACCESS),
    (0x0200, Type.WRITE_EXCLUSIVE),
    (0x0001, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS),
)


@dataclass(frozen=True)
class Descriptor:
    """A full status descriptor (SPC-4 6.15.5). ``type`` is None unless it says that the nexus is a holder.

    ``rtpi`` means nothing with ``all_tg_pt``; LIO sends 0.
    """

    key: int
    transport_id: TransportId
    rtpi: int
    all_tg_pt: bool = False
    type: Type | None = None

    def encode(self) -> bytes:
        """The bytes that LIO sends."""
        tail = transport_id.encode(self.transport_id, least=0)
        bits = self.all_tg_pt << 1 | (self.type is not None)
        rtpi = 0 if self.all_tg_pt else self.rtpi
        head = self.key.to_bytes(8, "big") + bytes(4) + bytes([bits, self.type or 0]) + bytes(4)
        return head + rtpi.to_bytes(2, "big") + len(tail).to_bytes(4, "big") + tail


@dataclass(frozen=True)
class FullStatus:
    """READ FULL STATUS (SPC-4 6.15.5): one descriptor for each registration, in the target's order."""

    generation: int
    descriptors: tuple[Descriptor, ...]

    def encode(self, allocation: int = MOST_ALLOCATION) -> bytes:
        """What LIO sends when asked for at most ``allocation`` bytes.

        LIO: ends the list, and counts in ADDITIONAL LENGTH, only what fitted; SPC-4 4.2.5.6 lets the length
        be that of the whole, so that whoever asks can tell. It counts 8 + 24 bytes too few for a descriptor
        and so writes beyond a short buffer; whoever asks does well to ask for `MOST_ALLOCATION`.
        """
        body = b""
        for one in self.descriptors:
            raw = one.encode()
            if len(body) + len(raw) - 24 > allocation:
                break
            body += raw
        return _header(self.generation, body)[:allocation]

    @classmethod
    def decode(cls, data: bytes, allocation: int = MOST_ALLOCATION) -> FullStatus:
        """The opposite of `encode`. ``allocation``: that of the command.

        Raises `Failed` ``pr-answer-cut`` if a descriptor may be missing because it would not have fitted: LIO
        does not say, so an answer that comes near the allocation counts as cut.
        """
        generation, body = _body(data)
        if len(body) + transport_id.LONGEST > allocation:
            raise _cut(allocation, 8 + len(body) + 24 + transport_id.LONGEST)
        return cls(generation, tuple(_descriptors(body)))


def _descriptors(body: bytes) -> Iterator[Descriptor]:
    at = 0
    while at < len(body):
        head = body[at : at + 24]
        end = at + 24 + int.from_bytes(head[20:24], "big")
        if len(head) < 24 or end > len(body):
            raise bad_data("it ends within a descriptor", head)
        key = int.from_bytes(head[0:8], "big")
        if key == 0:
            raise bad_data("a registration has the key 0", head)
        yield Descriptor(
            key=key,
            transport_id=transport_id.decode(body[at + 24 : end]),
            rtpi=int.from_bytes(head[18:20], "big"),
            all_tg_pt=bool(head[12] & 0x02),
            type=reservation_type(head[13], head) if head[12] & 0x01 else None,
        )
        at = end


def reservation_type(byte: int, data: bytes) -> Type:
    """The type in a byte of scope and type, where the scope is the logical unit (SPC-4 6.15.3.3)."""
    if byte not in _TYPES:
        raise bad_data(f"scope and type are {byte:#04x}", data)
    return _TYPES[byte]


def _header(generation: int, body: bytes) -> bytes:
    return generation.to_bytes(4, "big") + len(body).to_bytes(4, "big") + body


def _body(data: bytes) -> tuple[int, bytes]:
    """PRgeneration, and what ADDITIONAL LENGTH counts."""
    if len(data) < 8:
        raise bad_data(f"{len(data)} bytes are less than its header", data)
    end = 8 + int.from_bytes(data[4:8], "big")
    if len(data) < end:
        raise _cut(len(data), end)
    return int.from_bytes(data[0:4], "big"), bytes(data[8:end])


def _cut(room: int, needed: int) -> Failed:
    return Failed(
        "pr-answer-cut",
        f"the unit has too many registrations for one answer: {room} bytes of room, {needed} needed",
        "read the APTPL metadata instead, or remove registrations that are no longer used",
    )


def bad_data(reason: str, data: bytes) -> Failed:
    """The error for an answer that is none."""
    return Failed(
        "pr-data",
        f"an answer to PERSISTENT RESERVE IN cannot be read: {reason}: {data[:32].hex()}",
        "ask again with a longer allocation; if that does not help, this kernel is not one hactl knows",
    )
