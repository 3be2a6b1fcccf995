"""All units of a node: from nothing to serving, through restarts and changes, on twins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hactl.errors import Failed, Refused
from hactl.model.spec import ClusterSpec, HostSpec
from hactl.pr_sync.aptpl import Record, state_of
from hactl.pr_sync.capture.memory import MemoryCapture
from hactl.pr_sync.capture.protocol import Held
from hactl.pr_sync.commands import Command
from hactl.pr_sync.memory_kernel import MemoryUnit
from hactl.pr_sync.service import Reservations
from hactl.pr_sync.state import Action, Nexus, State, Type
from hactl.pr_sync.sync import Limits
from hactl.pr_sync.units import Unit
from hactl.store.memory import MemoryState, MemoryStore
from tests.lio_import import written
from tests.unit.pr_world import LoopClock, register
from tests.unit.replication_spec import cluster, resource

LIMITS = Limits(again=0.001)


class Exported(MemoryUnit):
    """A unit in a kernel that has to be exported before anything can be asked of it."""

    opened = False

    def __init__(self, unit: Unit, now: Callable[[], float], changed: Callable[[], None], node: Host) -> None:
        super().__init__(unit, now, changed, node.name)
        self.host = node

    def arrived(self, held: Held) -> None:
        raise AssertionError("the twin holds by itself")

    async def read(self, known: State) -> State:
        if self.unit.serial not in self.host.exports.get(self.unit.resource, set()):
            raise Failed("iscsi-refused", f"{self.unit.name} is not exported", "export it")
        return await super().read(known)

    def adopt(self, other: Exported) -> None:
        """It is the same kernel, with another agent that looks at it."""
        self.state = other.state
        self._held |= other._held
        self._next = max(self._next, other._next)

    async def rebuild(self, state: State) -> None:
        self.hang_up()
        self.rebuilt += 1
        assert self.host.service is not None
        await self.host.service.rebuild(self.unit, state)

    async def shut(self) -> None:
        self.opened = False


def record_of(unit: Unit, line: str) -> Record:
    """What the kernel makes of a line that is imported."""
    found = written(line.encode())
    rtpi = next(p.rtpi for p in unit.ports if p.tag == found.tpgt)
    nexus = Nexus(found.initiator, found.isid or "", rtpi)
    held = Type(found.type) if found.holder else None
    return Record(
        nexus, found.key, found.all_tg_pt, held, found.mapped_lun, found.target, found.tpgt, found.lun
    )


@dataclass
class Host:
    """A node: its kernel outlives its agent. Keeps :class:`hactl.pr_sync.service.Node`."""

    name: str
    clock: Clock
    folder: Path
    exports: dict[str, set[str]] = field(default_factory=dict)
    kernels: dict[str, Exported] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)
    ready: bool = True
    claimed: bool = False
    elsewhere: bool = False
    service: Reservations | None = None
    spec: ClusterSpec | None = None

    def make(self, unit: Unit, changed: Callable[[], None]) -> Exported:
        kernel = Exported(unit, self.clock.now, changed, self)
        if unit.serial in self.kernels:
            kernel.adopt(self.kernels[unit.serial])
        self.kernels[unit.serial] = kernel
        return kernel

    async def attend_to(self, resource: str) -> None:
        assert self.service is not None
        assert self.spec is not None
        if not self.ready:
            raise Failed("disk-missing", "there is no disk", "plug it in")
        tree = self.service.tree(self.spec.resource(resource))
        assert tree is not None
        serials = {s: k for s, k in self.kernels.items() if k.unit.resource == resource}
        if tree.absent:
            self.exports.pop(resource, None)
            self.open.discard(resource)
            for kernel in serials.values():
                # PRgeneration goes on for as long as the backstore lives.
                kernel.state = State(kernel.state.generation)
            return
        there = self.exports.setdefault(resource, set())
        for serial, kernel in serials.items():
            if serial not in there:
                records = [record_of(kernel.unit, line) for line in tree.imports[kernel.unit.volume]]
                kernel.state = state_of(records, kernel.state.generation + len(records))
                there.add(serial)
        (self.open.add if tree.open else self.open.discard)(resource)

    async def close_doors(self, resource: str) -> None:
        """There are none."""

    async def claim_directory(self) -> None:
        self.claimed = True

    async def check_directory(self) -> None:
        if self.elsewhere:
            raise Failed("capture-elsewhere", "LIO writes elsewhere")

    async def shut_port(self, resource: str) -> None:
        self.open.discard(resource)

    def serving(self, resource: str) -> bool:
        return resource in self.open

    def withdrawn(self, resource: str) -> bool:
        return resource in self.stopped

    def exported(self, resource: str) -> bool:
        return resource in self.exports


@dataclass
class Cluster:
    state: MemoryState
    spec: ClusterSpec
    hosts: dict[str, Host]
    tasks: dict[str, asyncio.Task[None]]
    tmp: Path

    async def start(self, name: str) -> None:
        """Start the agent of a node."""
        host = self.hosts[name]
        capture = MemoryCapture().client()
        host.spec = self.spec
        service = host.service = Reservations(
            name,
            self.spec.name,
            MemoryStore(self.state),
            capture,
            self,
            host.clock,
            host,
            host.make,
            folder=host.folder,
            limits=LIMITS,
        )
        service.update(self.spec)
        self.tasks[name] = asyncio.create_task(service.run())

    async def kill(self, name: str) -> None:
        """The agent's end; the kernel goes on."""
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.hosts[name].service = None

    def lose(self, name: str) -> None:
        """The machine's end; call ``kill`` first."""
        host = self.hosts[name]
        host.exports.clear()
        host.kernels.clear()
        host.open.clear()
        host.clock.boots += 1

    async def applied(self, node: str, serial: str, index: int) -> None:
        """Keeps :class:`hactl.pr_sync.sync.Members`."""
        service = self.hosts[node].service
        if service is None:
            raise Refused("peer-unreachable", f"{node} cannot be reached")
        await service.applied(serial, index)

    def kernel(self, node: str, volume: int = 0) -> Exported:
        return next(k for k in self.hosts[node].kernels.values() if k.unit.volume == volume)

    def nexus(self, host: int, node: str) -> Nexus:
        unit = self.kernel(node).unit
        return Nexus(sorted(unit.mapped)[host], "00023d000001", unit.port(node).rtpi)

    def describe(self, spec: ClusterSpec) -> None:
        """The configuration changes, and all agents hear of it."""
        self.spec = spec
        for host in self.hosts.values():
            host.spec = spec
            if host.service is not None:
                host.service.update(spec)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - the twins have no event for what is looked at
                await asyncio.sleep(0.001)

    async def serving(self, *names: str) -> None:
        await self.until(lambda: all("r0" in self.hosts[n].open for n in names))

    def agree(self, *names: str) -> bool:
        return len({self.kernel(n).state for n in names}) == 1


