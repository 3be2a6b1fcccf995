"""With a thousand resources in the store, a change of one touches that one: operations, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hactl.model.edit_hosts import export, unexport
from hactl.model.edit_resources import create_resource, delete_resource
from hactl.model.edit_volumes import grow_volume
from hactl.store.desired import Edit
from hactl.target.dmsetup import Device
from hactl.target.gate import DmGates
from tests.bench.scale_world import NODE, scaled
from tests.unit.gate_fake_dm import FakeDm
from tests.unit.test_agents_pause import Counted

EDITS: dict[str, Edit] = {
    "export": lambda now: export(now, "r7", "h2"),
    "unexport": lambda now: unexport(now, "r7", "h2"),
    "grow": lambda now: grow_volume(now, "r3", 0, "128M"),
    "create": lambda now: create_resource(
        now, "r7b", "64M", serial=lambda: "f" * 32, disks={"n1": "/dev/vdx", "n2": "/dev/vdx"}
    ),
    "delete": lambda now: delete_resource(now, "r5", destroy=False),
}
TOUCHED = {"export": "r7", "unexport": "r7", "grow": "r3", "create": "r7b", "delete": "r5"}


@dataclass(frozen=True)
class Cost:
    """What a change cost: steps taken by resource, resources to tell of, and everything that was asked."""

    steps: dict[str, list[str]]
    news: frozenset[str]
    spent: Counter[str]


async def costs(count: int, folder: Path) -> dict[str, Cost]:
    """Each change, one after the other, on a node with so many resources that are as they shall be."""
    found = {}
    async with scaled(count, folder) as node:
        await node.start()
        await node.settle()
        assert {step for _, _, step in node.world.steps} == {"DrbdUp"}
        assert len(node.agent.keepers) == count
        for what, edit in EDITS.items():
            node.clear()
            await node.follow(await node.edit(edit))
            steps: dict[str, list[str]] = {}
            for who, name, step in node.world.steps:
                assert who == NODE
                steps.setdefault(name, []).append(step)
            found[what] = Cost(steps, frozenset(node.agent.news.take()), node.spent())
    return found


async def test_a_change_costs_the_same_among_ten_resources_and_a_thousand(tmp_path: Path) -> None:
    few, many = await costs(10, tmp_path), await costs(1000, tmp_path)
    for what in EDITS:
        assert many[what] == few[what], what
    for what, name in TOUCHED.items():
        cost = many[what]
        assert cost.steps.keys() == {name}
        assert cost.news == {name}
        # The state is read once and written in one transaction.
        assert (cost.spent["store.read"], cost.spent["store.commit"]) == (1, 1)
    spent = many["export"].spent
    # The resource and the generation; an ACL and its LUN in the portal groups of both nodes.
    assert spent["store.keys written"] == 2
    assert many["export"].steps["r7"] == ["ApplyTarget"] * 4
    assert spent["configfs.mkdir"] == 4
    # Its gate is looked at before and after; DRBD has told its state by itself.
    assert (spent["gates.observe"], spent["drbd.observe"]) == (2, 0)


@pytest.mark.parametrize("way", ["dmsetup", "ioctl"])
async def test_a_change_of_a_gate_asks_device_mapper_about_that_gate_only(way: str) -> None:
    dm = FakeDm()
    dm.add_leaf("/dev/drbd16", "147:16", 1 << 21)
    asked: list[tuple[str, ...]] = []

    class Asking(Counted):
        async def devices(self, names: Iterable[str] = ()) -> dict[str, Device]:
            asked.append(tuple(names))
            found: dict[str, Device] = await self._inner.devices(asked[-1])
            return found

    gates = DmGates(Asking(dm.mapper(way), lambda _: None), dm)
    await gates.create("hactl.r0.0", 1 << 20)
    await gates.create("hactl.r1.0", 1 << 20)
    await gates.open("hactl.r0.0", "/dev/drbd16")
    await gates.resize("hactl.r0.0", 1 << 21)
    await gates.hold("hactl.r0.0")
    await gates.close("hactl.r0.0")
    await gates.remove("hactl.r0.0")
    assert set(asked) == {(f"hactl.{r}.0", f"hactl.{r}.0.hold") for r in ("r0", "r1")}
    assert set(await gates.observe()) == {"hactl.r1.0"}
