"""What the store's twin can be told to do, beyond what every store does."""

from __future__ import annotations

import asyncio

import pytest

from hactl.errors import Refused, Unknown
from hactl.store.memory import Fault, MemoryState, MemoryStore
from hactl.store.protocol import (
    CONFLICT,
    LEASE_LOST,
    OUTCOME_UNKNOWN,
    UNREACHABLE,
    Changes,
    Item,
    Put,
    Unchanged,
)


class Time:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize(("fault", "value"), [(Fault.DROPPED, b"0"), (Fault.DONE, b"1"), (Fault.LATER, b"0")])
async def test_an_unknown_outcome_is_one_or_the_other(fault: Fault, value: bytes) -> None:
    store = MemoryStore()
    revision = await store.commit([], [Put("/a", b"0")])
    store.faults.append(fault)
    with pytest.raises(Unknown) as outcome:
        await store.commit([Unchanged("/a", revision)], [Put("/a", b"1")])
    assert outcome.value.code == OUTCOME_UNKNOWN
    found = await store.client().get("/a")
    assert found is not None
    assert found.value == value
    # Only that one.
    await store.commit([], [Put("/b", b"")])


async def test_what_arrives_late_is_still_bound_to_its_conditions() -> None:
    store = MemoryStore()
    revision = await store.commit([], [Put("/a", b"0")])
    for key in ("/a", "/b"):
        store.faults.append(Fault.LATER)
        with pytest.raises(Unknown):
            await store.commit([Unchanged(key, revision if key == "/a" else 0)], [Put(key, b"late")])
    await store.commit([Unchanged("/a", revision)], [Put("/a", b"in between")])
    store.state.deliver()
    values = {key: item.value for key, item in (await store.read("/")).items.items()}
    assert values == {"/a": b"in between", "/b": b"late"}


async def test_a_fault_does_not_turn_a_conflict_into_a_change() -> None:
    store = MemoryStore()
    await store.commit([], [Put("/a", b"0")])
    store.faults.append(Fault.DONE)
    with pytest.raises(Unknown):
        await store.commit([Unchanged("/a", 0)], [Put("/a", b"1")])
    with pytest.raises(Refused) as refusal:
        await store.commit([Unchanged("/a", 0)], [Put("/a", b"1")])
    assert refusal.value.code == CONFLICT
    assert store.state.items["/a"].value == b"0"


async def test_only_the_client_that_is_cut_off_is_cut_off() -> None:
    state = MemoryState()
    here, there = MemoryStore(state), MemoryStore(state)
    watch = here.watch("/", 1)
    here.reachable = False
    revision = await there.commit([], [Put("/a", b"")])
    waiting = asyncio.ensure_future(anext(watch))
    for call in (here.get("/a"), here.read("/"), here.commit([], [Put("/a", b"")]), here.lease(5)):
        with pytest.raises(Refused) as refusal:
            await call
        assert refusal.value.code == UNREACHABLE
    assert not waiting.done()
    here.reachable = True
    assert await waiting == Changes({"/a": Item("/a", b"", revision)}, revision)


async def test_a_lease_ends_for_its_owner_first_and_stays_ended() -> None:
    time = Time()
    state = MemoryState(time, grace=1.0)
    owner, other = MemoryStore(state), MemoryStore(state)
    lease = await owner.lease(5)
    await owner.commit([], [Put("/mine", b"", lease.id)])
    time.seconds = 100.0
    assert lease.remaining == 5
    owner.reachable = False
    time.seconds = 104.9
    assert lease.remaining == pytest.approx(0.1)
    time.seconds = 105.0
    assert lease.remaining == 0
    assert await other.get("/mine") is not None
    # Back, but too late: what it believed lost stays lost.
    owner.reachable = True
    assert lease.remaining == 0
    time.seconds = 106.0
    assert await other.get("/mine") is None
    with pytest.raises(Refused) as refusal:
        await owner.commit([], [Put("/mine", b"", lease.id)])
    assert refusal.value.code == LEASE_LOST


async def test_a_lease_outlives_a_short_cut() -> None:
    time = Time()
    owner = MemoryStore(MemoryState(time))
    lease = await owner.lease(5)
    owner.reachable = False
    time.seconds = 4.0
    owner.reachable = True
    assert lease.remaining == 5


async def test_with_the_machine_s_own_clock_leases_end_by_themselves() -> None:
    state = MemoryState(grace=0.05)
    owner, other = MemoryStore(state), MemoryStore(state)
    lease = await owner.lease(2)
    revision = await owner.commit([], [Put("/mine", b"", lease.id)])
    owner.reachable = False
    async with asyncio.timeout(10):
        await lease.lost()
        assert await other.get("/mine") is not None
        assert await anext(other.watch("/", revision)) == Changes({"/mine": None}, revision + 1)
