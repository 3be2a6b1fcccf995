"""Pacemaker's orders to agents, on twins: what each action does, and what if something comes between."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hactl.agents.clock import MemoryClock
from hactl.agents.journal import Record, decode, encode
from hactl.agents.kit import Kit, Standing
from hactl.agents.ocf import Ocf
from hactl.agents.ocf_codes import ACTIVE, HANDED_OVER, LAST_RESORT, READY, Answer, Code, Unchanged
from hactl.agents.serve import Api, listen
from hactl.agents.states import OrderedRole
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.model.spec import ClusterSpec
from hactl.pacemaker.difference import difference
from hactl.pacemaker.memory import MemoryCluster, MemoryPacemaker
from hactl.pacemaker.wanted import FIT, primitive_of, wanted
from hactl.replication.state import Role
from hactl.target.gates import Mode
from tests.unit.agents_world import NODES, R0, Initiator, World, active, cluster, refused
from tests.unit.test_ocf_shell import FakeAgent, Node

RECURRING = {"interval": "10000"}


def charged(**resource: object) -> ClusterSpec:
    """The cluster with Pacemaker in charge."""
    spec = cluster()
    changed = spec.resource(R0).model_copy(update=resource)
    return spec.model_copy(update={"pacemaker": True, "unfenced_promotion": True, "resources": (changed,)})


async def until(holds: Callable[[], bool]) -> None:
    """Until a condition holds."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - the twins have no event for what is looked at
            await asyncio.sleep(0)


@dataclass
class Members:
    """What stands for persistent reservations: ``out`` are the nodes that were withdrawn, ``down`` those that
    a promotion was told are down, ``behind`` why a node is not in step."""

    out: set[str] = field(default_factory=set)
    down: list[tuple[str, ...]] = field(default_factory=list)
    behind: dict[str, str] = field(default_factory=dict)
    refusals: list[HactlError] = field(default_factory=list)

    def standing(self, node: str) -> Standing:
        async def confirm(_: str, gone: Iterable[str]) -> None:
            if self.refusals:
                raise self.refusals.pop(0)
            self.down.append(tuple(gone))

        async def withdraw(_: str) -> None:
            self.out.add(node)

        async def rejoin(_: str) -> None:
            self.out.discard(node)

        def unready(_: str) -> str | None:
            return "stopped" if node in self.out else self.behind.get(node)

        return Standing(unready=unready, confirm=confirm, withdraw=withdraw, rejoin=rejoin)


class Ruled(World):
    """The world with a Pacemaker. What it orders is ordered by the tests."""

    def __init__(self, spec: ClusterSpec | None = None) -> None:
        super().__init__(spec=spec or charged())
        self.pacemaker = MemoryCluster(NODES)
        self.members = Members()
        self.wrap = self._kit

    def _kit(self, node: str, kit: Kit) -> Kit:
        return replace(kit, pacemaker=self.pacemaker.on(node), standing=self.members.standing(node))

    async def do(self, node: str, action: str, **form: str) -> Answer:
        return await Ocf(self.agents[node]).resource(R0, action, {"seconds": "50"} | form)

    async def promoted(self, node: str = "n1") -> Ruled:
        await self.up()
        for each in NODES:
            assert (await self.do(each, "start")).code is Code.SUCCESS
        answer = await self.do(node, "promote")
        assert (answer.code, answer.score) == (Code.SUCCESS, ACTIVE), answer.reason
        await self.converge(2)
        return self

    def lose(self, node: str) -> None:
        """Power loss, and Pacemaker has noticed and fenced."""
        self.network.services.pop(node, None)
        self.drbd.crash(node)
        self.machines[node].gates.forget()
        self.pacemaker.leave(node)

    @contextlib.asynccontextmanager
    async def passes(self) -> AsyncIterator[None]:
        """The agents' regular work goes on meanwhile."""

        async def work() -> None:
            while True:
                await self.converge(1)
                await asyncio.sleep(0)

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_monitor_of_each_node() -> None:
    world = await Ruled().promoted()
    told = {node: await world.do(node, "monitor", **RECURRING) for node in NODES}
    assert {n: (a.code, a.score) for n, a in told.items()} == {
        "n1": (Code.RUNNING_PROMOTED, ACTIVE),
        "n2": (Code.SUCCESS, READY),
        "n3": (Code.SUCCESS, None),
    }


