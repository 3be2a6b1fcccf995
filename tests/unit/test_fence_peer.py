"""DRBD asks after a peer it has lost: whole clusters of twins, Pacemaker's part played by a small one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from hactl.agents.fence_peer import PeerFencing
from hactl.agents.fence_verdict import Code, Patience
from hactl.errors import Failed
from hactl.model.spec import ClusterSpec, FenceSpec
from hactl.pacemaker.protocol import Change, Fencing, Member, State
from hactl.replication.state import DiskState, Role
from hactl.target.gates import Mode
from hactl.target.memory import MemoryConfigFs
from tests.unit.agents_world import NODES, R0, World, active, cluster, refused

QUICK = Patience(promotion=0.05, frozen=30.0, fence=0.1, again=0.005, stuck=0.0)


@dataclass
class SmallPacemaker:
    """Membership that a test sets, and fencing that works as long as it is said to."""

    power_off: Callable[[str], None]
    members: dict[str, Member] = field(default_factory=lambda: {n: Member(n, True, True) for n in NODES})
    quorum: bool = True
    works: bool = True
    stopped: bool = False
    fenced: list[str] = field(default_factory=list)
    history: tuple[Fencing, ...] = ()
    may_answer: asyncio.Event | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0
    asked_often: asyncio.Event = field(default_factory=asyncio.Event)

    async def state(self) -> State:
        self.asked += 1
        if self.stopped:
            raise Failed("pacemaker-down", "Pacemaker does not run", "start it")
        if self.asked > 3:
            self.asked_often.set()
        await asyncio.sleep(0)
        state = State("n3", self.quorum, tuple(self.members.values()), fencing=self.history)
        if self.may_answer is not None:
            await self.may_answer.wait()
        self.answered.set()
        return state

    async def score(self, primitive: str, node: str, score: int) -> None:
        raise AssertionError("nobody asks for that here")

    async def fence(self, node: str) -> None:
        await asyncio.sleep(0)
        if not self.works:
            raise Failed("pacemaker-failed", f"{node} was not fenced", "see stonith_admin")
        self.fenced.append(node)
        self.power_off(node)
        self.leave(node)

    def leave(self, node: str, *, clean: bool = True) -> None:
        self.members[node] = Member(node, online=False, clean=clean)

    async def configuration(self) -> str:
        raise NotImplementedError

    async def commit(self, change: Change) -> None:
        raise NotImplementedError

    async def move(self, clone: str, node: str) -> None:
        raise NotImplementedError

    async def clear(self, clone: str) -> None:
        raise NotImplementedError

    async def refresh(self, clones: Sequence[str]) -> None:
        raise NotImplementedError


def fenced_cluster() -> ClusterSpec:
    """With fencing; r0 in maintenance, so that the tests order roles as Pacemaker would."""
    plain = cluster()
    resources = tuple(r.model_copy(update={"maintenance": True}) for r in plain.resources)
    nodes = tuple(n.model_copy(update={"fencing": FenceSpec(agent="fence_dummy")}) for n in plain.nodes)
    return plain.model_copy(update={"pacemaker": True, "nodes": nodes, "resources": resources})


class Fenced:
    """A cluster where r0 is active on n1, with DRBD's fencing on."""

    def __init__(self) -> None:
        self.world = World(spec=fenced_cluster())
        self.pacemaker = SmallPacemaker(self.power_off)
        self.world.wrap = lambda _, kit: replace(kit, pacemaker=self.pacemaker)
        self.codes: list[tuple[str, int]] = []
        self.ended = asyncio.Event()

    async def up(self, patience: Patience = QUICK) -> Fenced:
        for node in NODES:
            self.world.drbd.fencing.handlers[node] = self._handler(node)
        await active(self.world)
        for agent in self.world.agents.values():
            agent.fencing = PeerFencing(agent, patience)
        return self

    def _handler(self, node: str) -> Callable[[str, str], Awaitable[int]]:
        async def ask(resource: str, peer: str) -> int:
            verdict = await self.world.agents[node].fencing.ask(resource, peer)
            self.codes.append((node, verdict.code.value))
            self.ended.set()
            return verdict.code.value

        return ask

    def power_off(self, node: str) -> None:
        self.world.network.services.pop(node, None)
        self.world.drbd.crash(node)
        self.world.machines[node].gates.forget()

    async def boot(self, node: str) -> None:
        self.world.drbd.boot(node)
        machine = self.world.machines[node]
        machine.clock.boot_id += "+"
        machine.fs = MemoryConfigFs()
        machine.exports = type(machine.exports)(machine.fs, node)
        await self.world.start(node)
        self.pacemaker.members[node] = Member(node, online=True, clean=True)

    def frozen(self, node: str = "n1") -> bool:
        return self.world.drbd.suspended(node, R0) != "no"

    def disk(self, node: str) -> DiskState:
        return self.world.drbd.state_of(node, R0, 0)

    async def thawed(self, node: str = "n1") -> None:
        async with asyncio.timeout(10):
            while self.frozen(node):
                await self.world.drbd.changed()

    async def answered(self) -> None:
        async with asyncio.timeout(10):
            await self.ended.wait()


