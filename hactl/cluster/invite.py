"""Invitations: how a machine that the cluster does not know yet proves that it may join.

A token is one line to copy: the cluster's name, where to ask, the fingerprint of its authority (so that the
machine knows whom it talks to before it says anything), and a secret. The store has only the secret's hash.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field, ValidationError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random

from hactl.errors import HactlError, Refused
from hactl.model.names import address as parse_address
from hactl.model.names import valid_name
from hactl.model.spec import Frozen, IpAddress, Name
from hactl.store.protocol import CONFLICT, OUTCOME_UNKNOWN, Delete, Put, Store, Unchanged

JOIN_PORT = 7789
SCHEMA = 1
SECRET_BYTES = 24
FINGERPRINT_BYTES = 32
KEPT = timedelta(days=7)
"""How long the record of an invitation outlives it: a join that was interrupted is recognised by it."""
_PREFIX = "hactl1-"
_CHECK = 4
_FIXED = FINGERPRINT_BYTES + SECRET_BYTES

Random = Callable[[int], bytes]


@dataclass(frozen=True)
class Token:
    """``fingerprint``: SHA-256 of the authority's public key, hex. ``secret``: hex."""

    cluster: str
    address: IpAddress
    port: int
    fingerprint: str
    id: str
    expires: datetime
    secret: str = field(repr=False)

    def text(self) -> str:
        """The one line."""
        fields = [self.cluster, str(self.address), self.port, self.id, int(self.expires.timestamp())]
        body = (
            bytes.fromhex(self.fingerprint)
            + bytes.fromhex(self.secret)
            + json.dumps(fields, separators=(",", ":")).encode()
        )
        encoded = base64.urlsafe_b64encode(hashlib.sha256(body).digest()[:_CHECK] + body)
        return _PREFIX + encoded.rstrip(b"=").decode()


def parse(text: str) -> Token:
    """The token in a line; :class:`Refused` ``token-damaged`` if it is not one, or not all of one."""
    word = text.strip()
    try:
        if not word.startswith(_PREFIX):
            raise ValueError(f"it does not begin with {_PREFIX}")
        packed = word.removeprefix(_PREFIX)
        raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        check, body = raw[:_CHECK], raw[_CHECK:]
        if hashlib.sha256(body).digest()[:_CHECK] != check:
            raise ValueError("a part of it is missing or changed")
        fingerprint, secret = body[:FINGERPRINT_BYTES], body[FINGERPRINT_BYTES:_FIXED]
        cluster, address, port, number, expires = json.loads(body[_FIXED:])
        return Token(
            cluster=valid_name(cluster),
            address=parse_address(address),
            port=int(port),
            fingerprint=fingerprint.hex(),
            id=str(number),
            expires=datetime.fromtimestamp(int(expires), UTC),
            secret=secret.hex(),
        )
    except (ValueError, TypeError, OverflowError, OSError) as error:
        # A message about JSON would quote the secret.
        why = str(error) if type(error) is ValueError and "begin" in str(error) else "a part of it is missing"
        raise Refused(
            "token-damaged", f"this is not a whole token: {why}", "copy the whole line that invite printed"
        ) from None


class Invitation(Frozen):
    """What the store keeps: ``digest`` is SHA-256 of the secret, ``joined`` has for each node that used it
    the fingerprint of the node's key, so that the same machine may ask again."""

    digest: str = Field(repr=False)
    expires: datetime
    uses: int
    used: int = 0
    by: Name
    joined: dict[Name, str] = Field(default_factory=dict)


async def create(
    store: Store,
    cluster: str,
    *,
    by: str,
    address: IpAddress,
    fingerprint: str,
    life: timedelta,
    uses: int,
    now: datetime,
    random: Random,
    port: int = JOIN_PORT,
) -> Token:
    """A new invitation for ``uses`` nodes. Records of long expired ones are removed."""
    token = Token(
        cluster=cluster,
        address=address,
        port=port,
        fingerprint=fingerprint,
        id=random(4).hex(),
        expires=now + life,
        secret=random(SECRET_BYTES).hex(),
    )
    for number, old in (await listing(store, cluster)).items():
        if old.expires + KEPT < now:
            await store.commit([], [Delete(_key(cluster, number))])
    made = Invitation(digest=_digest(token.secret), expires=token.expires, uses=uses, by=by)
    await store.commit([Unchanged(_key(cluster, token.id), 0)], [Put(_key(cluster, token.id), _bytes(made))])
    return token


