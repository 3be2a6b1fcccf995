"""Three agents that follow one store: what is changed there happens on the nodes, and they say so there."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from hactl.agents import main
from hactl.agents.agent import Agent
from hactl.agents.source import StoreSource
from hactl.model.edit_hosts import export
from hactl.model.edit_resources import create_resource, delete_resource
from hactl.model.edit_volumes import add_volume, grow_volume, remove_volume
from hactl.replication.state import DiskState
from hactl.store.desired import Edit, Origin, change, create, read
from hactl.store.memory import MemoryStore
from hactl.target.gates import Mode, gate_name
from tests.unit.agents_world import NODES, World, refused
from tests.unit.test_agents_leftovers import pooled
from tests.unit.test_agents_update import having

DISKS = {"n1": "pool:fast", "n2": "pool:fast"}


class Cluster:
    """A world of nodes, a store, and agents that run as processes do."""

    def __init__(self, folder: Path) -> None:
        self.world = World(having(pooled()))
        self.store = MemoryStore()
        self.clients = {node: self.store.client() for node in NODES}
        self.folder = folder
        self.running: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}
        self.serials = itertools.count(1)

    async def change(self, edit: Edit) -> None:
        await change(self.store, "c", edit, what="a test", origin=Origin("n1"))

    def serial(self) -> str:
        return f"{next(self.serials):032x}"

    async def start(self, node: str) -> None:
        """Start a node's agent, as the process does."""
        stop, ready = asyncio.Event(), asyncio.Event()
        self.running[node] = stop, asyncio.create_task(self._run(node, stop, ready))
        await ready.wait()

    async def _run(self, node: str, stop: asyncio.Event, ready: asyncio.Event) -> None:
        store = self.clients[node]
        source = StoreSource(store, "c", cache=self.folder / f"{node}.json", patience=0.05, backoff=(0.02,))
        async with aclosing(source.states()) as states:
            first = await anext(states)
            self.world.spec, self.world.leftovers = first.cluster, first.leftovers
            agent = await self.world.start(node)
            agent.reporters.append(source)
            members = (main._membership(agent, store),)
            agent.leftovers.done = main._reporting(agent, store)
            ready.set()
            await main.keep(agent, stop, states, members=members)
            await agent.close()

    async def stop(self, node: str) -> None:
        self.world.network.services.pop(node, None)
        stop, task = self.running.pop(node)
        stop.set()
        await task

    def agent(self, node: str) -> Agent:
        return self.world.agents[node]

    def held(self) -> set[str]:
        """Keys in the store, below the cluster's prefix."""
        return {key.removeprefix("/hactl/c/") for key in self.store.state.items}

    async def until(self, met: Callable[[], bool], what: str) -> None:
        for _ in range(1500):
            for _, task in self.running.values():
                if task.done():
                    task.result()
            if met():
                return
            await asyncio.sleep(0.01)
        told = {
            n: (
                self.agent(n).leftovers.reasons,
                self.agent(n).leaving,
                self.agent(n)._down,
                self.agent(n).leftovers.event.is_set(),
                [*self.agent(n).keepers],
                self.agent(n)._touched,
                self.agent(n).desired.leftovers,
            )
            for n in NODES
        }
        raise AssertionError(f"it did not come to that: {what}: {told} {self.left('mail')}")

    def up(self, name: str, *numbers: int) -> bool:
        """All volumes of a resource are there on all nodes, UpToDate where there are replicas."""
        for node in NODES:
            keeper = self.agent(node).keepers.get(name)
            if keeper is None or keeper.offered or {v.number for v in keeper.spec.volumes} != set(numbers):
                return False
            if keeper.lock.locked() or keeper.unfinished or keeper.reason is not None:
                return False
            fs, own = self.world.machines[node].fs, self.world.spec.node(node).id
            if not fs.exists(f"iscsi/{keeper.spec.iqn}/tpgt_{own}/np/203.0.113.{own}:3260"):
                return False
            gates = self.world.machines[node].gates._gates
            if not all(gate_name(name, number) in gates for number in numbers):
                return False
            if node in keeper.spec.replicas:
                instance = self.world.drbd.nodes[node].instances.get(name)
                if instance is None or set(instance.replicas) != set(numbers):
                    return False
                states = {self.world.drbd.state_of(node, name, n) for n in numbers}
                if states != {DiskState.UP_TO_DATE}:
                    return False
        return True

    def left(self, name: str) -> set[str]:
        """What is left of a resource, on the nodes and in the store."""
        found = {key for key in self.held() if f"/{name}" in key}
        for node in NODES:
            machine = self.world.machines[node]
            drbd = self.world.drbd.nodes[node]
            things = [*machine.gates._gates, *drbd.instances, *drbd.files, *machine.journal.read()]
            found |= {f"{node}: {x}" for x in (*things, *machine.backing.devices()) if name in x}
        return found


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    await create(cluster.store, cluster.world.spec, Origin("n1"))
    for node in NODES:
        await cluster.start(node)
    yield cluster
    for node in tuple(cluster.running):
        await cluster.stop(node)
    await cluster.store.close()


