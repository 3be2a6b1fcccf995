"""Three nodes in one process, made of the in-memory twins, and an initiator that writes to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hactl.agents.agent import Agent
from hactl.agents.clock import MemoryClock
from hactl.agents.exports import LioExports
from hactl.agents.journal import MemoryJournal
from hactl.agents.kit import Kit, Timings
from hactl.agents.memory_peers import Killed, MemoryNetwork
from hactl.alua.groups import observe_states
from hactl.alua.states import AccessState
from hactl.backing.memory import MemoryBacking
from hactl.errors import HactlError
from hactl.model.desired import Desired, Leftover
from hactl.model.spec import ClusterSpec
from hactl.replication.memory import MemoryDrbd, MemoryDrbdCluster
from hactl.replication.memory_blockdev import MemoryDrbdDevices
from hactl.target.gates import Mode, gate_name
from hactl.target.memory import MemoryConfigFs
from hactl.target.memory_gates import MemoryGates, Write

NODES = ("n1", "n2", "n3")
R0 = "r0"


def cluster(volumes: int = 1) -> ClusterSpec:
    """Three nodes that export r0, of which n1 and n2 hold replicas."""
    return ClusterSpec.model_validate(
        {
            "name": "c",
            "nodes": [
                {
                    "name": name,
                    "id": i,
                    "addresses": {
                        "cluster": f"192.0.2.{i}",
                        "replication": f"198.51.100.{i}",
                        "storage": [f"203.0.113.{i}"],
                    },
                }
                for i, name in enumerate(NODES, 1)
            ],
            "hosts": [{"name": "h1", "initiators": ["iqn.2024-01.example:h1"]}],
            "resources": [
                {
                    "name": R0,
                    "id": 1,
                    "iqn": "iqn.2024-01.example:r0",
                    "nodes": list(NODES),
                    "hosts": ["h1"],
                    "volumes": [
                        {
                            "number": n,
                            "lun": n,
                            "size": "64M",
                            "disks": dict.fromkeys(("n1", "n2"), f"/dev/vd{n}"),
                        }
                        for n in range(volumes)
                    ],
                }
            ],
        }
    )


T = TypeVar("T")


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that does not wait for anything."""
    try:
        work.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("it waits")


class FaultyDrbd(MemoryDrbd):
    """The twin, with errors to come: the next ones of ``fail[what]`` are raised instead of doing it."""

    def __init__(self, cluster: MemoryDrbdCluster, node: str) -> None:
        super().__init__(cluster, node)
        self.fail: dict[str, list[HactlError]] = {"primary": [], "secondary": []}
        self.may_promote = asyncio.Event()
        self.may_promote.set()

    async def primary(self, name: str) -> None:
        await self.may_promote.wait()
        if self.fail["primary"]:
            raise self.fail["primary"].pop(0)
        await super().primary(name)

    async def secondary(self, name: str) -> None:
        if self.fail["secondary"]:
            raise self.fail["secondary"].pop(0)
        await super().secondary(name)


class FaultyGates(MemoryGates):
    """The twin, with errors to come and a look at what is so when a gate is closed."""

    def __init__(self, drbd: MemoryDrbd) -> None:
        super().__init__(drbd)
        self.fail: list[HactlError] = []
        self.closing: Callable[[], None] = lambda: None

    async def open(self, name: str, backing: str) -> None:
        if self.fail:
            raise self.fail.pop(0)
        await super().open(name, backing)

    async def close(self, name: str) -> None:
        self.closing()
        await super().close(name)


@dataclass
class Machine:
    """What of a node outlives its agent."""

    drbd: FaultyDrbd
    gates: FaultyGates
    exports: LioExports
    journal: MemoryJournal
    clock: MemoryClock
    fs: MemoryConfigFs
    disks: MemoryDrbdDevices
    backing: MemoryBacking


