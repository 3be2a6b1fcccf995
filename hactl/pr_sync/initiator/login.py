"""What is said during an iSCSI login (RFC 7143 6 and 13), apart from how it travels. Pure.

What LIO asks for: SessionType, TargetName and InitiatorName in the first request. What it answers beside
the negotiated keys are declarations (TargetPortalGroupTag, TargetAlias, its own MaxRecvDataSegmentLength).
Keys it was not offered it proposes itself, which costs a round trip; so all are offered at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from hactl.errors import Failed, HactlError, Refused
from hactl.pr_sync.initiator.chap import ALGORITHMS, Credentials, Exchange

SECURITY, OPERATIONAL, FULL_FEATURE = 0, 1, 3
"""Stages (RFC 7143 11.12.3)."""

ROUNDS = 8
"""Requests in one stage before the negotiation counts as going round in circles."""

MAX_RECEIVE = 1 << 18
"""Bytes of a data segment that this side takes after login."""

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}")

_BURST_MAX = (1 << 24) - 1

_OFFERED = {
    "MaxConnections": "1",
    "InitialR2T": "Yes",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": str(MAX_RECEIVE),
    "MaxBurstLength": str(MAX_RECEIVE),
    "FirstBurstLength": "65536",
    "DefaultTime2Wait": "0",
    "DefaultTime2Retain": "0",
    "MaxOutstandingR2T": "1",
    "DataPDUInOrder": "Yes",
    "DataSequenceInOrder": "Yes",
    "ErrorRecoveryLevel": "0",
}
"""DefaultTime2Retain 0: a session whose connection is gone ends at once, and with it what LIO keeps of it."""

_DECLARED = frozenset({"TargetAlias", "TargetPortalGroupTag", "TargetAddress", "MaxRecvDataSegmentLength"})
"""What a target says without asking (RFC 7143 13)."""

_STATUS = {
    0x0101: "the target has moved for now",
    0x0102: "the target has moved",
    0x0200: "the target does not accept what the initiator sent",
    0x0201: "authentication failed",
    0x0202: "this initiator is not allowed to use the target",
    0x0203: "the target is not known there",
    0x0204: "the target was removed",
    0x0205: "the iSCSI version is not supported",
    0x0206: "the session has too many connections",
    0x0207: "a key is missing",
    0x0208: "the connection cannot be added to the session",
    0x0209: "the session type is not supported",
    0x020A: "the session does not exist",
    0x020B: "the request was not valid in that stage",
    0x0300: "the target failed",
    0x0301: "the target or its portal group is not there or not enabled",
    0x0302: "the target is out of resources",
}
"""RFC 7143 11.13.5. LIO answers 0x0301 also for an IQN that it does not have."""

_HINTS = {
    0x0201: "compare user and password with those of the target's ACL; without CHAP, give it some",
    0x0202: "make an ACL for the initiator in the target's portal group",
    0x0301: "enable the portal group, and see that the portal is its own",
}


class LoginError(Exception):
    """A login answer that breaks the rules; the text says which."""


@dataclass(frozen=True)
class Offer:
    """Who logs in where. ``digests``: what is offered for both, best first.

    ``isid``: 12 hex digits. ``portal_group``: the tag that the target has to answer with, if known.
    """

    target: str
    initiator: str
    isid: str
    chap: Credentials | None = None
    portal_group: int | None = None
    digests: tuple[str, ...] = ("None", "CRC32C")

    def __post_init__(self) -> None:
        for name in (self.target, self.initiator):
            if not name or "\0" in name or len(name.encode()) > 223:
                raise ValueError(f"not an iSCSI name: {name!r}")
        if len(self.isid) != 12 or len(bytes.fromhex(self.isid)) != 6:
            raise ValueError(f"not an ISID of 12 hex digits: {self.isid!r}")


@dataclass(frozen=True)
class Ask:
    """A login request: its stage, the stage it wants to go on to (None: not yet), and its keys."""

    stage: int
    next_stage: int | None
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """A login response with status 0."""

    stage: int
    next_stage: int | None
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Parameters:
    """What was agreed on. Lengths in bytes; ``max_send`` is of one data segment."""

    portal_group: int | None = None
    max_send: int = 8192
    first_burst: int = 65536
    max_burst: int = 262144
    immediate_data: bool = True
    header_digest: bool = False
    data_digest: bool = False


@dataclass
class _Told:
    """All keys the target has sent."""

    keys: dict[str, str] = field(default_factory=dict)

    def add(self, keys: Mapping[str, str]) -> None:
        twice = self.keys.keys() & keys.keys()
        if twice:
            raise LoginError(f"{min(twice)} came twice")
        self.keys.update(keys)


def encode_keys(keys: Mapping[str, str]) -> bytes:
    """Keys as a data segment (RFC 7143 6.1)."""
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in keys.items())


def decode_keys(data: bytes) -> dict[str, str]:
    """Read a data segment; raises :class:`LoginError`."""
    keys: dict[str, str] = {}
    for pair in data.split(b"\0"):
        if not pair:
            continue
        key, equals, value = pair.partition(b"=")
        try:
            name, text = key.decode("ascii"), value.decode()
        except UnicodeDecodeError:
            raise LoginError("a key or value that is not text") from None
        if not equals or not name or len(name) > 63:
            raise LoginError(f"not a key and a value: {name[:63]!r}")
        if name in keys:
            raise LoginError(f"{name} came twice")
        keys[name] = text
    return keys


def refusal(offer: Offer, status_class: int, detail: int) -> HactlError:
    """The error for a login response whose status is not 0."""
    status = status_class << 8 | detail
    reason = _STATUS.get(status, f"status {status:04x}")
    return Refused(
        "iscsi-refused",
        f"{offer.target} refused the login of {offer.initiator}: {reason}",
        _HINTS.get(status, f"iSCSI login status {status:04x}"),
    )


def negotiate(offer: Offer, randomness: Callable[[int], bytes]) -> Generator[Ask, Answer, Parameters]:
    """The initiator's side of a login: yields requests, is sent the answers, returns what was agreed on.

    Without credentials it begins in the operational stage, one round trip in all; with them it takes four
    (AuthMethod, CHAP_A, CHAP_R, operational keys): LIO goes no faster. Raises :class:`Refused`
    (``iscsi-target-unproven``, ``iscsi-wrong-portal-group``) and :class:`LoginError`.
    """
    told = _Told()
    names = {"InitiatorName": offer.initiator, "TargetName": offer.target, "SessionType": "Normal"}
    if offer.chap is not None:
        yield from _authenticate(offer, offer.chap, names, told, randomness)
        names = {}
    digests = ",".join(offer.digests)
    offered = {"HeaderDigest": digests, "DataDigest": digests, **_OFFERED}
    keys: Mapping[str, str] = {**names, **offered}
    for _ in range(ROUNDS):
        answer = yield Ask(OPERATIONAL, FULL_FEATURE, keys)
        if answer.stage != OPERATIONAL:
            raise LoginError(f"an answer of stage {answer.stage} in the operational stage")
        told.add(answer.keys)
        if answer.next_stage is not None:
            return _agreed(offer, told.keys)
        # What the target proposes is answered (RFC 7143 6.2); all that this side knows, it has offered.
        proposed = answer.keys.keys() - offered.keys() - _DECLARED
        keys = dict.fromkeys(sorted(proposed), "NotUnderstood")
    raise LoginError("the operational stage does not end")


def _authenticate(
    offer: Offer, chap: Credentials, names: Mapping[str, str], told: _Told, randomness: Callable[[int], bytes]
) -> Generator[Ask, Answer, None]:
    answer = yield Ask(SECURITY, None, {**names, "AuthMethod": "CHAP"})
    told.add(_security(answer))
    if told.keys.get("AuthMethod") != "CHAP":
        raise Refused(
            "iscsi-refused",
            f"{offer.target} does not do CHAP with {offer.initiator}",
            "make authentication part of the target's portal group, or log in without credentials",
        )
    answer = yield Ask(SECURITY, None, {"CHAP_A": ",".join(str(number) for number in ALGORITHMS)})
    try:
        exchange = Exchange.start(chap, _security(answer), randomness)
    except ValueError as error:
        raise LoginError(str(error)) from None
    answer = yield Ask(SECURITY, OPERATIONAL, exchange.keys())
    exchange.verify(_security(answer), offer.target)
    if answer.next_stage != OPERATIONAL:
        raise LoginError("the security stage does not end")


def _security(answer: Answer) -> Mapping[str, str]:
    if answer.stage != SECURITY:
        raise LoginError(f"an answer of stage {answer.stage} in the security stage")
    return answer.keys


def _agreed(offer: Offer, keys: Mapping[str, str]) -> Parameters:
    for key, expected in (
        ("ErrorRecoveryLevel", "0"),
        ("MaxConnections", "1"),
        ("DataPDUInOrder", "Yes"),
        ("DataSequenceInOrder", "Yes"),
        ("InitialR2T", "Yes"),
    ):
        if keys.get(key, expected) not in (expected, "Irrelevant"):
            raise LoginError(f"{key}={keys[key]} was answered to {expected}")
    tag = _number(keys, "TargetPortalGroupTag", 0, 0xFFFF, -1)
    answered = tag if tag >= 0 else None
    if offer.portal_group is not None and answered != offer.portal_group:
        raise Refused(
            "iscsi-wrong-portal-group",
            f"{offer.target} answered as portal group {answered} instead of {offer.portal_group}",
            "see that the portal belongs to that portal group alone",
        )
    max_burst = _number(keys, "MaxBurstLength", 512, MAX_RECEIVE, 262144)
    first_burst = _number(keys, "FirstBurstLength", 512, 65536, 65536)
    max_send = _number(keys, "MaxRecvDataSegmentLength", 512, _BURST_MAX, 8192)
    return Parameters(
        portal_group=answered,
        max_send=max_send,
        first_burst=min(first_burst, max_burst),
        max_burst=max_burst,
        immediate_data=_choice(keys, "ImmediateData", ("Yes", "No"), "Yes") == "Yes",
        header_digest=_choice(keys, "HeaderDigest", offer.digests, "None") == "CRC32C",
        data_digest=_choice(keys, "DataDigest", offer.digests, "None") == "CRC32C",
    )


def _number(keys: Mapping[str, str], key: str, low: int, high: int, default: int) -> int:
    text = keys.get(key, "Irrelevant")
    if text == "Irrelevant":
        return default
    if not _NUMBER.fullmatch(text):
        raise LoginError(f"{key}={text[:40]} is not a number")
    value = int(text, 16 if text[:2] in ("0x", "0X") else 10)
    if not low <= value <= high:
        raise LoginError(f"{key}={value} is not between {low} and {high}")
    return value


def _choice(keys: Mapping[str, str], key: str, allowed: tuple[str, ...], default: str) -> str:
    value = keys.get(key, default)
    if value not in allowed:
        raise LoginError(f"{key}={value[:40]} was not offered")
    return value


def broken(offer: Offer, reason: object) -> HactlError:
    """The error for an answer that is not iSCSI as this side knows it."""
    return Failed(
        "iscsi-protocol",
        f"the login of {offer.initiator} to {offer.target} got an answer that is not understood: {reason}",
        "see what listens on that portal",
    )