class Clock(LoopClock):
    """A clock of a machine that may boot again."""

    boots = 0

    def boot(self) -> str:
        return str(self.boots)


def spec_of(volumes: int = 1, nodes: tuple[str, ...] = ("n1", "n2")) -> ClusterSpec:
    spec = resource(volumes=volumes, nodes=nodes, replicas=nodes).model_copy(update={"hosts": ("a", "b")})
    hosts = tuple(HostSpec(name=n, initiators=(f"iqn.2026-11.org.example:{n}",)) for n in ("a", "b"))
    return cluster(spec).model_copy(update={"hosts": hosts})


@asynccontextmanager
async def running(tmp: Path, *names: str) -> AsyncIterator[Cluster]:
    hosts = {n: Host(n, Clock(), tmp / n) for n in ("n1", "n2")}
    made = Cluster(MemoryState(), spec_of(), hosts, {}, tmp)
    for name in names:
        await made.start(name)
    try:
        yield made
    finally:
        for name in [*made.tasks]:
            await made.kill(name)


async def test_a_node_serves_when_it_has_the_log_and_is_a_member(tmp_path: Path) -> None:
    async with running(tmp_path, "n1") as c:
        await c.serving("n1")
        a = c.nexus(0, "n1")
        assert (await c.kernel("n1").send(register(a, 0xA))).good
        assert (await c.kernel("n1").send(Command(a, Action.RESERVE, 0xA, type=5))).good
        assert c.hosts["n1"].service is not None
        assert c.hosts["n1"].service.unready("r0") is None
        # Another one comes: it has everything before anybody reaches it.
        seen = []
        c.hosts["n2"].open = Watched(lambda: seen.append(c.kernel("n2").state))
        await c.start("n2")
        await c.serving("n2")
        assert seen[0] == c.kernel("n1").state
        b = c.nexus(1, "n2")
        assert (await c.kernel("n2").send(register(b, 0xB))).good
        assert c.agree("n1", "n2")


