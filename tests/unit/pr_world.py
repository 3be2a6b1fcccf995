"""Nodes that keep one unit's reservations in step, in one process: real coordination, twins around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from hactl.errors import Refused
from hactl.pr_sync.commands import Command
from hactl.pr_sync.log import PrLog
from hactl.pr_sync.memory_kernel import MemoryUnit
from hactl.pr_sync.state import Action, Nexus
from hactl.pr_sync.sync import Limits, UnitSync
from hactl.pr_sync.units import Port, Unit
from hactl.store.memory import MemoryState, MemoryStore
from hactl.store.protocol import Unchanged, Write

NODES = ("n1", "n2", "n3")
INITIATORS = ("iqn.2026-11.org.example:a", "iqn.2026-11.org.example:b", "iqn.2026-11.org.example:c")


class LoopClock:
    """The event loop's time."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def boot(self) -> str:
        return "boot"

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Network:
    """What the nodes ask of each other; ``cut`` are pairs that cannot."""

    syncs: dict[str, UnitSync] = field(default_factory=dict)
    cut: set[frozenset[str]] = field(default_factory=set)

    def of(self, node: str) -> Caller:
        return Caller(self, node)


@dataclass
class Caller:
    """Keeps :class:`hactl.pr_sync.sync.Members`."""

    network: Network
    node: str

    async def applied(self, node: str, serial: str, index: int) -> None:
        if frozenset((self.node, node)) in self.network.cut or node not in self.network.syncs:
            raise Refused("peer-unreachable", f"{node} cannot be reached")
        await self.network.syncs[node].reach(index)


def unit(nodes: int = 2) -> Unit:
    ports = tuple(Port(name, 0x11 + i, i + 1) for i, name in enumerate(NODES[:nodes]))
    return Unit("r0", 0, "a" * 32, "iqn.2026-11.org.example:r0", 0, ports, dict.fromkeys(INITIATORS, 0))


@dataclass
class World:
    unit: Unit
    state: MemoryState
    network: Network
    kernels: dict[str, MemoryUnit]
    stores: dict[str, MemoryStore]
    tasks: dict[str, asyncio.Task[None]]

    def nexus(self, host: int, node: str, isid: int = 1) -> Nexus:
        return Nexus(INITIATORS[host], f"{isid:012x}", self.unit.port(node).rtpi)

    def log(self, node: str) -> PrLog:
        return PrLog(self.stores[node], "c", node)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Until a condition holds."""
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - the twins have no event for what is looked at
                await asyncio.sleep(0.001)

    async def settled(self) -> None:
        """Until no command waits and every node has the log's end."""
        async with asyncio.timeout(20):
            while True:
                head = await self.log(NODES[0]).head(self.unit.serial)
                syncs = self.network.syncs.values()
                kernels = self.kernels.values()
                if all(s.head.index == head.index for s in syncs) and not any(k.waiting() for k in kernels):
                    # PRgeneration may come a moment later.
                    if all(k.state == head.state for k in kernels):
                        return
                    await asyncio.sleep(0.001)
                for sync in syncs:
                    sync.poke(head.index)
                await asyncio.sleep(0)


def _poke(network: Network, node: str) -> None:
    # There may be no agent just now.
    if node in network.syncs:
        network.syncs[node].poke()


@asynccontextmanager
async def world(nodes: int = 2, limits: Limits = Limits(again=0.001)) -> AsyncIterator[World]:  # noqa: B008
    one, state, network = unit(nodes), MemoryState(), Network()
    clock = LoopClock()
    made = World(one, state, network, {}, {}, {})
    for name in NODES[:nodes]:
        store = made.stores[name] = MemoryStore(state)
        kernel = made.kernels[name] = MemoryUnit(one, clock.now, partial(_poke, network, name), name)
        log = made.log(name)
        sync = network.syncs[name] = UnitSync(one, name, kernel, log, network.of(name), clock, limits)
        head = await log.head(one.serial)
        await log.join(one.serial, head)
        await sync.start(head)
        made.tasks[name] = asyncio.create_task(sync.run())
        await store.commit([], [])
    try:
        yield made
    finally:
        for task in made.tasks.values():
            task.cancel()
        await asyncio.gather(*made.tasks.values(), return_exceptions=True)
        for store in made.stores.values():
            await store.close()


def vanish_after_a_commit(store: MemoryStore) -> None:
    """The next commit is carried out as ever, and then the store cannot be reached."""
    commit = partial(MemoryStore.commit, store)

    async def vanishing(conditions: Iterable[Unchanged], writes: Iterable[Write]) -> int:
        store.__dict__.pop("commit", None)
        try:
            return await commit(conditions, writes)
        finally:
            store.reachable = False

    store.commit = vanishing  # type: ignore[method-assign]


def register(nexus: Nexus, key: int) -> Command:
    return Command(nexus, Action.REGISTER_AND_IGNORE_EXISTING_KEY, 0, key)
