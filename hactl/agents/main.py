"""The agent as a process: builds it from real adapters, runs it until SIGTERM, and leaves the kernel as it
is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import structlog
from aiohttp import web

from hactl.agents import peer, serve
from hactl.agents.agent import Agent
from hactl.agents.clock import BootClock
from hactl.agents.exports import LioExports
from hactl.agents.journal import FileJournal
from hactl.agents.kit import Kit
from hactl.agents.notify import notify
from hactl.agents.status import own_node
from hactl.errors import HactlError, Refused
from hactl.model.load import load
from hactl.replication.blockdev import LsblkDevices
from hactl.replication.drbd import Drbd
from hactl.runner import CommandFailed, CommandTimeout, Runner, SubprocessRunner
from hactl.target import configfs, dm_ioctl
from hactl.target.device_mapper import Dmsetup
from hactl.target.dm_ioctl import DmIoctl
from hactl.target.gate import DmGates

_log = structlog.get_logger("hactl.agent")


def run(spec_path: Path | str, socket: Path = serve.DEFAULT_SOCKET) -> None:
    """Run this node's agent until SIGTERM or SIGINT. Raises :class:`hactl.errors.HactlError` if it cannot
    start."""
    if os.geteuid() != 0:
        raise Refused(
            "not-root", "the agent changes kernel state and has to run as root", "systemctl start hactl-agent"
        )
    asyncio.run(_run(Path(spec_path), socket))


async def _run(spec_path: Path, socket: Path) -> None:
    cluster = load(spec_path)
    hostname = os.uname().nodename
    try:
        node = own_node(cluster, hostname)
    except KeyError:
        known = ", ".join(n.name for n in cluster.nodes)
        raise Refused(
            "not-a-node",
            f"this machine is {hostname!r}, which {spec_path} does not name",
            f"nodes are {known}; see hostnamectl",
        ) from None
    runner = SubprocessRunner()
    fs = configfs.RealConfigFs()
    await _load_modules(runner)
    await configfs.load(runner, fs)
    # One that is alone in its cluster needs no certificates.
    alone = len(cluster.nodes) == 1
    certificates = peer.Certificates()
    client = None if alone else certificates.client()
    peers = peer.HttpsPeers(cluster, client)
    # A change of role that takes longer than a handover may last is of no use to it.
    drbd = Drbd(runner, node=node, role_timeout=8.0)
    if await drbd.version() < (9,):
        # Read once more rather than judged alone: findings come with their line in the file.
        load(spec_path, max_replicas=2)
    kit = Kit(
        drbd=drbd,
        gates=DmGates(DmIoctl(Dmsetup(runner), dm_ioctl.kernel())),
        exports=LioExports(fs, cluster, node),
        journal=FileJournal(),
        peers=peers,
        clock=BootClock(),
        disks=LsblkDevices(runner),
    )
    agent = Agent(cluster, node, kit)
    runners: list[web.AppRunner] = []
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await agent.start()
        runners.append(await serve.listen(serve.Api(agent).app(), socket))
        if not alone:
            address = cluster.node(node).addresses.cluster
            runners.append(await peer.listen(peer.app(agent, cluster, node), address, certificates.server()))
        notify("READY=1")
        _log.info("agent started", node=node, resources=sorted(agent.keepers))
        await keep(agent, stop)
    finally:
        notify("STOPPING=1")
        # I/O goes on without the agent: nothing in the kernel is taken back.
        for site in runners:
            await site.cleanup()
        await peers.close()
        _log.info("agent stopped", node=node)


async def _load_modules(runner: Runner) -> None:
    try:
        await runner.run(["modprobe", "--all", "dm_mod", "drbd"])
    except (CommandFailed, CommandTimeout) as error:
        raise Refused(
            "modules-missing",
            f"device-mapper and DRBD cannot be loaded: {error}",
            "install a kernel that has both, or drbd-dkms",
        ) from None


async def keep(agent: Agent, stop: asyncio.Event) -> None:
    """Reconcile at once, after each event, and after ``agent.next_pass()`` seconds, until ``stop``."""
    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(_watch(agent))
        loop = group.create_task(_loop(agent))
        await stop.wait()
        watcher.cancel()
        # In the middle of a pass this is like a kill, which every step is made to survive.
        loop.cancel()


async def _loop(agent: Agent) -> None:
    while True:
        await agent.calm.returned(agent.timings.calm)
        agent.wake.clear()
        await agent.reconcile()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(agent.next_pass()):
                await agent.wake.wait()


async def _watch(agent: Agent) -> None:
    """Wake the agent when DRBD says something new. The stream restarts by itself; if it cannot, try later."""
    while True:
        try:
            await agent.follower.follow(agent.wake.set)
        except HactlError as error:
            _log.warning("no events from DRBD", error=str(error))
        await asyncio.sleep(1)
