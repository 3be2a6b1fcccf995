"""What a real etcd does to its clients when its members die, fall silent or hand over, and what the store
makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hactl.errors import Refused, Unknown
from hactl.store.etcd import EtcdStore
from hactl.store.protocol import (
    CONFLICT,
    OUTCOME_UNKNOWN,
    TOO_LARGE,
    UNREACHABLE,
    Changes,
    Item,
    Put,
    Reset,
    Unchanged,
    Watch,
)
from tests.contract.etcd_cluster import MEMBERS, EtcdCluster
from tests.contract.store_world import LIMITS, EtcdWorld, collected, soon, until
from tests.contract.tls import Authority

KEY = "/t/count"


@pytest.fixture
async def world(etcd_cluster: EtcdCluster) -> AsyncIterator[EtcdWorld]:
    await etcd_cluster.heal()
    await etcd_cluster.wipe()
    made = EtcdWorld(etcd_cluster)
    try:
        yield made
    finally:
        await made.close()


async def kill_leader(cluster: EtcdCluster) -> int:
    index = await cluster.leader()
    cluster.kill(index)
    return index


async def kill_follower(cluster: EtcdCluster) -> int:
    index = (await cluster.leader() + 1) % MEMBERS
    cluster.kill(index)
    return index


async def pause_leader(cluster: EtcdCluster) -> int:
    index = await cluster.leader()
    cluster.pause(index)
    return index


Harm = Callable[[EtcdCluster], Awaitable[int]]


class Counter:
    """Adds one to a key again and again, and knows which values it may and must have been given."""

    def __init__(self, store: EtcdStore) -> None:
        self.store = store
        self.done = 0
        self.unknown = 0
        self.refused = 0
        self.longest = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            begun = time.monotonic()
            try:
                item = await self.store.get(KEY)
                value = str(int(item.value if item else 0) + 1).encode()
                await self.store.commit([Unchanged(KEY, item.revision if item else 0)], [Put(KEY, value)])
                self.done += 1
            except Unknown:
                self.unknown += 1
            except Refused as refusal:
                if refusal.code not in (CONFLICT, UNREACHABLE):
                    raise
                self.refused += 1
            self.longest = max(self.longest, time.monotonic() - begun)


async def listen(watch: Watch, values: list[int]) -> None:
    """Note what the key became, until the watch ends."""
    async for each in watch:
        assert isinstance(each, Changes)
        item = each.items[KEY]
        assert item is not None
        values.append(int(item.value))


@pytest.mark.parametrize("harm", [kill_leader, kill_follower, pause_leader, EtcdCluster.move_leader])
async def test_nothing_is_lost_or_told_twice_while_members_come_and_go(world: EtcdWorld, harm: Harm) -> None:
    first = await world.client()
    start = await first.commit([], [Put(KEY, b"0")])
    # One client and one watch that prefer each of the members: whichever is hurt, somebody was using it.
    counters = [Counter(await world.client(member)) for member in range(MEMBERS)]
    watches = [(await world.client(member)).watch("/t/", start) for member in range(MEMBERS)]
    lease = await counters[0].store.lease(8)
    stop = asyncio.Event()
    running = [asyncio.create_task(counter.run(stop)) for counter in counters]

    heard: list[list[int]] = [[] for _ in watches]
    listening = [asyncio.create_task(listen(*each)) for each in zip(watches, heard, strict=True)]

    async def progress(count: int) -> None:
        wanted = sum(counter.done for counter in counters) + count

        async def made() -> bool:
            return sum(counter.done for counter in counters) >= wanted

        await until(made)

    await progress(20)
    await harm(world.cluster)
    await progress(20)
    await world.cluster.heal()
    await progress(20)
    stop.set()
    await soon(asyncio.gather(*running))

    last = await first.get(KEY)
    assert last is not None
    done = sum(counter.done for counter in counters)
    unknown = sum(counter.unknown for counter in counters)
    assert done <= int(last.value) <= done + unknown
    # At most one transaction of each client was on its way to the member that was hurt.
    assert unknown <= MEMBERS
    assert lease.remaining > 0

    async def all_told() -> bool:
        return all(values[-1] == int(last.value) for values in heard)

    await until(all_told)
    for watch in watches:
        await watch.aclose()
    await asyncio.gather(*listening)
    for values in heard:
        # Consecutive transactions may be told as one; none twice, and none out of order.
        assert values == sorted(set(values))
        assert len(values) > 30


async def test_every_change_is_seen_while_members_die_one_after_the_other(world: EtcdWorld) -> None:
    store = await world.client(1)
    start = await store.commit([], [Put("/t/start", b"")])
    watch = (await world.client()).watch("/t/n/", start)
    seen: dict[str, Item | None] = {}
    last = start
    for member in range(MEMBERS):
        for number in range(5):
            last = await _written(store, f"/t/n/{member}-{number}")
        world.cluster.kill(member)
        for number in range(5, 10):
            last = await _written(store, f"/t/n/{member}-{number}")
        await world.cluster.heal()
    for each in await collected(watch, last):
        assert isinstance(each, Changes)
        assert not set(each.items) & set(seen)
        seen.update(each.items)
    assert set(seen) == {f"/t/n/{member}-{number}" for member in range(MEMBERS) for number in range(10)}


async def _written(store: EtcdStore, key: str) -> int:
    """The revision of a key's only writing, however often it takes to be sure."""
    while True:
        with contextlib.suppress(Unknown, Refused):
            return await store.commit([Unchanged(key, 0)], [Put(key, b"")])
        with contextlib.suppress(Refused):
            found = await store.get(key)
            if found is not None:
                return found.revision