class Watched(set[str]):
    """Tells when something comes in."""

    def __init__(self, told: Callable[[], None]) -> None:
        super().__init__()
        self.told = told

    def add(self, item: str) -> None:
        self.told()
        super().add(item)


async def test_what_lio_writes_elsewhere_is_not_served(tmp_path: Path) -> None:
    async with running(tmp_path) as c:
        host = c.hosts["n1"]
        host.elsewhere = True
        await c.start("n1")
        await c.until(lambda: host.service is not None and host.service.problem is not None)
        assert host.service is not None
        assert "elsewhere" in str(host.service.problem)
        assert host.claimed
        assert host.open == set()
        host.elsewhere = False
        await c.serving("n1")


async def test_a_killed_agent_finds_its_kernel_as_it_was(tmp_path: Path) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        a, b = c.nexus(0, "n1"), c.nexus(1, "n2")
        assert (await c.kernel("n1").send(register(a, 0xA))).good
        await c.kill("n1")
        # Initiators go on; what they change waits.
        kernel = c.kernel("n1")
        waiting = asyncio.create_task(kernel.send(Command(a, Action.RESERVE, 0xA, type=5)))
        await c.until(lambda: bool(kernel.waiting()))
        # It is a member still, so nothing is answered elsewhere either.
        other = asyncio.create_task(c.kernel("n2").send(register(b, 0xB)))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        assert not other.done()
        await c.start("n1")
        c.kernel("n1").adopt(kernel)
        assert (await waiting).good
        assert (await other).good
        await c.until(lambda: c.agree("n1", "n2"))
        assert c.kernel("n1").rebuilt == c.kernel("n2").rebuilt == 0


async def test_a_lost_machine_comes_back_with_all_it_missed(tmp_path: Path) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        a, b = c.nexus(0, "n1"), c.nexus(1, "n2")
        assert (await c.kernel("n1").send(register(a, 0xA))).good
        await c.kill("n1")
        c.lose("n1")
        service = c.hosts["n2"].service
        assert service is not None
        await service.confirm("r0", ["n1"])
        assert (await c.kernel("n2").send(register(b, 0xB))).good
        assert (await c.kernel("n2").send(Command(b, Action.PREEMPT, 0xB, 0xA, type=5))).good
        await c.start("n1")
        await c.serving("n1")
        await c.until(lambda: c.agree("n1", "n2"))
        assert [r.key for r in c.kernel("n1").state.registrations.values()] == [0xB]
        # A member again.
        assert (await c.kernel("n2").send(Command(b, Action.RESERVE, 0xB, type=5))).good
        assert c.agree("n1", "n2")


async def test_who_loses_a_race_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        a, b = c.nexus(0, "n1"), c.nexus(1, "n2")
        assert (await c.kernel("n1").send(register(a, 0xA))).good
        assert (await c.kernel("n2").send(register(b, 0xB))).good
        for _ in range(6):
            outcomes = await asyncio.gather(
                c.kernel("n1").send(Command(a, Action.RESERVE, 0xA, type=1)),
                c.kernel("n2").send(Command(b, Action.RESERVE, 0xB, type=1)),
                return_exceptions=True,
            )
            assert sum(not isinstance(o, BaseException) and o.good for o in outcomes) == 1, outcomes
            await c.serving("n1", "n2")
            await c.until(lambda: c.agree("n1", "n2"))
            held = c.kernel("n1").state.reservation
            assert held is not None
            winner, key, node = (a, 0xA, "n1") if held.holder == a else (b, 0xB, "n2")
            assert (await c.kernel(node).send(Command(winner, Action.RELEASE, key, type=1))).good
        # What the loser did is taken back where it is.
        assert sum(len(c.kernel(n).cuts) for n in ("n1", "n2")) >= 1
        assert [c.kernel(n).rebuilt for n in ("n1", "n2")] == [0, 0]


async def test_a_unit_that_is_made_anew_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        a, b = c.nexus(0, "n1"), c.nexus(1, "n2")
        assert (await c.kernel("n2").send(register(b, 0xB))).good
        for turn in range(20):
            assert (await c.kernel("n1").send(register(a, 0xA))).good
            # LIO would forget the first session's registration with the second's.
            second = replace(b, isid=f"{turn + 9:012x}")
            await asyncio.gather(
                c.kernel("n1").send(Command(a, Action.CLEAR, 0xA)),
                c.kernel("n2").send(register(second, 0xC)),
                return_exceptions=True,
            )
            await c.serving("n1", "n2")
            await c.until(lambda: c.agree("n1", "n2"))
            if c.kernel("n2").rebuilt:
                break
            assert (await c.kernel("n2").send(register(b, 0xB))).good
        assert c.kernel("n2").rebuilt == 1
        assert (await c.kernel("n2").send(register(b, 0xD))).good
        assert c.agree("n1", "n2")