async def test_a_monitor_starts_no_program_and_reads_no_tree() -> None:
    world = await Ruled().promoted()
    agent = world.agents["n1"]
    looked: list[str] = []
    machine = world.machines["n1"]

    async def none(*_: object) -> object:
        looked.append("looked")
        raise Failed("drbd-failed", "nobody is to be asked")

    watch = asyncio.create_task(agent.follower.follow(lambda: None))
    await until(lambda: agent.follower.states is not None)
    machine.drbd.observe = none  # type: ignore[method-assign, assignment]  # whoever asks it is found out
    machine.exports.pending_of = none  # type: ignore[method-assign, assignment]  # the same
    assert (await world.do("n1", "monitor", **RECURRING)).code is Code.RUNNING_PROMOTED
    assert looked == []
    watch.cancel()


async def test_unknown_resource_and_action() -> None:
    world = await Ruled().up()
    assert isinstance(world, Ruled)
    ocf = Ocf(world.agents["n1"])
    found = {a: (await ocf.resource("r9", a, {"seconds": "1"})).code for a in ("monitor", "stop", "demote")}
    assert found == {"monitor": Code.NOT_RUNNING, "stop": Code.SUCCESS, "demote": Code.SUCCESS}
    assert (await ocf.resource("r9", "start", {"seconds": "1"})).code is Code.ERR_GENERIC
    assert (await ocf.resource("r9", "promote", {"seconds": "1"})).code is Code.ERR_GENERIC
    assert (await ocf.resource("r9", "validate-all", {})).code is Code.ERR_CONFIGURED
    assert (await ocf.resource(R0, "validate-all", {})).code is Code.SUCCESS
    assert (await ocf.resource(R0, "reload", {})).code is Code.ERR_UNIMPLEMENTED
    assert (await ocf.resource(R0, "start", {"seconds": "soon"})).code is Code.ERR_ARGS


async def test_demotion_with_a_successor_is_a_hand_over() -> None:
    world = await Ruled().promoted()
    host = Initiator(world)
    writing = asyncio.create_task(host.run())
    answer = await world.do("n1", "demote", promote="n2")
    assert (answer.code, answer.score) == (Code.SUCCESS, HANDED_OVER)
    assert world.open_at() == ["n2"]
    # Pacemaker has not promoted it yet, and looks.
    told = await world.do("n2", "monitor", role="Unpromoted", **RECURRING)
    assert (told.code, told.score) == (Code.SUCCESS, ACTIVE)
    before = len(world.steps)
    answer = await world.do("n2", "promote")
    assert (answer.code, answer.score) == (Code.SUCCESS, ACTIVE)
    assert world.steps[before:] == []
    assert (await world.do("n1", "monitor", **RECURRING)).score == READY
    host.stop = True
    await writing
    host.check()


async def test_successor_that_was_told_before() -> None:
    world = await Ruled().promoted()
    ocf = Ocf(world.agents["n1"])
    told = {"type": "pre", "operation": "demote", "promote": "n2"}
    assert (await ocf.resource(R0, "notify", told)).code is Code.SUCCESS
    assert (await ocf.resource(R0, "demote", {})).score == HANDED_OVER
    assert world.open_at() == ["n2"]


async def test_successor_of_a_transition_that_is_over_is_forgotten() -> None:
    world = await Ruled().promoted()
    ocf = Ocf(world.agents["n1"])
    await ocf.resource(R0, "notify", {"type": "pre", "operation": "demote", "promote": "n2"})
    await ocf.resource(R0, "notify", {"type": "post", "operation": "promote", "promote": "n2"})
    assert (await ocf.resource(R0, "demote", {})).code is Code.SUCCESS
    assert world.open_at() == []


@pytest.mark.parametrize("successor", ["", "n1", "n3", "n2 n3"])
async def test_demotion_without_a_successor_holds(successor: str) -> None:
    world = await Ruled().promoted()
    write = world.write("n1", 1, "1")
    assert await write.ended() == "done"
    assert (await world.do("n1", "demote", promote=successor)).code is Code.SUCCESS
    assert world.modes() == {"n1": Mode.HELD, "n2": Mode.CLOSED, "n3": Mode.CLOSED}
    assert (await world.do("n2", "promote")).code is Code.SUCCESS
    assert world.open_at() == ["n2"]
    assert world.read(1) == "1"