async def test_replication_cut_outdates_the_standby_and_io_goes_on() -> None:
    it = await Fenced().up()
    it.world.drbd.cut("n1", "n2")
    write = it.world.write("n1", 1, "new")
    assert it.frozen()
    assert write.state == "pending"
    await it.thawed()
    assert write.state == "done"
    assert it.codes == [("n1", Code.OUTDATED)]
    assert it.disk("n2") is DiskState.OUTDATED
    assert it.pacemaker.fenced == []


async def test_the_standby_loses_power() -> None:
    it = await Fenced().up()
    it.pacemaker.leave("n2", clean=False)
    it.power_off("n2")
    write = it.world.write("n1", 1, "new")
    async with asyncio.timeout(10):
        await it.pacemaker.asked_often.wait()
    assert write.state == "pending", "it is not known yet whether n2 is off"
    it.pacemaker.leave("n2")
    await it.thawed()
    assert write.state == "done"
    assert it.codes == [("n1", Code.FENCED)]


async def test_a_member_whose_agent_is_dead_is_fenced_after_a_while() -> None:
    it = await Fenced().up()
    it.world.network.services.pop("n2")
    it.world.drbd.cut("n1", "n2")
    await it.thawed()
    assert it.pacemaker.fenced == ["n2"]
    assert it.codes == [("n1", Code.FENCED)]


async def test_a_peer_that_is_connected_again_is_not_fenced() -> None:
    it = await Fenced().up(replace(QUICK, fence=0.3))
    it.world.network.services.pop("n2")
    it.world.drbd.cut("n1", "n2")
    async with asyncio.timeout(10):
        await it.pacemaker.asked_often.wait()
    assert it.frozen()
    it.world.drbd.heal("n1", "n2")
    await it.answered()
    assert not it.frozen()
    assert it.codes == [("n1", Code.NOT_KNOWN)]
    assert it.world.agents["n1"].fencing.problem is None
    assert it.pacemaker.fenced == []


async def test_what_was_followed_before_the_loss_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    it = await Fenced().up()
    del it.world.drbd.fencing.handlers["n1"]
    agent = it.world.agents["n1"]
    monkeypatch.setattr(agent, "follower", SimpleNamespace(states=await agent.kit.drbd.observe()))
    it.world.drbd.cut("n1", "n2")
    assert (await agent.fencing.ask(R0)).code is Code.OUTDATED


async def test_fencing_that_fails_keeps_io_held_and_says_why() -> None:
    it = await Fenced().up(replace(QUICK, frozen=0.3))
    it.pacemaker.works = False
    it.world.network.services.pop("n2")
    it.world.drbd.cut("n1", "n2")
    await it.answered()
    assert it.codes == [("n1", Code.NOT_KNOWN)]
    assert it.frozen()
    fencing = it.world.agents["n1"].fencing
    assert fencing.problem is not None
    assert "n2 was not fenced" in fencing.problem


async def test_outside_of_the_majority_nobody_is_fenced() -> None:
    it = await Fenced().up(replace(QUICK, frozen=0.3))
    it.pacemaker.quorum = False
    for node in ("n2", "n3"):
        it.pacemaker.leave(node, clean=False)
    it.world.network.cut.add(frozenset({"n1", "n2"}))
    it.world.drbd.isolate("n1")
    await it.answered()
    assert it.codes == [("n1", Code.NOT_KNOWN)]
    assert it.frozen()
    assert it.pacemaker.fenced == []
    assert "majority" in str(it.world.agents["n1"].fencing.problem)


async def test_without_a_handler_the_agent_lets_io_go_on_when_it_is_certain() -> None:
    it = await Fenced().up()
    del it.world.drbd.fencing.handlers["n1"]
    it.world.drbd.cut("n1", "n2")
    write = it.world.write("n1", 1, "new")
    fencing = it.world.agents["n1"].fencing
    fencing.look()
    assert it.frozen()
    runs = asyncio.create_task(_follow(it, "n1"))
    running = asyncio.create_task(fencing.run())
    await it.thawed()
    assert write.state == "done"
    assert it.disk("n2") is DiskState.OUTDATED
    for task in (running, runs):
        task.cancel()
    await asyncio.gather(running, runs, return_exceptions=True)


