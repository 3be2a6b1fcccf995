"""PERSISTENT RESERVE IN and OUT as bytes.

The vectors were put together by hand from the field tables of SPC-4 (6.15, 6.16, 7.6.4.6) and what
target_core_pr.c of Linux 6.12 fills in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.errors import Failed, HactlError, Unknown
from hactl.pr_sync import transport_id
from hactl.pr_sync.answers import Capabilities, Descriptor, FullStatus, Held, Keys
from hactl.pr_sync.aptpl import Record, file_content
from hactl.pr_sync.commands import Command, InitiatorPort, Outcome, Status
from hactl.pr_sync.commands import Move as Destination
from hactl.pr_sync.full_status import full_status_of, known_ports, state_from_full_status, state_of
from hactl.pr_sync.parameters import (
    BadParameters,
    Move,
    Out,
    Read,
    decode_command,
    decode_out,
    encode_command,
    encode_out,
    in_cdb,
)
from hactl.pr_sync.state import Action, Nexus, Registration, Reservation, State, Type
from hactl.pr_sync.transport_id import IscsiPort, Raw

A = "iqn.1993-08.org.debian:01:aaaa"
B = "iqn.1993-08.org.debian:01:bbbb"
ISID = "00023d000001"

# 30 bytes of name and a null byte make 31, padded to 32; with separator and ISID exactly 48.
DEVICE = bytes.fromhex("05 00 0020") + b"iqn.1993-08.org.debian:01:aaaa\0\0"
PORT = bytes.fromhex("45 00 0030") + b"iqn.1993-08.org.debian:01:aaaa,i,0x00023d000001\0"
SAS = bytes.fromhex("06 000000 5000c50012345678") + bytes(12)


def code_of(decode: Callable[[], object]) -> str:
    with pytest.raises(HactlError) as caught:
        decode()
    return caught.value.code


# TransportIDs


@pytest.mark.parametrize(("data", "port"), [(DEVICE, IscsiPort(A)), (PORT, IscsiPort(A, ISID))])
def test_transport_ids_of_iscsi(data: bytes, port: IscsiPort) -> None:
    assert transport_id.decode(data) == port
    assert transport_id.encode(port) == data
    assert transport_id.encode(port, least=0) == data


def test_a_short_name_is_filled_up_to_twenty_bytes() -> None:
    assert transport_id.encode(IscsiPort("iqn.a")) == bytes.fromhex("05 00 0014") + b"iqn.a" + bytes(15)
    # LIO does not fill up in READ FULL STATUS.
    lio = bytes.fromhex("05 00 0008") + b"iqn.a\0\0\0"
    assert transport_id.encode(IscsiPort("iqn.a"), least=0) == lio
    assert transport_id.decode(lio) == IscsiPort("iqn.a")


def test_the_text_ends_at_the_first_null_byte() -> None:
    assert transport_id.decode(DEVICE[:-1] + b"x") == IscsiPort(A)


def test_transport_ids_of_other_protocols_stay_as_they_are() -> None:
    assert transport_id.decode(SAS) == Raw(SAS)
    assert Raw(SAS).protocol == 6
    assert transport_id.encode(Raw(SAS)) == SAS
    reserved_format = b"\x85" + DEVICE[1:]
    assert transport_id.decode(reserved_format) == Raw(reserved_format)


def test_a_list_of_transport_ids() -> None:
    assert transport_id.split(DEVICE + SAS + PORT) == (IscsiPort(A), Raw(SAS), IscsiPort(A, ISID))
    assert transport_id.split(b"") == ()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(DEVICE[:3], id="shorter than its header"),
        pytest.param(DEVICE[:-4], id="shorter than it says"),
        pytest.param(DEVICE + bytes(4), id="longer than it says"),
        pytest.param(bytes.fromhex("05 00 0014") + b"i" * 20, id="no null byte"),
        pytest.param(bytes.fromhex("05 00 0014") + bytes(20), id="no name"),
        pytest.param(bytes.fromhex("05 00 0014") + b"\xff\xfe".ljust(20, b"\0"), id="not UTF-8"),
        pytest.param(bytes.fromhex("05 00 0014") + b"iqn.a b".ljust(20, b"\0"), id="space"),
        pytest.param(bytes.fromhex("05 00 0014") + b"iqn.a,res=1".ljust(20, b"\0"), id="comma"),
        pytest.param(b"\x45" + DEVICE[1:], id="port without ISID"),
        pytest.param(bytes.fromhex("45 00 0014") + b"iqn.a,i,0x".ljust(20, b"\0"), id="empty ISID"),
        pytest.param(bytes.fromhex("45 00 0014") + b"iqn.a,i,0x0,b=1".ljust(20, b"\0"), id="comma in ISID"),
        pytest.param(
            bytes.fromhex("45 00 001c") + (b"iqn.a,i,0x" + b"0" * 16).ljust(28, b"\0"), id="long ISID"
        ),
    ],
)
def test_broken_transport_ids(data: bytes) -> None:
    assert code_of(lambda: transport_id.decode(data)) == "pr-transport-id"


@pytest.mark.parametrize("data", [DEVICE[:2], DEVICE + PORT[:-1], b"\x0f" + bytes(23), SAS[:20]])
def test_broken_lists_of_transport_ids(data: bytes) -> None:
    assert code_of(lambda: transport_id.split(data)) == "pr-transport-id"


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: DEVICE + tail))
@settings(max_examples=200, deadline=None)
def test_garbage_is_a_list_or_is_refused(data: bytes) -> None:
    try:
        found = transport_id.split(data)
    except Failed as error:
        assert error.code == "pr-transport-id"  # noqa: PT017
    else:
        assert len(found) <= len(data) // 4
        for one in found:
            assert transport_id.decode(transport_id.encode(one)) == one


# PERSISTENT RESERVE OUT

KEYS = bytes.fromhex("0000000000000001 fedcba9876543210")
K, S = 0x1, 0xFEDCBA9876543210

VECTORS = [
    pytest.param(
        Out(Action.REGISTER, K, S),
        bytes.fromhex("5f 00 00 0000 00000018 00"),
        KEYS + bytes.fromhex("00000000 00 00 0000"),
        id="REGISTER",
    ),
    pytest.param(
        Out(Action.REGISTER_AND_IGNORE_EXISTING_KEY, K, S, all_tg_pt=True, aptpl=True),
        bytes.fromhex("5f 06 00 0000 00000018 00"),
        KEYS + bytes.fromhex("00000000 05 00 0000"),
        id="REGISTER AND IGNORE EXISTING KEY",
    ),
    pytest.param(
        Out(Action.REGISTER, K, S, spec_i_pt=(IscsiPort(A), IscsiPort(A, ISID))),
        # 28 + 36 + 52 = 116
        bytes.fromhex("5f 00 00 0000 00000074 00"),
        KEYS + bytes.fromhex("00000000 08 00 0000 00000058") + DEVICE + PORT,
        id="REGISTER, SPEC_I_PT",
    ),
    pytest.param(
        Out(Action.REGISTER, K, S, all_tg_pt=True, spec_i_pt=()),
        bytes.fromhex("5f 00 00 0000 0000001c 00"),
        KEYS + bytes.fromhex("00000000 0c 00 0000 00000000"),
        id="REGISTER, SPEC_I_PT without any",
    ),
    pytest.param(
        Out(Action.RESERVE, K, S, type=8),
        bytes.fromhex("5f 01 08 0000 00000018 00"),
        KEYS + bytes(8),
        id="RESERVE",
    ),
    pytest.param(
        Out(Action.RELEASE, K, S, type=3, scope=1),
        bytes.fromhex("5f 02 13 0000 00000018 00"),
        KEYS + bytes(8),
        id="RELEASE, another scope",
    ),
    pytest.param(
        Out(Action.CLEAR, K, S),
        bytes.fromhex("5f 03 00 0000 00000018 00"),
        KEYS + bytes(8),
        id="CLEAR",
    ),
    pytest.param(
        Out(Action.PREEMPT, K, S, type=5),
        bytes.fromhex("5f 04 05 0000 00000018 00"),
        KEYS + bytes(8),
        id="PREEMPT",
    ),
    pytest.param(
        Out(Action.PREEMPT_AND_ABORT, K, S, type=0xF, scope=0xF),
        bytes.fromhex("5f 05 ff 0000 00000018 00"),
        KEYS + bytes(8),
        id="PREEMPT AND ABORT, no such type",
    ),
    pytest.param(
        Out(
            Action.REGISTER_AND_MOVE, K, S, aptpl=True, move=Move(0x0102, IscsiPort(A, ISID), unregister=True)
        ),
        # 24 + 52 = 76
        bytes.fromhex("5f 07 00 0000 0000004c 00"),
        KEYS + bytes.fromhex("00 03 0102 00000034") + PORT,
        id="REGISTER AND MOVE",
    ),
    pytest.param(
        Out(Action.REGISTER_AND_MOVE, K, S, move=Move(2, IscsiPort(A))),
        bytes.fromhex("5f 07 00 0000 0000003c 00"),
        KEYS + bytes.fromhex("00 00 0002 00000024") + DEVICE,
        id="REGISTER AND MOVE, kept",
    ),
]


@pytest.mark.parametrize(("out", "cdb", "data"), VECTORS)
def test_persistent_reserve_out(out: Out, cdb: bytes, data: bytes) -> None:
    assert encode_out(out) == (cdb, data)
    assert decode_out(cdb, data) == out


CHECK = Status.CHECK_CONDITION
LENGTH, CDB, PARAMETER = (Outcome(CHECK, 5, asc, 0) for asc in (0x1A, 0x24, 0x26))


def cdb_of(action: int, length: int) -> bytes:
    return bytes([0x5F, action, 0, 0, 0, 0, 0, 0, length, 0])


@pytest.mark.parametrize(
    ("cdb", "data", "outcome"),
    [
        pytest.param(cdb_of(0, 23), bytes(23), LENGTH, id="too short"),
        pytest.param(cdb_of(0, 25), bytes(25), LENGTH, id="too long"),
        pytest.param(cdb_of(0, 24), bytes(20), LENGTH, id="not as many as said"),
        pytest.param(cdb_of(8, 24), bytes(24), CDB, id="REPLACE LOST RESERVATION"),
        pytest.param(cdb_of(31, 24), bytes(24), CDB, id="no such action"),
        pytest.param(cdb_of(1, 28), bytes(20) + b"\x08" + bytes(7), PARAMETER, id="SPEC_I_PT with RESERVE"),
        pytest.param(cdb_of(6, 28), bytes(20) + b"\x08" + bytes(7), PARAMETER, id="SPEC_I_PT with IGNORE"),
        pytest.param(
            cdb_of(0, 24), bytes(20) + b"\x08" + bytes(3), PARAMETER, id="SPEC_I_PT without a length"
        ),
        pytest.param(cdb_of(0, 28), bytes(20) + b"\x08" + bytes(6) + b"\x04", PARAMETER, id="list not there"),
        pytest.param(
            cdb_of(0, 52),
            bytes(20) + b"\x08" + bytes(6) + b"\x18" + b"\x05" + bytes(23),
            PARAMETER,
            id="bad ID",
        ),
        pytest.param(cdb_of(7, 24), bytes(24), PARAMETER, id="move to nobody"),
        pytest.param(cdb_of(7, 60), bytes(23) + b"\x20" + DEVICE, PARAMETER, id="move, wrong length"),
    ],
)
def test_bad_parameters_have_the_sense_data_of_lio(cdb: bytes, data: bytes, outcome: Outcome) -> None:
    with pytest.raises(BadParameters) as caught:
        decode_out(cdb, data)
    assert caught.value.outcome == outcome


@pytest.mark.parametrize(
    "command",
    [
        Command(Nexus(B, ISID, 7), Action.REGISTER, K, S, all_tg_pt=True),
        Command(
            Nexus(B, ISID, 7), Action.REGISTER, 0, S, spec_i_pt=(InitiatorPort(A, ""), InitiatorPort(A, ISID))
        ),
        Command(Nexus(B, ISID, 7), Action.RESERVE, K, type=6, aptpl=True),
        Command(
            Nexus(B, ISID, 7),
            Action.REGISTER_AND_MOVE,
            K,
            S,
            move=Destination(InitiatorPort(A, ISID), 9, True),
        ),
    ],
)
def test_commands_there_and_back(command: Command) -> None:
    cdb, data = encode_command(command)
    assert decode_command(command.nexus, cdb, data) == command


def test_the_bytes_of_a_command() -> None:
    to = Destination(InitiatorPort(A, ISID), 0x0102, unregister=True)
    command = Command(Nexus(B, ISID, 7), Action.REGISTER_AND_MOVE, K, S, aptpl=True, move=to)
    assert encode_command(command) == (
        bytes.fromhex("5f 07 00 0000 0000004c 00"),
        KEYS + bytes.fromhex("00 03 0102 00000034") + PORT,
    )


def test_a_command_for_a_port_that_is_not_of_iscsi_is_refused() -> None:
    cdb, data = encode_out(Out(Action.REGISTER, 0, 1, spec_i_pt=(Raw(SAS),)))
    with pytest.raises(BadParameters) as caught:
        decode_command(Nexus(B, ISID, 7), cdb, data)
    assert caught.value.outcome == PARAMETER


@given(st.integers(0, 255), st.binary(min_size=20, max_size=90))
@settings(max_examples=200, deadline=None)
def test_any_parameters_are_a_command_or_bad(action: int, data: bytes) -> None:
    try:
        out = decode_out(cdb_of(action, len(data)), data)
    except BadParameters as error:
        assert error.outcome in (LENGTH, CDB, PARAMETER)  # noqa: PT017
    else:
        assert decode_out(*encode_out(out)) == out


# PERSISTENT RESERVE IN


def test_command_blocks_of_persistent_reserve_in() -> None:
    assert in_cdb(Read.KEYS) == bytes.fromhex("5e 00 0000000000 ffff 00")
    assert in_cdb(Read.RESERVATION, 24) == bytes.fromhex("5e 01 0000000000 0018 00")
    assert in_cdb(Read.CAPABILITIES, 8) == bytes.fromhex("5e 02 0000000000 0008 00")
    assert in_cdb(Read.FULL_STATUS, 0x1234) == bytes.fromhex("5e 03 0000000000 1234 00")


def test_read_keys() -> None:
    data = bytes.fromhex("0000002a 00000010") + KEYS
    assert Keys.decode(data) == Keys(42, (K, S))
    assert Keys(42, (K, S)).encode() == data
    assert Keys.decode(bytes.fromhex("ffffffff 00000000")) == Keys(2**32 - 1, ())


def test_read_reservation() -> None:
    # LIO puts scope and type in byte 21; 16 to 19 and 22 are obsolete or reserved.
    data = bytes.fromhex("00000007 00000010 fedcba9876543210 00000000 00 05 0000")
    assert Held.decode(data) == Held(7, Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, S)
    assert Held(7, Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, S).encode() == data
    nobody = bytes.fromhex("00000007 00000000")
    assert Held.decode(nobody) == Held(7)
    assert Held(7).encode() == nobody


def test_report_capabilities_of_lio() -> None:
    lio = bytes.fromhex("0008 1d 91 ea01 0000")
    assert Capabilities.decode(lio) == Capabilities(aptpl_active=True)
    assert Capabilities(aptpl_active=True).encode() == lio
    silent = bytes.fromhex("0008 80 00 0000 0000")
    assert Capabilities.decode(silent) == Capabilities(
        replaces_lost=True,
        compatible_handling=False,
        spec_i_pt=False,
        all_tg_pt=False,
        aptpl=False,
        allow_commands=0,
        types=None,
    )


FULL = (
    bytes.fromhex("00000005 00000088")  # 24 + 52 + 24 + 36
    + bytes.fromhex("0000000000000001 00000000 01 03 00000000 0065 00000034")
    + PORT
    + bytes.fromhex("fedcba9876543210 00000000 02 00 00000000 0000 00000024")
    + DEVICE
)
STATUS = FullStatus(
    5,
    (
        Descriptor(K, IscsiPort(A, ISID), 101, type=Type.EXCLUSIVE_ACCESS),
        Descriptor(S, IscsiPort(A), 0, all_tg_pt=True),
    ),
)


def test_read_full_status() -> None:
    assert FullStatus.decode(FULL) == STATUS
    assert STATUS.encode() == FULL
    assert FullStatus.decode(bytes.fromhex("00000005 00000000")) == FullStatus(5, ())


@pytest.mark.parametrize("answer", [Keys(1, (2,)), Held(1, Type.EXCLUSIVE_ACCESS, 3), STATUS, Capabilities()])
def test_what_follows_an_answer_does_not_count(answer: Keys | Held | FullStatus | Capabilities) -> None:
    assert type(answer).decode(answer.encode() + b"\xff" * 9) == answer


@pytest.mark.parametrize(
    ("decode", "data", "code"),
    [
        (Keys.decode, b"", "pr-data"),
        (Keys.decode, bytes(7), "pr-data"),
        (Keys.decode, bytes.fromhex("00000001 00000010") + bytes(8), "pr-answer-cut"),
        (Keys.decode, bytes.fromhex("00000001 00000004") + bytes(8), "pr-data"),
        (Held.decode, bytes.fromhex("00000001 00000008") + bytes(8), "pr-data"),
        (Held.decode, bytes.fromhex("00000001 00000010") + bytes(13) + b"\x02\0\0", "pr-data"),
        (Held.decode, bytes.fromhex("00000001 00000010") + bytes(13) + b"\x13\0\0", "pr-data"),
        (Held.decode, bytes.fromhex("00000001 00000010") + bytes(13), "pr-answer-cut"),
        (Capabilities.decode, bytes.fromhex("0008 1d 91 ea01"), "pr-data"),
        (Capabilities.decode, bytes.fromhex("0009 1d 91 ea01 0000 00"), "pr-data"),
        (FullStatus.decode, FULL[:-1], "pr-answer-cut"),
        (FullStatus.decode, FULL[:7] + b"\x87" + FULL[8:], "pr-data"),
        (FullStatus.decode, FULL[:7] + b"\x50" + FULL[8:], "pr-data"),
        (FullStatus.decode, FULL[:15] + b"\0" + FULL[16:], "pr-data"),
        (FullStatus.decode, FULL[:21] + b"\x02" + FULL[22:], "pr-data"),
        (FullStatus.decode, FULL[:31] + b"\x30" + FULL[32:], "pr-transport-id"),
    ],
)
def test_broken_answers(decode: Callable[[bytes], object], data: bytes, code: str) -> None:
    assert code_of(lambda: decode(data)) == code


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: FULL[:8] + tail))
@settings(max_examples=200, deadline=None)
def test_garbage_answers_raise_their_own_errors(data: bytes) -> None:
    allowed = {"pr-data", "pr-answer-cut", "pr-transport-id"}
    for decode in (Keys.decode, Held.decode, FullStatus.decode, Capabilities.decode):
        try:
            decode(data)
        except Failed as error:
            assert error.code in allowed  # noqa: PT017


def test_an_answer_that_may_be_cut_counts_as_cut() -> None:
    many = FullStatus(1, tuple(Descriptor(key, IscsiPort(A, ISID), 1) for key in range(1, 1001)))
    assert code_of(lambda: FullStatus.decode(many.encode())) == "pr-answer-cut"
    # LIO shortens ADDITIONAL LENGTH with the list: what came is in itself complete.
    short = many.encode(4096)
    assert len(short) == 4096 or int.from_bytes(short[4:8], "big") + 8 == len(short)
    assert code_of(lambda: FullStatus.decode(short, allocation=4096)) == "pr-answer-cut"
    fits = FullStatus(1, many.descriptors[:800])
    assert FullStatus.decode(fits.encode()) == fits


# States

ACCESS = {101: frozenset({A, B}), 102: frozenset({A, B}), 103: frozenset({B})}


def test_the_state_in_a_full_status() -> None:
    access = {101: frozenset({B}), 102: frozenset({A})}
    state = state_from_full_status(FULL, access)
    holder = Nexus(A, ISID, 101)
    assert state == State(
        generation=5,
        registrations={holder: Registration(K), Nexus(A, "", 102): Registration(S, all_tg_pt=True)},
        reservation=Reservation(Type.EXCLUSIVE_ACCESS, holder),
    )
    assert full_status_of(state).encode() == FULL


def spread(isid: str, key: int = 1) -> Descriptor:
    return Descriptor(key, IscsiPort(A, isid), 0, all_tg_pt=True)


def ports_of(state: State) -> list[tuple[str, int, int]]:
    return [(nexus.isid, nexus.rtpi, nexus.copy) for nexus in state.registrations]


def test_all_target_ports_of_an_initiator_with_one_port() -> None:
    status = FullStatus(1, (Descriptor(1, IscsiPort(B, ISID), 0, all_tg_pt=True),))
    assert list(state_of(status, {101: frozenset({A}), 103: frozenset({B})}).registrations) == [
        Nexus(B, ISID, 103)
    ]


def test_all_target_ports_when_the_port_of_the_session_is_known() -> None:
    status = FullStatus(2, (spread(ISID), spread("")))
    for port, other in ((101, 102), (102, 101)):
        known = {Nexus(A, ISID, port): Registration(99, all_tg_pt=True)}
        assert ports_of(state_of(status, ACCESS, known)) == [(ISID, port, 0), ("", other, 0)]


def test_all_target_ports_when_nothing_is_known() -> None:
    with pytest.raises(Unknown) as caught:
        state_of(FullStatus(2, (spread(ISID), spread(""))), ACCESS)
    assert caught.value.code == "pr-port-unknown"


def test_all_target_ports_when_an_acl_came_or_went_since() -> None:
    known = {Nexus(A, ISID, 101): Registration(1, all_tg_pt=True)}
    grown = {**ACCESS, 104: frozenset({A})}
    assert (
        code_of(lambda: state_of(FullStatus(2, (spread(ISID), spread(""))), grown, known))
        == "pr-port-unknown"
    )
    # Unless it is known from elsewhere.
    known[Nexus(A, "", 102)] = Registration(1, all_tg_pt=True)
    assert ports_of(state_of(FullStatus(2, (spread(ISID), spread(""))), grown, known)) == [
        (ISID, 101, 0),
        ("", 102, 0),
    ]


def test_all_target_ports_registered_by_transport_id() -> None:
    # SPEC_I_PT without an ISID: one at every port with an ACL, in the kernel's order of ports.
    access = {102: frozenset({A}), 101: frozenset({A})}
    status = FullStatus(2, (spread("", 1), spread("", 2)))
    assert ports_of(state_of(status, access)) == [("", 102, 0), ("", 101, 0)]


def test_the_same_nexus_twice() -> None:
    # Two sessions of one initiator at port 101 registered with ALL_TG_PT.
    status = FullStatus(4, (spread("00023d000001"), spread(""), spread("00023d000002"), spread("")))
    known = {
        Nexus(A, "00023d000001", 101): Registration(1, all_tg_pt=True),
        Nexus(A, "00023d000002", 101): Registration(1, all_tg_pt=True),
    }
    assert ports_of(state_of(status, ACCESS, known)) == [
        ("00023d000001", 101, 0),
        ("", 102, 0),
        ("00023d000002", 101, 0),
        ("", 102, 1),
    ]


def test_a_new_registration_at_all_target_ports_is_placed_by_the_metadata() -> None:
    def record(nexus: Nexus, key: int) -> Record:
        return Record(nexus, key, True, None, 0, "iqn.2026-01.example:disk", nexus.rtpi - 100, 0)

    def text(*records: Record) -> str:
        return file_content(records).decode()

    old = State(0, {Nexus(A, ISID, 101): Registration(1, True), Nexus(A, "", 102): Registration(1, True)})
    status = FullStatus(4, (spread(ISID, 2), spread("", 2)))
    # The same ISID at the other port: it was unregistered, and registered there.
    contents = [text(), text(record(Nexus(A, ISID, 102), 2), record(Nexus(A, "", 101), 2))]
    assert ports_of(state_of(status, ACCESS, known_ports(old, contents))) == [(ISID, 102, 0), ("", 101, 0)]
    # Without a text for it, what was known before stands.
    assert ports_of(state_of(status, ACCESS, known_ports(old, []))) == [(ISID, 101, 0), ("", 102, 0)]
    with pytest.raises(Failed):
        known_ports(old, ["garbage"])


def held(type_: Type | None, rtpi: int = 101) -> Descriptor:
    return Descriptor(1, IscsiPort(B, ISID), rtpi, type=type_)


@pytest.mark.parametrize("type_", Type)
def test_the_reservation_in_a_full_status(type_: Type) -> None:
    everybody = type_.all_registrants
    status = FullStatus(1, (held(type_), held(type_ if everybody else None, 102)))
    holder = None if everybody else Nexus(B, ISID, 101)
    assert state_of(status, ACCESS).reservation == Reservation(type_, holder)


@pytest.mark.parametrize(
    "descriptors",
    [
        pytest.param((held(Type(3)), held(Type(3), 102)), id="two holders"),
        pytest.param((held(Type(3)), held(Type(1), 102)), id="two types"),
        pytest.param((held(Type(8)), held(None, 102)), id="not all of all registrants"),
    ],
)
def test_an_answer_that_mixes_two_states(descriptors: tuple[Descriptor, ...]) -> None:
    for order in permutations(descriptors):
        with pytest.raises(Unknown) as caught:
            state_of(FullStatus(1, order), ACCESS)
        assert caught.value.code == "pr-answer-torn"


def test_a_full_status_that_lio_never_sends() -> None:
    assert code_of(lambda: state_of(FullStatus(1, (held(None, 0),)), ACCESS)) == "pr-data"
    foreign = replace(held(None), transport_id=Raw(SAS))
    assert code_of(lambda: state_of(FullStatus(1, (foreign,)), ACCESS)) == "pr-transport-id"


@st.composite
def states(draw: st.DrawFn) -> State:
    """States whose registrations are of ALL_TG_PT one by one, which needs all of them known."""
    nexuses = draw(
        st.lists(
            st.builds(Nexus, st.sampled_from([A, B]), st.sampled_from(["", ISID]), st.integers(101, 104)),
            unique=True,
            max_size=8,
        )
    )
    sessions = [(nexus.initiator, nexus.isid) for nexus in nexuses]
    registrations = {
        nexus: Registration(
            draw(st.integers(1, 3)),
            all_tg_pt=draw(st.booleans()) and sessions.count((nexus.initiator, nexus.isid)) == 1,
        )
        for nexus in nexuses
    }
    type_ = draw(st.none() | st.sampled_from(Type)) if registrations else None
    reservation = None
    if type_ is not None:
        holder = None if type_.all_registrants else draw(st.sampled_from(nexuses))
        reservation = Reservation(type_, holder)
    return State(draw(st.integers(0, 2**32 - 1)), registrations, reservation)


@given(states())
@settings(max_examples=100, deadline=None)
def test_every_state_comes_back(state: State) -> None:
    back = state_from_full_status(full_status_of(state).encode(), {}, state.registrations)
    assert back == state
    assert list(back.registrations) == list(state.registrations)