async def test_hand_over_that_is_refused_becomes_a_demotion() -> None:
    world = await Ruled().promoted()
    world.network.services.pop("n2")
    assert (await world.do("n1", "demote", promote="n2")).code is Code.SUCCESS
    assert (world.open_at(), world.roles()["n1"]) == ([], "demoted")


async def test_hand_over_that_is_rolled_back_becomes_a_demotion() -> None:
    world = await Ruled().promoted()
    world.machines["n2"].drbd.fail["primary"] = [Failed("drbd-failed", "no")]
    assert (await world.do("n1", "demote", promote="n2")).code is Code.SUCCESS
    assert (world.open_at(), world.roles()["n1"]) == ([], "demoted")
    assert (await world.do("n2", "promote")).code is Code.SUCCESS
    assert world.open_at() == ["n2"]


async def test_demotion_is_final_where_a_hand_over_would_be_taken_back() -> None:
    """The successor's answer is lost, and then the successor: an operator's switchover would become active
    here again by itself, when Pacemaker has long been told that this node is not."""
    world = await Ruled().promoted()
    world.network.lose["n1", "n2", "promote"] = 99
    world.network.lose["n1", "n2", "abort"] = 99
    world.machines["n2"].drbd.fail["primary"] = [Failed("drbd-failed", "no")] * 99

    def cut(node: str, step: str) -> bool:
        if (node, step) == ("n1", "DrbdSecondary"):
            world.drbd.cut("n1", "n2")
        return False

    world.kill = cut
    assert (await world.do("n1", "demote", promote="n2")).code is Code.SUCCESS
    assert world.agents["n1"].keepers[R0].record.handover is None
    world.drbd.heal("n1", "n2")
    await world.converge(6)
    assert world.open_at() == []
    assert world.machines["n1"].journal.read()[R0].role in (OrderedRole.DEMOTED, OrderedRole.STANDBY)


async def test_demotion_that_cannot_be_confirmed_fails() -> None:
    world = await Ruled().promoted()
    world.machines["n1"].drbd.fail["secondary"] = [Failed("drbd-in-use", "somebody has it open")] * 99
    answer = await world.do("n1", "demote")
    assert (answer.code, answer.score) == (Code.ERR_GENERIC, Unchanged.SCORE)
    assert (await world.do("n1", "stop")).code is Code.ERR_GENERIC
    assert world.members.out == set()


@pytest.mark.parametrize("step", ["journal:demoted", "HoldGate", "DrbdSecondary", "asked", "journal:standby"])
async def test_agent_killed_in_a_demotion_that_is_asked_for_again(step: str) -> None:
    world = await Ruled().promoted()
    world.kill = lambda node, done: (node, done) == ("n1", step)
    with contextlib.suppress(BaseException):
        await world.do("n1", "demote", promote="n2")
    assert "n1" not in world.network.services
    await world.restart_dead()
    assert (await world.do("n1", "demote", promote="n2")).code is Code.SUCCESS
    assert "n1" not in world.open_at()
    await world.converge(3)
    assert (await world.do("n2", "promote")).code is Code.SUCCESS
    assert world.open_at() == ["n2"]


async def test_promotion_while_the_hand_over_is_settling() -> None:
    world = await Ruled().promoted()
    may = world.machines["n2"].drbd.may_promote
    may.clear()
    demoting = asyncio.create_task(world.do("n1", "demote", promote="n2"))
    await until(lambda: world.agents["n2"].keepers[R0].operation is not None)
    promoting = asyncio.create_task(world.do("n2", "promote"))
    await asyncio.sleep(0)
    may.set()
    assert (await promoting).code is Code.SUCCESS
    assert (await demoting).code is Code.SUCCESS
    assert world.open_at() == ["n2"]


async def test_promotion_after_a_hand_over_that_pacemaker_has_dropped() -> None:
    """n2 is active by the hand-over, and Pacemaker comes to promote n1 after all: it does no harm, and n1 is
    not chosen again."""
    world = await Ruled().promoted()
    await world.do("n1", "demote", promote="n2")
    answer = await world.do("n1", "promote")
    assert (answer.code, answer.score) == (Code.ERR_GENERIC, None)
    assert "active-elsewhere" in answer.reason
    assert world.open_at() == ["n2"]


async def test_failover() -> None:
    world = await Ruled().promoted()
    assert await world.write("n1", 1, "5").ended() == "done"
    world.lose("n1")
    answer = await world.do("n2", "promote")
    assert (answer.code, answer.score) == (Code.SUCCESS, ACTIVE)
    assert world.open_at() == ["n2"]
    assert world.read(1) == "5"
    assert world.members.down[-1] == ("n1",)


