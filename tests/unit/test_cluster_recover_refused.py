"""What ``hactl cluster recover`` refuses, where it is killed, and what it leaves behind; all in memory."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from hactl.cluster import unfinished
from hactl.cluster.etcd_log import LogEnd, LogState
from hactl.cluster.init import init
from hactl.cluster.join import complete, join
from hactl.cluster.kit import Kit, Waits
from hactl.cluster.layout import AGENT_PORT, AGENT_UNIT, ETCD_UNIT
from hactl.cluster.leave import leave, remove_lost
from hactl.cluster.members import Member
from hactl.cluster.membership import Me
from hactl.cluster.memory_members import MemoryServices
from hactl.cluster.node_config import PEER_PORT
from hactl.cluster.recover import check, recover
from hactl.cluster.recover_judge import Other, View, judge
from hactl.cluster.stack_upkeep import StackUpkeep
from hactl.cluster.status import status
from hactl.cluster.upkeep import once
from hactl.errors import Failed, Refused
from hactl.model.edit import add_host, create_resource, delete_resource
from hactl.pr_sync.log import PrLog
from tests.unit.cluster_world import Node, World
from tests.unit.desired_world import serials
from tests.unit.test_cluster_recover import hosts, lose, remember
from tests.unit.test_cluster_resume import everywhere, worlds
from tests.unit.test_cluster_story import edit, found, state

__all__ = ["worlds"]


def others(*names: str, **each: Any) -> tuple[Other, ...]:
    return tuple(Other(name, member=True, **each) for name in names)


@pytest.mark.parametrize(
    ("view", "lost", "rejoining", "code", "word"),
    [
        (View("n1", 5, others("n2")), {"n1"}, (), "node-alive", "n1 is this node"),
        (View("n1", 5, others("n2")), (), {"n1"}, "node-alive", "n1 is this node"),
        (View("n1", 5, others("n2")), {"n9"}, (), "unknown-node", "n9"),
        (View("n1", 5, others("n2", alive=("its agent",))), {"n2"}, (), "node-alive", "--rejoin n2"),
        (View("n1", 5, others("n2", serves=True)), {"n2"}, (), "node-alive", "part of the store"),
        (View("n1", 5, others("n2", serves=True)), (), {"n2"}, "node-alive", "systemctl stop hactl-etcd"),
        (View("n1", 5, ()), (), (), "store-has-majority", "systemctl start hactl-etcd"),
        (View("n1", 5, others("n2", "n3")), {"n2"}, (), "lost-unnamed", "--lost n3"),
        (
            View("n1", 5, (*others("n2"), *others("n3", serves=True))),
            {"n2"}, (), "store-has-majority", "n1 and n3 are a majority",
        ),
        (
            View("n1", 5, (*others("n2", "n3", "n4"), *others("n5", serves=True, committed=6))),
            {"n2", "n3", "n4"}, (), "newer-elsewhere", "run it there, on n5",
        ),
    ],
)  # fmt: skip
def test_what_is_not_certainly_right_is_refused(
    view: View, lost: set[str], rejoining: set[str], code: str, word: str
) -> None:
    with pytest.raises(Refused) as refused:
        judge(view, lost, rejoining)
    assert refused.value.code == code
    assert word in str(refused.value)


def test_what_is_right() -> None:
    judge(View("n1", 5, others("n2")), {"n2"}, ())
    judge(View("n1", 5, others("n2", alive=("its agent",))), (), {"n2"})
    # Nodes that are no members may be lost in the same fire.
    judge(View("n1", 5, (*others("n2", "n3"), Other("n4", member=False))), {"n2", "n3", "n4"}, ())
    # A survivor that has no more than this one is dropped, and joins again.
    view = View("n1", 5, (*others("n2", "n3", "n4"), *others("n5", serves=True, committed=5)))
    judge(view, {"n2", "n3", "n4"}, ())


async def refusal(work: Awaitable[object]) -> Refused:
    with pytest.raises(Refused) as refused:
        await work
    return refused.value


def memory(node: Node) -> MemoryServices:
    assert isinstance(node.services, MemoryServices)
    return node.services


async def pair(world: World) -> tuple[Node, Node]:
    n1, n2 = await found(world, "n2")
    await remember(n1)
    return n1, n2


async def test_refused_while_there_is_a_majority(worlds: Callable[[], World]) -> None:
    n1, n2 = await pair(worlds())
    error = await refusal(recover(n1.kit, n1.told.append, ["n2"]))
    assert error.code == "store-has-majority"
    assert "hactl cluster leave --lost" in error.hint
    n1.machine.root = False
    assert (await refusal(check(n1.kit, ["n2"], []))).code == "not-root"
    assert memory(n2).enabled == {AGENT_UNIT, ETCD_UNIT}


async def test_a_node_that_pacemaker_sees_is_not_lost(worlds: Callable[[], World]) -> None:
    world = worlds()
    n1, n2 = world.node("n1"), world.node("n2")
    token = await init("lab", n1.draft, n1.kit, n1.told.append, pacemaker=True)
    await join(token, n2.draft, n2.kit, n2.told.append)
    await StackUpkeep("n1", (await state(n1)).cluster, n1.kit).once()
    await remember(n1)
    await lose(n1, n2)
    error = await refusal(recover(n1.kit, n1.told.append, ["n2"]))
    assert error.code == "node-alive"
    assert "(Pacemaker)" in error.message
    world.corosync.stop("n2")
    await recover(n1.kit, n1.told.append, ["n2"])
    # What follows is the agent's.
    assert await StackUpkeep("n1", (await state(n1)).cluster, n1.kit).once()
    assert world.corosync.remembered == {"n1"}
    assert world.corosync.quorate("n1")


@pytest.mark.parametrize("sign", ["agent", "portal", "peer"])
async def test_a_node_that_shows_any_sign_of_life_is_not_lost(worlds: Callable[[], World], sign: str) -> None:
    world = worlds()
    n1, n2 = await pair(world)
    await lose(n1, n2)
    port = {"agent": AGENT_PORT, "portal": 3260, "peer": PEER_PORT}[sign]
    n1.machine.others.add((n2.address, port))
    before = n1.files()
    error = await refusal(recover(n1.kit, n1.told.append, ["n2"]))
    assert error.code == "node-alive"
    assert n1.files() == before
    assert await n1.services.active(ETCD_UNIT)


async def test_refused_where_it_cannot_be_done(worlds: Callable[[], World]) -> None:
    world = worlds()
    n1, n2 = await pair(world)
    n4 = world.node("n4")
    await lose(n1, n2)
    assert (await refusal(recover(n4.kit, n4.told.append, ["n2"]))).code == "not-in-cluster"
    assert (await refusal(recover(n1.kit, n1.told.append, []))).code == "lost-unnamed"
    n1.kit.layout.desired_copy.rename(n1.kit.layout.desired_copy.with_name("away"))
    assert (await refusal(recover(n1.kit, n1.told.append, ["n2"]))).code == "desired-copy"
    await world.lose_etcd_data(n1)
    assert (await refusal(recover(n1.kit, n1.told.append, ["n2"]))).code == "etcd-data-missing"


async def test_a_node_without_a_vote_is_told_where_to_go(worlds: Callable[[], World]) -> None:
    world = worlds()
    n1, n2, n3 = await found(world, "n2", "n3")
    await remember(n3)
    number = next(m.id for m in world.etcd.members.values() if m.name == "n3")
    world.etcd.members[number] = replace(world.etcd.members[number], learner=True)
    await lose(n3, n1, n2)
    error = await refusal(recover(n3.kit, n3.told.append, ["n1", "n2"]))
    assert error.code == "not-a-member"
    assert n1.client_url in error.hint


async def test_an_etcd_that_answers_nobody_is_as_good(worlds: Callable[[], World]) -> None:
    """Started without a majority it serves no client, so that it cannot be asked who its members are."""
    world = worlds()
    n1, n2 = await pair(world)
    await lose(n1, n2)
    await world.kill_etcd(n1)
    assert (await refusal(recover(n1.kit, n1.told.append, []))).code == "lost-unnamed"
    world.etcd.logs[str(n1.kit.layout.etcd_data)] = LogState(LogEnd(3, 12), 10, 3, 1)
    await recover(n1.kit, n1.told.append, ["n2"])
    assert world.etcd.logs[str(n1.kit.layout.etcd_data)].committed == 12
    assert {m.name for m in world.etcd.members.values()} == {"n1"}


async def test_killed_anywhere_it_is_run_again(
    worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prepare(world: World) -> Callable[[Kit], Awaitable[Any]]:
        n1, n2, n3 = await found(world, "n2", "n3")
        await edit(n1, with_resource)
        await remember(n1)
        await reserve(n1, "n1", "n2")
        await lose(n1, n2, n3)

        async def work(kit: Kit) -> Any:
            try:
                return await recover(kit, n1.told.append, ["n2", "n3"])
            except Refused as error:
                # Killed after the very end: there is nothing left to be run again.
                if error.code != "store-has-majority" or unfinished.load(kit.layout) is not None:
                    raise
                return None
            finally:
                # It ends with the process.
                await n1.services.stop_alone()

        return work

    async def after(world: World) -> None:
        n1 = world.node("n1")
        assert unfinished.load(n1.kit.layout) is None
        assert [m.name for m in world.etcd.members.values()] == ["n1"]
        services = memory(n1)
        assert ETCD_UNIT in services.up & services.enabled
        assert not services.alone
        assert n1.config().etcd == (n1.client_url,)
        assert [n.name for n in (await state(n1)).cluster.nodes] == ["n1"]
        assert await reserving(n1) == {"n1"}
        folder = n1.kit.layout.etcd_data.parent
        assert {p.name for p in folder.glob("etcd.*")} == {"etcd.before-recovery-1"}
        store = n1.kit.store(n1.config())
        (noted,) = (await store.read("/hactl/lab/recovered/")).items.values()
        await store.close()
        value = json.loads(noted.value)
        assert (value["node"], value["lost"], value["aside"]) == (
            "n1", ["n2", "n3"], "etcd.before-recovery-1",
        )  # fmt: skip

    assert await everywhere(worlds, prepare, "n1", after, monkeypatch) > 30


def with_resource(desired: Any) -> Any:
    disks = {"n1": "/dev/disk/by-id/a", "n2": "/dev/disk/by-id/b"}
    return create_resource(desired, "r0", "1G", serial=serials(), disks=disks)


async def reserve(node: Node, *names: str) -> None:
    """Have nodes be members of the log of r0's unit."""
    for name in names:
        store = node.kit.store(node.config())
        cluster = (await state(node)).cluster
        log = PrLog(store, "lab", name)
        r0 = cluster.resource("r0")
        serial = cluster.serial(r0, r0.volumes[0])
        await log.join(serial, await log.head(serial))
        await store.close()


