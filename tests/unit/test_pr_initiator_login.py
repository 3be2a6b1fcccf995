"""Logging in: what is negotiated, and that whatever is answered ends in a session or in a named error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.errors import Failed, HactlError, Refused
from hactl.pr_sync.initiator import scsi
from hactl.pr_sync.initiator.chap import Credentials
from hactl.pr_sync.initiator.connect import log_in, open_session
from hactl.pr_sync.initiator.login import (
    Answer,
    Ask,
    LoginError,
    Offer,
    Parameters,
    decode_keys,
    encode_keys,
    negotiate,
    refusal,
)
from hactl.pr_sync.initiator.pdu import LoginResponse, encode
from hactl.pr_sync.initiator.sense import Status
from tests.iscsi_target import FakeTarget, Group
from tests.iscsi_target_login import Behaviour
from tests.iscsi_unit import SmallUnit

TARGET = "iqn.2026-11.org.example:t"
HOST = "iqn.2026-11.org.example:h"
ISID = "00023d0000a1"
CHAP = Credentials("user", "secret-of-the-user", "target", "secret-of-the-target")
OFFER = Offer(TARGET, HOST, ISID)
CODES = {"iscsi-refused", "iscsi-target-unproven", "iscsi-wrong-portal-group", "iscsi-lost", "iscsi-protocol"}


@asynccontextmanager
async def target(
    behaviour: Behaviour | None = None, secret: Credentials | None = None
) -> AsyncIterator[FakeTarget]:
    fake = FakeTarget(TARGET, {1: Group(1, 11, {0: SmallUnit()}, secret=secret)}, behaviour or Behaviour())
    async with fake.running():
        yield fake


@pytest.mark.parametrize(
    ("chap", "requests"), [(None, 1), (CHAP, 4), (Credentials("user", CHAP.password), 4)]
)
async def test_round_trips(chap: Credentials | None, requests: int) -> None:
    async with (
        target(secret=CHAP if chap else None) as fake,
        open_session(fake.groups[1].portal, TARGET, HOST, ISID, chap=chap),
    ):
        assert fake.logins == [requests]
        assert fake.violations == []


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (Behaviour(), {"max_send": 8192, "immediate_data": True, "header_digest": False}),
        (Behaviour(digests=("CRC32C",)), {"header_digest": True, "data_digest": True}),
        (Behaviour(immediate_data=False), {"immediate_data": False}),
        (Behaviour(first_burst=512, max_burst=1024), {"first_burst": 512, "max_burst": 1024}),
        (Behaviour(answers={"FirstBurstLength": "Irrelevant"}), {"first_burst": 65536}),
        (Behaviour(answers={"MaxRecvDataSegmentLength": "0x400"}), {"max_send": 1024}),
        (Behaviour(proposes={"OFMarker": "No"}), {"portal_group": 1}),
        (Behaviour(split=True), {"portal_group": 1}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_what_is_agreed_on(behaviour: Behaviour, expected: dict[str, Any]) -> None:
    async with (
        target(behaviour) as fake,
        open_session(fake.groups[1].portal, TARGET, HOST, ISID) as session,
    ):
        assert {name: getattr(session.parameters, name) for name in expected} == expected
        data = bytes(range(256)) * 8
        written = await scsi.execute(session, b"\x2a\0\0\0\0\1\0\0\4\0", data_out=data)
        assert written.status is Status.GOOD
        assert (await scsi.execute(session, b"\x28\0\0\0\0\1\0\0\4\0", data_in=2048)).data == data
        assert fake.violations == []


@pytest.mark.parametrize(
    "answers",
    [
        {"ErrorRecoveryLevel": "2"},
        {"MaxConnections": "4"},
        {"InitialR2T": "No"},
        {"DataPDUInOrder": "No"},
        {"HeaderDigest": "Reject"},
        {"DataDigest": "CRC64"},
        {"ImmediateData": "Maybe"},
        {"MaxBurstLength": "1000000"},
        {"MaxBurstLength": "many"},
        {"FirstBurstLength": "100"},
        {"MaxRecvDataSegmentLength": "-1"},
        {"MaxRecvDataSegmentLength": "99999999999"},
        {"": "x"},
    ],
    ids=str,
)
async def test_answers_against_the_rules(answers: dict[str, str]) -> None:
    async with target() as fake:
        # Under a key that is always offered, so that the fake answers it.
        fake.behaviour.answers = {k or "InitialR2T": v for k, v in answers.items()}
        with pytest.raises(Failed) as failed:
            await log_in(fake.groups[1].portal, TARGET, HOST, ISID)
        assert failed.value.code == "iscsi-protocol"
        await fake.until(lambda: not fake.connections)
        assert fake.sessions == {}


@pytest.mark.parametrize("status", [0x0101, 0x0200, 0x0201, 0x0202, 0x0203, 0x0301, 0x0302, 0x0777])
def test_every_refusal_says_why(status: int) -> None:
    error = refusal(OFFER, status >> 8, status & 0xFF)
    assert error.code == "iscsi-refused"
    assert HOST in error.message
    assert error.hint
    messages = {refusal(OFFER, s >> 8, s & 0xFF).message for s in (0x0201, 0x0202, 0x0203, 0x0301, 0x0777)}
    assert len(messages) == 5


async def test_no_error_holds_a_secret() -> None:
    wrong = replace(CHAP, password="secret-that-is-wrong")
    async with target(secret=CHAP) as fake:
        with pytest.raises(Refused) as refused:
            await log_in(fake.groups[1].portal, TARGET, HOST, ISID, chap=wrong)
    assert "secret" not in str(refused.value) + repr(refused.value)


async def test_a_target_without_authentication_is_not_believed() -> None:
    async with target() as fake:
        with pytest.raises(Refused) as refused:
            await log_in(fake.groups[1].portal, TARGET, HOST, ISID, chap=CHAP)
    assert refused.value.code == "iscsi-refused"


@pytest.mark.parametrize(
    ("name", "isid"),
    [
        ("", ISID),
        ("a\0b", ISID),
        ("x" * 224, ISID),
        (HOST, ""),
        (HOST, "00023d0000a"),
        (HOST, "00023d0000ag"),
    ],
)
def test_names_and_isids_that_are_none(name: str, isid: str) -> None:
    with pytest.raises(ValueError, match=r"not an|non-hex"):
        Offer(TARGET, name, isid)


async def test_nobody_listens() -> None:
    async with target() as fake:
        portal = fake.groups[1].portal
    with pytest.raises(Failed) as failed:
        await log_in(portal, TARGET, HOST, ISID)
    assert failed.value.code == "iscsi-unreachable"
    assert portal in failed.value.message


@asynccontextmanager
async def listener(answer: bytes | None) -> AsyncIterator[str]:
    """Answers the first bytes with ``answer`` and closes; None: says nothing."""
    done = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, EOFError):
            await reader.readexactly(48)
            if answer is None:
                await reader.read(-1)
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()
        done.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        # The other side has let go of the connection, or this would wait for ever.
        await asyncio.wait_for(done.wait(), 5)
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_a_target_that_says_nothing() -> None:
    async with listener(None) as portal:
        with pytest.raises(Failed) as failed:
            await log_in(portal, TARGET, HOST, ISID, timeout=0.05)
    assert failed.value.code == "iscsi-lost"
    assert "0.05 s" in failed.value.message


async def test_a_login_that_is_given_up_leaves_no_connection() -> None:
    async with listener(None) as portal:
        login = asyncio.create_task(log_in(portal, TARGET, HOST, ISID))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(login, 0.05)


GOOD = LoginResponse(isid=bytes.fromhex(ISID), tag=0, transit=True, stage=1, next_stage=3, tsih=1)


@pytest.mark.parametrize(
    "response",
    [
        replace(GOOD, tsih=0),
        replace(GOOD, isid=bytes(6)),
        replace(GOOD, tag=5),
        replace(GOOD, stage=0),
        replace(GOOD, next_stage=1),
        replace(GOOD, more=True),
        replace(GOOD, data=b"TargetPortalGroupTag=70000\0"),
        replace(GOOD, data=b"a=1\0a=2\0"),
        replace(GOOD, data=b"no key"),
        replace(GOOD, data=b"\xff=1\0"),
    ],
    ids=str,
)
async def test_responses_that_are_not_believed(response: LoginResponse) -> None:
    async with listener(b"".join(encode(response))) as portal:
        with pytest.raises(Failed) as failed:
            await log_in(portal, TARGET, HOST, ISID)
    assert failed.value.code == "iscsi-protocol"


@settings(max_examples=60, deadline=2000)
@given(st.binary(max_size=200))
def test_noise_instead_of_an_answer(noise: bytes) -> None:
    async def attempt() -> None:
        async with listener(noise) as portal:
            with pytest.raises(HactlError) as error:
                await log_in(portal, TARGET, HOST, ISID, timeout=1)
            assert error.value.code in CODES

    asyncio.run(attempt())


KEYS = [
    "HeaderDigest", "DataDigest", "MaxConnections", "InitialR2T", "ImmediateData", "MaxBurstLength",
    "FirstBurstLength", "MaxRecvDataSegmentLength", "ErrorRecoveryLevel", "DataPDUInOrder",
    "TargetPortalGroupTag", "AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R", "OFMarker",
]  # fmt: skip
VALUES = st.sampled_from(
    [
        "Yes",
        "No",
        "None",
        "CRC32C",
        "CHAP",
        "Reject",
        "Irrelevant",
        "0",
        "1",
        "5",
        "7",
        "512",
        "65536",
        "0x1f",
    ]
) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
ANSWERS = st.builds(
    Answer,
    st.integers(0, 3),
    st.sampled_from([None, 1, 3]),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8),
)


@given(st.lists(ANSWERS, min_size=20, max_size=20), st.booleans())
def test_negotiation_ends_whatever_is_answered(answers: list[Answer], authenticate: bool) -> None:
    offer = replace(OFFER, chap=CHAP if authenticate else None)
    outcome = _outcome(offer, answers)
    if isinstance(outcome, Parameters):
        assert not authenticate, "nobody guesses a proof"
        assert outcome.first_burst <= outcome.max_burst
    else:
        assert isinstance(outcome, LoginError) or outcome.code in CODES


def _outcome(offer: Offer, answers: list[Answer]) -> Parameters | LoginError | Refused:
    negotiation = negotiate(offer, lambda size: bytes(size))
    ask = next(negotiation)
    for answer in answers:
        assert isinstance(ask, Ask)
        try:
            ask = negotiation.send(answer)
        except StopIteration as end:
            agreed: Parameters = end.value
            return agreed
        except (LoginError, Refused) as error:
            return error
    pytest.fail("it went on")


@given(st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_keys_there_and_back(keys: Mapping[str, str]) -> None:
    assert decode_keys(encode_keys(keys)) == keys


@given(st.binary(max_size=60))
def test_any_bytes_are_keys_or_an_error(data: bytes) -> None:
    try:
        keys = decode_keys(data)
    except LoginError:
        return
    assert decode_keys(encode_keys(keys)) == keys
