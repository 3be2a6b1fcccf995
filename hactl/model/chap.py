"""What makes CHAP credentials usable and safe (RFC 7143 9.2.1 and 12.1). Pure; no message holds a secret."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import SecretStr

from hactl.model.spec import HostSpec

MIN_SECRET = 12
"""Bytes: RFC 7143 9.2.1 asks for 96 bits at least."""

MAX_SECRET = 16
"""Bytes that every initiator takes; Windows takes no more."""

MAX_USER = 255
"""Bytes that LIO stores of a user name."""

Found = tuple[int, str, str, str, str]
"""Index of the host, key in ``chap``, code, message, hint."""


def chap_problems(hosts: Sequence[HostSpec]) -> Iterator[Found]:
    """What is wrong with the hosts' CHAP settings."""
    initiators: dict[str, str] = {}
    for host in hosts:
        if host.chap:
            initiators.setdefault(host.chap.password.get_secret_value(), host.name)
    for i, host in enumerate(hosts):
        if not host.chap:
            continue
        yield from ((i, *found) for found in _user("user", host.chap.user))
        yield from ((i, *found) for found in _secret("password", host.chap.password))
        if (host.chap.mutual_user is None) != (host.chap.mutual_password is None):
            there = "mutual_user" if host.chap.mutual_password is None else "mutual_password"
            missing = "mutual_password" if there == "mutual_user" else "mutual_user"
            yield (
                i,
                there,
                "chap-mutual-incomplete",
                f"{there} is given without {missing}",
                f"add {missing} for mutual authentication, or remove {there}",
            )
        if host.chap.mutual_user is not None:
            yield from ((i, *found) for found in _user("mutual_user", host.chap.mutual_user))
        if host.chap.mutual_password is None:
            continue
        yield from ((i, *found) for found in _secret("mutual_password", host.chap.mutual_password))
        other = initiators.get(host.chap.mutual_password.get_secret_value())
        if other is not None:
            # RFC 7143 9.2.1: one secret for both directions lets a peer answer a challenge by asking for it.
            yield (
                i,
                "mutual_password",
                "chap-mutual-same",
                f"it equals the password of host {other}; one secret must not serve both directions",
                "choose another mutual_password",
            )


def _user(key: str, user: str) -> Iterator[tuple[str, str, str, str]]:
    if not user or len(user.encode(errors="replace")) > MAX_USER:
        yield key, "chap-user", f"{key} must have 1 to {MAX_USER} bytes", "choose another one"
    elif not (user.isascii() and user.isprintable()) or " " in user or "," in user:
        yield (
            key,
            "chap-user",
            f"{key} has white space, a comma or characters other than printable ASCII",
            "write letters, digits and . : - _ @ only",
        )
    elif user.startswith("NULL"):
        yield (
            key,
            "chap-null",
            f"{key} begins with NULL, which switches CHAP off in LIO",
            "choose another one",
        )


def _secret(key: str, secret: SecretStr) -> Iterator[tuple[str, str, str, str]]:
    value = secret.get_secret_value()
    size = len(value.encode(errors="replace"))
    if not MIN_SECRET <= size <= MAX_SECRET:
        yield (
            key,
            "chap-secret-length",
            f"{key} has {size} bytes; it must have {MIN_SECRET} to {MAX_SECRET}, which every initiator takes",
            "choose another one, such as the output of: openssl rand -hex 8",
        )
    if not (value.isascii() and value.isprintable()) or " " in value:
        yield (
            key,
            "chap-secret-characters",
            f"{key} has white space or characters other than printable ASCII",
            "choose another one, such as the output of: openssl rand -hex 8",
        )
    elif value.startswith("NULL"):
        yield (
            key,
            "chap-null",
            f"{key} begins with NULL, which switches CHAP off in LIO",
            "choose another one",
        )