async def test_promotion_does_not_wait_for_nodes_that_are_gone() -> None:
    world = await Ruled().promoted()
    world.lose("n1")
    hangs = asyncio.Event()
    asked: list[str] = []
    peers = world.agents["n2"].kit.peers
    status = peers.status

    async def silent(node: str, only: object = ()) -> object:
        asked.append(node)
        if node == "n1":
            await hangs.wait()
        return await status(node, only)  # type: ignore[arg-type]  # passed through

    peers.status = silent  # type: ignore[method-assign, assignment]  # a node that is gone does not even refuse
    async with asyncio.timeout(5):
        assert (await world.do("n2", "promote")).code is Code.SUCCESS
    assert asked.count("n1") <= 1


async def test_silent_agent_on_a_living_node_is_not_taken_as_down() -> None:
    world = await Ruled().promoted("n1")
    assert (await world.do("n1", "demote")).code is Code.SUCCESS
    world.network.services.pop("n1")
    assert (await world.do("n2", "promote")).code is Code.SUCCESS
    assert world.members.down[-1] == ()


async def test_promotion_is_tried_again_while_the_store_elects() -> None:
    world = await Ruled().promoted()
    world.lose("n1")
    world.members.refusals = [
        Refused("store-unreachable", "no leader"),
        Unknown("store-unknown", "no answer"),
    ]
    assert (await world.do("n2", "promote")).code is Code.SUCCESS
    assert world.open_at() == ["n2"]


async def test_promotion_without_the_store_fails_in_time() -> None:
    world = await Ruled().promoted()
    world.lose("n1")
    world.members.refusals = [Refused("store-unreachable", "no leader")] * 999
    before = world.machines["n2"].clock.seconds
    answer = await world.do("n2", "promote")
    assert (answer.code, answer.score) == (Code.ERR_GENERIC, Unchanged.SCORE)
    assert 40 < world.machines["n2"].clock.seconds - before <= 50
    assert world.open_at() == []


async def test_stop_and_start() -> None:
    world = await Ruled().promoted()
    answer = await world.do("n1", "stop")
    assert (answer.code, answer.score) == (Code.SUCCESS, None)
    assert world.modes()["n1"] is Mode.CLOSED
    assert world.members.out == {"n1"}
    states = await world.machines["n1"].drbd.observe()
    assert states[R0].role is Role.SECONDARY
    assert (await world.do("n1", "monitor", **RECURRING)).code is Code.NOT_RUNNING
    assert (await world.do("n1", "promote")).code is Code.ERR_GENERIC
    # The mark outlives the agent, and not the machine.
    await world.start("n1")
    assert (await world.do("n1", "monitor")).code is Code.NOT_RUNNING
    assert (await world.do("n1", "stop")).code is Code.SUCCESS
    async with world.passes():
        answer = await world.do("n1", "start")
    assert (answer.code, answer.score) == (Code.SUCCESS, READY)
    assert world.members.out == set()
    assert (await world.do("n1", "promote")).code is Code.SUCCESS
    assert world.open_at() == ["n1"]


def test_what_an_agent_without_stops_wrote_is_understood() -> None:
    record = Record(OrderedRole.STANDBY, "boot", 1.0, withdrawn=True)
    assert decode(encode(record), "x") == record
    old = encode(record).replace(', "withdrawn": true', "")
    assert decode(old, "x") == replace(record, withdrawn=False)


async def test_a_stop_does_not_outlive_the_boot() -> None:
    world = await Ruled().promoted("n2")
    await world.do("n1", "stop")
    world.machines["n1"].clock.boot_id = "boot-2"
    await world.start("n1")
    assert (await world.do("n1", "monitor")).code is Code.SUCCESS


async def test_start_waits_until_everything_is_there() -> None:
    world = Ruled()
    for node in NODES:
        await world.start(node)
    assert (await world.do("n1", "monitor")).code is Code.NOT_RUNNING
    starting = asyncio.create_task(world.do("n1", "start", seconds="1000"))
    await asyncio.sleep(0)
    assert not starting.done()
    async with world.passes():
        assert (await starting).code is Code.SUCCESS
    assert (await world.do("n1", "monitor")).code is Code.SUCCESS