async def test_who_was_taken_out_does_not_become_active(tmp_path: Path) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        one, two = (c.hosts[n].service for n in ("n1", "n2"))
        assert one is not None
        assert two is not None
        await two.confirm("r0", ["n1"])
        with pytest.raises(Refused) as refused:
            await one.confirm("r0", [])
        assert refused.value.code == "reservations-behind"


async def test_after_the_loss_of_all_machines_everything_is_there_again(tmp_path: Path) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        a, b = c.nexus(0, "n1"), c.nexus(1, "n2")
        assert (await c.kernel("n1").send(register(a, 0xA))).good
        assert (await c.kernel("n2").send(register(b, 0xB))).good
        assert (await c.kernel("n2").send(register(b, 0xBB))).good
        assert (await c.kernel("n1").send(Command(a, Action.RESERVE, 0xA, type=3))).good
        before = c.kernel("n1").state
        for name in ("n1", "n2"):
            await c.kill(name)
            c.lose(name)
        for name in ("n1", "n2"):
            await c.start(name)
        await c.serving("n1", "n2")
        assert c.kernel("n1").state == before
        assert c.kernel("n2").state == before


async def test_a_volume_that_comes_disturbs_no_other(tmp_path: Path) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        a = c.nexus(0, "n1")
        assert (await c.kernel("n1").send(register(a, 0xA))).good
        c.describe(spec_of(volumes=2))
        await c.until(lambda: all(len(h.exports["r0"]) == 2 for h in c.hosts.values()))
        assert all("r0" in h.open for h in c.hosts.values())
        assert (await c.kernel("n1", 1).send(register(a, 0xC))).good
        assert (await c.kernel("n1").send(register(a, 0xAA))).good
        await c.until(lambda: c.kernel("n2", 1).state == c.kernel("n1", 1).state and c.agree("n1", "n2"))
        assert all(k.rebuilt == 0 for h in c.hosts.values() for k in h.kernels.values())


async def test_what_one_node_alone_was_told_is_there_when_another_one_comes(tmp_path: Path) -> None:
    async with running(tmp_path) as c:
        c.describe(spec_of(nodes=("n1",)))
        await c.start("n1")
        await c.serving("n1")
        a, b = c.nexus(0, "n1"), c.nexus(1, "n1")
        assert (await c.kernel("n1").send(register(a, 0xA))).good
        # Also over the loss of the machine.
        await c.kill("n1")
        c.lose("n1")
        await c.start("n1")
        await c.serving("n1")
        assert (await c.kernel("n1").send(register(b, 0xB))).good
        assert (await c.kernel("n1").send(Command(b, Action.RESERVE, 0xB, type=5))).good
        before = c.kernel("n1").state
        c.describe(spec_of())
        seen = []
        c.hosts["n2"].open = Watched(lambda: seen.append(c.kernel("n2").state))
        await c.start("n2")
        await c.serving("n2")
        assert seen[0] == before
        assert c.kernel("n1").rebuilt == 0
        # And it goes on alone: nobody waits for who is none of its exporters any more.
        c.describe(spec_of(nodes=("n1",)))
        assert (await c.kernel("n1").send(register(a, 0xAA))).good
        c.describe(spec_of())
        await c.serving("n2")
        await c.until(lambda: c.agree("n1", "n2"))
        assert c.kernel("n2").state.registrations[a].key == 0xAA
        assert c.kernel("n1").rebuilt == 0


async def test_what_is_not_known_is_not_exported(tmp_path: Path) -> None:
    async with running(tmp_path) as c:
        host = c.hosts["n1"]
        await c.start("n1")
        service = host.service
        assert service is not None
        with pytest.raises(Refused) as refused:
            service.tree(c.spec.resource("r0"))
        assert refused.value.code == "reservations-unknown"
        assert service.unready("r0") is not None
        host.ready = False
        await c.until(lambda: service.problem is not None)
        assert "there is no disk" in str(service.problem)
        assert not host.open
        host.ready = True
        await c.serving("n1")
        assert service.problem is None