async def listing(store: Store, cluster: str) -> dict[str, Invitation]:
    """All invitations by id, expired ones included."""
    prefix = _key(cluster, "")
    found = await store.read(prefix)
    return {key.removeprefix(prefix): _invitation(key, item.value) for key, item in found.items.items()}


async def revoke(store: Store, cluster: str, number: str) -> None:
    """End an invitation; :class:`Refused` ``invitation-unknown`` if there is none of that id."""
    key = _key(cluster, number)
    item = await store.get(key)
    if item is None:
        raise Refused(
            "invitation-unknown", f"there is no invitation {number}", "see: hactl cluster invite --list"
        )
    await store.commit([], [Delete(key)])


async def admit(
    store: Store, cluster: str, number: str, secret: str, *, node: str, key: str, exists: bool, now: datetime
) -> None:
    """Count one use of an invitation by the node with that key (a fingerprint); the same node with the same
    key counts once. ``exists``: the cluster has a node of that name.

    :class:`Refused` ``join-refused`` for an unknown id or a wrong secret, which are not told apart,
    ``invitation-expired``, ``invitation-used``, and ``node-exists`` if that name is another machine's.
    """
    async for attempt in AsyncRetrying(
        # Counting a node's use twice counts it once, so that an unknown outcome is simply looked at again.
        retry=retry_if_exception(
            lambda e: isinstance(e, HactlError) and e.code in (CONFLICT, OUTCOME_UNKNOWN)
        ),
        stop=stop_after_attempt(10),
        wait=wait_random(0, 0.05),
        reraise=True,
    ):
        with attempt:
            await _admit_once(store, cluster, number, secret, node, key, exists, now)


async def _admit_once(
    store: Store, cluster: str, number: str, secret: str, node: str, key: str, exists: bool, now: datetime
) -> None:
    item = await store.get(_key(cluster, number))
    found = _invitation(item.key, item.value) if item is not None else None
    right = hmac.compare_digest(_digest(secret), found.digest if found is not None else "0" * 64)
    if found is None or item is None or not right:
        raise Refused(
            "join-refused",
            "there is no such invitation: it was revoked, or the token is another cluster's",
            "make one on a node of the cluster: hactl cluster invite",
        )
    everyone = await listing(store, cluster)
    known = any(other.joined.get(node) == key for other in everyone.values())
    if exists and not known:
        raise Refused(
            "node-exists",
            f"the cluster has a node {node} already, which is another machine or was installed anew",
            f"choose another name with --node; or remove the old one: hactl cluster leave --lost {node}",
        )
    if found.joined.get(node) == key:
        return
    if found.expires < now:
        raise Refused(
            "invitation-expired",
            f"the invitation expired at {found.expires:%Y-%m-%d %H:%M} UTC",
            "make another on a node of the cluster: hactl cluster invite",
        )
    if found.used >= found.uses and not known:
        raise Refused(
            "invitation-used",
            f"the invitation was for {found.uses} and has been used by {', '.join(sorted(found.joined))}",
            "make another on a node of the cluster: hactl cluster invite",
        )
    now_used = found.model_copy(
        update={"used": found.used + (not known), "joined": {**found.joined, node: key}}
    )
    await store.commit([Unchanged(item.key, item.revision)], [Put(item.key, _bytes(now_used))])


def _key(cluster: str, number: str) -> str:
    return f"/hactl/{cluster}/secrets/join/{number}"


def _digest(secret: str) -> str:
    # Of a random secret: a slow hash as for passwords would protect nothing more.
    return hashlib.sha256(secret.encode()).hexdigest()


def _bytes(value: Invitation) -> bytes:
    return json.dumps({"schema": SCHEMA, **value.model_dump(mode="json")}).encode()


def _invitation(key: str, value: bytes) -> Invitation:
    try:
        found: Any = json.loads(value)
        schema = found.pop("schema")
        if schema > SCHEMA:
            raise Refused(
                "schema-newer",
                f"{key} has schema {schema}, and this hactl knows up to {SCHEMA}",
                "install the hactl that the other nodes have",
            )
        return Invitation.model_validate(found)
    except (ValueError, TypeError, KeyError, AttributeError, ValidationError):
        raise Refused(
            "store-damaged", f"{key} cannot be understood", "revoke it: hactl cluster invite"
        ) from None
