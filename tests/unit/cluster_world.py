"""Several nodes in one process that make a cluster of each other: with etcd in memory, or real servers.

Every world has loopback addresses of its own, so that the real ports can be used.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from aiohttp import web

from hactl.cluster import node_config
from hactl.cluster.draft import Draft
from hactl.cluster.etcd_alone import EtcdAlone
from hactl.cluster.etcd_config import variables
from hactl.cluster.etcd_log import EtcdLog, FileLog
from hactl.cluster.etcd_members import GrpcMembers
from hactl.cluster.join_server import serve_join
from hactl.cluster.kit import Kit, Waits, open_store
from hactl.cluster.layout import AGENT_UNIT, ETCD_UNIT, Layout
from hactl.cluster.members import Members
from hactl.cluster.memory_machine import MemoryMachine
from hactl.cluster.memory_members import MemoryEtcd, MemoryLog, MemoryMembers, MemoryServices
from hactl.cluster.memory_ring import MemoryCorosync, MemoryRing
from hactl.cluster.services import SECONDS, Services, Standing
from hactl.model.spec import Addresses
from hactl.store.memory import MemoryStore
from hactl.store.protocol import Put, Store
from tests.contract.etcd_binary import etcd_binary


@dataclass
class Node:
    """A machine of the world; ``agent`` stands for its agent: a lease, and the door for those who join."""

    world: World
    name: str
    number: int
    kit: Kit = field(init=False)
    told: list[str] = field(default_factory=list)
    agent: web.AppRunner | None = None
    _store: Store | None = None

    def __post_init__(self) -> None:
        layout = Layout(self.world.folder / self.name)
        self.machine = MemoryMachine(self.name, [self.address])
        self.services = self.world.services(layout, self)
        self.kit = Kit(
            layout=layout,
            machine=self.machine,
            services=self.services,
            ring=MemoryRing(self.world.corosync, self.name),
            members=lambda endpoints: self.world.members(endpoints, layout),
            log=self.world.log(),
            store=lambda config: self.world.store(config, layout),
            waits=self.world.waits,
        )

    @property
    def address(self) -> IPv4Address:
        return IPv4Address(f"127.{self.world.network}.0.{self.number}")

    @property
    def draft(self) -> Draft:
        where = Addresses(cluster=self.address, replication=self.address, storage=(self.address,))
        return Draft(name=self.name, addresses=where)

    @property
    def client_url(self) -> str:
        return node_config.url(self.address, node_config.CLIENT_PORT)

    def config(self) -> node_config.NodeConfig:
        return node_config.load(self.kit.layout.node_file)

    async def start_agent(self) -> None:
        config = self.config()
        self._store = self.kit.store(config)
        lease = await self._store.lease(30)
        value = json.dumps({"schema": 1, "version": "1.2.3", "since": "2026-11-01T00:00:00+00:00"}).encode()
        await self._store.commit([], [Put(f"/hactl/{config.cluster}/members/{self.name}", value, lease.id)])
        self._lease = lease
        self.agent = await serve_join(self._store, layout=self.kit.layout)

    async def stop_agent(self) -> None:
        if self.agent is not None:
            await self.agent.cleanup()
            self.agent = None
        if self._store is not None:
            await self._lease.revoke()
            await self._store.close()
            self._store = None

    async def crash(self) -> None:
        """Power off: nothing is stopped in order, and it does not come back by itself."""
        await self.stop_agent()
        await self.world.kill_etcd(self)

    def files(self) -> dict[str, int]:
        """What is under /etc/hactl, with modes."""
        top = self.kit.layout.etc
        return {str(p.relative_to(top)): p.stat().st_mode & 0o777 for p in top.rglob("*") if p.is_file()}


class World:
    """In memory. ``network`` makes addresses: 127.NETWORK.0.NUMBER."""

    def __init__(self, folder: Path, network: int) -> None:
        self.folder = folder
        self.network = network
        self.waits = Waits(pause=0.001, etcd=2.0, start=0.005)
        self.etcd = MemoryEtcd()
        self.corosync = MemoryCorosync()
        self._state = MemoryStore()
        self.nodes: dict[str, Node] = {}

    def node(self, name: str) -> Node:
        """A new machine, or the one of that name."""
        if name not in self.nodes:
            self.nodes[name] = Node(self, name, len(self.nodes) + 1)
        return self.nodes[name]

    def services(self, layout: Layout, node: Node) -> Services:
        return MemoryServices(layout, self.etcd, node.start_agent, node.stop_agent, self.corosync, node.name)

    def log(self) -> EtcdLog:
        return MemoryLog(self.etcd)

    def members(self, endpoints: Sequence[str], _: Layout) -> Members:
        return MemoryMembers(self.etcd, endpoints)

    def store(self, _: node_config.NodeConfig, __: Layout) -> Store:
        return self._state.client()

    async def kill_etcd(self, node: Node) -> None:
        services = node.services
        assert isinstance(services, MemoryServices)
        services.up.discard(ETCD_UNIT)
        self.etcd.stop(node.client_url)

    async def lose_etcd_data(self, node: Node) -> None:
        await asyncio.to_thread(shutil.rmtree, node.kit.layout.etcd_data / "member" / "wal")

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.stop_agent()


class ProcessServices:
    """Units as child processes: etcd for real, started again when it ends by itself, as systemd would."""

    def __init__(self, layout: Layout, node: Node, log: Path) -> None:
        self._layout = layout
        self._node = node
        self._log = log
        self._etcd: subprocess.Popen[bytes] | None = None
        self._again: asyncio.Task[None] | None = None
        self._alone = EtcdAlone(layout, etcd_binary())
        self.enabled: set[str] = set()

    async def known(self, unit: str) -> bool:
        return unit in (AGENT_UNIT, ETCD_UNIT)

    async def active(self, unit: str) -> bool:
        return self._etcd is not None if unit == ETCD_UNIT else self._node.agent is not None

    async def start(self, unit: str, *, wait: bool = True) -> None:
        self.enabled.add(unit)
        if unit == AGENT_UNIT:
            if self._node.agent is None:
                await self._node.start_agent()
        elif self._etcd is None:
            self._spawn()
            self._again = asyncio.create_task(self._keep())

    async def restart(self, unit: str) -> None:
        await self.kill()
        await self.start(unit)

    async def stop(self, unit: str, *, seconds: float = SECONDS) -> None:
        self.enabled.discard(unit)
        await (self._node.stop_agent() if unit == AGENT_UNIT else self.kill())

    async def standing(self, *units: str) -> dict[str, Standing]:
        return {u: Standing.ACTIVE if await self.active(u) else Standing.STOPPED for u in units}

    async def revive(self, unit: str) -> None:
        await self.start(unit)

    async def end_capture(self) -> str:
        return ""

    async def start_alone(self) -> None:
        await self._alone.start()

    async def stop_alone(self) -> None:
        await self._alone.stop()

    async def install(self) -> None:
        pass

    def pause(self) -> None:
        """Have etcd fall silent; killing it ends that."""
        assert self._etcd is not None
        self._etcd.send_signal(signal.SIGSTOP)

    async def kill(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._etcd is not None:
            self._etcd.kill()
            await asyncio.to_thread(self._etcd.wait)
            self._etcd = None

    def _spawn(self) -> None:
        # Ends with this process, however that ends.
        argv = ["setpriv", "--pdeathsig", "KILL", str(etcd_binary())]
        with self._log.open("ab") as log:
            self._etcd = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables(self._layout.etcd_file.read_text(encoding="utf-8")),
            )

    async def _keep(self) -> None:
        while self._etcd is not None:
            await asyncio.to_thread(self._etcd.wait)
            self._spawn()


class RealWorld(World):
    """With etcd's own servers, over TLS with the nodes' certificates."""

    def __init__(self, folder: Path, network: int) -> None:
        super().__init__(folder, network)
        self.waits = Waits(pause=0.2, etcd=60.0, start=10.0)

    def services(self, layout: Layout, node: Node) -> Services:
        return ProcessServices(layout, node, self.folder / f"{node.name}.log")

    def log(self) -> EtcdLog:
        return FileLog()

    def members(self, endpoints: Sequence[str], layout: Layout) -> Members:
        return GrpcMembers(endpoints, layout.certificates)

    def store(self, config: node_config.NodeConfig, layout: Layout) -> Store:
        return open_store(config, layout)

    async def kill_etcd(self, node: Node) -> None:
        services = node.services
        assert isinstance(services, ProcessServices)
        await services.kill()

    async def close(self) -> None:
        await super().close()
        for node in self.nodes.values():
            await self.kill_etcd(node)


def free_network() -> int:
    """A part of 127/8 that no other run on this machine uses."""
    return 64 + os.getpid() % 128


def allow_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a specification have the addresses that nodes in one process can have."""
    monkeypatch.setattr("hactl.model.check._unusable", lambda _: "")


def etcd_settings(node: Node) -> dict[str, str]:
    """etcd's settings as they are on the node."""
    return variables(node.kit.layout.etcd_file.read_text(encoding="utf-8"))
