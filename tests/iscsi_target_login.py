"""The target's side of an iSCSI login for :mod:`tests.iscsi_target`, as LIO of Linux 6.12 does it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hactl.pr_sync.initiator import chap
from hactl.pr_sync.initiator.login import FULL_FEATURE, OPERATIONAL, SECURITY, decode_keys, encode_keys
from hactl.pr_sync.initiator.pdu import LoginRequest, LoginResponse

_LESSER = ("MaxConnections", "MaxBurstLength", "FirstBurstLength", "MaxOutstandingR2T", "DefaultTime2Retain")


@dataclass
class Behaviour:
    """How the target negotiates and answers; may be changed between logins."""

    digests: tuple[str, ...] = ("CRC32C", "None")
    immediate_data: bool = True
    first_burst: int = 65536
    max_burst: int = 262144
    max_receive: int = 8192
    window: int = 8
    """Commands that may be sent before one is answered; 0 keeps the window shut after the first."""
    collapse: bool = True
    """Whether GOOD status rides on the last Data-In."""
    proposes: dict[str, str] = field(default_factory=dict)
    """Keys the target proposes itself, which costs a round trip."""
    split: bool = False
    """Whether login answers come in two PDUs."""
    answers: dict[str, str] = field(default_factory=dict)
    """Keys answered otherwise than is right."""
    shift: int = 0
    """Added to StatSN once, after the login."""


class LoginRefused(Exception):
    """The status class and detail to answer with."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"{status:04x}")


@dataclass
class Login:
    """One login as it goes on. ``secret``: what the portal group wants; None: no authentication."""

    behaviour: Behaviour
    tag: int
    secret: chap.Credentials | None
    keys: dict[str, str] = field(default_factory=dict)
    stage: int | None = None
    authenticated: bool = False
    challenge: bytes = b""
    algorithm: int = 0
    identifier: int = 7
    proposed: bool = False
    agreed: dict[str, str] = field(default_factory=dict)
    _told_tag: bool = False
    rounds: int = 0

    def step(self, request: LoginRequest) -> tuple[dict[str, str], LoginResponse]:
        """Answer one request: the keys, and a response that lacks them, the sequence numbers and TSIH."""
        self.rounds += 1
        if request.stage != (request.stage if self.stage is None else self.stage):
            raise LoginRefused(0x0200)
        self.stage = request.stage
        sent = decode_keys(request.data)
        if set(sent) & set(self.keys):
            raise LoginRefused(0x0200)
        self.keys |= sent
        if self.stage == SECURITY:
            answer, done = self._security(sent)
        else:
            answer, done = self._operational(sent)
        if not self._told_tag:
            self._told_tag = True
            answer["TargetPortalGroupTag"] = str(self.tag)
        transit = done and request.transit
        if transit:
            self.stage = OPERATIONAL if request.stage == SECURITY else FULL_FEATURE
        return answer, LoginResponse(
            tag=request.tag,
            isid=request.isid,
            transit=transit,
            stage=request.stage,
            next_stage=self.stage if transit else 0,
        )

    def _security(self, sent: Mapping[str, str]) -> tuple[dict[str, str], bool]:
        if "AuthMethod" in sent:
            methods = sent["AuthMethod"].split(",")
            wanted = ["CHAP"] if self.secret else ["CHAP", "None"]
            method = next((m for m in methods if m in wanted), None)
            if method is None:
                raise LoginRefused(0x0201)
            return {"AuthMethod": method}, method == "None"
        if self.secret is None:
            # LIO with authentication off still takes CHAP, but has no user to compare with.
            raise LoginRefused(0x0201)
        if "CHAP_A" in sent:
            offered = [int(a) for a in sent["CHAP_A"].split(",")]
            self.algorithm = next((a for a in offered if a in chap.ALGORITHMS), 0)
            if not self.algorithm:
                raise LoginRefused(0x0201)
            self.challenge = os.urandom(32 if self.algorithm == 7 else 16)
            return {
                "CHAP_A": str(self.algorithm),
                "CHAP_I": str(self.identifier),
                "CHAP_C": chap.hexadecimal(self.challenge),
            }, False
        return self._chap_response(sent, self.secret), True

    def _chap_response(self, sent: Mapping[str, str], secret: chap.Credentials) -> dict[str, str]:
        expected = chap.response(self.algorithm, self.identifier, secret.password, self.challenge)
        if sent.get("CHAP_N") != secret.user or chap.binary(sent.get("CHAP_R", "0x00")) != expected:
            raise LoginRefused(0x0201)
        self.authenticated = True
        if secret.mutual_password is None or secret.mutual_user is None or "CHAP_C" not in sent:
            return {}
        theirs = chap.binary(sent["CHAP_C"])
        if theirs == self.challenge:
            raise LoginRefused(0x0201)
        answer = chap.response(self.algorithm, int(sent["CHAP_I"]), secret.mutual_password, theirs)
        return {"CHAP_N": secret.mutual_user, "CHAP_R": chap.hexadecimal(answer)}

    def _operational(self, sent: Mapping[str, str]) -> tuple[dict[str, str], bool]:
        if self.secret is not None and not self.authenticated:
            raise LoginRefused(0x0201)
        answer = {key: value for key in sent if (value := self._settle(key, sent[key])) is not None}
        self.agreed |= answer
        answer |= {key: value for key, value in self.behaviour.answers.items() if key in sent}
        if self.behaviour.proposes and not self.proposed:
            self.proposed = True
            return answer | self.behaviour.proposes, False
        missing = set(self.behaviour.proposes) - set(self.keys)
        if missing:
            raise LoginRefused(0x0200)
        return answer, True

    def _settle(self, key: str, value: str) -> str | None:
        mine = {
            "MaxConnections": "1",
            "MaxBurstLength": str(self.behaviour.max_burst),
            "FirstBurstLength": str(self.behaviour.first_burst),
            "MaxOutstandingR2T": "1",
            "DefaultTime2Retain": "20",
        }
        if key in ("HeaderDigest", "DataDigest"):
            return next((d for d in value.split(",") if d in self.behaviour.digests), "Reject")
        if key in _LESSER:
            return str(min(int(value), int(mine[key])))
        if key == "DefaultTime2Wait":
            return str(max(int(value), 2))
        if key == "ErrorRecoveryLevel":
            return "0"
        if key == "MaxRecvDataSegmentLength":
            return str(self.behaviour.max_receive)
        if key == "ImmediateData":
            return "Yes" if self.behaviour.immediate_data and value == "Yes" else "No"
        # InitialR2T=Yes and the orders are what the initiator said already: an answer is optional.
        return None


def response_pdus(response: LoginResponse, keys: Mapping[str, str], split: bool) -> list[LoginResponse]:
    """The response in one PDU, or in two."""
    data = encode_keys(keys)
    if not split or len(data) < 2:
        return [replace(response, data=data)]
    half = len(data) // 2
    first = replace(response, data=data[:half], more=True, transit=False, next_stage=0)
    return [first, replace(response, data=data[half:])]
