"""A store for contract tests with what surrounds it: more clients, time, faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from hactl.store.etcd import EtcdStore, Limits
from hactl.store.memory import MemoryState, MemoryStore
from hactl.store.protocol import Changes, Reset, Store, Watch
from tests.contract.etcd_cluster import MEMBERS, EtcdCluster

T = TypeVar("T")
PATIENCE = 20.0
"""Seconds after which something that has to come is taken for missing."""


async def soon(what: Awaitable[T]) -> T:
    """What comes in time."""
    async with asyncio.timeout(PATIENCE):
        return await what


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    """Return once ``met`` says yes."""
    async with asyncio.timeout(PATIENCE):
        # Nobody tells; it has to be asked.
        while not await met():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class World(Protocol):
    async def client(self) -> Store:
        """Another client; closed at the end of the test."""
        ...

    async def compact(self) -> None: ...

    async def pass_time(self, seconds: float) -> None:
        """Time goes by; at once where time is injected."""
        ...

    async def cut_off(self) -> None:
        """No client gets an answer from now on."""
        ...

    async def restore(self) -> None: ...

    async def close(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.now = 1000.0
        self.state = MemoryState(lambda: self.now, max_ops=128)
        self.clients: list[MemoryStore] = []

    async def client(self) -> MemoryStore:
        self.clients.append(MemoryStore(self.state))
        return self.clients[-1]

    async def compact(self) -> None:
        self.state.compact()

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.state.settle()

    async def cut_off(self) -> None:
        for client in self.clients:
            client.reachable = False

    async def restore(self) -> None:
        for client in self.clients:
            client.reachable = True

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


LIMITS = Limits(total=2.0, attempt=0.8, answer=0.8, connect=0.5, silence=0.5)


class EtcdWorld:
    def __init__(self, cluster: EtcdCluster) -> None:
        self.cluster = cluster
        self.clients: list[EtcdStore] = []

    async def client(self, first: int = 0, limits: Limits = LIMITS) -> EtcdStore:
        """``first``: the member that it asks as long as that answers. Pages are short, so that there are
        several."""
        endpoints = self.cluster.endpoints[first:] + self.cluster.endpoints[:first]
        self.clients.append(EtcdStore(endpoints, self.cluster.tls, limits=limits, page=3))
        return self.clients[-1]

    async def compact(self) -> None:
        await self.cluster.compact()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def cut_off(self) -> None:
        for index in range(MEMBERS):
            self.cluster.pause(index)

    async def restore(self) -> None:
        await self.cluster.heal()

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


async def collected(watch: Watch, last: int) -> list[Changes | Reset]:
    """What a watch tells, up to the revision ``last``."""
    told: list[Changes | Reset] = []
    async with asyncio.timeout(PATIENCE):
        async for each in watch:
            told.append(each)
            revision = each.snapshot.revision if isinstance(each, Reset) else each.revision
            if revision >= last:
                break
    return told