async def reserving(node: Node) -> frozenset[str]:
    store = node.kit.store(node.config())
    cluster = (await state(node)).cluster
    r0 = cluster.resource("r0")
    found = await PrLog(store, "lab", node.name).members(cluster.serial(r0, r0.volumes[0]))
    await store.close()
    return found


async def test_resources_lose_the_replicas_and_nobody_waits_for_lost_nodes(
    worlds: Callable[[], World],
) -> None:
    n1, n2 = await pair(worlds())
    await edit(n1, with_resource)
    await reserve(n1, "n1", "n2")
    await lose(n1, n2)
    done = await recover(n1.kit, n1.told.append, ["n2"])
    assert done.resources == ("r0",)
    assert (await state(n1)).cluster.resource("r0").replicas == ("n1",)
    assert await reserving(n1) == {"n1"}


async def test_a_node_with_the_only_replica_stays_in_the_configuration(worlds: Callable[[], World]) -> None:
    world = worlds()
    n1, n2, n3 = await found(world, "n2", "n3")
    disks = {"n2": "/dev/disk/by-id/b"}
    await edit(n1, lambda d: create_resource(d, "r0", "1G", serial=serials(), replicas=1, disks=disks))
    await remember(n1)
    await lose(n1, n2, n3)
    done = await recover(n1.kit, n1.told.append, ["n2", "n3"])
    assert "only replica of r0" in done.stay["n2"]
    assert [n.name for n in (await state(n1)).cluster.nodes] == ["n1", "n2"]
    assert unfinished.load(n1.kit.layout) is None