async def test_start_tells_what_is_missing() -> None:
    world = await Ruled().up()
    assert isinstance(world, Ruled)
    world.members.behind["n1"] = "persistent reservations of r0 are not in step on n1"
    answer = await world.do("n1", "start", seconds="2")
    assert answer.code is Code.ERR_GENERIC
    assert "not in step" in answer.reason


async def test_monitor_waits_for_what_the_agent_mends() -> None:
    world = await Ruled().promoted()
    await world.machines["n1"].gates.close("hactl.r0.0")
    async with world.passes():
        assert (await world.do("n1", "monitor", **RECURRING)).code is Code.RUNNING_PROMOTED
    await world.machines["n1"].gates.close("hactl.r0.0")
    answer = await world.do("n1", "monitor", **RECURRING)
    assert (answer.code, answer.score) == (Code.FAILED_PROMOTED, None)


async def test_failed_disk_of_the_active_node() -> None:
    world = await Ruled().promoted()
    world.drbd.fail_disk("n1", "/dev/vd0")
    answer = await world.do("n1", "monitor", **RECURRING)
    assert (answer.code, answer.score) == (Code.DEGRADED_PROMOTED, LAST_RESORT)
    assert (await world.do("n2", "monitor", **RECURRING)).score == READY
    # So Pacemaker moves it. Nothing that was written is lost.
    assert await world.write("n1", 1, "7").ended() == "done"
    assert (await world.do("n1", "demote", promote="n2")).code is Code.SUCCESS
    assert (await world.do("n2", "promote")).code is Code.SUCCESS
    assert world.read(1) == "7"


async def test_failed_disk_of_a_node_that_takes_the_resource_back() -> None:
    """Its preference weighs more than all scores, but only from a score on that it has not got then."""
    world = await Ruled(charged(preferred="n1", failback=True)).promoted()
    world.drbd.fail_disk("n1", "/dev/vd0")
    assert (await world.do("n1", "monitor", **RECURRING)).score == LAST_RESORT
    assert LAST_RESORT < FIT <= READY


async def test_orders_by_hand_are_refused_while_pacemaker_is_in_charge() -> None:
    world = await Ruled().promoted()
    before = await world.seen()
    for work in (world.agents["n2"].promote(R0), world.agents["n1"].demote(R0)):
        assert (await refused(work)).code == "pacemaker-in-charge"
    assert (await refused(world.agents["n3"].order("demote", R0, "n1"))).code == "pacemaker-in-charge"
    assert await world.seen() == before
    world.update(charged(maintenance=True))
    await world.agents["n1"].demote(R0)
    assert world.open_at() == []


async def test_without_pacemaker_orders_are_as_ever() -> None:
    world = await active(World())
    await world.agents["n1"].switchover(R0, "n2")
    assert world.open_at() == ["n2"]


async def moving(world: Ruled) -> asyncio.Task[None]:
    """Pacemaker with the configuration of the cluster; it has its actions carried out."""
    world.pacemaker.edit(difference(world.pacemaker.configuration, wanted(world.spec)).change)
    name = primitive_of(R0)
    for node, score in (("n1", ACTIVE), ("n2", READY)):
        world.pacemaker.set_score(name, node, score)

    async def act() -> None:
        now = "n1"
        while True:
            wanted = world.pacemaker.promoted.get(name)
            if wanted is not None and wanted != now:
                world.pacemaker.set_score(name, now, HANDED_OVER)
                assert (await world.do(now, "demote", promote=wanted)).code is Code.SUCCESS
                assert (await world.do(wanted, "promote")).score == ACTIVE
                now = wanted
            await asyncio.sleep(0)

    for machine in world.machines.values():
        _slow_down(machine.clock)
    assert world.pacemaker.promoted[name] == "n1"
    return asyncio.create_task(act())


def _slow_down(clock: MemoryClock) -> None:
    """Have sleeping take some real time, too: who waits for others must not be through with its patience
    before they had the processor at all."""
    quick = clock.sleep

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0.02)
        await quick(seconds)

    clock.sleep = sleep  # type: ignore[method-assign]  # this one object's


@pytest.mark.parametrize("ordered_at", NODES)
async def test_switchover_goes_through_pacemaker(ordered_at: str) -> None:
    world = await Ruled().promoted()
    acting = await moving(world)
    await world.agents[ordered_at].switchover(R0, "n2")
    await until(lambda: world.open_at() == ["n2"])
    acting.cancel()
    assert "cli-prefer" not in world.pacemaker.configuration
    assert world.pacemaker.promoted[primitive_of(R0)] == "n2"


