"""Making, joining and leaving a cluster, killed before and after each thing they do, and run again."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hactl.cluster import layout, unfinished
from hactl.cluster.init import init
from hactl.cluster.join import join
from hactl.cluster.kit import Kit
from hactl.cluster.leave import leave
from hactl.cluster.stack_upkeep import StackUpkeep
from hactl.cluster.status import status
from hactl.errors import Refused
from hactl.store import desired
from tests.unit.cluster_world import Node, World, allow_loopback, free_network


class Killed(BaseException):
    """The process ends here."""


class Countdown:
    """Kills at the ``left``-th moment; ``left`` None: never."""

    def __init__(self, left: int | None = None) -> None:
        self.left = left
        self.passed = 0

    def tick(self) -> None:
        self.passed += 1
        if self.left is not None and self.passed > self.left:
            raise Killed


class Dangerous:
    """An adapter whose calls may be killed before they begin, and after they are done."""

    def __init__(self, inner: object, countdown: Countdown) -> None:
        self._inner = inner
        self._countdown = countdown

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(found) or name == "close":
            return found

        async def call(*args: Any, **named: Any) -> Any:
            self._countdown.tick()
            answer = await found(*args, **named)
            self._countdown.tick()
            return answer

        return call


@pytest.fixture
async def worlds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[], World]]:
    allow_loopback(monkeypatch)
    made: list[World] = []

    def new() -> World:
        made.append(World(tmp_path / str(len(made)), free_network()))
        return made[-1]

    yield new
    for world in made:
        await world.close()


def dangerous(kit: Kit, countdown: Countdown, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """The kit with moments to be killed at: around each call of an adapter, and after each file written."""
    real = layout._sync

    def sync(folder: Path) -> None:
        real(folder)
        countdown.tick()

    monkeypatch.setattr(layout, "_sync", sync)
    wrap: Callable[[Any], Any] = lambda inner: Dangerous(inner, countdown)  # noqa: E731
    return replace(
        kit,
        services=wrap(kit.services),
        ring=wrap(kit.ring),
        members=lambda endpoints: wrap(kit.members(endpoints)),
        store=lambda config: wrap(kit.store(config)),
    )


async def everywhere(
    worlds: Callable[[], World],
    prepare: Callable[[World], Awaitable[Callable[[Kit], Awaitable[Any]]]],
    node: str,
    after: Callable[[World], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Kill what ``prepare`` gives at each of its moments in turn, run it again, and look at the outcome."""
    moment = 0
    while True:
        world = worlds()
        work = await prepare(world)
        countdown = Countdown(moment)
        kit = world.node(node).kit
        killed = False
        with monkeypatch.context() as patched:
            try:
                await work(dangerous(kit, countdown, patched))
            except Killed:
                killed = True
        if killed:
            await work(kit)
        await after(world)
        await world.close()
        if not killed:
            return moment
        moment += 1


async def test_init_killed_anywhere_is_run_again(
    worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare(world: World) -> Callable[[Kit], Awaitable[Any]]:
        node = world.node("n1")

        async def work(kit: Kit) -> Any:
            try:
                return await init("lab", node.draft, kit, node.told.append, pacemaker=True)
            except Refused as error:
                # Killed after the very end: there is nothing left to be run again.
                if error.code != "already-in-cluster" or unfinished.load(kit.layout) is not None:
                    raise
                return None

        return work

    async def after(world: World) -> None:
        document = await status(world.node("n1").kit)
        assert document["problems"] == []
        assert [n["name"] for n in document["nodes"]] == ["n1"]
        assert world.corosync.pacemakers == {"n1"}
        assert world.corosync.quorate("n1")
        assert set(world.node("n1").files()) == {
            "node.yaml", "etcd.conf", "corosync.key", "tls/ca.crt", "tls/ca.key", "tls/node.crt",
            "tls/node.key",
        }  # fmt: skip

    assert await everywhere(worlds, prepare, "n1", after, monkeypatch) > 20


async def test_join_killed_anywhere_is_run_again(
    worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare(world: World) -> Callable[[Kit], Awaitable[Any]]:
        first, node = world.node("n1"), world.node("n2")
        token = await init("lab", first.draft, first.kit, first.told.append, pacemaker=True)

        async def work(kit: Kit) -> Any:
            try:
                return await join(token, node.draft, kit, node.told.append)
            except Refused as error:
                if error.code != "already-in-cluster" or unfinished.load(kit.layout) is not None:
                    raise
                return None

        return work

    async def after(world: World) -> None:
        first, node = world.node("n1"), world.node("n2")
        store = node.kit.store(node.config())
        cluster = (await desired.read(store, "lab")).cluster
        await store.close()
        await StackUpkeep("n1", cluster, first.kit).once()
        document = await status(node.kit)
        assert document["problems"] == []
        assert {m["name"]: m["voter"] for m in document["store"]["members"]} == {"n1": True, "n2": True}
        assert world.corosync.pacemakers == {"n1", "n2"}
        assert world.corosync.quorate("n1")
        assert world.corosync.quorate("n2")
        assert world.corosync.fenced == []
        assert [(n["name"], n["id"]) for n in document["nodes"]] == [("n1", 1), ("n2", 2)]

    assert await everywhere(worlds, prepare, "n2", after, monkeypatch) > 20


async def test_leave_killed_anywhere_is_run_again(
    worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare(world: World) -> Callable[[Kit], Awaitable[Any]]:
        first, node = world.node("n1"), world.node("n2")
        token = await init("lab", first.draft, first.kit, first.told.append, pacemaker=True)
        await join(token, node.draft, node.kit, node.told.append)

        async def work(kit: Kit) -> Any:
            try:
                return await leave(kit, node.told.append)
            except Refused as error:
                if error.code != "not-in-cluster" or unfinished.load(kit.layout) is not None:
                    raise
                return None

        return work

    async def after(world: World) -> None:
        node: Node = world.node("n2")
        assert node.files() == {}
        assert not node.kit.layout.corosync_file.exists()
        assert set(world.corosync.servers) == {"n1"}
        assert world.corosync.fenced == []
        assert not node.kit.layout.etcd_data.exists()
        document = await status(world.node("n1").kit)
        assert [m["name"] for m in document["store"]["members"]] == ["n1"]
        assert [n["name"] for n in document["nodes"]] == ["n1"]

    assert await everywhere(worlds, prepare, "n2", after, monkeypatch) > 15


async def test_changes_of_members_whose_answers_are_lost(worlds: Callable[[], World]) -> None:
    world = worlds()
    first, node = world.node("n1"), world.node("n2")
    token = await init("lab", first.draft, first.kit, first.told.append, pacemaker=True)
    world.etcd.lose_answers = 2
    await join(token, node.draft, node.kit, node.told.append)
    assert world.etcd.calls.count("add") == 1
    world.etcd.lose_answers = 1
    await leave(node.kit, node.told.append)
    assert world.etcd.calls.count("remove") == 1
    assert [m.name for m in world.etcd.members.values()] == ["n1"]
