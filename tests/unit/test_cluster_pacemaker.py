"""Corosync and Pacemaker while a cluster is made, grows and shrinks; what is refused, kept and put back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from hactl.cluster import corosync, stack
from hactl.cluster.checks import ChecksFailed
from hactl.cluster.init import init
from hactl.cluster.invite import Token
from hactl.cluster.join import complete, join
from hactl.cluster.layout import AGENT_UNIT, COROSYNC_UNIT, PACEMAKER_UNIT
from hactl.cluster.leave import leave, only_here, remove_lost
from hactl.cluster.memory_members import MemoryServices
from hactl.cluster.memory_ring import MemoryCorosync, MemoryRing
from hactl.cluster.stack_upkeep import StackUpkeep
from hactl.cluster.status import status
from hactl.errors import Failed, HactlError, Refused
from hactl.store import desired
from hactl.store.memory import MemoryStore
from tests.unit.cluster_world import Node, World, allow_loopback, free_network
from tests.unit.test_corosync import PACKAGED


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    allow_loopback(monkeypatch)
    made = World(tmp_path, free_network())
    try:
        yield made
    finally:
        await made.close()


async def make(world: World) -> tuple[Node, Token]:
    first = world.node("n1")
    return first, await init("lab", first.draft, first.kit, first.told.append, pacemaker=True)


async def enter(world: World, token: Token, name: str) -> Node:
    node = world.node(name)
    await join(token, node.draft, node.kit, node.told.append)
    return node


async def upkeep(node: Node) -> StackUpkeep:
    """One look of the node's agent, with what the store says now."""
    store = node.kit.store(node.config())
    try:
        found = await desired.read(store, "lab")
    finally:
        await store.close()
    work = StackUpkeep(node.name, found.cluster, node.kit)
    await work.once()
    return work


def services(node: Node) -> MemoryServices:
    assert isinstance(node.services, MemoryServices)
    return node.services


def quorate(world: World) -> dict[str, bool]:
    return {name: world.corosync.quorate(name) for name in sorted(world.corosync.servers)}


# Growing and shrinking


async def test_a_cluster_grows_to_three_and_shrinks_again_without_a_loss(world: World) -> None:
    n1, token = await make(world)
    assert services(n1).enabled >= {COROSYNC_UNIT, PACEMAKER_UNIT, AGENT_UNIT}
    assert quorate(world) == {"n1": True}

    n2 = await enter(world, token, "n2")
    # The first one has not noticed yet, and goes on; the second has no quorum of its own.
    assert quorate(world) == {"n1": True, "n2": False}
    await upkeep(n1)
    assert quorate(world) == {"n1": True, "n2": True}

    n3 = await enter(world, token, "n3")
    assert quorate(world) == {"n1": True, "n2": True, "n3": False}
    await upkeep(n2)
    await upkeep(n1)
    assert quorate(world) == {"n1": True, "n2": True, "n3": True}
    assert world.corosync.members("n1") == {"n1", "n2", "n3"}
    assert world.corosync.pacemakers == {"n1", "n2", "n3"}

    document = await status(n1.kit)
    assert document["problems"] == []
    assert document["corosync"] == {
        "links": [{"number": 0, "nodes": dict.fromkeys(("n2", "n3"), "connected")}]
    }

    # Nothing more to do: nothing is done.
    calls = list(world.corosync.calls)
    for node in (n1, n2, n3):
        await upkeep(node)
    assert world.corosync.calls == calls

    await leave(n1.kit, n1.told.append)
    assert not {COROSYNC_UNIT, PACEMAKER_UNIT} & (services(n1).up | services(n1).enabled)
    assert not n1.kit.layout.corosync_file.exists()
    assert not n1.kit.layout.corosync_key.exists()
    assert quorate(world) == {"n2": True, "n3": True}
    for node in (n2, n3):
        await upkeep(node)
    assert world.corosync.remembered == {"n2", "n3"}
    assert world.corosync.calls.count("forget n1") == 1
    assert world.corosync.fenced == []
    world.corosync.stop("n3")
    # Of two that are left, one goes on alone.
    assert quorate(world) == {"n2": True}
    world.corosync.fenced.clear()
    world.corosync.start("n3", n3.kit.layout.corosync_file)

    await leave(n3.kit, n3.told.append)
    await upkeep(n2)
    assert quorate(world) == {"n2": True}
    assert world.corosync.remembered == {"n2"}
    await leave(n2.kit, n2.told.append, end_cluster="lab")
    assert world.corosync.servers == {}
    assert world.corosync.fenced == []


