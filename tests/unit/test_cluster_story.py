"""A cluster is made, joined, hurt and left: the same story with etcd in memory and with real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hactl.cluster import invite
from hactl.cluster.init import LIFE, init, own_fingerprint
from hactl.cluster.invite import Token
from hactl.cluster.join import complete, join
from hactl.cluster.layout import AGENT_UNIT, CAPTURE_UNIT, ETCD_UNIT
from hactl.cluster.leave import leave, only_here, remove_lost
from hactl.cluster.members import Member, own_member
from hactl.cluster.membership import Me
from hactl.cluster.status import status
from hactl.cluster.upkeep import once
from hactl.errors import Refused
from hactl.model.desired import Desired
from hactl.model.edit import add_host
from hactl.store import desired
from hactl.store.desired import Origin
from tests.unit.cluster_world import Node, RealWorld, World, allow_loopback, etcd_settings, free_network


@pytest.fixture(params=["memory", "etcd"])
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    allow_loopback(monkeypatch)
    kind = {"memory": World, "etcd": RealWorld}[request.param]
    made = kind(tmp_path, free_network())
    try:
        yield made
    finally:
        await made.close()


async def found(world: World, *others: str) -> tuple[Node, ...]:
    """A cluster of n1 and others, that joined one after the other."""
    first = world.node("n1")
    token = await init("lab", first.draft, first.kit, first.told.append)
    for name in others:
        node = world.node(name)
        await join(token, node.draft, node.kit, node.told.append)
    return first, *(world.node(name) for name in others)


async def invited(node: Node, uses: int = 1) -> Token:
    store = node.kit.store(node.config())
    try:
        return await invite.create(
            store,
            "lab",
            by=node.name,
            address=node.address,
            fingerprint=own_fingerprint(node.kit),
            life=LIFE,
            uses=uses,
            now=node.kit.now(),
            random=node.kit.random,
        )
    finally:
        await store.close()


async def state(node: Node) -> Desired:
    store = node.kit.store(node.config())
    try:
        return await desired.read(store, "lab")
    finally:
        await store.close()


async def edit(node: Node, how: desired.Edit) -> None:
    store = node.kit.store(node.config())
    try:
        await desired.change(store, "lab", how, what="test", origin=Origin(node.name))
    finally:
        await store.close()


async def eventually(node: Node, wanted: dict[str, bool]) -> None:
    """Until the members are these, with a vote or without."""

    async def look() -> dict[str, bool]:
        members = (await status(node.kit))["store"]["members"]
        return {m["name"]: m["voter"] and m["answers"] for m in members}

    async with asyncio.timeout(20):
        while await look() != wanted:  # noqa: ASYNC110 - etcd tells nobody when its members change
            await asyncio.sleep(node.kit.waits.pause)


async def test_three_nodes_make_a_cluster_and_each_can_leave_and_come_back(world: World) -> None:
    n1, n2, n3 = await found(world, "n2", "n3")

    document = await status(n2.kit)
    assert document["store"]["majority"]
    assert {m["name"]: m["voter"] for m in document["store"]["members"]} == dict.fromkeys(
        ("n1", "n2", "n3"), True
    )
    assert document["store"]["leader"] in ("n1", "n2", "n3")
    assert [(n["name"], n["id"], n["member"]) for n in document["nodes"]] == [
        ("n1", 1, True),
        ("n2", 2, True),
        ("n3", 3, True),
    ]
    assert [n["agent"]["version"] for n in document["nodes"]] == ["1.2.3"] * 3
    assert document["problems"] == []
    # Each is told where all are, its own first; n1, which was first, by its upkeep.
    told: list[str] = []
    await once(n1.kit, (), told.append)
    assert told == ["endpoints"]
    for node in (n1, n3):
        others = {n.client_url for n in (n1, n2, n3)} - {node.client_url}
        assert node.config().etcd[0] == node.client_url
        assert set(node.config().etcd[1:]) == others if node is n1 else others >= set(node.config().etcd[1:])
    # An etcd that loses its data must never make a new cluster of its own.
    assert [etcd_settings(n)["ETCD_INITIAL_CLUSTER_STATE"] for n in (n1, n2, n3)] == ["existing"] * 3

    copy = n1.kit.layout.desired_copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text("the agent's")
    await leave(n1.kit, n1.told.append)

    assert n1.files() == {}
    assert not await n1.services.active(CAPTURE_UNIT)
    assert not copy.exists()
    assert not n1.kit.layout.etcd_data.exists()
    assert not await n1.services.active(ETCD_UNIT)
    assert not await n1.services.active(AGENT_UNIT)
    assert [n.name for n in (await state(n2)).cluster.nodes] == ["n2", "n3"]
    await eventually(n2, {"n2": True, "n3": True})

    copy.write_text("of an earlier life")
    again = await invited(n2)
    await join(again, n1.draft, n1.kit, n1.told.append)

    assert not copy.exists()
    await eventually(n2, {"n1": True, "n2": True, "n3": True})
    assert (await state(n1)).cluster.node("n1").id == 1


async def test_two_join_at_the_same_time(world: World) -> None:
    n1 = world.node("n1")
    token = await init("lab", n1.draft, n1.kit, n1.told.append)
    n2, n3 = world.node("n2"), world.node("n3")

    await asyncio.gather(*(join(token, n.draft, n.kit, n.told.append) for n in (n2, n3)))

    await eventually(n1, {"n1": True, "n2": True, "n3": True})
    assert sorted(n.id for n in (await state(n1)).cluster.nodes) == [1, 2, 3]


async def test_a_fourth_node_uses_the_store_until_a_place_is_free(world: World) -> None:
    n1, n2, _ = await found(world, "n2", "n3")
    n4 = world.node("n4")
    await join(await invited(n2), n4.draft, n4.kit, n4.told.append)
    assert not n4.kit.layout.etcd_data.exists()
    assert n4.client_url not in n4.config().etcd

    await leave(n2.kit, n2.told.append)

    (problem,) = (await status(n1.kit))["problems"]
    assert "run on n4: hactl cluster join" in problem
    await complete(n4.kit, n4.told.append)
    await eventually(n1, {"n1": True, "n3": True, "n4": True})
    assert n4.config().etcd[0] == n4.client_url


async def test_a_lost_node_is_removed_and_another_takes_its_place(world: World) -> None:
    n1, n2, n3 = await found(world, "n2", "n3")
    with pytest.raises(Refused) as alive:
        await remove_lost("n3", n1.kit, n1.told.append)
    assert alive.value.code == "node-alive"
    await edit(n1, lambda d: add_host(d, "h", ["iqn.2026-01.example:h"]))

    await n3.crash()
    assert await remove_lost("n3", n1.kit, n1.told.append) == ()

    await eventually(n1, {"n1": True, "n2": True})
    assert [n.name for n in (await state(n2)).cluster.nodes] == ["n1", "n2"]
    # The old machine comes back from the repair shop: it only forgets what it was.
    await only_here(n3.kit, n3.told.append)
    await join(await invited(n1), n3.draft, n3.kit, n3.told.append)
    await eventually(n1, {"n1": True, "n2": True, "n3": True})


async def test_a_member_that_lost_its_data_is_replaced_by_itself(world: World) -> None:
    n1, n2, _ = await found(world, "n2", "n3")
    before = own_member(await _members(n1), _me(n2).peer_url)
    await n2.services.stop(ETCD_UNIT)
    await world.lose_etcd_data(n2)
    # It must not come back as if nothing had happened, whoever starts it.
    await n2.services.start(ETCD_UNIT)

    await complete(n2.kit, n2.told.append)

    after = own_member(await _members(n1), _me(n2).peer_url)
    assert before is not None
    assert after is not None
    assert before.id != after.id
    await eventually(n1, {"n1": True, "n2": True, "n3": True})


def _me(node: Node) -> Me:
    return Me("lab", node.name, node.address)


async def _members(node: Node) -> tuple[Member, ...]:
    members = node.kit.members(node.config().etcd)
    try:
        return await members.list()
    finally:
        await members.close()
