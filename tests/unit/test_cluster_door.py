"""Who is let in: the door's answers over real HTTPS, and what a machine that joins believes."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hactl.cluster import pki, unfinished
from hactl.cluster.init import init
from hactl.cluster.invite import JOIN_PORT, Token, revoke
from hactl.cluster.join import join
from hactl.cluster.join_server import RateLimit
from hactl.cluster.leave import leave
from hactl.errors import Refused
from hactl.model.desired import Desired
from hactl.model.edit import create_resource
from hactl.store import desired
from hactl.store.desired import Origin
from tests.unit.cluster_world import Node, World, allow_loopback, free_network

HOUR = timedelta(hours=1)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    allow_loopback(monkeypatch)
    made = World(tmp_path, free_network())
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def n1(world: World) -> Node:
    return world.node("n1")


@pytest.fixture
async def token(n1: Node) -> Token:
    return await init("lab", n1.draft, n1.kit, n1.told.append)


async def refused(token: Token, node: Node) -> Refused:
    with pytest.raises(Refused) as error:
        await join(token, node.draft, node.kit, node.told.append)
    assert token.secret not in str(error.value)
    return error.value


async def nodes(node: Node) -> list[str]:
    store = node.kit.store(node.config())
    return [n.name for n in (await desired.read(store, "lab")).cluster.nodes]


async def test_a_stranger_changes_nothing(world: World, n1: Node, token: Token) -> None:
    n2 = world.node("n2")
    assert (await refused(replace(token, secret="00" * 24), n2)).code == "join-refused"
    assert (await refused(replace(token, id="ffffffff"), n2)).code == "join-refused"
    assert await nodes(n1) == ["n1"]
    assert set(n2.files()) == {"tls/node.key"}
    # What was typed wrong is put right by the same command with the right token.
    await join(token, n2.draft, n2.kit, n2.told.append)
    assert await nodes(n1) == ["n1", "n2"]


async def test_another_cluster_at_that_address_is_told_nothing(
    world: World, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = aiohttp.ClientSession.request

    def request(self: Any, method: str, url: str, **rest: Any) -> Any:
        asked.append(method)
        return real(self, method, url, **rest)

    monkeypatch.setattr(aiohttp.ClientSession, "request", request)
    n2 = world.node("n2")
    assert (await refused(replace(token, fingerprint="00" * 32), n2)).code == "authority-mismatch"
    assert asked == ["GET"]
    assert n2.files() == {}


async def test_nobody_there(world: World, n1: Node, token: Token) -> None:
    await n1.stop_agent()
    n2 = world.node("n2")
    assert (await refused(token, n2)).code == "inviter-unreachable"
    assert n2.files() == {}


async def test_clocks_far_apart_are_found_before_anything_is_changed(
    world: World, n1: Node, token: Token
) -> None:
    n2 = world.node("n2")
    ahead = replace(n2.kit, now=lambda: pki.utc_now() + timedelta(minutes=10))
    with pytest.raises(Refused) as error:
        await join(token, n2.draft, ahead, n2.told.append)
    assert error.value.code == "clock-wrong"
    assert n2.files() == {}
    assert await nodes(n1) == ["n1"]


async def test_a_node_must_ask_from_its_own_address(world: World, n1: Node, token: Token) -> None:
    n2, n3 = world.node("n2"), world.node("n3")
    for where in (f"https://{n1.address}:{JOIN_PORT}",):
        context = ssl.create_default_context(cafile=str(n1.kit.layout.certificates.ca))
        body = {
            "schema": 1,
            "id": token.id,
            "secret": token.secret,
            "csr": pki.request(pki.new_key(), "n2").decode(),
            "node": n2.draft.model_dump(mode="json"),
        }
        connector = aiohttp.TCPConnector(local_addr=(str(n3.address), 0), ssl=context)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.post(f"{where}/v1/join", json=body) as answer:
                assert answer.status == 409
                assert (await answer.json())["error"]["code"] == "join-address"
            for wrong, code in (
                ({**body, "schema": 2}, "join-schema"),
                ({**body, "node": {"name": "n2"}}, "bad-request"),
                ({**body, "csr": "nothing"}, "bad-request"),
                ({**body, "secret": ["x", token.secret]}, "bad-request"),
                ([], "bad-request"),
            ):
                async with session.post(f"{where}/v1/join", json=wrong) as answer:
                    text = await answer.text()
                    assert (await answer.json())["error"]["code"] == code
                    assert token.secret not in text
    assert await nodes(n1) == ["n1"]


async def test_a_name_that_is_taken_and_one_that_was_interrupted(
    world: World, n1: Node, token: Token
) -> None:
    n2 = world.node("n2")
    await join(token, n2.draft, n2.kit, n2.told.append)
    other = world.node("n3")
    stolen = n2.draft.model_copy(update={"addresses": other.draft.addresses})
    with pytest.raises(Refused) as error:
        await join(token, stolen, other.kit, other.told.append)
    assert error.value.code == "node-exists"
    assert unfinished.load(other.kit.layout) is None


async def test_a_revoked_or_expired_invitation_is_over(world: World, n1: Node, token: Token) -> None:
    n2 = world.node("n2")
    old = replace(token, expires=pki.utc_now() - HOUR)
    assert (await refused(old, n2)).code == "invitation-expired"
    assert n2.files() == {}
    await revoke(n1.kit.store(n1.config()), "lab", token.id)
    assert (await refused(token, n2)).code == "join-refused"


async def test_tries_are_limited_by_address_and_in_all() -> None:
    now = [0.0]
    limit = RateLimit(3, 60.0, lambda: now[0])
    for _ in range(3):
        limit.count("10.0.0.1")
    with pytest.raises(Refused) as error:
        limit.count("10.0.0.1")
    assert error.value.code == "too-many-tries"
    for n in range(27):
        limit.count(f"10.0.1.{n}")
    with pytest.raises(Refused):
        limit.count("10.0.0.2")
    now[0] = 61.0
    limit.count("10.0.0.1")


async def test_a_machine_in_a_cluster_neither_makes_nor_joins_one(
    world: World, n1: Node, token: Token
) -> None:
    with pytest.raises(Refused) as again:
        await init("lab", n1.draft, n1.kit, n1.told.append)
    assert again.value.code == "already-in-cluster"
    assert (await refused(token, n1)).code == "already-in-cluster"


async def test_only_root(world: World, n1: Node) -> None:
    n1.machine.root = False
    with pytest.raises(Refused) as error:
        await init("lab", n1.draft, n1.kit, n1.told.append)
    assert error.value.code == "not-root"
    assert n1.files() == {}


async def test_certificates_from_before_are_kept_elsewhere(n1: Node) -> None:
    n1.kit.layout.tls.mkdir(parents=True)
    (n1.kit.layout.tls / "node.crt").write_text("old")
    await init("lab", n1.draft, n1.kit, n1.told.append)
    assert (n1.kit.layout.etc / "tls.before-1/node.crt").read_text() == "old"


async def test_leaving_is_refused_where_something_is_left(world: World, n1: Node, token: Token) -> None:
    with pytest.raises(Refused) as last:
        await leave(n1.kit, n1.told.append)
    assert last.value.code == "last-node"
    n2 = world.node("n2")
    await join(token, n2.draft, n2.kit, n2.told.append)

    def resource(now: Desired) -> Desired:
        return create_resource(
            now, "r0", size=1 << 30, disks={"n2": "/dev/sdx"}, serial=lambda: "0123456789abcdef" * 2
        )

    store = n2.kit.store(n2.config())
    await desired.change(store, "lab", resource, what="test", origin=Origin("n2"))
    before = n2.files()
    with pytest.raises(Refused) as used:
        await leave(n2.kit, n2.told.append)
    assert used.value.code == "node-in-use"
    assert "r0" in str(used.value)
    assert n2.files() == before
    with pytest.raises(Refused) as wrong:
        await leave(n1.kit, n1.told.append, end_cluster="other")
    assert wrong.value.code == "last-node"
    assert await nodes(n1) == ["n1", "n2"]


async def test_the_last_node_ends_the_cluster_if_its_name_is_given(n1: Node, token: Token) -> None:
    with pytest.raises(Refused) as wrong:
        await leave(n1.kit, n1.told.append, end_cluster="other")
    assert wrong.value.code == "last-node"
    await leave(n1.kit, n1.told.append, end_cluster="lab")
    assert n1.files() == {}
