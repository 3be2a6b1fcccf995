"""Keeping Pacemaker's configuration up."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from hactl.cluster.layout import Layout
from hactl.errors import HactlError
from hactl.model.spec import ClusterSpec
from hactl.pacemaker.difference import difference
from hactl.pacemaker.memory import MemoryCluster, MemoryPacemaker
from hactl.pacemaker.upkeep import ConfigurationUpkeep
from hactl.pacemaker.wanted import wanted
from tests.unit.pacemaker_world import cluster, resource


def made(spec: ClusterSpec, node: str, folder: Path) -> tuple[MemoryCluster, ConfigurationUpkeep]:
    world = MemoryCluster(("n1", "n2", "n3"))
    return world, ConfigurationUpkeep(node, spec, world.on(node), Layout(folder))


def right(world: MemoryCluster, spec: ClusterSpec) -> bool:
    return not difference(world.configuration, wanted(spec)).change


async def test_the_controller_s_node_brings_it_about_and_nobody_else(tmp_path: Path) -> None:
    spec = cluster(resource(0))
    world, other = made(spec, "n2", tmp_path)
    assert world.dc == "n1"
    assert await other.once() is None
    assert not right(world, spec)
    world.leave("n1")
    assert await other.once() is None
    assert right(world, spec)


async def test_every_node_keeps_the_programs_that_print_secrets(tmp_path: Path) -> None:
    _, other = made(cluster(), "n3", tmp_path)
    await other.once()
    assert {p.name for p in (tmp_path / "etc/hactl/fence").iterdir()} == {"n1", "n2", "n3"}


async def test_without_a_quorum_or_without_pacemaker_nothing_is_done(tmp_path: Path) -> None:
    world, upkeep = made(cluster(resource(0)), "n1", tmp_path)
    world.lose("n2")
    world.lose("n3")
    before = world.configuration
    assert await upkeep.once() is None
    upkeep.update(cluster(resource(0), pacemaker=False))
    world.join("n2")
    assert await upkeep.once() is None
    assert world.configuration == before


async def test_a_lost_node_that_cannot_be_fenced_is_told_of(tmp_path: Path) -> None:
    world, upkeep = made(cluster(resource(0)), "n1", tmp_path)
    assert await upkeep.once() is None
    world.unreachable.add("n2")
    world.lose("n2")
    told = await upkeep.once()
    assert told is not None
    assert "node n2 is lost and could not be fenced" not in told
    world.fence("n2")
    told = await upkeep.once()
    assert told is not None
    assert "node n2 is lost and could not be fenced" in told
    assert "stonith_admin --confirm n2" in told
    world.unreachable.clear()
    world.fence("n2")
    assert await upkeep.once() is None


async def test_roles_are_looked_at_anew_before_maintenance_ends(tmp_path: Path) -> None:
    by_hand = cluster(resource(0), manual_failover=True)
    world, upkeep = made(by_hand, "n1", tmp_path)
    await upkeep.once()
    assert world.refreshed == []
    upkeep.update(cluster(resource(0)))
    await upkeep.once()
    assert world.refreshed == ["hactl-r0-clone"]
    assert right(world, cluster(resource(0)))


async def test_a_resource_goes_although_a_move_of_it_was_not_cleared(tmp_path: Path) -> None:
    world, upkeep = made(cluster(resource(0)), "n1", tmp_path)
    await upkeep.once()
    await world.on("n1").move("hactl-r0-clone", "n2")
    upkeep.update(cluster())
    await upkeep.once()
    assert "r0" not in world.configuration


class Watched(ConfigurationUpkeep):
    """Tells when a look has ended, and how."""

    def __init__(self, node: str, spec: ClusterSpec, pacemaker: MemoryPacemaker, layout: Layout) -> None:
        super().__init__(node, spec, pacemaker, layout)
        self.looks: asyncio.Queue[Exception | None] = asyncio.Queue()

    async def once(self) -> str | None:
        try:
            found = await super().once()
        except HactlError as error:
            self.looks.put_nowait(error)
            raise
        self.looks.put_nowait(None)
        return found


async def test_what_is_wrong_is_told_and_tried_again(tmp_path: Path) -> None:
    world = MemoryCluster(("n1", "n2", "n3"))
    pacemaker = world.on("n1")
    pacemaker.down = True
    upkeep = Watched("n1", cluster(resource(0)), pacemaker, Layout(tmp_path))
    task = asyncio.create_task(upkeep.run())
    try:
        async with asyncio.timeout(10):
            assert await upkeep.looks.get() is not None
            assert "Pacemaker does not run" in (upkeep.problem or "")
            pacemaker.down = False
            spec = cluster(resource(0), resource(1))
            upkeep.update(spec)
            assert await upkeep.looks.get() is None
            assert upkeep.problem is None
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert right(world, spec)


async def test_what_somebody_else_still_uses_is_a_problem(tmp_path: Path) -> None:
    world, upkeep = made(cluster(resource(0)), "n1", tmp_path)
    await upkeep.once()
    theirs = '<rsc_colocation id="theirs" rsc="web" with-rsc="hactl-r0-clone"/>'
    world.configuration = world.configuration.replace("</constraints>", f"{theirs}</constraints>")
    upkeep.update(cluster())
    problem = await upkeep.once()
    assert problem is not None
    assert "theirs" in problem
