"""What the agent may rely on: the capture process on /dev/fuse, on a kernel of the tests', and its twin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.conftest import REAL
from tests.contract.pr_capture_world import SECONDS, KernelWorld, Listener, MemoryWorld, RealWorld, World


@pytest.fixture(params=["memory", "kernel", *(["real"] if REAL else [])])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made: MemoryWorld | KernelWorld | RealWorld
    if request.param == "memory":
        made = MemoryWorld()
    elif request.param == "kernel":
        made = KernelWorld(tmp_path)
        await made.mount()
    else:
        made = RealWorld(tmp_path)
        await made.start()
    try:
        async with asyncio.timeout(SECONDS):
            yield made
    finally:
        await made.close()


async def test_a_write_for_a_unit_of_hactl_s_waits_until_it_is_let_go(world: World) -> None:
    async with world.client() as capture:
        listener = Listener(capture)
        assert (await listener.mounted()).resends
        await capture.set_units(["one", "two"])
        before = time.monotonic()
        writer = world.write("two", "PR_REG_START: 0\n")
        held = await listener.held()
        assert (held.serial, held.content, held.size) == ("two", "PR_REG_START: 0\n", 17)
        assert before <= held.since <= time.monotonic()
        assert not held.resent
        assert dict(capture.waiting) == {held.id: held}
        assert not writer.done()
        assert await capture.release(held.id)
        await writer
        assert not capture.waiting


async def test_writes_of_other_people_s_targets_pass(world: World) -> None:
    async with world.client() as capture:
        await capture.set_units(["one"])
        await world.write("other", "text")
        await world.write("other", "new text")
        await world.write("one2", "text")
        assert not capture.waiting


async def test_two_commands_on_one_unit_wait_side_by_side_and_go_in_any_order(world: World) -> None:
    async with world.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        await capture.set_units(["one"])
        first = world.write("one", "a")
        a = await listener.held()
        second = world.write("one", "b")
        b = await listener.held()
        assert a.id != b.id
        assert await capture.release(b.id)
        await second
        assert not first.done()
        assert await capture.release(a.id)
        await first


async def test_what_waits_is_told_to_an_agent_that_comes_later(world: World) -> None:
    async with world.client() as capture:
        await capture.set_units(["one"])
    writer = world.write("one", "a")
    async with world.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        held = await listener.held()
        assert await capture.release(held.id)
        await writer


async def test_an_agent_that_dies_leaves_its_writes_waiting_for_the_next(world: World) -> None:
    async with world.client() as capture:
        listener = Listener(capture)
        mounted = await listener.mounted()
        await capture.set_units(["one"])
        writer = world.write("one", "a")
        held = await listener.held()
    assert not writer.done()
    async with world.client() as capture:
        listener = Listener(capture)
        assert await listener.mounted() == mounted
        again = await listener.held()
        assert again == held
        assert await capture.release(again.id)
        await writer


async def test_a_write_survives_the_capture_process(world: World) -> None:
    async with world.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        await capture.set_units(["one"])
        writer = world.write("one", "a")
        held = await listener.held()
        await world.crash()
        releasing = asyncio.ensure_future(capture.release(held.id))
        await world.start()
        assert await releasing
        await writer
        # What it was told already it is not told again: the next event is the next write.
        later = world.write("one", "b")
        after = await listener.held()
        assert (after.content, after.resent) == ("b", False)
        assert after.id != held.id
        await capture.release(after.id)
        await later


async def test_a_write_keeps_its_name_when_both_processes_die(world: World) -> None:
    async with world.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        await capture.set_units(["one"])
        writer = world.write("one", "a")
        held = await listener.held()
    for _ in range(3):
        await world.crash()
        await world.start()
    async with world.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        again = await listener.held()
        assert (again.id, again.serial, again.content, again.resent) == (held.id, "one", "a", True)
        await capture.release(again.id)
        await writer


async def test_a_write_waits_while_there_is_neither_agent_nor_capture(world: World) -> None:
    async with world.client() as capture:
        await capture.set_units(["one"])
    await world.crash()
    writer = world.write("one", "a")
    await world.start()
    async with world.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        held = await listener.held()
        assert (held.serial, held.content) == ("one", "a")
        assert not writer.done()
        await capture.release(held.id)
        await writer


async def test_what_does_not_wait_cannot_be_let_go(world: World) -> None:
    async with world.client() as capture:
        listener = Listener(capture)
        mounted = await listener.mounted()
        await capture.set_units(["one"])
        writer = world.write("one", "a")
        held = await listener.held()
        assert not await capture.release(f"{mounted.mount}-ffff")
        assert not await capture.release(held.id.replace(mounted.mount, "before"))
        assert not writer.done()
        assert await capture.release(held.id)
        assert not await capture.release(held.id)
        await writer


async def test_a_unit_that_is_hactl_s_no_more_is_not_held(world: World) -> None:
    async with world.client() as capture:
        listener = Listener(capture)
        await listener.mounted()
        await capture.set_units(["one", "two"])
        waiting = world.write("one", "a")
        held = await listener.held()
        await capture.set_units(["two"])
        await world.write("one", "b")
        # The list is for what comes; what waits is let go by name as ever.
        assert not waiting.done()
        assert await capture.release(held.id)
        await waiting


async def test_the_agent_that_came_last_is_the_one_that_is_told(world: World) -> None:
    async with world.client() as old:
        await old.set_units(["one"])
        async with world.client() as new:
            listener = Listener(new)
            await listener.mounted()
            writer = world.write("one", "a")
            held = await listener.held()
            assert not old.connected
            assert await new.release(held.id)
            await writer


async def test_a_lost_file_system_fails_what_waits_and_is_announced(world: World) -> None:
    async with world.client() as capture:
        listener = Listener(capture)
        first = await listener.mounted()
        await capture.set_units(["one"])
        writer = world.write("one", "a")
        held = await listener.held()
        await world.lose()
        with pytest.raises(OSError, match=r"abort|gone"):
            await writer
        second = await listener.mounted()
        assert second.mount != first.mount
        assert not capture.waiting
        assert not await capture.release(held.id)
        later = world.write("one", "b")
        again = await listener.held()
        assert again.id != held.id
        await capture.release(again.id)
        await later