@dataclass
class World:
    """The cluster. ``steps`` records (node, resource, step) of everything the agents did."""

    spec: ClusterSpec = field(default_factory=cluster)
    timings: Timings = field(default_factory=lambda: Timings(rest=0.0))

    def __post_init__(self) -> None:
        self.drbd = MemoryDrbdCluster(NODES)
        self.network = MemoryNetwork()
        self.machines: dict[str, Machine] = {}
        self.agents: dict[str, Agent] = {}
        self.steps: list[tuple[str, str, str]] = []
        self.kill: Callable[[str, str], bool] = lambda node, step: False
        self.wrap: Callable[[str, Kit], Kit] = lambda node, kit: kit
        self.leftovers: tuple[Leftover, ...] = ()
        self.seconds: float | None = None
        """What the agents' waits are counted by, once a test sets it."""
        for node in NODES:
            drbd = FaultyDrbd(self.drbd, node)
            fs = MemoryConfigFs()
            exports = LioExports(fs, node)
            self.machines[node] = Machine(
                drbd,
                FaultyGates(drbd),
                exports,
                MemoryJournal(),
                MemoryClock(),
                fs,
                MemoryDrbdDevices(self.drbd, node),
                MemoryBacking({"fast": 1 << 40, "files": 1 << 40}, drbd=self.drbd, node=node),
            )

    async def start(self, node: str) -> Agent:
        """Start an agent, or replace a dead one: only what a machine keeps is still there."""
        machine = self.machines[node]
        kit = Kit(
            machine.drbd,
            machine.gates,
            machine.exports,
            machine.journal,
            self.network.peers(node),
            machine.clock,
            machine.disks,
            machine.backing,
        )

        def after_step(resource: str, step: str) -> None:
            self.steps.append((node, resource, step))
            self.check()
            if self.kill(node, step):
                self.network.services.pop(node, None)
                raise Killed(f"{node} after {step}")

        agent = Agent(
            self.desired(),
            node,
            self.wrap(node, kit),
            timings=self.timings,
            after_step=after_step,
            seconds=lambda: self.seconds if self.seconds is not None else time.monotonic(),
        )
        await agent.start()
        self.agents[node] = agent
        self.network.services[node] = agent
        return agent

    def desired(self) -> Desired:
        """What shall be now."""
        return Desired(self.spec, self.leftovers)

    def update(self, spec: ClusterSpec, leftovers: tuple[Leftover, ...] = ()) -> None:
        """From now on it shall be like this; every living agent is told."""
        self.spec, self.leftovers = spec, leftovers
        for node in self.network.services:
            self.agents[node].update(self.desired())

    async def up(self) -> World:
        for node in NODES:
            await self.start(node)
        await self.converge()
        return self

    async def converge(self, passes: int = 8) -> None:
        """Let every living agent reconcile, several times; their clocks go on meanwhile."""
        for _ in range(passes):
            for node in NODES:
                if node in self.network.services:
                    await self.agents[node].reconcile()
                    await self.agents[node].settled()

    async def attend(self, passes: int = 8) -> None:
        """Let every living agent do what is due, and not more, again and again; time goes on."""
        for _ in range(passes):
            self.seconds = (self.seconds or 0.0) + 1.0
            for node in NODES:
                if node in self.network.services:
                    await self.agents[node].attend()
                    await self.agents[node].settled()

    async def restart_dead(self) -> None:
        self.kill = lambda node, step: False
        for node in NODES:
            if node not in self.network.services:
                await self.start(node)

    def tick(self, seconds: float) -> None:
        for machine in self.machines.values():
            machine.clock.seconds += seconds

    def open_at(self, volume: int = 0) -> list[str]:
        return [node for node, mode in self.modes(volume).items() if mode is Mode.OPEN]

    def alua(self, node: str) -> dict[str, AccessState]:
        """What a path through ``node`` reports of volume 0."""
        return observe_states(self.machines[node].fs, self.spec, self.spec.resource(R0))[0]

    def modes(self, volume: int = 0) -> dict[str, Mode]:
        gates = {node: at_once(machine.gates.observe()) for node, machine in self.machines.items()}
        name = gate_name(R0, volume)
        return {node: found[name].mode for node, found in gates.items() if name in found}

    def write(self, node: str, block: int, value: str) -> Write:
        return self.machines[node].gates.write(gate_name(R0, 0), block, value)

    def read(self, block: int) -> str | None:
        (node,) = self.open_at()
        return self.machines[node].gates.read(gate_name(R0, 0), block)

    def check(self) -> None:
        """Invariants that hold after every single step."""
        volumes = [v for r in self.spec.resources for v in r.volumes]
        for volume in volumes:
            assert len(self.open_at(volume.number)) <= 1, "two gates of one volume are open"

    def roles(self) -> dict[str, str]:
        return {node: self.agents[node].keepers[R0].record.role.value for node in NODES}

    async def seen(self) -> dict[str, object]:
        """All that can be observed, to compare before and after a refusal."""
        found: dict[str, object] = {}
        for node, machine in self.machines.items():
            found[node] = (
                await machine.drbd.observe(),
                await machine.gates.observe(),
                await machine.exports.states(self.spec, self.spec.resource(R0)),
                machine.journal.read(),
            )
        return found


class Initiator:
    """A host with multipath: writes to the path that is active/optimized, retries what fails on any."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged: dict[int, str] = {}
        self.retried = 0
        self.stop = False

    async def run(self) -> None:
        value = 0
        while not self.stop:
            value += 1
            await self.write(value % 7, str(value))
            await asyncio.sleep(0.0005)

    async def write(self, block: int, value: str) -> None:
        while True:
            for node in self._paths():
                if await self.world.write(node, block, value).ended() == "done":
                    self.acknowledged[block] = value
                    return
                self.retried += 1
            await asyncio.sleep(0.0005)

    def _paths(self) -> list[str]:
        def rank(node: str) -> bool:
            return self.world.alua(node)[node] is not AccessState.ACTIVE_OPTIMIZED

        return sorted(NODES, key=rank)

    def check(self) -> None:
        for block, value in self.acknowledged.items():
            assert self.world.read(block) == value


async def refused(work: Awaitable[object]) -> HactlError:
    try:
        await work
    except HactlError as error:
        return error
    raise AssertionError("it was not refused")


async def active(world: World, node: str = "n1") -> World:
    """The world with r0 active on a node and everybody knowing it."""
    await world.up()
    await world.agents[node].promote(R0)
    await world.converge(2)
    return world