async def test_a_watch_leaves_a_member_that_fell_silent(world: EtcdWorld) -> None:
    store = await world.client(1)
    start = await store.commit([], [Put(KEY, b"0")])
    silent = (await world.cluster.leader() + 1) % MEMBERS
    watch = (await world.client(silent)).watch("/t/", start)
    first = await store.commit([], [Put(KEY, b"1")])
    assert await soon(anext(watch)) == Changes({KEY: Item(KEY, b"1", first)}, first)
    other = await world.client((silent + 1) % MEMBERS)
    world.cluster.pause(silent)
    revision = await other.commit([], [Put(KEY, b"2")])
    begun = time.monotonic()
    assert await soon(anext(watch)) == Changes({KEY: Item(KEY, b"2", revision)}, revision)
    # Two silences, and a connection elsewhere; and time for a machine that is busy.
    assert time.monotonic() - begun < 2 * LIMITS.silence + LIMITS.attempt + 2


async def test_compaction_while_a_watch_is_cut_off(world: EtcdWorld) -> None:
    store = await world.client(1)
    start = await store.commit([], [Put("/t/a", b""), Put("/t/b", b"")])
    follower = (await world.cluster.leader() + 1) % MEMBERS
    watch = (await world.client(follower)).watch("/t/", start)
    a = await store.commit([], [Put("/t/a", b"1")])
    assert await soon(anext(watch)) == Changes({"/t/a": Item("/t/a", b"1", a)}, a)
    other = (follower + 1) % MEMBERS
    world.cluster.kill(follower)
    writer = await world.client(other)
    await _written(writer, "/t/c")
    last = await _written(writer, "/t/d")
    await world.cluster.compact(other)
    told = await soon(anext(watch))
    assert isinstance(told, Reset)
    assert set(told.snapshot.items) == {"/t/a", "/t/b", "/t/c", "/t/d"}
    assert told.snapshot.revision == last
    after = await _written(writer, "/t/e")
    assert await soon(anext(watch)) == Changes({"/t/e": Item("/t/e", b"", after)}, after)