async def _follow(it: Fenced, node: str) -> None:
    await it.world.agents[node].follower.follow(lambda: None)


async def test_io_is_not_let_go_if_the_peer_came_back_and_was_lost_again() -> None:
    it = await Fenced().up()
    del it.world.drbd.fencing.handlers["n1"]
    fencing = it.world.agents["n1"].fencing
    it.world.drbd.cut("n1", "n2")
    asked = fencing.ask

    async def meanwhile(resource: str, peer: str | None = None) -> object:
        verdict = await asked(resource, peer)
        it.world.drbd.heal("n1", "n2")
        return verdict

    fencing.ask = meanwhile  # type: ignore[method-assign,assignment]  # what happens right after the answer
    await fencing.see_to(R0)
    assert not it.frozen(), "the connection itself lets it go"
    assert it.disk("n2") is DiskState.OUTDATED or it.disk("n2") is DiskState.UP_TO_DATE


async def test_failover_after_the_active_node_was_fenced() -> None:
    it = await Fenced().up()
    it.world.write("n1", 1, "last")
    it.power_off("n1")
    it.pacemaker.leave("n1")
    await it.world.agents["n2"].promote(R0)
    assert it.world.open_at() == ["n2"]
    assert it.world.read(1) == "last"
    assert it.codes == [("n2", Code.FENCED)]
    assert not it.frozen("n2")


async def test_an_answer_that_comes_after_the_question_was_given_up_counts_for_the_next() -> None:
    # n1 was fenced, runs again and is a member, but its agent does not answer yet; and this node is so busy
    # that Pacemaker's answer takes longer than a handler may.
    it = await Fenced().up()
    seen = asyncio.Event()
    runs = asyncio.create_task(it.world.agents["n2"].follower.follow(seen.set))
    survivor = it.world.agents["n2"].fencing
    async with asyncio.timeout(10):
        await seen.wait()
    survivor.look()
    it.power_off("n1")
    it.pacemaker.history = (Fencing("n1", "reboot", "success", "n3", time.time() + 1.0),)
    it.pacemaker.may_answer = asyncio.Event()
    assert (await survivor.ask(R0)).code is Code.NOT_KNOWN
    it.pacemaker.answered.clear()
    it.pacemaker.may_answer.set()
    await it.pacemaker.answered.wait()
    it.pacemaker.may_answer = asyncio.Event()
    verdict = await survivor.ask(R0)
    runs.cancel()
    await asyncio.gather(runs, return_exceptions=True)
    assert verdict.code is Code.FENCED, verdict.reason


async def test_no_failover_before_the_active_node_is_certainly_off() -> None:
    it = await Fenced().up()
    it.power_off("n1")
    it.pacemaker.leave("n1", clean=False)
    error = await refused(it.world.agents["n2"].promote(R0))
    assert error.code == "drbd-peer-not-outdated"
    assert it.world.open_at() == []
    assert it.pacemaker.fenced == [], "that is Pacemaker's to decide while nobody serves"
    it.pacemaker.leave("n1")
    await it.world.agents["n2"].promote(R0)
    assert it.world.open_at() == ["n2"]


async def test_a_promotion_against_a_living_primary_outdates_the_one_who_asks() -> None:
    it = await Fenced().up()
    del it.world.drbd.fencing.handlers["n1"]
    it.world.drbd.cut("n1", "n2")
    error = await refused(it.world.machines["n2"].drbd.primary(R0))
    assert error.code == "drbd-not-uptodate"
    assert ("n2", Code.PRIMARY) in it.codes
    assert it.disk("n2") is DiskState.OUTDATED
    await it.world.agents["n1"].fencing.see_to(R0)
    assert not it.frozen()
    assert it.world.open_at() == ["n1"]


async def test_two_faults_after_each_other() -> None:
    it = await Fenced().up()
    it.world.drbd.cut("n1", "n2")
    await it.thawed()
    assert it.world.write("n1", 1, "only on n1").state == "done"
    it.power_off("n1")
    it.pacemaker.leave("n1")
    error = await refused(it.world.agents["n2"].promote(R0))
    assert "Outdated" in error.message
    assert it.world.open_at() == []
    it.world.drbd.heal("n1", "n2")
    await it.boot("n1")
    await it.world.converge(3)
    it.world.drbd.resync(R0)
    await it.world.agents["n2"].promote(R0)
    assert it.world.read(1) == "only on n1"