async def test_a_node_leaves_in_good_order(world: World) -> None:
    n1, token = await make(world)
    n2 = await enter(world, token, "n2")
    await upkeep(n1)
    await leave(n2.kit, n2.told.append)
    told = [line for line in n2.told if line.startswith(("stopping", "removing node"))]
    # Pacemaker first: while it can ask the agent, and before anybody could take its node for lost.
    assert told == [
        "stopping pacemaker.service",
        "removing node n2 from the configuration",
        "stopping hactl-agent.service",
        "stopping corosync.service",
    ]
    assert world.corosync.fenced == []


async def test_a_lost_node_is_forgotten_and_comes_back_as_another(world: World) -> None:
    n1, token = await make(world)
    n2 = await enter(world, token, "n2")
    n3 = await enter(world, token, "n3")
    await upkeep(n1)
    world.corosync.stop("n3")
    await n3.crash()
    assert "Corosync's link 0: n3 is disconnected" in (await status(n1.kit))["problems"]
    await remove_lost("n3", n1.kit, n1.told.append)
    for node in (n1, n2):
        await upkeep(node)
    assert world.corosync.remembered == {"n1", "n2"}
    # As it was, it starts with its old list of nodes, and nobody listens.
    world.corosync.start("n3", n3.kit.layout.corosync_file)
    assert quorate(world) == {"n1": True, "n2": True, "n3": False}
    await only_here(n3.kit, n3.told.append)
    assert "n3" not in world.corosync.servers


async def test_without_pacemaker_nothing_of_it_is_touched(world: World) -> None:
    n1, n2 = world.node("n1"), world.node("n2")
    for node in (n1, n2):
        conf = node.kit.layout.corosync_file
        conf.parent.mkdir(parents=True)
        conf.write_text("nodelist {\n}\n")
        node.machine.missing = set(stack.PROGRAMS)
    token = await init("lab", n1.draft, n1.kit, n1.told.append)
    await join(token, n2.draft, n2.kit, n2.told.append)
    await upkeep(n1)
    await leave(n2.kit, n2.told.append)
    for node in (n1, n2):
        assert node.kit.layout.corosync_file.read_text() == "nodelist {\n}\n"
        assert COROSYNC_UNIT not in services(node).up
        assert not node.kit.layout.corosync_key.exists()
    assert world.corosync.calls == []


# What was there before


def packaged(node: Node) -> None:
    """Corosync and Pacemaker run as installed."""
    layout = node.kit.layout
    layout.corosync_file.parent.mkdir(parents=True)
    layout.corosync_file.write_text(PACKAGED)
    layout.cib.mkdir(parents=True)
    (layout.cib / "cib.xml").write_text("<cib epoch='900'/>")
    services(node).up |= {COROSYNC_UNIT, PACEMAKER_UNIT}


async def test_what_the_packages_have_started_makes_room_and_comes_back(world: World) -> None:
    n1 = world.node("n1")
    packaged(n1)
    await make(world)
    layout = n1.kit.layout
    assert corosync.whose(stack.read(layout)) is corosync.Whose.HACTL
    # Of a higher generation it would become the whole cluster's.
    assert list(layout.cib.iterdir()) == []
    assert (layout.cib.with_name("cib.before-hactl-1") / "cib.xml").exists()
    assert layout.corosync_before.read_text() == PACKAGED
    (layout.cib / "cib.xml").write_text("<cib of='the cluster'/>")

    await leave(n1.kit, n1.told.append, end_cluster="lab")
    assert layout.corosync_file.read_text() == PACKAGED
    assert not layout.corosync_before.exists()
    assert list(layout.cib.iterdir()) == []


@pytest.mark.parametrize("joining", [False, True])
async def test_what_is_in_the_way_is_refused_before_anything_is_changed(world: World, joining: bool) -> None:
    node = world.node("n2")
    packaged(node)
    layout = node.kit.layout
    layout.corosync_file.write_text(PACKAGED.replace("127.0.0.1", "192.0.2.1"))
    node.machine.missing = {Path("/usr/sbin/corosync"), Path("/usr/sbin/crm")}
    node.machine.ports = {(node.address, corosync.PORT)}
    token = (await make(world))[1]
    work: Coroutine[Any, Any, object]
    if joining:
        work = join(token, node.draft, node.kit, node.told.append)
    else:
        work = init("other", node.draft, node.kit, node.told.append, pacemaker=True)
    with pytest.raises(ChecksFailed) as failed:
        await work
    assert [f.code for f in failed.value.findings] == [
        "corosync-missing", "corosync-missing", "corosync-foreign", "port-in-use",
    ]  # fmt: skip
    assert all(f.hint for f in failed.value.findings)
    assert not layout.etc.exists()
    assert services(node).up == {COROSYNC_UNIT, PACEMAKER_UNIT}


