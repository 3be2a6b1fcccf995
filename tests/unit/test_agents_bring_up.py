"""What is asked of disks while a resource is brought up: no more than it takes, and no less."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from hactl.agents.kit import Kit
from hactl.errors import Failed
from hactl.model.preflight import BlockDevice
from hactl.model.spec import ClusterSpec, ResourceSpec
from tests.unit.agents_world import R0, World, cluster
from tests.unit.test_agents_pause import Counted

DISK = "/dev/vd0"


def counting(world: World, counts: Counter[str]) -> World:
    """Count what n1 asks of disks and of DRBD, from when its agent starts."""

    def wrap(node: str, kit: Kit) -> Kit:
        def counted(kind: str) -> Any:
            return Counted(getattr(kit, kind), lambda name: counts.update([f"{kind}.{name}"]))

        return replace(kit, disks=counted("disks"), drbd=counted("drbd")) if node == "n1" else kit

    world.wrap = wrap
    return world


@pytest.mark.parametrize("volumes", [1, 2])
async def test_disks_are_judged_for_each_decision_and_asked_once_in_each(volumes: int) -> None:
    counts: Counter[str] = Counter()
    world = counting(World(cluster(volumes)), counts)
    agent = await world.start("n1")
    await agent.attend()
    taken = [step for _, _, step in world.steps]
    assert taken.count("CreateMetadata") == volumes
    # To see whether they may be used, what is on them, and before each is given meta-data once more.
    assert counts["disks.observe"] == 2 + volumes
    # The last of two looks is at those that have none yet.
    assert counts["drbd.has_metadata"] == volumes + volumes * (volumes + 1) // 2
    assert counts["drbd.up"] == 1


async def test_a_disk_that_is_taken_between_plan_and_step_is_left_alone() -> None:
    world = World()
    agent = await world.start("n1")
    machine = world.machines["n1"]
    written = machine.drbd.write_config

    async def mounted_meanwhile(cluster: ClusterSpec, resource: ResourceSpec) -> None:
        await written(cluster, resource)
        machine.disks.devices[DISK] = BlockDevice(path=DISK, size=1 << 40, mountpoints=("/srv",))

    machine.drbd.write_config = mounted_meanwhile  # type: ignore[method-assign]
    await agent.attend()
    assert world.drbd.disk("n1", DISK).metadata is None
    assert [p.code for p in (await agent.keepers[R0].observe()).problems] == ["disk-mounted"]


async def test_a_prepared_disk_is_judged_again_by_the_next_plan() -> None:
    counts: Counter[str] = Counter()
    world = World()
    agent = await counting(world, counts).start("n1")
    machine = world.machines["n1"]
    mounted = BlockDevice(path=DISK, size=1 << 40, mountpoints=("/srv",))
    tries: list[str] = []

    async def refused(name: str) -> None:
        tries.append(name)
        machine.disks.devices[DISK] = mounted
        raise Failed("drbd-failed", "no netlink")

    machine.drbd.up = refused  # type: ignore[method-assign]
    await agent.attend()
    assert world.drbd.disk("n1", DISK).metadata is not None
    assert tries == [R0]
    assert [p.code for p in (await agent.keepers[R0].observe()).problems] == ["disk-mounted"]
    await agent.reconcile()
    assert tries == [R0], "not with a disk that somebody else has"