async def test_who_was_fenced_is_not_promoted_when_the_survivor_dies_too() -> None:
    it = await Fenced().up()
    it.power_off("n2")
    it.pacemaker.leave("n2")
    assert it.frozen()
    await it.thawed()
    assert it.world.write("n1", 1, "without n2").state == "done"
    it.power_off("n1")
    it.pacemaker.leave("n1")
    await it.boot("n2")
    await it.world.converge(3)
    assert it.disk("n2") is DiskState.CONSISTENT
    error = await refused(it.world.agents["n2"].promote(R0))
    assert "Consistent" in error.message
    # Nor if somebody orders it of the kernel itself.
    assert (await refused(it.world.machines["n2"].drbd.primary(R0))).code == "drbd-not-uptodate"
    assert it.codes[-1] == ("n2", Code.NOT_KNOWN)
    assert it.disk("n2") is DiskState.CONSISTENT


async def test_the_survivor_itself_may_go_on_after_a_reboot() -> None:
    it = await Fenced().up()
    it.power_off("n2")
    it.pacemaker.leave("n2")
    await it.thawed()
    assert it.world.write("n1", 1, "without n2").state == "done"
    it.power_off("n1")
    await it.boot("n1")
    await it.world.converge(3)
    assert it.disk("n1") is DiskState.UP_TO_DATE, "it remembers that n2 is older"
    await it.world.agents["n1"].promote(R0)
    assert it.world.read(1) == "without n2"


async def test_all_nodes_lose_power_at_once() -> None:
    it = await Fenced().up()
    it.world.write("n1", 1, "last")
    for node in ("n2", "n1"):
        it.power_off(node)
    for node in ("n1", "n2"):
        await it.boot(node)
    await it.world.converge(3)
    assert {it.disk("n1"), it.disk("n2")} == {DiskState.UP_TO_DATE}
    await it.world.agents["n2"].promote(R0)
    assert it.world.read(1) == "last"


async def test_a_standby_that_is_being_promoted_is_not_outdated_under_its_feet() -> None:
    it = await Fenced().up()
    async with it.world.agents["n2"].keepers[R0].exclusive("promote"):
        error = await refused(it.world.network.peers("n1").outdate("n2", R0))
    assert error.code == "busy"
    assert it.disk("n2") is DiskState.UP_TO_DATE


async def test_a_connected_peer_is_not_outdated() -> None:
    it = await Fenced().up()
    assert await it.world.network.peers("n1").outdate("n2", R0) == "connected"
    assert it.disk("n2") is DiskState.UP_TO_DATE


async def test_several_ask_at_once_and_get_the_same_answer() -> None:
    it = await Fenced().up()
    it.world.drbd.cut("n1", "n2")
    fencing = it.world.agents["n1"].fencing
    found = await asyncio.gather(*(fencing.ask(R0) for _ in range(20)))
    assert {v.code for v in found} == {Code.OUTDATED}
    assert len([q for q in it.world.network.asked if q[2] == "outdate"]) <= 2


async def test_the_policy_follows_the_specification() -> None:
    world = await active(World())
    drbd = world.machines["n1"].drbd
    assert not drbd.cluster.nodes["n1"].instances[R0].fencing
    world.update(fenced_cluster())
    await world.attend(2)
    assert drbd.cluster.nodes["n1"].instances[R0].fencing
    assert (await drbd.observe())[R0].role is Role.PRIMARY
    assert world.modes()["n1"] is Mode.OPEN
    world.update(cluster())
    await world.attend(2)
    assert not drbd.cluster.nodes["n1"].instances[R0].fencing


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_standby_without_pacemaker_that_is_cut_off_steps_back(stopped: bool) -> None:
    it = await Fenced().up(replace(QUICK, restart=0.0))
    agent = it.world.agents["n2"]
    news = asyncio.Event()
    following = asyncio.create_task(agent.follower.follow(news.set))
    await news.wait()
    it.pacemaker.stopped = stopped
    await agent.fencing.step_back()
    assert it.disk("n2") is DiskState.UP_TO_DATE, "it is connected"
    it.power_off("n1")
    await agent.follower.until(R0, lambda state: not state.connected("n1"))
    await agent.fencing.step_back()
    assert (it.disk("n2") is DiskState.OUTDATED) is stopped
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