async def test_the_life_of_a_resource(nodes: Cluster) -> None:
    await nodes.until(lambda: {f"members/{n}" for n in NODES} <= nodes.held(), "members")
    await nodes.change(
        lambda d: create_resource(d, "web", "64M", serial=nodes.serial, nodes=NODES, disks=DISKS)
    )
    await nodes.until(lambda: nodes.up("web", 0), "web is up")
    await nodes.agent("n1").order("promote", "web")
    machine = nodes.world.machines["n1"]
    gate = gate_name("web", 0)
    assert await machine.gates.write(gate, 1, "5").ended() == "done"
    await nodes.change(lambda d: export(d, "web", "h1"))
    acl = "iscsi/iqn.2026-11.io.hactl.c:web/tpgt_1/acls/iqn.2024-01.example:h1/lun_0"
    await nodes.until(lambda: machine.fs.exists(acl), "h1 sees it")
    await nodes.change(lambda d: add_volume(d, "web", "32M", serial=nodes.serial))
    await nodes.until(lambda: nodes.up("web", 0, 1), "it has two volumes")
    second = machine.gates._gates[gate_name("web", 1)]
    await nodes.until(lambda: second.mode is Mode.OPEN, "the second is served")
    await nodes.change(lambda d: grow_volume(d, "web", 0, "128M"))
    sizes = [nodes.world.machines[n].gates._gates[gate] for n in NODES]
    await nodes.until(lambda: {g.size for g in sizes} == {128 << 20}, "it has grown")
    await nodes.change(lambda d: remove_volume(d, "web", 1, destroy=True))
    await nodes.until(lambda: nodes.up("web", 0), "the second volume is gone")
    await nodes.until(lambda: not any("leftovers/" in k for k in nodes.held()), "and cleared away")
    assert machine.backing.devices() == {"/dev/vg0/hactl.web.0"}
    await nodes.agent("n3").switchover("web", "n2")
    assert nodes.world.machines["n2"].gates.read(gate, 1) == "5"

    def told() -> bool:
        item = nodes.store.state.items.get("/hactl/c/observed/n2/web")
        return item is not None and json.loads(item.value)["role"] == "active"

    await nodes.until(told, "the store knows")
    await nodes.change(lambda d: delete_resource(d, "web", destroy=True))
    await nodes.until(lambda: nodes.left("web") == set(), "it is gone")
    assert (await read(nodes.store, "c")).leftovers == ()


async def test_without_the_store_everything_goes_on_but_changes(nodes: Cluster) -> None:
    await nodes.change(
        lambda d: create_resource(d, "web", "64M", serial=nodes.serial, nodes=NODES, disks=DISKS)
    )
    await nodes.until(lambda: nodes.up("web", 0), "web is up")
    await nodes.agent("n1").order("promote", "web")
    for client in nodes.clients.values():
        client.reachable = False
    await nodes.stop("n2")
    await nodes.start("n2")
    await nodes.until(lambda: nodes.up("web", 0), "n2 has looked around")
    assert "out of date" in nodes.agent("n2").reasons()[0]
    await nodes.agent("n1").switchover("web", "n2")
    assert (await refused(nodes.agent("n1").order("promote", "web"))).code == "active-elsewhere"
    await nodes.change(lambda d: export(d, "web", "h1"))
    for client in nodes.clients.values():
        client.reachable = True
    acl = "iscsi/iqn.2026-11.io.hactl.c:web/tpgt_2/acls/iqn.2024-01.example:h1/lun_0"
    await nodes.until(lambda: nodes.world.machines["n2"].fs.exists(acl), "h1 sees it")
    await nodes.until(lambda: nodes.agent("n2").reasons() == (), "nothing to complain about")


async def test_an_agent_that_was_away_while_three_things_changed(nodes: Cluster) -> None:
    for name in ("web", "mail"):
        await nodes.change(
            lambda d, name=name: create_resource(  # type: ignore[misc]  # of this round
                d, name, "64M", serial=nodes.serial, nodes=NODES, disks=DISKS
            )
        )
    await nodes.until(lambda: nodes.up("web", 0) and nodes.up("mail", 0), "both are up")
    await nodes.agent("n1").order("promote", "web")
    await nodes.stop("n2")
    await nodes.change(lambda d: delete_resource(d, "mail", destroy=True))
    await nodes.change(lambda d: add_volume(d, "web", "32M", serial=nodes.serial))
    await nodes.change(
        lambda d: create_resource(d, "new", "64M", serial=nodes.serial, nodes=NODES, disks=DISKS)
    )
    await nodes.until(lambda: "leftovers/n1/mail/0" not in nodes.held(), "n1 has done its part")
    assert "leftovers/n2/mail/0" in nodes.held()
    await nodes.start("n2")
    await nodes.until(lambda: nodes.up("web", 0, 1) and nodes.up("new", 0), "it has caught up")
    await nodes.until(lambda: nodes.left("mail") == set(), "mail is gone everywhere")
    await nodes.agent("n1").switchover("web", "n2")
