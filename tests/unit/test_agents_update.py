"""Desired state that changes under a living agent: only what differs is touched, and everything converges."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from hactl.agents.agent import Agent
from hactl.agents.exports import LioExports
from hactl.agents.memory_peers import Killed
from hactl.model.spec import Addresses, ClusterSpec, HostSpec, NodeSpec, ResourceSpec
from hactl.replication.state import Role
from hactl.target.gates import Mode, gate_name
from hactl.target.memory import MemoryConfigFs
from tests.unit.agents_world import NODES, R0, World, active, cluster, refused

IQN = "iqn.2024-01.example:"


def another(name: str, number: int, **changes: Any) -> ResourceSpec:
    """A resource like r0, with a disk of its own."""
    (r0,) = cluster().resources
    volume = r0.volumes[0].model_copy(update={"disks": dict.fromkeys(("n1", "n2"), f"/dev/vd-{name}")})
    return r0.model_copy(
        update={"name": name, "id": number, "iqn": f"{IQN}{name}", "volumes": (volume,), **changes}
    )


def having(spec: ClusterSpec, *resources: ResourceSpec) -> ClusterSpec:
    return spec.model_copy(update={"resources": resources})


def changed(spec: ClusterSpec, **changes: Any) -> ClusterSpec:
    """The same with another r0."""
    return having(spec, spec.resource(R0).model_copy(update=changes))


def targets(world: World, node: str) -> list[str]:
    return [n for n in world.machines[node].fs.listdir("iscsi") if n.startswith("iqn.")]


async def nothing_left(world: World, name: str) -> None:
    """Of a resource there is nothing on any node, but what is on the disks."""
    for node, machine in world.machines.items():
        assert name not in await machine.drbd.observe(), node
        assert f"{IQN}{name}" not in targets(world, node), node
        assert not [g for g in await machine.gates.observe() if g.startswith(f"hactl.{name}.")], node
        assert not await machine.drbd.placed(name), node
        assert name not in machine.journal.read(), node


async def in_order(world: World) -> None:
    """Nothing is pending anywhere, and nobody has a reason to complain."""
    for node in NODES:
        agent = world.agents[node]
        assert set(agent.keepers) == {r.name for r in world.spec.resources if node in r.nodes}
        assert agent.leaving == {}
        for keeper in agent.keepers.values():
            assert (await keeper.pending(), keeper.reason, keeper.offered) == ((), None, False)


async def test_a_resource_comes_and_goes_and_the_others_are_left_alone() -> None:
    world = await active(World())
    world.steps.clear()
    world.update(having(world.spec, world.spec.resource(R0), another("r1", 2)))
    await world.attend()
    await in_order(world)
    assert {name for _, name, _ in world.steps} == {"r1"}
    assert [s for s in world.steps if s[2] == "SkipInitialSync"] == [("n1", "r1", "SkipInitialSync")]
    await world.agents["n2"].promote("r1")
    assert (await world.machines["n2"].gates.observe())[gate_name("r1", 0)].mode is Mode.OPEN
    world.steps.clear()
    world.update(having(world.spec, world.spec.resource(R0)))
    assert (await refused(world.agents["n2"].promote("r1"))).code == "unknown-resource"
    await world.attend()
    await in_order(world)
    await nothing_left(world, "r1")
    assert {name for _, name, _ in world.steps} == {"r1"}
    assert world.open_at() == ["n1"]


async def test_a_host_is_let_in_and_shut_out_while_io_flows() -> None:
    world = await active(World())
    host = HostSpec(name="h2", initiators=(f"{IQN}h2",))
    spec = world.spec.model_copy(update={"hosts": (*world.spec.hosts, host)})
    world.steps.clear()
    world.update(changed(spec, hosts=("h1", "h2")))
    await world.attend(2)
    for node in NODES:
        tag = world.spec.node(node).id
        assert f"{IQN}h2" in world.machines[node].fs.listdir(f"iscsi/{IQN}r0/tpgt_{tag}/acls")
    assert {step for _, _, step in world.steps} == {"ApplyTarget"}
    assert world.open_at() == ["n1"]
    world.update(changed(spec, hosts=("h1",)))
    await world.attend(2)
    await in_order(world)
    assert f"{IQN}h2" not in world.machines["n1"].fs.listdir(f"iscsi/{IQN}r0/tpgt_1/acls")


async def test_a_host_sees_the_volumes_exported_to_it_under_the_luns_given_there() -> None:
    world = await active(World(cluster(2)))
    host = HostSpec(name="h2", initiators=(f"{IQN}h2",))
    spec = world.spec.model_copy(update={"hosts": (*world.spec.hosts, host)})
    world.update(changed(spec, exports={"h2": {1: 7}}))
    await world.attend(2)
    await in_order(world)
    acls = f"iscsi/{IQN}r0/tpgt_1/acls"
    fs = world.machines["n1"].fs
    assert [n for n in fs.listdir(f"{acls}/{IQN}h2") if n.startswith("lun_")] == ["lun_7"]
    (link,) = fs.links(f"{acls}/{IQN}h2/lun_7").values()
    assert link.endswith("/lun_1")
    assert [n for n in fs.listdir(f"{acls}/{IQN}h1") if n.startswith("lun_")] == ["lun_0", "lun_1"]


async def test_a_volume_comes_to_a_resource_in_use_and_goes_again() -> None:
    world = await active(World())
    assert await world.write("n1", 1, "5").ended() == "done"
    world.update(cluster(2))
    await world.attend()
    await in_order(world)
    assert (world.open_at(0), world.open_at(1)) == (["n1"], ["n1"])
    world.update(cluster(1))
    await world.attend()
    await in_order(world)
    assert world.read(1) == "5"
    for machine in world.machines.values():
        assert set(await machine.gates.observe()) == {gate_name(R0, 0)}
        assert all(set(s.volumes) == {0} for s in (await machine.drbd.observe()).values())
        assert machine.journal.read()[R0].fresh == frozenset()


async def test_a_volume_that_goes_while_another_comes() -> None:
    world = await active(World(cluster(2)))
    (r0,) = cluster(3).resources
    world.update(changed(world.spec, volumes=(r0.volumes[0], r0.volumes[2])))
    await world.attend()
    await in_order(world)
    assert (world.open_at(0), world.open_at(2)) == (["n1"], ["n1"])
    assert gate_name(R0, 1) not in await world.machines["n1"].gates.observe()


async def test_what_is_left_of_a_volume_is_found_by_the_next_agent_too() -> None:
    world = await active(World(cluster(2)))
    world.spec = cluster(1)
    for node in NODES:
        await world.start(node)
    await world.converge(3)
    await in_order(world)
    assert gate_name(R0, 1) not in await world.machines["n1"].gates.observe()
    assert world.open_at() == ["n1"]


async def test_a_target_is_renamed() -> None:
    world = await active(World())
    world.update(changed(world.spec, iqn=f"{IQN}other"))
    await world.attend()
    await in_order(world)
    assert [targets(world, node) for node in NODES] == [[f"{IQN}other"]] * 3
    assert world.open_at() == ["n1"]


async def test_a_new_target_takes_the_name_of_one_that_goes() -> None:
    world = await active(World())
    world.update(having(world.spec, another("r1", 2, iqn=f"{IQN}r0")))
    await world.attend()
    await world.converge(3)
    await in_order(world)
    assert [targets(world, node) for node in NODES] == [[f"{IQN}r0"]] * 3
    await world.agents["n1"].promote("r1")


def node(name: str, number: int, last: int | None = None) -> NodeSpec:
    """A node whose addresses end in ``last``, or its number."""
    end = last or number
    addresses = Addresses.model_validate(
        {"cluster": f"192.0.2.{end}", "replication": f"198.51.100.{end}", "storage": [f"203.0.113.{end}"]}
    )
    return NodeSpec(name=name, id=number, addresses=addresses)


async def test_nodes_come_and_go() -> None:
    world = await active(World())
    agent = world.agents["n1"]
    world.update(world.spec.model_copy(update={"nodes": (*world.spec.nodes, node("n4", 4))}))
    assert agent.views["n4"] is None
    assert agent.views["n2"] is not None
    await world.attend(1)
    assert ("n1", "n4", "status") not in world.network.asked
    assert (await refused(agent.switchover(R0, "n4"))).code == "not-a-replica"
    world.update(world.spec.model_copy(update={"nodes": world.spec.nodes[:3]}))
    assert set(agent.views) == {"n2", "n3"}
    without = changed(world.spec, nodes=("n1", "n2"))
    world.update(without.model_copy(update={"nodes": without.nodes[:2]}))
    await world.attend(2)
    assert set(agent.views) == {"n2"}
    assert set(world.alua("n1")) == {"n1", "n2"}
    # Whoever is no node any more lets go of everything.
    assert world.agents["n3"].keepers == {}
    assert targets(world, "n3") == []
    assert world.open_at() == ["n1"]


async def test_portals_are_renamed() -> None:
    world = await active(World())
    nodes = (node("n1", 1, 101), *world.spec.nodes[1:])
    world.update(world.spec.model_copy(update={"nodes": nodes}))
    await world.attend(2)
    await in_order(world)
    assert world.machines["n1"].fs.listdir(f"iscsi/{IQN}r0/tpgt_1/np") == ["203.0.113.101:3260"]
    assert world.open_at() == ["n1"]


async def test_a_node_that_stops_holding_a_replica_goes_on_exporting() -> None:
    world = World()
    world.drbd.version = (9, 2, 16)
    (r0,) = world.spec.resources
    three = r0.volumes[0].model_copy(update={"disks": dict.fromkeys(NODES, "/dev/vd0")})
    world.spec = changed(world.spec, volumes=(three,))
    await active(world)
    world.update(changed(world.spec, volumes=r0.volumes))
    await world.attend()
    await in_order(world)
    machine = world.machines["n3"]
    assert await machine.drbd.observe() == {}
    assert await machine.drbd.placed(R0) == {}
    assert targets(world, "n3") == [f"{IQN}r0"]
    assert world.open_at() == ["n1"]


async def test_an_update_waits_for_a_switchover_that_is_running() -> None:
    world = await active(World())
    may = world.machines["n2"].drbd.may_promote
    may.clear()
    order = asyncio.create_task(world.agents["n1"].switchover(R0, "n2"))
    secondary = asyncio.Event()

    def note(node: str, step: str) -> bool:
        if step == "DrbdSecondary":
            secondary.set()
        return False

    world.kill = note
    await secondary.wait()
    # r0 leaves n3, gets a volume, and r1 comes: all in the middle of it.
    (r0,) = cluster(2).resources
    world.update(having(world.spec, r0.model_copy(update={"nodes": ("n1", "n2")}), another("r1", 2)))
    for name in NODES:
        await world.agents[name].attend()
    assert world.agents["n1"].keepers[R0].operation == "switchover to n2"
    assert {s[2] for s in world.steps if s[1] == "r1" and s[0] == "n1"} >= {"ApplyTarget", "DrbdUp"}
    assert world.agents["n1"].keepers[R0].spec.nodes == NODES
    may.set()
    await order
    assert world.open_at() == ["n2"]
    await world.converge()
    await in_order(world)
    assert (world.open_at(0), world.open_at(1)) == (["n2"], ["n2"])
    assert set(world.alua("n2")) == {"n1", "n2"}


async def test_a_resource_deleted_during_its_switchover_is_gone_in_the_end() -> None:
    world = await active(World())
    may = world.machines["n2"].drbd.may_promote
    may.clear()
    order = asyncio.create_task(world.agents["n1"].switchover(R0, "n2"))
    asked = asyncio.Event()

    def note(node: str, step: str) -> bool:
        if (node, step) == ("n2", "journal:active"):
            asked.set()
        return False

    world.kill = note
    await asked.wait()
    world.update(having(world.spec))
    for name in NODES:
        await world.agents[name].attend()
    assert world.agents["n1"].leaving[R0].busy
    assert world.agents["n2"].leaving[R0].busy
    may.set()
    await order
    await world.attend()
    world.tick(60)
    await world.converge()
    await in_order(world)
    await nothing_left(world, R0)


async def test_an_order_that_waited_for_the_end_of_a_resource_is_refused() -> None:
    world = await active(World())
    agent = world.agents["n1"]
    keeper = agent.keepers[R0]
    world.update(having(world.spec))
    await agent.attend()
    with pytest.raises(Exception, match="n1 has no resource 'r0'"):
        async with keeper.exclusive("demote"):
            raise AssertionError("not reached")


async def test_a_resource_that_comes_back_at_once_was_never_gone() -> None:
    world = await active(World())
    spec = world.spec
    world.steps.clear()
    world.update(having(spec))
    world.update(spec)
    await world.attend()
    await in_order(world)
    assert world.steps == []
    assert world.roles()["n1"] == "active"


async def test_a_resource_that_comes_back_later_is_a_new_one() -> None:
    world = await active(World())
    spec = world.spec
    world.update(having(spec))
    await world.attend()
    world.update(spec)
    await world.attend()
    # Whose data it is nobody knows any more, and it is not for the agent to decide.
    (problem,) = (await world.agents["n1"].keepers[R0].observe()).problems
    assert problem.code == "disk-has-drbd"
    for name in ("n1", "n2"):
        world.drbd.disk(name, "/dev/vd0").metadata = None
    await world.converge()
    await in_order(world)
    await world.agents["n2"].promote(R0)
    assert world.open_at() == ["n2"]


def three_changes(world: World) -> None:
    """r1 comes, r0 gets a second volume and loses n3, and a host comes that sees it."""
    host = HostSpec(name="h2", initiators=(f"{IQN}h2",))
    (r0,) = cluster(2).resources
    spec = world.spec.model_copy(update={"hosts": (*world.spec.hosts, host)})
    world.update(having(spec, r0))
    world.update(having(spec, r0, another("r1", 2)))
    r0 = r0.model_copy(update={"nodes": ("n1", "n2"), "hosts": ("h1", "h2")})
    world.update(having(spec, r0, another("r1", 2)))


@pytest.mark.parametrize("away", NODES)
async def test_an_agent_that_was_down_while_three_changes_happened(away: str) -> None:
    world = await active(World())
    world.network.services.pop(away)
    three_changes(world)
    await world.converge()
    await world.start(away)
    await world.converge()
    await in_order(world)
    assert (world.open_at(0), world.open_at(1)) == (["n1"], ["n1"])
    assert targets(world, "n3") == [f"{IQN}r1"]
    await world.agents["n1"].switchover(R0, "n2")


async def reboot(world: World, name: str) -> None:
    """Power off and on; the agent is not started yet."""
    machine = world.machines[name]
    world.network.services.pop(name, None)
    world.drbd.crash(name)
    machine.gates.forget()
    world.drbd.boot(name)
    machine.fs = MemoryConfigFs()
    machine.exports = LioExports(machine.fs, name)
    machine.clock.boot_id += "+"
    machine.journal.lose_power()


@pytest.mark.parametrize("rebooted", [False, True])
async def test_a_resource_deleted_while_its_node_was_down(rebooted: bool) -> None:
    world = await active(World())
    if rebooted:
        await reboot(world, "n2")
    world.network.services.pop("n2", None)
    world.update(having(world.spec, another("r1", 2)))
    await world.converge()
    await world.start("n2")
    await world.converge()
    await in_order(world)
    await nothing_left(world, R0)


CHANGES: dict[str, Callable[[World], None]] = {
    "three": three_changes,
    "gone": lambda world: world.update(having(world.spec)),
    "volume": lambda world: world.update(cluster(1)),
}


def dies_at(number: int) -> Callable[[str, str], bool]:
    """Kills n1's agent after so many steps."""
    steps = itertools.count()
    return lambda node, step: node == "n1" and next(steps) == number


