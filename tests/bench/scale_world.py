"""A node with many resources, all up on the in-memory twins, and counters of what is asked of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hactl.agents.agent import Agent
from hactl.agents.exports import LioExports
from hactl.agents.kit import Kit
from hactl.agents.source import StoreSource
from hactl.model.desired import Desired
from hactl.model.spec import ClusterSpec, HostSpec
from hactl.store.desired import Edit, Origin, change, create
from hactl.store.memory import MemoryStore
from hactl.store.protocol import Snapshot, Unchanged, Write
from hactl.target.apply import apply
from hactl.target.changes import Change as TreeChange
from hactl.target.gates import gate_name
from tests.unit.agents_world import World, cluster
from tests.unit.test_agents_exports import CountingFs
from tests.unit.test_agents_pause import Counted

NODE = "n1"
"""The node that is looked at; n2 has the other replicas, and nobody changes anything there."""


def spec_of(count: int) -> ClusterSpec:
    """``count`` resources of one volume, with replicas on n1 and n2, seen by host h1; h2 sees nothing yet."""
    spec = cluster()
    (r0,) = spec.resources
    nodes = ("n1", "n2")
    resources = []
    for n in range(count):
        disks = dict.fromkeys(nodes, f"/dev/vd{n}")
        volume = r0.volumes[0].model_copy(update={"disks": disks, "serial": f"{n:032x}"})
        parts = {"id": n + 1, "iqn": f"iqn.2024-01.example:r{n}", "nodes": nodes, "volumes": (volume,)}
        resources.append(r0.model_copy(update={"name": f"r{n}", **parts}))
    h2 = HostSpec(name="h2", initiators=("iqn.2024-01.example:h2",))
    return spec.model_copy(update={"hosts": (*spec.hosts, h2), "resources": tuple(resources)})


class CountingStore(MemoryStore):
    """A store that notes how often it is asked, and how many keys are written."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    async def read(self, prefix: str) -> Snapshot:
        self._counts["store.read"] += 1
        return await super().read(prefix)

    async def commit(self, conditions: Iterable[Unchanged], writes: Iterable[Write]) -> int:
        wanted = tuple(writes)
        self._counts["store.commit"] += 1
        self._counts["store.keys written"] += len(wanted)
        return await super().commit(conditions, wanted)


class Scaled:
    """The world, its store, and one agent, which follows the store; its time stands still, so that it does
    only what it is made to."""

    agent: Agent

    def __init__(self, world: World, fs: CountingFs, counts: Counter[str], folder: Path) -> None:
        self.world = world
        self.fs = fs
        self.counts = counts
        self.store = CountingStore(counts)
        self._source = StoreSource(self.store, "c", cache=folder / f"{len(world.spec.resources)}.json")
        self._states = self._source.states()
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start an agent, as its process does: from the store."""
        desired = await anext(self._states)
        self.world.spec = desired.cluster
        self.agent = await self.world.start(NODE)
        told = asyncio.Event()
        self._following = asyncio.create_task(self.agent.follower.follow(told.set))
        await told.wait()

    async def end(self) -> None:
        """End the agent; its node goes on."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
            await self.agent.close()
        await self._states.aclose()

    async def settle(self) -> None:
        """The first pass, which has every resource adjusted to its file, as DRBD may have missed a change."""
        with at_once(self.world):
            await self.agent.attend()

    def clear(self) -> None:
        """Count from here."""
        self.counts.clear()
        self.fs.operations.clear()
        self.world.steps.clear()
        self.agent.news.take()

    async def edit(self, edit: Edit) -> Desired:
        """An administrator's change, in the store; the state that the agent is told of."""
        await change(self.store, "c", edit, what="a change", origin=Origin(NODE))
        return await anext(self._states)

    async def follow(self, desired: Desired) -> None:
        """Do what follows from a state, until nothing is due."""
        self.agent.update(desired)
        while self.agent.wake.is_set():
            self.agent.wake.clear()
            await self.agent.attend()

    def spent(self) -> Counter[str]:
        """Everything counted since ``clear``: calls of the adapters, operations on configfs, keys."""
        operations = Counter({f"configfs.{name}": n for name, n in self.fs.operations.items()})
        return self.counts + operations


@contextmanager
def at_once(world: World) -> Iterator[None]:
    """The twin of DRBD goes through everything there is at every change, where the kernel looks at what has
    changed: here it does so once, at the end."""
    drbd = world.drbd
    connect, touch = drbd.connect_all, drbd.touch
    drbd.connect_all = drbd.touch = lambda: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        drbd.connect_all, drbd.touch = connect, touch  # type: ignore[method-assign]
        connect()


async def place(world: World) -> CountingFs:
    """Everything of n1's, and n2's replicas, as agents would have left it, without any agent."""
    fs = CountingFs()
    machine = world.machines[NODE]
    machine.fs, machine.exports = fs, LioExports(fs, NODE)
    with at_once(world):
        for resource in world.spec.resources:
            generation = world.drbd.new_generation()
            for node in resource.replicas:
                drbd = world.machines[node].drbd
                await drbd.write_config(world.spec, resource)
                await drbd.create_metadata(resource, 0)
                metadata = world.drbd.disk(node, resource.volumes[0].disks[node]).metadata
                assert metadata is not None
                # As after a first copy.
                metadata.generation, metadata.consistent = generation, True
                await drbd.up(resource.name)
    devices = {}
    for resource in world.spec.resources:
        gate = await machine.gates.create(gate_name(resource.name, 0), resource.volumes[0].size)
        devices[resource.name, 0] = gate.device
    pending, _ = await machine.exports.pending([(world.spec, r) for r in world.spec.resources], {}, devices)
    for steps in pending.values():
        assert isinstance(steps, tuple), steps
        for step in steps:
            assert isinstance(step, TreeChange)
            apply(fs, step)
    return fs


@asynccontextmanager
async def scaled(count: int, folder: Path) -> AsyncIterator[Scaled]:
    """A node with ``count`` resources that are all as they shall be, and no agent yet; ``folder`` is for its
    copy of the desired state."""
    world = World(spec_of(count))
    world.seconds = 0.0
    world.check = lambda: None  # type: ignore[method-assign]  # looks at every gate after every step
    counts: Counter[str] = Counter()

    def wrap(_: str, kit: Kit) -> Kit:
        def counted(kind: str) -> Any:
            return Counted(getattr(kit, kind), lambda name: counts.update([f"{kind}.{name}"]))

        return replace(kit, **{f.name: counted(f.name) for f in fields(kit) if f.name != "clock"})

    world.wrap = wrap
    node = Scaled(world, await place(world), counts, folder)
    await create(node.store, world.spec, Origin(NODE))
    try:
        yield node
    finally:
        await node.end()
