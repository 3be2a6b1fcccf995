"""CHAP for iSCSI (RFC 7143 12.1, RFC 1994). Pure: randomness is passed in."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hactl.errors import Refused

ALGORITHMS: Mapping[int, Callable[[bytes], bytes]] = {
    7: lambda data: hashlib.sha256(data).digest(),
    5: lambda data: hashlib.md5(data, usedforsecurity=False).digest(),
}
"""By number as in CHAP_A, best first. LIO takes the first that it knows: 5, 6 (SHA-1), 7 and 8 (SHA3-256)."""

CHALLENGE = 16
"""Bytes of a challenge made here."""

MAX_CHALLENGE = 1024
"""Bytes of the longest value that RFC 7143 12.1.3 allows."""


@dataclass(frozen=True)
class Credentials:
    """What an initiator proves itself with, and with ``mutual_*`` what the target has to.

    Secrets are in no repr.
    """

    user: str
    password: str = field(repr=False)
    mutual_user: str | None = None
    mutual_password: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.mutual_user is None) != (self.mutual_password is None):
            raise ValueError("mutual CHAP needs both a user and a password")


def hexadecimal(value: bytes) -> str:
    """A binary value as it stands in a key (RFC 7143 6.1)."""
    return f"0x{value.hex()}"


def binary(text: str) -> bytes:
    """Read a binary value, hexadecimal or base64; raises ValueError."""
    kind, digits = text[:2].lower(), text[2:]
    try:
        if kind == "0x" and digits.isalnum():
            return bytes.fromhex(digits if len(digits) % 2 == 0 else f"0{digits}")
        if kind == "0b":
            return base64.b64decode(digits, validate=True)
    except (ValueError, binascii.Error):
        pass
    raise ValueError("neither hexadecimal nor base64")


def response(algorithm: int, identifier: int, password: str, challenge: bytes) -> bytes:
    """The answer to a challenge (RFC 1994 4.1)."""
    return ALGORITHMS[algorithm](bytes([identifier]) + password.encode() + challenge)


@dataclass(frozen=True)
class Exchange:
    """One CHAP exchange after the target has chosen: what is answered and what the target has to answer.

    ``identifier`` and ``challenge`` are ours, for mutual CHAP.
    """

    credentials: Credentials = field(repr=False)
    algorithm: int
    answer: bytes
    identifier: int
    challenge: bytes

    @classmethod
    def start(
        cls, credentials: Credentials, keys: Mapping[str, str], randomness: Callable[[int], bytes]
    ) -> Exchange:
        """Answer the target's CHAP_A, CHAP_I and CHAP_C; raises ValueError with what is wrong with them."""
        algorithm, identifier = _number(keys, "CHAP_A"), _number(keys, "CHAP_I")
        if algorithm not in ALGORITHMS:
            raise ValueError(f"CHAP_A={algorithm} was not offered")
        if identifier > 0xFF:
            raise ValueError(f"CHAP_I={identifier} does not fit into a byte")
        challenge = _binary(keys, "CHAP_C")
        if not 0 < len(challenge) <= MAX_CHALLENGE:
            raise ValueError(f"CHAP_C has {len(challenge)} bytes")
        ours = randomness(CHALLENGE)
        if ours == challenge:
            # A target that is sent its own challenge would answer for us (RFC 7143 12.1.3).
            raise ValueError("CHAP_C is what this side would have sent")
        answer = response(algorithm, identifier, credentials.password, challenge)
        return cls(credentials, algorithm, answer, randomness(1)[0], ours)

    def keys(self) -> dict[str, str]:
        """What the initiator sends."""
        keys = {"CHAP_N": self.credentials.user, "CHAP_R": hexadecimal(self.answer)}
        if self.credentials.mutual_password is not None:
            keys |= {"CHAP_I": str(self.identifier), "CHAP_C": hexadecimal(self.challenge)}
        return keys

    def verify(self, keys: Mapping[str, str], target: str) -> None:
        """Check that the target has proved itself, where that was asked for; raises :class:`Refused`.

        LIO leaves out its answer when it has no mutual credentials for the initiator: that is refused too.
        """
        credentials = self.credentials
        if credentials.mutual_password is None:
            return
        expected = response(self.algorithm, self.identifier, credentials.mutual_password, self.challenge)
        try:
            proved = hmac.compare_digest(_binary(keys, "CHAP_R"), expected)
        except ValueError:
            proved = False
        if not proved or keys.get("CHAP_N") != credentials.mutual_user:
            raise Refused(
                "iscsi-target-unproven",
                f"{target} did not prove with CHAP that it is the one asked for",
                "compare mutual_user and mutual_password with the target's",
            )


def _number(keys: Mapping[str, str], key: str) -> int:
    text = keys.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{key} is not a number")
    return int(text)


def _binary(keys: Mapping[str, str], key: str) -> bytes:
    try:
        return binary(keys.get(key, ""))
    except ValueError as error:
        raise ValueError(f"{key} is {error}") from None