async def test_a_store_that_is_older_than_what_the_node_has_seen(worlds: Callable[[], World]) -> None:
    world = worlds()
    n1, n2 = await pair(world)
    await lose(n1, n2)
    copy = n1.kit.layout.desired_copy
    value = json.loads(copy.read_text())
    config = json.loads(value["records"]["config"])
    config["generation"] += 3
    value["records"]["config"] = json.dumps(config)
    copy.write_text(json.dumps(value))
    assert (await recover(n1.kit, n1.told.append, ["n2"])).behind == 3


async def test_a_lost_node_that_comes_back_in_between_calls_it_off(
    worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = worlds()
    n1, n2 = await pair(world)
    await lose(n1, n2)

    async def ends() -> None:
        raise RuntimeError("the machine is reset")

    with monkeypatch.context() as patched:
        patched.setattr(memory(n1), "start_alone", ends)
        with pytest.raises(RuntimeError):
            await recover(n1.kit, n1.told.append, ["n2"])
    assert (await refusal(recover(n1.kit, n1.told.append, []))).code == "unfinished"
    assert (await refusal(leave(n1.kit, n1.told.append))).code == "unfinished"
    await n1.services.start(ETCD_UNIT)
    await n2.services.start(ETCD_UNIT)
    assert (await refusal(recover(n1.kit, n1.told.append, ["n2"]))).code == "store-has-majority"
    assert unfinished.load(n1.kit.layout) is None
    assert {m.name for m in world.etcd.members.values()} == {"n1", "n2"}
    assert (await status(n1.kit))["problems"] == []


async def test_a_majority_that_comes_back_in_between_has_this_node_join_again(
    worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made of its data here must not meet theirs."""
    world = worlds()
    n1, n2, n3 = await found(world, "n2", "n3")
    await remember(n1)
    for node in (n1, n2, n3):
        await once(node.kit, (), node.told.append)
    await lose(n1, n2, n3)

    async def ends() -> None:
        raise RuntimeError("the machine is reset")

    with monkeypatch.context() as patched:
        patched.setattr(memory(n1), "start_alone", ends)
        with pytest.raises(RuntimeError):
            await recover(n1.kit, n1.told.append, ["n2", "n3"])
    for node in (n2, n3):
        memory(node).up.add(ETCD_UNIT)
        world.etcd.start(node.kit.layout.etcd_file)
    error = await refusal(recover(n1.kit, n1.told.append, ["n2", "n3"]))
    assert error.code == "store-has-majority"
    assert error.hint.endswith("hactl cluster join")
    assert unfinished.load(n1.kit.layout) is None
    before = {m.id for m in world.etcd.members.values() if m.name == "n1"}
    await complete(n1.kit, n1.told.append)
    assert {m.name for m in world.etcd.members.values() if not m.learner} == {"n1", "n2", "n3"}
    assert before.isdisjoint(world.etcd.members)


async def test_an_etcd_that_does_not_come_up_alone_is_told_with_its_log(
    worlds: Callable[[], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    n1, n2 = await pair(worlds())
    await lose(n1, n2)

    async def nothing() -> None:
        pass

    with monkeypatch.context() as patched:
        patched.setattr(memory(n1), "start_alone", nothing)
        with pytest.raises(Failed) as failed:
            await recover(replace(n1.kit, waits=Waits(0.001, 0.01, 0.005)), n1.told.append, ["n2"])
    assert failed.value.code == "etcd-not-started"
    assert str(n1.kit.layout.recovery_log) in failed.value.hint
    await recover(n1.kit, n1.told.append, ["n2"])


async def test_removing_a_lost_node_takes_it_out_of_the_reservations_too(worlds: Callable[[], World]) -> None:
    world = worlds()
    n1, n2, _ = await found(world, "n2", "n3")
    await edit(n1, with_resource)
    await reserve(n1, "n1", "n2")
    await n2.crash()
    disks = {"n2": "/dev/disk/by-id/c"}
    own = "r1"
    await edit(n1, lambda d: create_resource(d, own, "1G", serial=serials(9), replicas=1, disks=disks))
    assert (await refusal(remove_lost("n2", n1.kit, n1.told.append))).code == "last-replica"
    assert await reserving(n1) == {"n1", "n2"}
    await edit(n1, lambda d: delete_resource(d, own, destroy=False))
    await remove_lost("n2", n1.kit, n1.told.append)
    assert await reserving(n1) == {"n1"}
    assert await hosts(n1) == []


async def test_a_member_that_is_in_no_configuration_is_named_by_its_address(
    worlds: Callable[[], World],
) -> None:
    world = worlds()
    n1, n2 = await pair(world)
    n3 = world.node("n3")
    world.etcd.members[999] = Member(999, "n3", (Me("lab", "n3", n3.address).peer_url,), (), learner=False)
    await lose(n1, n2)
    name = str(n3.address).replace(".", "-")
    error = await refusal(recover(n1.kit, n1.told.append, ["n2"]))
    assert f"--lost {name}" in error.hint
    await recover(n1.kit, n1.told.append, ["n2", name])
    assert [m.name for m in world.etcd.members.values()] == ["n1"]


async def test_a_witness_has_a_vote_and_nothing_else(worlds: Callable[[], World]) -> None:
    """A third node without a pool, a replica or a portal that anything is exported from is what keeps two
    others from losing the store's majority."""
    world = worlds()
    n1, n2, n3 = await found(world, "n2", "n3")
    await edit(n1, with_resource)
    (r0,) = (await state(n3)).cluster.resources
    assert r0.nodes == ("n1", "n2")
    assert {m.name: m.learner for m in world.etcd.members.values()} == dict.fromkeys(
        ("n1", "n2", "n3"), False
    )
    await n2.crash()
    await edit(n1, lambda d: add_host(d, "h", ["iqn.2026-01.example:h"]))
    assert await hosts(n3) == ["h"]
    assert await remove_lost("n2", n1.kit, n1.told.append) == ("r0",)
    await leave(n3.kit, n3.told.append)