async def test_a_pacemaker_with_resources_is_left_alone(world: World) -> None:
    n1 = world.node("n1")
    packaged(n1)
    (n1.kit.layout.cib / "cib.xml").write_text("<cib><primitive id='web'/></cib>")
    with pytest.raises(Refused) as refused:
        await make(world)
    assert refused.value.code == "pacemaker-foreign"
    assert not n1.kit.layout.etc.exists()


async def test_an_earlier_life_does_not_come_back(world: World) -> None:
    n1 = world.node("n1")
    layout = n1.kit.layout
    layout.etc.mkdir(parents=True)
    layout.corosync_key.write_bytes(b"old")
    layout.corosync_file.parent.mkdir(parents=True)
    layout.corosync_file.write_text(corosync.MARK)
    layout.cib.mkdir(parents=True)
    (layout.cib / "cib.xml").write_text("<cib/>")
    await make(world)
    assert layout.corosync_key.read_bytes() != b"old"
    assert list(layout.cib.iterdir()) == []


# The key


async def test_the_key_is_long_the_same_everywhere_and_in_no_log(world: World) -> None:
    with structlog.testing.capture_logs() as logs:
        n1, token = await make(world)
        n2 = await enter(world, token, "n2")
        await upkeep(n1)
    key = n1.kit.layout.corosync_key.read_bytes()
    assert len(key) == corosync.KEY_BYTES
    assert n2.kit.layout.corosync_key.read_bytes() == key
    for node in (n1, n2):
        assert node.files()["corosync.key"] == 0o400
    assert logs
    said = repr((logs, n1.told, n2.told))
    for text in (repr(key)[2:40], key.hex()[:16]):
        assert text not in said
    state = n1.kit.store(n1.config())
    assert isinstance(state, MemoryStore)
    everything = (await state.read("")).items.values()
    assert everything
    assert all(key not in item.value for item in everything)


async def test_the_same_command_again_takes_the_same_key(world: World) -> None:
    n1 = world.node("n1")
    broken = replace(n1.kit, ring=MemoryRing(MemoryCorosync(), "n1"))
    with pytest.raises(Failed):
        await init("lab", n1.draft, broken, n1.told.append, pacemaker=True)
    key = n1.kit.layout.corosync_key.read_bytes()
    with pytest.raises(Refused) as other:
        await init("lab", n1.draft, n1.kit, n1.told.append, pacemaker=False)
    assert other.value.code == "unfinished"
    await make(world)
    assert n1.kit.layout.corosync_key.read_bytes() == key
    assert quorate(world) == {"n1": True}


# While the agent runs


async def test_what_has_failed_is_started_and_what_was_stopped_is_told(world: World) -> None:
    n1, token = await make(world)
    await enter(world, token, "n2")
    await upkeep(n1)
    services(n1).up -= {COROSYNC_UNIT, PACEMAKER_UNIT}
    services(n1).fallen = {COROSYNC_UNIT, PACEMAKER_UNIT}
    world.corosync.stop("n1")
    await upkeep(n1)
    assert services(n1).up >= {COROSYNC_UNIT, PACEMAKER_UNIT}
    assert quorate(world) == {"n1": True, "n2": True}

    services(n1).up.discard(PACEMAKER_UNIT)
    world.corosync.stop_pacemaker("n1")
    with pytest.raises(Failed) as stopped:
        await upkeep(n1)
    assert stopped.value.code == "pacemaker-stopped"
    assert PACEMAKER_UNIT not in services(n1).up


async def test_settings_that_somebody_changed_are_left_alone_and_lost_ones_written(world: World) -> None:
    n1, _ = await make(world)
    conf = n1.kit.layout.corosync_file
    conf.write_text("totem {\n}\n")
    with pytest.raises(Refused) as foreign:
        await upkeep(n1)
    assert foreign.value.code == "corosync-foreign"
    assert conf.read_text() == "totem {\n}\n"
    conf.unlink()
    await upkeep(n1)
    assert corosync.whose(conf.read_text()) is corosync.Whose.HACTL
    n1.kit.layout.corosync_key.unlink()
    with pytest.raises(Refused) as key:
        await upkeep(n1)
    assert key.value.code == "corosync-key"
    with pytest.raises(Refused, match=r"corosync\.key"):
        await complete(n1.kit, n1.told.append)


async def test_a_corosync_that_does_not_follow_is_told(world: World) -> None:
    n1, token = await make(world)
    await enter(world, token, "n2")
    world.corosync.deaf = {"n1"}
    with pytest.raises(HactlError) as deaf:
        await upkeep(n1)
    assert deaf.value.code == "corosync-reload"
    world.corosync.deaf = set()
    await upkeep(n1)
    assert quorate(world) == {"n1": True, "n2": True}
