"""Tokens, and the invitations that the store keeps of them."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.cluster import invite
from hactl.cluster.invite import Token, parse
from hactl.errors import Refused
from hactl.store.memory import MemoryStore

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
HERE = ip_address("10.0.0.1")
_BYTES = itertools.cycle(range(1, 256))
"""Instead of randomness: no two pieces alike, and the same in each run."""


def _token(**parts: object) -> Token:
    value = {
        "cluster": "lab",
        "address": HERE,
        "port": 7789,
        "fingerprint": "ab" * 32,
        "id": "0123abcd",
        "expires": NOW,
        "secret": "5e" * 24,
        **parts,
    }
    return Token(**value)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", [HERE, IPv6Address("fd00::1")])
def test_a_token_is_one_line_and_comes_back_whole(address: object) -> None:
    token = _token(address=address)
    assert parse(f"  {token.text()}\n") == token
    assert set(token.text()) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert token.secret not in repr(token)


@given(st.data())
def test_a_damaged_token_is_refused_without_quoting_it(data: st.DataObject) -> None:
    text = _token().text()
    place = data.draw(st.integers(0, len(text) - 1))
    cut = data.draw(st.sampled_from([text[:place], text[:place] + text[place + 1 :], text + "A", text[1:]]))
    with pytest.raises(Refused) as refused:
        parse(cut)
    assert refused.value.code == "token-damaged"
    assert text[8:40] not in str(refused.value)


@given(st.text(max_size=60) | st.text("hactl1-AZaz09_=", max_size=80))
def test_anything_else_is_no_token(text: str) -> None:
    with pytest.raises(Refused):
        parse(text)


async def test_an_invitation_counts_nodes_and_not_tries() -> None:
    store = MemoryStore()
    token = await _invited(store, uses=1)
    await _admit(store, token, "n2", "key2")
    await _admit(store, token, "n2", "key2", exists=True)
    with pytest.raises(Refused) as used:
        await _admit(store, token, "n3", "key3")
    assert used.value.code == "invitation-used"
    with pytest.raises(Refused) as other:
        await _admit(store, await _invited(store), "n2", "another", exists=True)
    assert other.value.code == "node-exists"
    # Interrupted, and asked again when the first invitation was over: it is known by its key.
    later = await _invited(store)
    await _admit(store, later, "n2", "key2", exists=True)


async def test_an_invitation_ends_and_is_forgotten_after_a_while() -> None:
    store = MemoryStore()
    token = await _invited(store)
    with pytest.raises(Refused) as expired:
        await _admit(store, token, "n2", "key2", now=NOW + timedelta(hours=2))
    assert expired.value.code == "invitation-expired"
    await _invited(store, now=NOW + timedelta(days=9))
    assert token.id not in await invite.listing(store, "lab")


async def test_a_wrong_secret_and_a_revoked_invitation_look_the_same() -> None:
    store = MemoryStore()
    token = await _invited(store)
    with pytest.raises(Refused) as wrong:
        await invite.admit(store, "lab", token.id, "00" * 24, node="n2", key="key2", exists=False, now=NOW)
    await invite.revoke(store, "lab", token.id)
    with pytest.raises(Refused) as revoked:
        await _admit(store, token, "n2", "key2")
    assert wrong.value.as_dict() == revoked.value.as_dict()
    assert wrong.value.code == "join-refused"
    with pytest.raises(Refused) as unknown:
        await invite.revoke(store, "lab", token.id)
    assert unknown.value.code == "invitation-unknown"


async def test_the_store_has_no_secret() -> None:
    store = MemoryStore()
    token = await _invited(store)
    (item,) = (await store.read("/hactl/lab/secrets/join/")).items.values()
    assert token.secret.encode() not in item.value
    assert bytes.fromhex(token.secret) not in item.value


async def _invited(store: MemoryStore, uses: int = 1, now: datetime = NOW) -> Token:
    return await invite.create(
        store,
        "lab",
        by="n1",
        address=HERE,
        fingerprint="ab" * 32,
        life=timedelta(hours=1),
        uses=uses,
        now=now,
        random=lambda size: bytes([next(_BYTES)] * size),
    )


async def _admit(
    store: MemoryStore, token: Token, node: str, key: str, *, exists: bool = False, now: datetime = NOW
) -> None:
    await invite.admit(store, "lab", token.id, token.secret, node=node, key=key, exists=exists, now=now)