async def test_switchover_that_cannot_be_asks_pacemaker_for_nothing() -> None:
    world = await Ruled().promoted()
    acting = await moving(world)
    world.network.services.pop("n2")
    before = world.pacemaker.configuration
    assert (await refused(world.agents["n1"].switchover(R0, "n2"))).code == "peer-unreachable"
    assert (await refused(world.agents["n1"].switchover(R0, "n3"))).code == "not-a-replica"
    acting.cancel()
    assert world.pacemaker.configuration == before


async def test_switchover_that_pacemaker_does_not_do_leaves_nothing_behind() -> None:
    world = await Ruled().promoted()
    world.pacemaker.edit(difference(world.pacemaker.configuration, wanted(world.spec)).change)
    world.pacemaker.standby("n2")
    world.pacemaker.set_score(primitive_of(R0), "n1", ACTIVE)
    error = await refused(world.agents["n1"].switchover(R0, "n2"))
    assert error.code == "pacemaker-move-unknown"
    assert "cli-prefer" not in world.pacemaker.configuration
    assert world.open_at() == ["n1"]


async def test_switchover_away_from_a_node_that_takes_it_back() -> None:
    world = await Ruled(charged(preferred="n1", failback=True)).promoted()
    assert (await refused(world.agents["n1"].switchover(R0, "n2"))).code == "failback-automatic"


async def test_switchover_with_pacemaker_down() -> None:
    world = await Ruled().promoted()
    pacemaker = world.agents["n1"].kit.pacemaker
    assert isinstance(pacemaker, MemoryPacemaker)
    pacemaker.down = True
    assert (await refused(world.agents["n1"].switchover(R0, "n2"))).code == "pacemaker-down"
    assert world.open_at() == ["n1"]


async def test_the_resource_agent_and_the_agent_together(tmp_path: Path) -> None:
    world = await Ruled().promoted()
    for folder in ("bin", "run", "proc"):
        (tmp_path / folder).mkdir()
    (tmp_path / "proc/uptime").symlink_to("/proc/uptime")
    machine = Node(tmp_path, FakeAgent(tmp_path / "unused"))
    machine.stub("crm_attribute", "")
    app = Api(world.agents["n1"]).app(allowed=frozenset({os.getuid()}))
    runner = await listen(app, machine.run / "agent.sock")

    async def call(action: str, script: str = "resource", **variables: str) -> int:
        return (await asyncio.to_thread(machine.call, action, script, **variables)).returncode

    try:
        assert await call("monitor", OCF_RESKEY_CRM_meta_role="Promoted") == Code.RUNNING_PROMOTED
        assert await call("stop", "agent") == Code.SUCCESS
        assert await call("demote", OCF_RESKEY_CRM_meta_notify_promote_uname="n2") == Code.SUCCESS
        assert world.open_at() == ["n2"]
        assert await call("stop") == Code.SUCCESS
        assert await call("monitor") == Code.NOT_RUNNING
        assert await call("promote") == Code.ERR_GENERIC
        assert await call("validate-all") == Code.SUCCESS
        assert await call("validate-all", OCF_RESKEY_name="r9") == Code.ERR_CONFIGURED
    finally:
        await runner.cleanup()
    scores = [line.rpartition("=")[2] for line in machine.started("crm_attribute")]
    assert scores == [str(ACTIVE), str(HANDED_OVER), "-INFINITY", "-INFINITY"]


async def test_the_agents_own_resource() -> None:
    world = await Ruled().promoted()
    ocf = Ocf(world.agents["n1"])
    assert (await ocf.agent("monitor", {})).code is Code.SUCCESS
    assert (await ocf.agent("start", {})).code is Code.SUCCESS
    answer = await ocf.agent("stop", {})
    assert answer.code is Code.ERR_GENERIC
    assert R0 in answer.reason
    assert (await Ocf(world.agents["n2"]).agent("stop", {})).code is Code.SUCCESS
    assert (await ocf.agent("promote", {})).code is Code.ERR_UNIMPLEMENTED
    # What is in maintenance is left active, and Pacemaker goes.
    world.update(charged(maintenance=True))
    assert (await ocf.agent("stop", {})).code is Code.SUCCESS