@pytest.mark.parametrize("what", CHANGES)
async def test_a_kill_between_any_two_steps_of_an_update(what: str) -> None:
    world = await active(World(cluster(2 if what == "volume" else 1)))
    world.steps.clear()
    CHANGES[what](world)
    await world.attend()
    steps = [step for node, _, step in world.steps if node == "n1"]
    # Changes of the LIO tree are many and alike, and are stopped one by one where they are planned.
    chosen = [k for k, step in enumerate(steps) if step != "ApplyTarget" or k % 5 == 0]
    assert len(chosen) > 5
    for number in chosen:
        world = await active(World(cluster(2 if what == "volume" else 1)))
        world.kill = dies_at(number)
        CHANGES[what](world)
        with contextlib.suppress(Killed):
            await world.attend()
        await world.restart_dead()
        await world.converge()
        await in_order(world)
        if what == "gone":
            await nothing_left(world, R0)
        else:
            for volume in world.spec.resource(R0).volumes:
                assert world.open_at(volume.number) == ["n1"]


async def test_only_what_an_event_is_about_is_looked_at() -> None:
    world = World(having(cluster(), cluster().resources[0], *(another(f"r{n}", n + 1) for n in (1, 2, 3))))
    await world.up()
    agent: Agent = world.agents["n1"]
    changed = asyncio.Event()

    def notice() -> None:
        agent.noticed()
        changed.set()

    follow = asyncio.create_task(agent.follower.follow(notice))
    await changed.wait()
    await agent.reconcile()
    world.network.asked.clear()
    changed.clear()
    await world.machines["n1"].drbd.primary("r2")
    await changed.wait()
    assert agent.follower.states is not None
    assert agent.follower.states["r2"].role is Role.PRIMARY
    assert agent._touched == {"r2"}
    world.steps.clear()
    await agent.attend()
    # What nobody ordered is put right.
    assert world.steps == [("n1", "r2", "DrbdSecondary")]
    follow.cancel()
    await asyncio.gather(follow, return_exceptions=True)


