"""The agent as a process: builds it from real adapters, runs it until SIGTERM, and leaves the kernel as it
is."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from aiohttp import web

from hactl.agents import peer, serve
from hactl.agents.admission import Admission
from hactl.agents.adoption import Volumes
from hactl.agents.agent import Agent
from hactl.agents.clock import BootClock
from hactl.agents.document import resource_document
from hactl.agents.exports import LioExports
from hactl.agents.journal import FileJournal
from hactl.agents.kit import Kit
from hactl.agents.leftovers import Done
from hactl.agents.membership import Membership
from hactl.agents.notify import notify
from hactl.agents.reach_probes import KernelProbes
from hactl.agents.reservations import Keeping, door_secret
from hactl.agents.source import FileSource, Source, StoreSource
from hactl.agents.status import own_node
from hactl.backing.pools import Pools
from hactl.cluster import node_config
from hactl.cluster.stack_upkeep import StackUpkeep
from hactl.errors import HactlError, Refused
from hactl.model.desired import Desired, Leftover
from hactl.model.edit_adopt import adopted
from hactl.model.leave import remove_leftovers
from hactl.model.spec import ClusterSpec, IpAddress
from hactl.pacemaker.tools import Tools
from hactl.pacemaker.upkeep import ConfigurationUpkeep
from hactl.pr_sync.forgotten import forget
from hactl.pr_sync.log import PrLog
from hactl.replication.blockdev import LsblkDevices
from hactl.replication.drbd import Drbd
from hactl.runner import CommandFailed, CommandTimeout, Runner, SubprocessRunner
from hactl.store.desired import Origin, change
from hactl.store.etcd import EtcdStore, Tls
from hactl.store.protocol import Store
from hactl.target import configfs, dm_ioctl, processors
from hactl.target.device_mapper import Dmsetup
from hactl.target.dm_ioctl import DmIoctl
from hactl.target.gate import DmGates

SPEC = Path("/etc/hactl/cluster.yaml")
"""The specification of a cluster without a store."""

_FOLLOW = 5.0
"""Seconds between two tries to listen for other agents."""
_CLEAN = 30.0
"""Seconds between two tries to clear leftovers away, without an event."""
_log = structlog.get_logger("hactl.agent")

Member = Membership | Admission | Keeping | StackUpkeep | ConfigurationUpkeep
"""What runs beside the agent where it has a store."""


@dataclass(frozen=True)
class Place:
    """Which cluster this machine is in: the store and this node's name in it, or the file (no store)."""

    source: Source
    node: str | None = None
    store: EtcdStore | None = None


def run(spec_path: Path | str | None = None, socket: Path = serve.DEFAULT_SOCKET) -> None:
    """Run this node's agent until SIGTERM or SIGINT: by the specification file ``spec_path``; without one by
    the cluster's store if ``/etc/hactl/node.yaml`` names it, else by ``/etc/hactl/cluster.yaml``. Raises
    :class:`hactl.errors.HactlError` if it cannot start."""
    if os.geteuid() != 0:
        raise Refused(
            "not-root", "the agent changes kernel state and has to run as root", "systemctl start hactl-agent"
        )
    asyncio.run(_run(None if spec_path is None else Path(spec_path), socket))


def _place(spec_path: Path | None, max_replicas: int | None) -> Place:
    if spec_path is not None or not node_config.PATH.exists():
        return Place(FileSource(spec_path or SPEC, max_replicas=max_replicas))
    config = node_config.load()
    certificates = peer.Certificates()
    store = EtcdStore(config.etcd, Tls(certificates.ca, certificates.certificate, certificates.key))
    return Place(StoreSource(store, config.cluster, max_replicas=max_replicas), config.node, store)


async def _run(spec_path: Path | None, socket: Path) -> None:
    runner = SubprocessRunner()
    fs = configfs.RealConfigFs()
    await _load_modules(runner)
    await configfs.load(runner, fs)
    processors.spare_one(fs, processors.online())
    max_replicas = 2 if await Drbd(runner, node="").version() < (9,) else None
    place = _place(spec_path, max_replicas)
    try:
        async with contextlib.aclosing(place.source.states()) as states:
            desired = await anext(states)
            node = place.node or _own_node(desired)
            # One that is alone in its cluster, and stays so, needs no certificates.
            alone = place.store is None and len(desired.cluster.nodes) == 1
            certificates = None if alone else peer.Certificates()
            client = None if certificates is None else certificates.client()
            server = None if certificates is None else certificates.server()
            peers = peer.HttpsPeers(client)
            exports = LioExports(fs, node)
            pacemaker = None if place.store is None else Tools(runner)
            agent = Agent(desired, node, _kit(runner, exports, node, peers, pacemaker))
            keeping = None
            if place.store is not None:
                keeping = Keeping(agent, exports, place.store, fs, runner, door_secret())
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            try:
                await _serve(agent, place, states, (client, server), socket, stop, keeping)
            finally:
                notify("STOPPING=1")
                # I/O goes on without the agent: nothing in the kernel is taken back.
                await agent.close()
                await peers.close()
                _log.info("agent stopped", node=node)
    finally:
        if place.store is not None:
            await place.store.close()


