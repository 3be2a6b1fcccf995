"""The store loses its majority for good and goes on from one member: with etcd in memory and with real
servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hactl.agents.source import StoreSource
from hactl.cluster import unfinished
from hactl.cluster.etcd_log import FileLog, LogState
from hactl.cluster.join import complete, join
from hactl.cluster.layout import ETCD_UNIT
from hactl.cluster.leave import only_here, remove_lost
from hactl.cluster.membership import Again, until
from hactl.cluster.node_config import NodeConfig
from hactl.cluster.recover import recover
from hactl.cluster.status import status
from hactl.errors import Refused, Unknown
from hactl.model.edit import add_host
from hactl.store import desired
from hactl.store.protocol import UNREACHABLE, Put
from tests.unit.cluster_world import (
    Node,
    ProcessServices,
    RealWorld,
    World,
    allow_loopback,
    free_network,
)
from tests.unit.test_cluster_story import edit, eventually, found, invited, state


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


async def remember(node: Node) -> None:
    """Have the copy of the configuration that its agent would keep on the node's disk."""
    store = node.kit.store(node.config())
    try:
        states = StoreSource(store, "lab", cache=node.kit.layout.desired_copy).states()
        await anext(states)
        await states.aclose()
    finally:
        await store.close()


async def lose(node: Node, *others: Node) -> None:
    """Power the others off; back when the store has noticed on ``node``."""
    for other in others:
        await other.crash()
    members = node.kit.members(node.config().etcd)

    async def noticed() -> None:
        found = await members.status(node.client_url)
        if found is None or found.leader:
            raise Again("etcd-not-started", "it takes itself for one of a majority")

    try:
        await until(node.kit, noticed, "etcd-not-started")
    finally:
        await members.close()


async def hosts(node: Node) -> list[str]:
    return [h.name for h in (await state(node)).cluster.hosts]


@pytest.mark.parametrize("others", [("n2",), ("n2", "n3")])
async def test_the_store_goes_on_from_the_last_member(world: World, others: tuple[str, ...]) -> None:
    n1, *lost = await found(world, *others)
    await edit(n1, lambda d: add_host(d, "h", ["iqn.2026-01.example:h"]))
    await remember(n1)
    await lose(n1, *lost)
    with pytest.raises(Refused) as alone:
        await remove_lost("n2", n1.kit, n1.told.append)
    assert alone.value.code in ("etcd-unreachable", "store-unreachable")

    done = await recover(n1.kit, n1.told.append, list(others))

    assert (done.resources, done.stay, done.behind) == ((), {}, 0)
    assert await hosts(n1) == ["h"]
    assert [n.name for n in (await state(n1)).cluster.nodes] == ["n1"]
    assert n1.config().etcd == (n1.client_url,)
    assert done.aside.stat().st_mode & 0o777 == 0o700
    assert list((done.aside / "member" / "wal").glob("*.wal"))
    assert unfinished.load(n1.kit.layout) is None
    # It can be changed, and grows again.
    n4 = world.node("n4")
    await join(await invited(n1), n4.draft, n4.kit, n4.told.append)
    await eventually(n1, {"n1": True, "n4": True})
    await edit(n4, lambda d: add_host(d, "i", ["iqn.2026-01.example:i"]))
    assert await hosts(n1) == ["h", "i"]


@pytest.mark.parametrize("others", [("n2",), ("n2", "n3")])
async def test_who_was_given_up_and_comes_back_finds_no_place(world: World, others: tuple[str, ...]) -> None:
    n1, *lost = await found(world, *others)
    await remember(n1)
    await lose(n1, *lost)
    await recover(n1.kit, n1.told.append, list(others))

    # Two of three were the old majority.
    for node in lost:
        await node.services.start(ETCD_UNIT, wait=False)

    if isinstance(world, RealWorld):
        among = NodeConfig(cluster="lab", node="n2", etcd=tuple(n.client_url for n in lost))
        store = lost[0].kit.store(among)
        with pytest.raises(Refused) as refused:
            await desired.read(store, "lab")
        assert refused.value.code == UNREACHABLE
        await store.close()
    await eventually(n1, {"n1": True})
    await edit(n1, lambda d: add_host(d, "h", ["iqn.2026-01.example:h"]))
    n2 = lost[0]
    # Its settings name the member that is left, too.
    assert [n.name for n in (await state(n2)).cluster.nodes] == ["n1"]
    await only_here(n2.kit, n2.told.append)
    await join(await invited(n1), n2.draft, n2.kit, n2.told.append)
    await eventually(n1, {"n1": True, "n2": True})
    assert await hosts(n2) == ["h"]


async def test_a_node_whose_part_of_the_store_is_lost_joins_again(world: World) -> None:
    n1, n2 = await found(world, "n2")
    await remember(n1)
    await n2.services.stop(ETCD_UNIT)
    await world.lose_etcd_data(n2)
    await lose(n1)

    await recover(n1.kit, n1.told.append, [], ["n2"])

    assert [n.name for n in (await state(n1)).cluster.nodes] == ["n1", "n2"]
    (problem,) = (await status(n1.kit))["problems"]
    assert "run on n2: hactl cluster join" in problem
    await complete(n2.kit, n2.told.append)
    await eventually(n1, {"n1": True, "n2": True})


class Forgetful(FileLog):
    """A log whose end stays what etcd knows to be committed."""

    def commit(self, data: Path) -> LogState:
        return self.read(data)


@pytest.mark.parametrize("log", [FileLog(), Forgetful()])
async def test_what_the_log_has_is_kept_that_etcd_would_throw_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: FileLog
) -> None:
    """The last thing that a member was told of before the rest was lost may have been answered."""
    allow_loopback(monkeypatch)
    world = RealWorld(tmp_path, free_network())
    try:
        n1, n2 = await found(world, "n2")
        await remember(n1)
        await lead(n1)
        store = n1.kit.store(n1.config())
        assert isinstance(n2.services, ProcessServices)
        n2.services.pause()
        with pytest.raises((Refused, Unknown)):
            await store.commit([], [Put("/t/last", b"written")])
        await store.close()
        await n2.crash()
        # Ended at once, it has not noticed: what it was asked for is in its log, and not known as committed.
        await world.kill_etcd(n1)
        found_log = FileLog().read(n1.kit.layout.etcd_data)
        assert found_log.committed < found_log.end.index

        await recover(replace(n1.kit, log=log), n1.told.append, ["n2"])

        store = n1.kit.store(n1.config())
        item = await store.get("/t/last")
        await store.close()
        assert (item is None) == isinstance(log, Forgetful)
        await eventually(n1, {"n1": True})
    finally:
        await world.close()


async def lead(node: Node) -> None:
    """Have a node's part of the store lead it."""
    members = node.kit.members(node.config().etcd)
    try:
        listed = await members.list()
        status = await members.status(node.client_url)
        assert status is not None
        if status.leader != status.id:
            await members.move_leader(next(m for m in listed if m.id == status.leader), status.id)
    finally:
        await members.close()
