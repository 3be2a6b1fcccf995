"""A resource that Pacemaker stops on a node, and its reservations: nobody waits for it, and it comes back
with all it missed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hactl.errors import Refused
from hactl.pr_sync.commands import Command
from hactl.pr_sync.log import PrLog
from hactl.pr_sync.service import Reservations
from hactl.pr_sync.state import Action
from hactl.store.memory import MemoryState, MemoryStore
from tests.unit import test_pr_service
from tests.unit.pr_world import register
from tests.unit.test_pr_service import Cluster, Watched, running


def service(c: Cluster, node: str) -> Reservations:
    found = c.hosts[node].service
    assert found is not None
    return found


async def members(c: Cluster) -> frozenset[str]:
    return await PrLog(MemoryStore(c.state), c.spec.name, "n1").members(c.kernel("n1").unit.serial)


async def test_a_stopped_node_is_waited_for_by_nobody_and_comes_back_with_all_it_missed(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        a, b = c.nexus(0, "n1"), c.nexus(1, "n2")
        assert (await c.kernel("n1").send(register(a, 0xA))).good
        c.hosts["n1"].stopped.add("r0")
        await service(c, "n1").withdraw("r0")
        assert not c.hosts["n1"].open
        assert await members(c) == {"n2"}
        why = service(c, "n1").unready("r0")
        assert why == "r0 is stopped on n1"
        with pytest.raises(Refused):
            await service(c, "n1").confirm("r0", [])
        assert (await c.kernel("n2").send(register(b, 0xB))).good
        assert (await c.kernel("n2").send(Command(b, Action.RESERVE, 0xB, type=5))).good
        # What its kernel has meanwhile does not matter to anybody; it has everything before anybody comes in.
        seen = []
        c.hosts["n1"].open = Watched(lambda: seen.append(c.kernel("n1").state))
        c.hosts["n1"].stopped.clear()
        await service(c, "n1").rejoin("r0")
        await c.serving("n1")
        assert seen == [c.kernel("n2").state]
        assert await members(c) == {"n1", "n2"}
        assert service(c, "n1").unready("r0") is None
        assert (await c.kernel("n1").send(register(a, 0xAA))).good
        assert c.agree("n1", "n2")
        assert c.kernel("n1").rebuilt == 0


async def test_an_agent_that_is_started_again_leaves_a_stopped_port_shut(tmp_path: Path) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        b = c.nexus(1, "n2")
        c.hosts["n1"].stopped.add("r0")
        await service(c, "n1").withdraw("r0")
        await c.kill("n1")
        opened = []
        c.hosts["n1"].open = Watched(lambda: opened.append("opened"))
        await c.start("n1")
        await c.until(lambda: "r0" in c.hosts["n1"].exports and bool(service(c, "n1").reached("r0")))
        assert (await c.kernel("n2").send(register(b, 0xB))).good
        await c.until(lambda: c.agree("n1", "n2"))
        assert opened == []
        assert await members(c) == {"n2"}
        c.hosts["n1"].stopped.clear()
        await service(c, "n1").rejoin("r0")
        await c.serving("n1")
        assert opened == ["opened"]
        assert c.agree("n1", "n2")


async def test_a_kill_between_the_mark_and_the_port(tmp_path: Path) -> None:
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        assert (await c.kernel("n1").send(register(c.nexus(0, "n1"), 0xA))).good
        await c.kill("n1")
        c.hosts["n1"].stopped.add("r0")
        await c.start("n1")
        await c.until(lambda: not c.hosts["n1"].open)
        await c.until(lambda: service(c, "n1").unready("r0") == "r0 is stopped on n1")
        assert (await c.kernel("n2").send(register(c.nexus(1, "n2"), 0xB))).good
        assert await members(c) == {"n2"}


async def test_stopped_and_started_while_it_is_brought_up(tmp_path: Path) -> None:
    async with running(tmp_path, "n2") as c:
        await c.serving("n2")
        c.hosts["n1"].ready = False
        await c.start("n1")
        await c.until(lambda: service(c, "n1").problem is not None)
        c.hosts["n1"].stopped.add("r0")
        await service(c, "n1").withdraw("r0")
        c.hosts["n1"].ready = True
        await c.until(lambda: "r0" in c.hosts["n1"].exports)
        assert not c.hosts["n1"].open
        c.hosts["n1"].stopped.clear()
        await service(c, "n1").rejoin("r0")
        await c.serving("n1")
        assert await members(c) == {"n1", "n2"}


async def test_a_stop_without_the_store_leaves_the_members_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[MemoryStore] = []

    def noted(state: MemoryState) -> MemoryStore:
        made.append(MemoryStore(state))
        return made[-1]

    monkeypatch.setattr(test_pr_service, "MemoryStore", noted)
    async with running(tmp_path, "n1", "n2") as c:
        await c.serving("n1", "n2")
        made[0].reachable = False
        c.hosts["n1"].stopped.add("r0")
        await service(c, "n1").withdraw("r0")
        # Its port is shut, and with it there is nothing that somebody could be told wrong through.
        assert not c.hosts["n1"].open
        assert await members(c) == {"n1", "n2"}
        made[0].reachable = True
        async with asyncio.timeout(20):
            while await members(c) != {"n2"}:  # noqa: ASYNC110 - the store is looked at, like any node does
                await asyncio.sleep(0.01)
        assert (await c.kernel("n2").send(register(c.nexus(1, "n2"), 0xB))).good