def _own_node(desired: Desired) -> str:
    hostname = os.uname().nodename
    try:
        return own_node(desired.cluster, hostname)
    except KeyError:
        known = ", ".join(n.name for n in desired.cluster.nodes)
        raise Refused(
            "not-a-node",
            f"this machine is {hostname!r}, which the specification does not name",
            f"nodes are {known}; see hostnamectl",
        ) from None


def _kit(
    runner: Runner, exports: LioExports, node: str, peers: peer.HttpsPeers, pacemaker: Tools | None
) -> Kit:
    return Kit(
        # A change of role that takes longer than a handover may last is of no use to it.
        drbd=Drbd(runner, node=node, role_timeout=8.0),
        gates=DmGates(DmIoctl(Dmsetup(runner), dm_ioctl.kernel())),
        exports=exports,
        journal=FileJournal(),
        peers=peers,
        clock=BootClock(),
        disks=LsblkDevices(runner),
        backing=Pools(runner),
        pacemaker=pacemaker,
        storage=KernelProbes(runner),
    )


async def _serve(
    agent: Agent,
    place: Place,
    states: AsyncGenerator[Desired, None],
    contexts: tuple[ssl.SSLContext | None, ssl.SSLContext | None],
    socket: Path,
    stop: asyncio.Event,
    keeping: Keeping | None,
) -> None:
    runners: list[web.AppRunner] = []
    listener = Listener(agent, contexts[1])
    members: Sequence[Member] = ()
    agent.reporters.append(place.source)
    told: list[Callable[[ClusterSpec], None]] = []
    if place.store is not None:
        shown = tuple(context for context in contexts if context is not None)
        stack = StackUpkeep(agent.node, agent.cluster)
        members = (_membership(agent, place.store), Admission(place.store, shown), stack)
        told.append(stack.update)
        if agent.kit.pacemaker is not None:
            configuration = ConfigurationUpkeep(agent.node, agent.cluster, agent.kit.pacemaker)
            members = (*members, configuration)
            told.append(configuration.update)
        if keeping is not None:
            members = (*members, keeping)
            told.append(keeping.service.update)
        agent.reporters.extend(members)
        agent.leftovers.done = _reporting(agent, place.store)
        agent.adoptions.done = _taken_over(agent, place.store)
    try:
        await agent.start()
        runners.append(await serve.listen(serve.Api(agent).app(), socket))
        await listener.follow()
        notify("READY=1")
        _log.info("agent started", node=agent.node, resources=sorted(agent.keepers))
        await keep(agent, stop, states, _followed(listener, agent, told), members)
    finally:
        for site in runners:
            await site.cleanup()
        await listener.close()