async def test_without_a_majority_nothing_is_written_and_all_goes_on_afterwards(world: EtcdWorld) -> None:
    left = 0
    store = await world.client(left, replace(LIMITS, total=1.5))
    revision = await store.commit([], [Put(KEY, b"0")])
    watch = (await world.client(left)).watch("/t/", revision)
    for member in range(1, MEMBERS):
        world.cluster.kill(member)
    # The member that is left needs an election's time to notice; what it is asked before is unknown.
    # No harm if it is carried out.
    with pytest.raises((Refused, Unknown)):
        await store.commit([Unchanged(KEY, revision)], [Put("/t/other", b"1")])
    with pytest.raises(Refused) as refusal:
        await store.get(KEY)
    assert refusal.value.code == UNREACHABLE
    for endpoint in world.cluster.endpoints:
        assert endpoint in refusal.value.message
    with pytest.raises(Refused) as refusal:
        await store.commit([Unchanged(KEY, revision)], [Put(KEY, b"never")])
    assert refusal.value.code == UNREACHABLE
    assert "no leader" in refusal.value.message
    await world.cluster.heal()
    last = await _written(store, "/t/again")
    items: dict[str, Item | None] = {}
    for each in await collected(watch, last):
        assert isinstance(each, Changes)
        items.update(each.items)
    assert KEY not in items
    assert "/t/again" in items


async def test_an_answer_that_does_not_come_leaves_the_outcome_open(world: EtcdWorld) -> None:
    store = await world.client(limits=replace(LIMITS, total=1.5))
    revision = await store.commit([], [Put(KEY, b"0")])
    for member in range(MEMBERS):
        world.cluster.pause(member)
    # Sent, since the member answered a moment ago: nobody can say that it was not carried out.
    with pytest.raises(Unknown) as outcome:
        await store.commit([Unchanged(KEY, revision)], [Put(KEY, b"1")])
    assert outcome.value.code == OUTCOME_UNKNOWN
    # Not sent, since the member has been silent since then.
    with pytest.raises(Refused) as refusal:
        await store.commit([Unchanged(KEY, revision)], [Put(KEY, b"2")])
    assert refusal.value.code == UNREACHABLE


async def test_a_silent_member_costs_a_read_one_try(world: EtcdWorld) -> None:
    follower = (await world.cluster.leader() + 1) % MEMBERS
    store = await world.client(follower)
    revision = await store.commit([], [Put(KEY, b"0")])
    world.cluster.pause(follower)
    assert await store.get(KEY) == Item(KEY, b"0", revision)
    begun = time.monotonic()
    await store.commit([Unchanged(KEY, revision)], [Put(KEY, b"1")])
    assert time.monotonic() - begun < LIMITS.connect


async def test_a_transaction_that_is_too_long_is_refused(world: EtcdWorld) -> None:
    store = await world.client()
    await store.commit([], [Put(KEY, bytes(1_400_000))])
    # The limit on requests, and the one on messages before it.
    for size in (1_600_000, 3_000_000):
        with pytest.raises(Refused) as refusal:
            await store.commit([], [Put(KEY, bytes(size))])
        assert refusal.value.code == TOO_LARGE
    # More than gRPC takes by itself (4 MiB), in one page and in one change.
    for number in range(3):
        await store.commit([], [Put(f"/t/large/{number}", bytes(1_400_000))])
    snapshot = await store.read("/t/")
    assert sum(len(item.value) for item in snapshot.items.values()) == 4 * 1_400_000


async def test_strangers_are_refused(world: EtcdWorld, tmp_path: Path) -> None:
    ours, theirs = world.cluster.tls, Authority(tmp_path / "theirs").issue("client")
    for tls in (
        # A client that the members do not know, and members that the client does not know.
        replace(ours, cert=theirs.cert, key=theirs.key),
        replace(ours, ca=theirs.ca),
    ):
        store = EtcdStore(world.cluster.endpoints, tls, limits=replace(LIMITS, total=0.5))
        try:
            with pytest.raises(Refused) as refusal:
                await store.commit([], [Put(KEY, b"")])
            assert refusal.value.code == UNREACHABLE
        finally:
            await store.close()
