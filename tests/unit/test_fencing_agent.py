"""An agent that has Pacemaker switch a node off and on by an operator's order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hactl.agents.fencing import fence
from hactl.errors import Failed, Refused
from hactl.model.spec import FenceSpec
from hactl.pacemaker.memory import MemoryCluster
from tests.unit.agents_world import NODES, World, cluster

SBD = FenceSpec(agent="fence_sbd")


async def world(twin: MemoryCluster, fenced: tuple[str, ...] = NODES, **settings: Any) -> World:
    spec = cluster()
    nodes = tuple(n.model_copy(update={"fencing": SBD if n.name in fenced else None}) for n in spec.nodes)
    made = World(spec=spec.model_copy(update={"nodes": nodes, "pacemaker": True, **settings}))
    made.wrap = lambda node, kit: replace(kit, pacemaker=twin.on(node))
    await made.start("n1")
    return made


async def test_the_node_is_switched_off_and_on() -> None:
    pacemaker = MemoryCluster(NODES)
    off: list[str] = []
    pacemaker.fenced = off.append
    made = await world(pacemaker)
    await fence(made.agents["n1"], "n2")
    assert off == ["n2"]


async def test_a_device_that_does_not_answer_is_told() -> None:
    pacemaker = MemoryCluster(NODES, unreachable={"n2"})
    made = await world(pacemaker)
    with pytest.raises(Failed) as error:
        await fence(made.agents["n1"], "n2")
    assert error.value.code == "pacemaker-failed"


@pytest.mark.parametrize(
    ("node", "fenced", "settings", "code"),
    [
        ("n9", NODES, {}, "unknown-node"),
        ("n1", NODES, {}, "fence-self"),
        ("n2", ("n1", "n3"), {}, "fence-none"),
        ("n2", ("n1", "n2"), {}, "fence-off"),
        ("n2", ("n1", "n2"), {"unfenced_promotion": True}, "fence-off"),
        ("n2", NODES, {"manual_failover": True}, "fence-off"),
        ("n2", NODES, {"pacemaker": False}, "failover-no-pacemaker"),
    ],
)
async def test_what_is_refused(
    node: str, fenced: tuple[str, ...], settings: dict[str, bool], code: str
) -> None:
    pacemaker = MemoryCluster(NODES)
    made = await world(pacemaker, fenced, **settings)
    with pytest.raises(Refused) as error:
        await fence(made.agents["n1"], node)
    assert error.value.code == code
    assert error.value.hint
    assert pacemaker.fencing == []