def _membership(agent: Agent, store: Store) -> Membership:
    async def document(name: str) -> dict[str, object] | None:
        keeper = agent.keepers.get(name)
        return None if keeper is None else await resource_document(keeper)

    return Membership(
        store,
        agent.cluster.name,
        agent.node,
        boot=agent.kit.clock.boot(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        document=document,
        names=agent.keepers.keys,
        news=agent.news,
    )


def _reporting(agent: Agent, store: Store) -> Done:
    async def done(gone: Sequence[Leftover]) -> None:
        names = ", ".join(f"{left.resource}/{left.volume}" for left in gone)
        now = await change(
            store,
            agent.cluster.name,
            lambda now: remove_leftovers(now, gone),
            what=f"{agent.node} has removed what was left of {names}",
            origin=Origin(agent.node),
        )
        await forget(PrLog(store, agent.cluster.name, agent.node), gone, now)

    return done


def _taken_over(agent: Agent, store: Store) -> Callable[[Volumes], Awaitable[None]]:
    async def done(over: Volumes) -> None:
        await change(
            store,
            agent.cluster.name,
            lambda now: functools.reduce(lambda n, r: adopted(n, r, agent.node, over[r]), sorted(over), now),
            what=f"{agent.node} has taken over the data of {', '.join(sorted(over))}",
            origin=Origin(agent.node),
        )

    return done


async def _load_modules(runner: Runner) -> None:
    try:
        await runner.run(["modprobe", "--all", "dm_mod", "drbd"])
    except (CommandFailed, CommandTimeout) as error:
        raise Refused(
            "modules-missing",
            f"device-mapper and DRBD cannot be loaded: {error}",
            "install a kernel that has both, or drbd-dkms",
        ) from None


class Listener:
    """The port for the other agents, on this node's cluster address, which may change."""

    def __init__(self, agent: Agent, context: ssl.SSLContext | None, port: int = peer.PORT) -> None:
        self._agent = agent
        self._context = context
        self._port = port
        self._address: IpAddress | None = None
        self._runner: web.AppRunner | None = None
        self._problem: HactlError | None = None
        self._one = asyncio.Lock()
        self._began = False
        agent.reporters.append(self)

    @property
    def problem(self) -> str | None:
        """Why other agents cannot reach this one."""
        return None if self._problem is None else str(self._problem)

    async def follow(self) -> None:
        """Listen where the specification says now. The first time raises if that cannot be; later it is a
        ``problem``, and to be tried again."""
        async with self._one:
            await self._follow()

    async def _follow(self) -> None:
        agent = self._agent
        address = next((n.addresses.cluster for n in agent.cluster.nodes if n.name == agent.node), None)
        if self._context is None or address is None or address == self._address:
            return
        await self.close()
        try:
            app = peer.app(agent, lambda: agent.views.keys())
            self._runner = await peer.listen(app, address, self._context, self._port)
        except HactlError as error:
            if not self._began:
                raise
            if self._problem is None:
                _log.error("other agents cannot reach this one", error=str(error))
            self._problem = error
            return
        self._began, self._address, self._problem = True, address, None

    async def close(self) -> None:
        self._address = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


def _followed(
    listener: Listener, agent: Agent, told: Sequence[Callable[[ClusterSpec], None]]
) -> Callable[[], Awaitable[None]]:
    async def follow() -> None:
        for tell in told:
            tell(agent.cluster)
        await listener.follow()

    return follow


async def _nothing() -> None:
    """Where nothing else follows what shall be."""


async def keep(
    agent: Agent,
    stop: asyncio.Event,
    states: AsyncGenerator[Desired, None] | None = None,
    follow: Callable[[], Awaitable[None]] = _nothing,
    members: Sequence[Member] = (),
) -> None:
    """Attend to everything at once, to what events are about, and to what is due after
    ``agent.next_pass()`` seconds; follow ``states``; until ``stop``."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(agent)) for work in (_watch, _loop, _clean)]
        tasks.append(group.create_task(agent.fencing.run()))
        tasks.append(group.create_task(agent.storage.run()))
        tasks += [group.create_task(member.run()) for member in members]
        if states is not None:
            tasks.append(group.create_task(_follow(agent, states, follow)))
            tasks.append(group.create_task(_again(follow)))
        await stop.wait()
        # In the middle of a pass this is like a kill, which every step is made to survive.
        for task in tasks:
            task.cancel()


async def _loop(agent: Agent) -> None:
    while True:
        await agent.calm.returned(agent.timings.calm)
        agent.wake.clear()
        await agent.attend()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(agent.next_pass()):
                await agent.wake.wait()


async def _watch(agent: Agent) -> None:
    """Tell the agent when DRBD says something new. The stream restarts by itself; if it cannot, try later."""
    while True:
        try:
            await agent.follower.follow(agent.noticed)
        except HactlError as error:
            _log.warning("no events from DRBD", error=str(error))
        await asyncio.sleep(1)


async def _follow(
    agent: Agent, states: AsyncGenerator[Desired, None], follow: Callable[[], Awaitable[None]]
) -> None:
    """Take up what shall be, whenever it changes."""
    async for desired in states:
        agent.update(desired)
        await follow()


async def _again(follow: Callable[[], Awaitable[None]]) -> None:
    """Try again what could not follow at once: an address may be there a moment later."""
    while True:
        await asyncio.sleep(_FOLLOW)
        await follow()


async def _clean(agent: Agent) -> None:
    """Clear leftovers away, when there may be something to do and then again."""
    while True:
        await agent.clean()
        await asyncio.sleep(1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLEAN):
                await agent.leftovers.event.wait()
