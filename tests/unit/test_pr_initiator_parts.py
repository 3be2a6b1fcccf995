"""The pure parts of the iSCSI initiator: PDUs, digests, CHAP values, sense data, LUNs."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.errors import Refused
from hactl.pr_sync.initiator import pdu
from hactl.pr_sync.initiator.chap import Credentials, Exchange, binary, hexadecimal
from hactl.pr_sync.initiator.connect import split_portal
from hactl.pr_sync.initiator.digest import crc32c, digest
from hactl.pr_sync.initiator.pdu import PduError, decode, encode, sizes
from hactl.pr_sync.initiator.sense import SenseError, SenseKey, decode_lun, decode_sense, encode_lun
from hactl.pr_sync.initiator.session import before


def _h(text: str) -> bytes:
    return bytes.fromhex(text)


VECTORS: list[tuple[pdu.Pdu, str]] = [
    (
        pdu.LoginRequest(
            data=b"a=b\0",
            tag=0x11,
            immediate=True,
            cmd_sn=1,
            exp_stat_sn=0x22,
            transit=True,
            stage=1,
            next_stage=3,
            isid=_h("00023d0000a1"),
            connection=5,
        ),
        "438700000000000400023d0000a1000000000011000500000000000100000022",
    ),
    (
        pdu.LoginResponse(
            tag=0x11,
            stat_sn=7,
            exp_cmd_sn=8,
            max_cmd_sn=9,
            stage=1,
            isid=_h("00023d0000a1"),
            tsih=3,
            status_class=2,
            status_detail=1,
        ),
        "230400000000000000023d0000a10003000000110000000000000007000000080000000902010000",
    ),
    (
        pdu.ScsiCommand(
            data=b"123",
            tag=2,
            cmd_sn=4,
            exp_stat_sn=5,
            write=True,
            lun=_h("0001000000000000"),
            length=3,
            cdb=_h("5f060000000000180000000000000000"),
        ),
        "01a10000000000030001000000000000000000020000000300000004000000055f06000000000018",
    ),
    (
        pdu.ScsiResponse(tag=2, stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3, underflow=True, status=2, residual=6),
        "218200020000000000000000000000000000000200000000000000010000000200000003000000000000000000000006",
    ),
    (
        pdu.DataIn(data=bytes(4), tag=2, underflow=True, has_status=True, offset=16, data_sn=1, residual=9),
        "2583000000000004000000000000000000000002ffffffff000000000000000000000000000000010000001000000009",
    ),
    (
        pdu.DataOut(tag=2, target_tag=3, data_sn=1, offset=512, final=False),
        "0500000000000000000000000000000000000002000000030000000000000000000000000000000100000200",
    ),
    (
        pdu.ReadyToTransfer(tag=2, target_tag=3, r2t_sn=1, offset=512, length=1024),
        "318000000000000000000000000000000000000200000003000000000000000000000000000000010000020000000400",
    ),
    (
        pdu.NopOut(immediate=True, target_tag=3, cmd_sn=1, exp_stat_sn=2),
        "40800000000000000000000000000000ffffffff000000030000000100000002",
    ),
    (
        pdu.NopIn(target_tag=3, stat_sn=1),
        "20800000000000000000000000000000ffffffff0000000300000001",
    ),
    (
        pdu.LogoutRequest(immediate=True, tag=2, cmd_sn=1, exp_stat_sn=2),
        "4680000000000000000000000000000000000002000000000000000100000002",
    ),
    (
        pdu.LogoutResponse(tag=2, response=1, stat_sn=4),
        "26800100000000000000000000000000000000020000000000000004",
    ),
    (
        pdu.AsyncMessage(event=1, stat_sn=4),
        "32800000000000000000000000000000ffffffff0000000000000004000000000000000001000000",
    ),
    (
        pdu.Reject(reason=4, stat_sn=4),
        "3f800400000000000000000000000000ffffffff0000000000000004",
    ),
]


@pytest.mark.parametrize(("value", "header"), VECTORS, ids=[type(v).__name__ for v, _ in VECTORS])
def test_pdus_on_the_wire(value: pdu.Pdu, header: str) -> None:
    written = _h(header).ljust(48, b"\0")
    assert encode(value)[0].hex(" ", 4) == written.hex(" ", 4)
    assert decode(written, value.data) == value


def test_every_kind_of_pdu_has_a_vector() -> None:
    assert {type(v) for v, _ in VECTORS} == set(pdu._ALL)


@given(st.binary(min_size=48, max_size=48), st.binary(max_size=9))
def test_whatever_comes_is_a_pdu_or_an_error(header: bytes, data: bytes) -> None:
    header = header[:5] + len(data).to_bytes(3, "big") + header[8:]
    try:
        value = decode(header, data)
    except PduError:
        assert header[0] & 0x3F not in {kind.opcode for kind in pdu._ALL}
        return
    again, padded = encode(value)
    assert decode(again, data) == value
    assert (sizes(again).data, len(padded)) == (len(data), len(data) + sizes(again).padding)


@pytest.mark.parametrize(
    ("header", "data"), [(bytes(47), b""), (bytes(48), b"x"), (b"\x1c" + bytes(47), b"")]
)
def test_headers_that_are_none(header: bytes, data: bytes) -> None:
    with pytest.raises(PduError):
        decode(header, data)


@pytest.mark.parametrize(
    "fields",
    [{"isid": bytes(5)}, {"stage": 4}, {"tsih": 1 << 16}, {"cmd_sn": -1}],
    ids=lambda f: next(iter(f)),
)
def test_fields_that_do_not_fit(fields: dict[str, Any]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        encode(pdu.LoginRequest(**fields))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # RFC 3720 B.4, as written on the wire.
        (bytes(32), "aa36918a"),
        (b"\xff" * 32, "43aba862"),
        (bytes(range(32)), "4e79dd46"),
        (bytes(range(31, -1, -1)), "5cdb3f11"),
    ],
)
def test_digests(data: bytes, expected: str) -> None:
    assert digest(data).hex() == expected


def test_the_check_value_of_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**31 - 1))
def test_sequence_numbers_wrap(a: int, distance: int) -> None:
    b = (a + distance) % 2**32
    assert before(a, b)
    assert not before(b, a)
    assert not before(a, a)


@pytest.mark.parametrize(
    ("data", "key", "asc", "ascq", "deferred"),
    [
        ("70000600 0000000a 00000000 29000000 0000", SenseKey.UNIT_ATTENTION, 0x29, 0, False),
        ("f1000500 0000000a 00000000 24010000 0000", SenseKey.ILLEGAL_REQUEST, 0x24, 1, True),
        ("72020a0b 00000000", SenseKey.NOT_READY, 0x0A, 0x0B, False),
        ("73020a0b 00000000", SenseKey.NOT_READY, 0x0A, 0x0B, True),
        # Fixed data that end before the additional sense code, by length or by what they say.
        ("700006", SenseKey.UNIT_ATTENTION, 0, 0, False),
        ("70000600 00000004 00000000 29000000 0000", SenseKey.UNIT_ATTENTION, 0, 0, False),
    ],
)
def test_sense(data: str, key: SenseKey, asc: int, ascq: int, deferred: bool) -> None:
    sense = decode_sense(_h(data))
    assert (sense.key, sense.asc, sense.ascq, sense.deferred) == (key, asc, ascq, deferred)


@given(st.binary(max_size=40))
def test_any_sense_data_is_read_or_refused(data: bytes) -> None:
    try:
        sense = decode_sense(data)
    except SenseError:
        assert len(data) < 4 or data[0] & 0x7F not in (0x70, 0x71, 0x72, 0x73)
    else:
        assert sense.key == data[1 if data[0] & 2 else 2] & 0x0F


@pytest.mark.parametrize(("number", "written"), [(0, "0000"), (255, "00ff"), (256, "4100"), (16383, "7fff")])
def test_luns(number: int, written: str) -> None:
    assert encode_lun(number) == _h(written) + bytes(6)
    assert decode_lun(encode_lun(number)) == number


@pytest.mark.parametrize(
    "data", [_h("0001000100000000"), _h("0100000000000000"), _h("c101000000000000"), b"\0"]
)
def test_luns_that_are_not_ours(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a LUN"):
        decode_lun(data)


@pytest.mark.parametrize("number", [-1, 16384])
def test_numbers_that_are_no_luns(number: int) -> None:
    with pytest.raises(ValueError, match="LUN"):
        encode_lun(number)


@pytest.mark.parametrize(
    ("text", "value"), [("0x0aFF", b"\x0a\xff"), ("0xaff", b"\x0a\xff"), ("0bCv8=", b"\x0a\xff")]
)
def test_binary_values(text: str, value: bytes) -> None:
    assert binary(text) == value


@pytest.mark.parametrize("text", ["", "0a", "0x", "0xg1", "0x1 2", "0b?", "12"])
def test_values_that_are_not_binary(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        binary(text)


MUTUAL = Credentials("user", "secret-of-the-user", "target", "secret-of-the-target")
CHALLENGE = bytes(range(16))


def _randomness(size: int) -> bytes:
    return bytes([0x5A]) * size


def _start(credentials: Credentials, **keys: str) -> Exchange:
    told = {"CHAP_A": "5", "CHAP_I": "9", "CHAP_C": hexadecimal(CHALLENGE)} | keys
    return Exchange.start(credentials, told, _randomness)


@pytest.mark.parametrize(("algorithm", "name"), [("5", "md5"), ("7", "sha256")])
def test_chap_answers_and_checks(algorithm: str, name: str) -> None:
    exchange = _start(MUTUAL, CHAP_A=algorithm)
    answer = hashlib.new(name, b"\x09secret-of-the-user" + CHALLENGE).hexdigest()
    ours = "0x" + "5a" * 16
    assert exchange.keys() == {"CHAP_N": "user", "CHAP_R": f"0x{answer}", "CHAP_I": "90", "CHAP_C": ours}
    proof = hashlib.new(name, b"\x5asecret-of-the-target" + b"\x5a" * 16).hexdigest()
    exchange.verify({"CHAP_N": "target", "CHAP_R": f"0x{proof}"}, "t")
    for keys in (
        {},
        {"CHAP_N": "target"},
        {"CHAP_N": "user", "CHAP_R": f"0x{proof}"},
        {"CHAP_N": "target", "CHAP_R": f"0x{answer}"},
        {"CHAP_N": "target", "CHAP_R": "nothing"},
    ):
        with pytest.raises(Refused) as refused:
            exchange.verify(keys, "t")
        assert refused.value.code == "iscsi-target-unproven"


def test_one_way_chap_asks_nothing_of_the_target() -> None:
    exchange = _start(Credentials("user", "secret-of-the-user"))
    assert set(exchange.keys()) == {"CHAP_N", "CHAP_R"}
    exchange.verify({}, "t")


@pytest.mark.parametrize(
    "keys",
    [
        {"CHAP_A": "6"},
        {"CHAP_A": "md5"},
        {"CHAP_A": "99999999999"},
        {"CHAP_I": "256"},
        {"CHAP_I": "-1"},
        {"CHAP_C": ""},
        {"CHAP_C": "0b"},
        {"CHAP_C": "0x" + "00" * 1025},
        {"CHAP_C": "0x" + "5a" * 16},
    ],
    ids=str,
)
def test_chap_that_is_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="CHAP_"):
        _start(MUTUAL, **keys)


def test_secrets_do_not_show() -> None:
    assert "secret" not in repr(MUTUAL)
    assert "secret" not in repr(_start(MUTUAL))


def test_half_of_mutual_credentials_is_none() -> None:
    with pytest.raises(ValueError, match="both"):
        Credentials("user", "secret", "target")


@pytest.mark.parametrize(
    ("text", "address", "port"), [("127.0.0.1:3260", "127.0.0.1", 3260), ("[::1]:9", "::1", 9)]
)
def test_portals(text: str, address: str, port: int) -> None:
    assert split_portal(text) == (address, port)


@pytest.mark.parametrize("text", ["127.0.0.1", ":3260", "host:", "host:x"])
def test_portals_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a portal"):
        split_portal(text)
