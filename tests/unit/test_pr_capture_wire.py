"""The FUSE wire protocol, against the structures of include/uapi/linux/fuse.h laid out by hand."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.pr_sync.capture import wire

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the vectors are little-endian")

LOOKUP = bytes.fromhex(
    "2d000000 01000000 0600000000000080 0100000000000000 00000000 00000000 2a000000 0000 0000"  # header
    "6e616d6500"  # the name
)


def test_a_request_is_its_header_and_a_body() -> None:
    request = wire.Request(memoryview(LOOKUP))
    assert (request.opcode, request.node, request.unique) == (wire.LOOKUP, wire.ROOT, 6 | 1 << 63)
    assert (request.number, request.resent) == (6, True)
    assert request.names() == ["name"]


@pytest.mark.parametrize("packet", [LOOKUP + b"\0", LOOKUP[:-1]])
def test_a_request_that_lies_about_its_length_is_not_taken(packet: bytes) -> None:
    with pytest.raises(ValueError, match="says that it has 45"):
        wire.Request(memoryview(packet))


def test_an_answer_carries_the_number_as_it_was_asked() -> None:
    assert wire.reply(6 | 1 << 63, b"ab") == bytes.fromhex("12000000 00000000 0600000000000080") + b"ab"
    assert wire.error(8, 2) == bytes.fromhex("10000000 feffffff 0800000000000000")


def test_resend_is_an_answer_to_no_request() -> None:
    assert wire.resend() == bytes.fromhex("10000000 07000000 0000000000000000")


def test_init_takes_what_the_kernel_offers_and_is_wanted() -> None:
    # Linux 6.12 on x86: 7.41, 128 KiB of read-ahead, flags 0x73fffffb, flags2 0x1ed.
    body = bytes.fromhex("07000000 29000000 00000200 fbffff73 ed010000") + bytes(44)
    request = wire.Request(memoryview(_packet(wire.INIT, body)))
    major, minor, readahead, flags = wire.init_in(request)
    assert (major, minor, readahead) == (7, 41, 131072)
    assert flags & wire.INIT_HAS_RESEND
    out = wire.init_out(minor, readahead, flags)
    assert len(out) == 64
    assert out[:16] == bytes.fromhex("07000000 29000000 00000200 68004040")
    assert out[20:36] == bytes.fromhex("00001000 01000000 0001 0000 80000000")


def test_init_does_not_ask_an_old_kernel_for_what_it_does_not_know() -> None:
    # Linux 5.10: 7.32, no second word of flags, whose place holds nothing.
    body = bytes.fromhex("07000000 20000000 00000200 fbffff03") + bytes(48)
    flags = wire.init_in(wire.Request(memoryview(_packet(wire.INIT, body))))[3]
    assert not flags & wire.INIT_HAS_RESEND
    out = wire.init_out(32, 131072, flags)
    assert out[4:8] == bytes.fromhex("20000000")
    assert out[32:36] == bytes(4)


def test_structures_have_the_sizes_of_the_kernel() -> None:
    attributes = wire.Attributes(ino=5, size=1000, mode=0o100600, time=3_000_000_007)
    assert len(attributes.packed()) == 88
    assert len(wire.attr(attributes)) == 104
    assert len(wire.entry(7, attributes)) == 128
    assert len(wire.opened(9)) == 16
    assert len(wire.statfs(os.statvfs("/"))) == 80
    assert wire.SETATTR_IN.size == 88
    assert wire.IO_IN.size == 40
    assert wire.written(17) == bytes.fromhex("11000000 00000000")


def test_attributes_are_where_the_kernel_looks_for_them() -> None:
    packed = wire.Attributes(ino=5, size=1000, mode=0o100600, time=3_000_000_007, uid=1, gid=2).packed()
    assert packed[:24] == bytes.fromhex("0500000000000000 e803000000000000 0200000000000000")
    assert packed[24:48] == bytes.fromhex("0300000000000000") * 3
    assert packed[48:60] == bytes.fromhex("07000000") * 3
    assert packed[60:76] == bytes.fromhex("80810000 01000000 01000000 02000000")


def test_a_directory_entry_is_padded_to_eight_bytes() -> None:
    assert wire.directory([("abc", 5, 8)], 0, 4096) == bytes.fromhex(
        "0500000000000000 0100000000000000 03000000 08000000 6162630000000000"
    )


@given(st.lists(st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1, max_size=40)))
def test_a_directory_is_read_in_pieces_without_loss(names: list[str]) -> None:
    entries = [(name, 7, 8) for name in names]
    found: list[str] = []
    while piece := wire.directory(entries, len(found), 200):
        assert len(piece) <= 200
        while piece:
            length = int.from_bytes(piece[16:20], "little")
            found.append(piece[24 : 24 + length].decode())
            assert int.from_bytes(piece[8:16], "little") == len(found)
            piece = piece[24 + -(-length // 8) * 8 :]
    assert found == names


def _packet(opcode: int, body: bytes) -> bytes:
    header = (40 + len(body)).to_bytes(4, "little") + opcode.to_bytes(4, "little") + bytes(32)
    return header + body
