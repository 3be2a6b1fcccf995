"""The twin of Pacemaker: it fences what is lost, and promotes by scores."""

from __future__ import annotations

import pytest

from hactl.errors import Failed
from hactl.model.spec import ClusterSpec
from hactl.pacemaker.difference import difference
from hactl.pacemaker.memory import MemoryCluster
from hactl.pacemaker.wanted import wanted
from tests.unit.pacemaker_world import cluster, resource

R0, CLONE = "hactl-r0", "hactl-r0-clone"


async def made(spec: ClusterSpec) -> MemoryCluster:
    world = MemoryCluster([n.name for n in spec.nodes])
    await world.on("n1").commit(difference(world.configuration, wanted(spec)).change)
    return world


async def test_it_promotes_the_highest_score_and_nobody_without_one() -> None:
    world = await made(cluster(resource(0, "n1 n2", preferred="n2")))
    assert world.state().promoted(R0) is None
    world.set_score(R0, "n1", 10000)
    assert world.state().promoted(R0) == "n1"
    world.set_score(R0, "n2", 10000)
    assert world.state().promoted(R0) == "n2"


async def test_what_is_active_stays_so_unless_failback_is_wanted() -> None:
    for failback, node in ((False, "n1"), (True, "n2")):
        world = await made(cluster(resource(0, "n1 n2", preferred="n2", failback=failback)))
        world.set_score(R0, "n1", 20000)
        world.set_score(R0, "n2", 10000)
        assert world.state().promoted(R0) == node


async def test_a_preferred_node_takes_back_only_what_it_is_fit_for() -> None:
    world = await made(cluster(resource(0, "n1 n2", preferred="n2", failback=True)))
    world.set_score(R0, "n1", 20000)
    world.set_score(R0, "n2", 9999)
    assert world.state().promoted(R0) == "n1"
    world.set_score(R0, "n2", 10000)
    assert world.state().promoted(R0) == "n2"
    await world.on("n2").score(R0, "n2", 5000)
    assert world.state().promoted(R0) == "n1"


async def test_a_lost_node_is_fenced_before_another_is_promoted() -> None:
    world = await made(cluster(resource(0, "n1 n2 n3")))
    switched_off: list[str] = []
    world.fenced = switched_off.append
    world.set_score(R0, "n1", 20000)
    world.set_score(R0, "n2", 10000)
    world.unreachable.add("n1")
    world.lose("n1")
    state = world.state()
    assert (state.promoted(R0), state.gone("n1"), state.dc) == (None, False, "n2")
    assert world.promoted[R0] == "n1"
    world.unreachable.clear()
    world.settle()
    state = world.state()
    assert (state.promoted(R0), state.gone("n1")) == ("n2", True)
    assert switched_off == ["n1"]
    assert [(f.target, f.state) for f in state.fencing] == [("n1", "success")]


async def test_without_quorum_nobody_is_fenced_or_promoted() -> None:
    world = await made(cluster(resource(0, "n1 n2 n3")))
    world.set_score(R0, "n1", 20000)
    world.set_score(R0, "n3", 10000)
    world.leave("n2")
    world.lose("n1")
    state = world.state()
    assert (state.quorum, state.promoted(R0), state.gone("n1")) == (False, None, False)
    # One that left in good order is known to run nothing.
    assert state.gone("n2")


async def test_without_fencing_a_lost_node_is_never_certainly_gone() -> None:
    spec = cluster(resource(0, "n1 n2 n3"), unfenced_promotion=True)
    bare = spec.model_copy(
        update={"nodes": tuple(n.model_copy(update={"fencing": None}) for n in spec.nodes)}
    )
    world = await made(bare)
    world.set_score(R0, "n2", 10000)
    world.lose("n1")
    assert world.state().promoted(R0) == "n2"
    assert not world.state().gone("n1")


async def test_standby_and_moves_change_who_is_promoted_and_maintenance_does_not() -> None:
    world = await made(cluster(resource(0, "n1 n2")))
    world.set_score(R0, "n1", 20000)
    world.set_score(R0, "n2", 10000)
    pacemaker = world.on("n3")
    await pacemaker.move(CLONE, "n2")
    assert world.promoted[R0] == "n2"
    await pacemaker.clear(CLONE)
    assert world.promoted[R0] == "n1"
    world.standby("n1")
    assert world.promoted[R0] == "n2"
    by_hand = cluster(resource(0, "n1 n2", maintenance=True))
    await pacemaker.commit(difference(world.configuration, wanted(by_hand)).change)
    world.standby("n1", on=False)
    assert world.promoted[R0] == "n2"


async def test_it_says_that_it_does_not_run_and_that_a_node_was_not_fenced() -> None:
    world = await made(cluster())
    pacemaker = world.on("n1")
    world.unreachable.add("n2")
    with pytest.raises(Failed) as caught:
        await pacemaker.fence("n2")
    assert caught.value.code == "pacemaker-failed"
    await pacemaker.fence("n3")
    assert world.state().gone("n3")
    pacemaker.down = True
    with pytest.raises(Failed) as caught:
        await pacemaker.state()
    assert caught.value.code == "pacemaker-down"