async def test_what_is_not_as_it_shall_be_is_looked_at_again_soon_and_then_less_often() -> None:
    world = World()
    world.seconds = 0.0
    await world.up()
    agent = world.agents["n1"]
    machine = world.machines["n1"]
    world.update(changed(world.spec, hosts=("h1",), port=7777))
    config = f"/etc/drbd.d/hactl-{R0}.res"
    real = machine.drbd.up

    async def up(name: str) -> None:
        raise OSError(5, "Input/output error", config)

    machine.drbd.up = up  # type: ignore[method-assign]  # a fault for a while
    waits = []
    for _ in range(4):
        await agent.attend()
        keeper = agent.keepers[R0]
        assert keeper.reason is not None
        assert "Input/output error" in keeper.reason
        waits.append(agent.next_pass())
        world.seconds += agent.next_pass()
    assert waits == [1.0, 2.0, 4.0, 8.0]
    machine.drbd.up = real  # type: ignore[method-assign]  # the end of it
    await agent.attend()
    assert agent.keepers[R0].reason is None
    assert agent.next_pass() > 10


async def test_nothing_is_looked_at_all_the_time_while_an_order_runs() -> None:
    world = World()
    world.seconds = 0.0
    await active(world)
    agent = world.agents["n1"]
    async with agent.keepers[R0].exclusive("something long"):
        agent.touch(R0, "r9")
        for _ in range(3):
            await agent.attend()
            assert agent.next_pass() >= 1.0
            world.seconds += agent.next_pass()


async def test_what_has_no_keeper_yet_is_not_taken_for_a_strangers() -> None:
    world = await active(World())
    agent = world.agents["n1"]
    # As if it had not been possible to look at r0 when it came.
    del agent.keepers[R0]
    world.machines["n1"].drbd.cluster.nodes["n1"].alive = False
    await agent.reconcile()
    world.machines["n1"].drbd.cluster.nodes["n1"].alive = True
    assert targets(world, "n1") == [f"{IQN}r0"]
    assert world.open_at() == ["n1"]
    await agent.reconcile()
    assert agent.keepers[R0].record.role.value == "active"
