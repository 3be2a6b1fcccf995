"""The event stream may lag behind DRBD; what is known of DRBD never goes back in time for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from hactl.agents.follow import Follower
from hactl.errors import Failed
from hactl.replication.protocol import Replication
from hactl.replication.state import ResourceState, Role

R0 = "r0"
States = dict[str, ResourceState]


def state(role: Role) -> States:
    return {R0: ResourceState(R0, role)}


PRIMARY, SECONDARY = state(Role.PRIMARY), state(Role.SECONDARY)


def is_primary(found: ResourceState) -> bool:
    return found.role is Role.PRIMARY


def is_secondary(found: ResourceState) -> bool:
    return found.role is Role.SECONDARY


class Slow:
    """DRBD whose state is ``now``, and whose events come when the test hands them out."""

    def __init__(self) -> None:
        self.now: States = SECONDARY
        self.events: asyncio.Queue[States | None] = asyncio.Queue()
        self.asked = 0
        self.while_asked: Callable[[], None] = lambda: None
        self.error: Failed | None = None

    async def observe(self) -> States:
        self.asked += 1
        self.while_asked()
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.now

    async def watch(self) -> AsyncIterator[States | None]:
        while True:
            yield await self.events.get()


class Rig:
    def __init__(self) -> None:
        self.drbd = Slow()
        self.follower = Follower(cast("Replication", self.drbd))
        self.heard = asyncio.Event()

    async def tell(self, states: States | None) -> None:
        """One event, and return when it has been taken in."""
        self.heard.clear()
        self.drbd.events.put_nowait(states)
        await self.heard.wait()

    async def becomes_primary_unheard(self) -> None:
        self.drbd.now = PRIMARY
        found = await self.follower.until(R0, is_primary, seconds=0.01)
        assert found is not None
        assert found.role is Role.PRIMARY


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    task = asyncio.create_task(rig.follower.follow(lambda: rig.heard.set()))
    await rig.tell(SECONDARY)
    yield rig
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_what_the_stream_tells_is_enough(rig: Rig) -> None:
    found = await rig.follower.until(R0, is_secondary)
    assert found == SECONDARY[R0]
    assert rig.follower.states == SECONDARY
    assert rig.drbd.asked == 0


async def test_what_was_asked_for_is_not_forgotten_for_older_events(rig: Rig) -> None:
    await rig.becomes_primary_unheard()
    assert rig.follower.states is None, "what the stream told last is older than what is known"
    assert rig.follower.runs
    other = {**SECONDARY, "r9": ResourceState("r9", Role.SECONDARY)}
    await rig.tell(other)
    assert rig.follower.states is None
    await rig.tell({**other, **PRIMARY})
    assert rig.follower.states == {**other, **PRIMARY}


async def test_an_older_state_does_not_meet_what_comes_after(rig: Rig) -> None:
    await rig.becomes_primary_unheard()
    waiting = asyncio.create_task(rig.follower.until(R0, is_secondary, seconds=60))
    await asyncio.sleep(0)
    await rig.tell(SECONDARY)
    assert not waiting.done(), "that is from before it became Primary"
    await rig.tell(PRIMARY)
    assert not waiting.done()
    await rig.tell(SECONDARY)
    assert await waiting == SECONDARY[R0]
    assert rig.drbd.asked == 1


async def test_events_that_come_while_drbd_is_asked(rig: Rig) -> None:
    rig.drbd.now = PRIMARY

    def overtaken() -> None:
        rig.follower._learn(PRIMARY)
        rig.follower._learn(SECONDARY)

    rig.drbd.while_asked = overtaken
    assert await rig.follower.until(R0, is_primary, seconds=0.01) == PRIMARY[R0]
    assert rig.follower.states == SECONDARY


async def test_a_state_that_did_not_come_about_is_not_waited_for(rig: Rig) -> None:
    assert await rig.follower.until(R0, is_primary, seconds=0.01) == SECONDARY[R0]
    assert rig.follower.states == SECONDARY
    rig.drbd.error = Failed("drbd-failed", "no")
    with pytest.raises(Failed):
        await rig.follower.until(R0, is_primary, seconds=0.01)
    assert rig.follower.states == SECONDARY


async def test_a_stream_that_begins_anew_is_up_to_date(rig: Rig) -> None:
    await rig.becomes_primary_unheard()
    await rig.tell(None)
    assert not rig.follower.runs
    await rig.tell(PRIMARY)
    await rig.tell(SECONDARY)
    assert rig.follower.states == SECONDARY
