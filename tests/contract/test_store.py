"""What every store does: the twin and a real etcd of three members."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hactl.errors import HactlError, Refused, Unknown
from hactl.store.protocol import (
    CONFLICT,
    LEASE_LOST,
    OUTCOME_UNKNOWN,
    TOO_LARGE,
    UNREACHABLE,
    Changes,
    Delete,
    Item,
    Put,
    Reset,
    Store,
    Unchanged,
    Write,
)
from tests.contract.etcd_cluster import EtcdCluster
from tests.contract.store_world import EtcdWorld, MemoryWorld, World, collected, soon, until


@pytest.fixture(params=["memory", "etcd"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made: World
    if request.param == "memory":
        made = MemoryWorld()
    else:
        cluster: EtcdCluster = request.getfixturevalue("etcd_cluster")
        await cluster.heal()
        await cluster.wipe()
        made = EtcdWorld(cluster)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def store(world: World) -> Store:
    return await world.client()


async def test_value_and_revision_of_a_key(store: Store) -> None:
    assert await store.get("/c/a") is None
    first = await store.commit([], [Put("/c/a", b"\x00one")])
    assert await store.get("/c/a") == Item("/c/a", b"\x00one", first)
    second = await store.commit([], [Put("/c/ä", b""), Put("/c/a", b"two")])
    assert second == first + 1
    assert await store.get("/c/ä") == Item("/c/ä", b"", second)
    assert await store.get("/c/a") == Item("/c/a", b"two", second)
    assert await store.commit([], [Delete("/c/a")]) == second + 1
    assert await store.get("/c/a") is None


async def test_a_prefix_is_read_whole_and_alone(store: Store) -> None:
    keys = [f"/c/n/{number}" for number in range(8)]
    await store.commit([], [Put(key, key.encode()) for key in [*keys, "/c/n", "/c/n0", "/c/m/1"]])
    last = await store.commit([], [Put("/d", b"")])
    snapshot = await store.read("/c/n/")
    assert {key: item.value for key, item in snapshot.items.items()} == {key: key.encode() for key in keys}
    assert snapshot.revision == last
    assert set((await store.read("")).items) == {*keys, "/c/n", "/c/n0", "/c/m/1", "/d"}
    assert (await store.read("/nothing")).items == {}


async def test_all_of_a_read_is_of_one_revision(world: World, store: Store) -> None:
    keys = [f"/c/{number:02}" for number in range(10)]
    stop = asyncio.Event()

    async def rewrite() -> None:
        writer = await world.client()
        count = 0
        while not stop.is_set():
            count += 1
            await writer.commit([], [Put(key, str(count).encode()) for key in keys])

    await store.commit([], [Put(key, b"0") for key in keys])
    writing = asyncio.create_task(rewrite())
    values = set()
    try:
        for _ in range(20):
            snapshot = await store.read("/c/")
            found = {item.value for item in snapshot.items.values()}
            assert len(snapshot.items) == 10
            assert len(found) == 1, found
            assert {item.revision for item in snapshot.items.values()} == {
                next(iter(snapshot.items.values())).revision
            }
            values |= found
    finally:
        stop.set()
        await writing
    assert len(values) > 1


async def test_conditions_hold_for_the_whole_transaction(store: Store) -> None:
    revision = await store.commit([Unchanged("/c/a", 0), Unchanged("/c/b", 0)], [Put("/c/a", b"1")])
    for stale in (
        [Unchanged("/c/a", 0)],
        [Unchanged("/c/a", revision - 1)],
        [Unchanged("/c/a", revision), Unchanged("/c/b", revision)],
    ):
        with pytest.raises(Refused) as refusal:
            await store.commit(stale, [Put("/c/b", b"2"), Delete("/c/a"), Put("/c/c", b"")])
        assert refusal.value.code == CONFLICT
        assert stale[-1].key in refusal.value.message
    assert await store.read("/c/") == await store.read("/c/a")
    assert (await store.read("/c/")).revision == revision
    await store.commit([Unchanged("/c/a", revision)], [Delete("/c/a")])
    await store.commit([Unchanged("/c/a", 0)], [Put("/c/a", b"again")])


async def test_what_changes_nothing_has_no_revision_of_its_own(store: Store) -> None:
    revision = await store.commit([], [Put("/c/a", b"1")])
    assert await store.commit([], [Delete("/c/none")]) == revision
    assert await store.commit([Unchanged("/c/a", revision)], []) == revision
    with pytest.raises(Refused, match="/c/a"):
        await store.commit([Unchanged("/c/a", 0)], [])


async def test_no_increment_of_many_writers_is_lost(world: World) -> None:
    async def increments(client: Store) -> None:
        done = 0
        while done < 10:
            item = await client.get("/c/count")
            try:
                await client.commit(
                    [Unchanged("/c/count", item.revision if item else 0)],
                    [Put("/c/count", str(int(item.value if item else 0) + 1).encode())],
                )
            except Refused as refusal:
                if refusal.code != CONFLICT:
                    raise
            else:
                done += 1

    clients = [await world.client() for _ in range(3)]
    await soon(asyncio.gather(*map(increments, clients)))
    found = await clients[0].get("/c/count")
    assert found is not None
    assert found.value == b"30"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Put("/c/a", b"1"), Put("/c/a", b"2")),
        (Put("/c/a", b"1"), Delete("/c/a")),
        (Put("/c/b", b"1"), Put("", b"")),
    ],
)
async def test_a_key_is_written_once_in_a_transaction(store: Store, first: Write, second: Write) -> None:
    with pytest.raises(ValueError, match=second.key or "empty"):
        await store.commit([], [first, second])
    assert (await store.read("")).items == {}


async def test_too_many_keys_are_refused_and_nothing_is_written(store: Store) -> None:
    with pytest.raises(Refused) as refusal:
        await store.commit([], [Put(f"/c/{number}", b"") for number in range(129)])
    assert refusal.value.code == TOO_LARGE
    assert (await store.read("/c/")).items == {}


async def test_a_watch_tells_everything_in_order(store: Store) -> None:
    start = await store.commit([], [Put("/c/old", b"")])
    watch = store.watch("/c/", start)
    a = await store.commit([], [Put("/c/a", b"1"), Put("/c/b", b"1"), Put("/other", b"")])
    assert await collected(watch, a) == [
        Changes({"/c/a": Item("/c/a", b"1", a), "/c/b": Item("/c/b", b"1", a)}, a)
    ]
    await store.commit([], [Put("/other", b"2")])
    b = await store.commit([], [Delete("/c/a"), Put("/c/old", b"2")])
    assert await soon(anext(watch)) == Changes({"/c/a": None, "/c/old": Item("/c/old", b"2", b)}, b)


async def test_a_watch_begins_in_the_past(store: Store) -> None:
    revisions = [await store.commit([], [Put("/c/a", str(n).encode())]) for n in range(5)]
    told = await collected(store.watch("/c/", revisions[1]), revisions[-1])
    assert all(isinstance(each, Changes) for each in told)
    last = told[-1]
    assert isinstance(last, Changes)
    assert last.items == {"/c/a": Item("/c/a", b"4", revisions[-1])}
    # Consecutive transactions may be told as one.
    assert [each.revision for each in told if isinstance(each, Changes)] == sorted(
        {each.revision for each in told if isinstance(each, Changes)}
    )
    assert len(told) <= 3


async def test_waiting_for_a_watch_may_be_cancelled(store: Store) -> None:
    start = await store.commit([], [Put("/c/a", b"0")])
    watch = store.watch("/c/", start)
    told: list[bytes] = []
    for number in range(10):
        # Cancelled while connecting, while waiting, and while something is just coming in.
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.wait({waiting}, timeout=0.003 * number)
        assert waiting.cancel()
        await asyncio.wait({waiting})
        last = await store.commit([], [Put(f"/c/{number}", b"")])
        for each in await collected(watch, last):
            assert isinstance(each, Changes)
            told += [key.encode() for key in each.items]
    assert told == [f"/c/{number}".encode() for number in range(10)]


async def test_a_watch_of_what_is_forgotten_begins_anew(world: World, store: Store) -> None:
    start = await store.commit([], [Put("/c/a", b"1"), Put("/c/b", b"1")])
    await store.commit([], [Delete("/c/a")])
    b = await store.commit([], [Put("/c/b", b"2")])
    last = await store.commit([], [Put("/other", b"")])
    await world.compact()
    watch = store.watch("/c/", start)
    reset = await soon(anext(watch))
    assert isinstance(reset, Reset)
    assert reset.snapshot.items == {"/c/b": Item("/c/b", b"2", b)}
    assert reset.snapshot.revision == last
    c = await store.commit([], [Put("/c/c", b"")])
    assert await soon(anext(watch)) == Changes({"/c/c": Item("/c/c", b"", c)}, c)


async def test_compaction_does_not_disturb_who_is_up_to_date(world: World, store: Store) -> None:
    start = await store.commit([], [Put("/c/a", b"1")])
    watch = store.watch("/c/", start)
    for number in range(3):
        revision = await store.commit([], [Put("/c/a", str(number).encode())])
        assert await soon(anext(watch)) == Changes(
            {"/c/a": Item("/c/a", str(number).encode(), revision)}, revision
        )
        await world.compact()


async def test_a_watch_from_the_future_begins_anew(store: Store) -> None:
    # As after a restore from a backup: the watcher knows revisions that do not exist any more.
    revision = await store.commit([], [Put("/c/a", b"1")])
    watch = store.watch("/c/", revision + 1000)
    reset = await soon(anext(watch))
    assert isinstance(reset, Reset)
    assert set(reset.snapshot.items) == {"/c/a"}
    last = await store.commit([], [Put("/c/b", b"1")])
    assert await soon(anext(watch)) == Changes({"/c/b": Item("/c/b", b"1", last)}, last)


async def test_a_watch_ends_when_it_is_told_to(store: Store) -> None:
    closed, open_ = store.watch("/c/", 0), store.watch("/c/", 0)
    waiting = [asyncio.create_task(_rest(watch)) for watch in (closed, open_)]
    revision = await store.commit([], [Put("/c/a", b"")])
    await asyncio.sleep(0)
    await closed.aclose()
    told = await soon(waiting[0])
    assert told in ([], [revision])
    await store.close()
    assert await soon(waiting[1]) in ([], [revision])
    with pytest.raises(StopAsyncIteration):
        await anext(open_)


async def _rest(watch: AsyncIterator[Changes | Reset]) -> list[int]:
    return [each.revision async for each in watch if isinstance(each, Changes)]


async def test_a_closed_store_refuses(store: Store) -> None:
    await store.commit([], [Put("/c/a", b"")])
    await store.close()
    for call in (store.get("/c/a"), store.read("/c/"), store.commit([], [Put("/c/a", b"")]), store.lease(5)):
        with pytest.raises(Refused) as refusal:
            await call
        assert refusal.value.code == UNREACHABLE


async def test_a_lease_keeps_its_keys_until_it_is_revoked(world: World, store: Store) -> None:
    lease = await store.lease(2)
    assert lease.ttl == 2
    assert 0 < lease.remaining <= 2
    revision = await store.commit([], [Put("/c/mine", b"", lease.id), Put("/c/other", b"")])
    watch = store.watch("/c/", revision)
    await world.pass_time(2.5)
    assert lease.remaining > 0.5
    assert set((await store.read("/c/")).items) == {"/c/mine", "/c/other"}
    waiting = asyncio.create_task(lease.lost())
    await lease.revoke()
    await soon(waiting)
    assert lease.remaining == 0
    assert await soon(anext(watch)) == Changes({"/c/mine": None}, revision + 1)
    with pytest.raises(Refused) as refusal:
        await store.commit([], [Put("/c/mine", b"", lease.id), Put("/c/new", b"")])
    assert refusal.value.code == LEASE_LOST
    assert set((await store.read("/c/")).items) == {"/c/other"}
    await lease.revoke()


async def test_a_key_that_is_written_again_leaves_its_lease(store: Store) -> None:
    lease = await store.lease(10)
    await store.commit([], [Put("/c/a", b"", lease.id), Put("/c/b", b"", lease.id)])
    await store.commit([], [Put("/c/a", b"")])
    await lease.revoke()
    assert set((await store.read("/c/")).items) == {"/c/a"}


async def test_keys_go_when_nobody_renews(world: World, store: Store) -> None:
    other = await world.client()
    lease = await other.lease(2)
    revision = await other.commit([], [Put("/c/mine", b"", lease.id)])
    watch = store.watch("/c/", revision)
    await other.close()
    assert lease.remaining == 0
    await soon(lease.lost())
    await world.pass_time(3)
    assert await soon(anext(watch)) == Changes({"/c/mine": None}, revision + 1)


async def test_the_owner_hears_of_a_lost_lease_before_anybody_else(world: World, store: Store) -> None:
    lease = await store.lease(2)
    revision = await store.commit([], [Put("/c/mine", b"", lease.id)])
    watch = (await world.client()).watch("/c/", revision)
    waiting = asyncio.create_task(lease.lost())
    await world.cut_off()
    await world.pass_time(2.05)
    await soon(waiting)
    assert lease.remaining == 0
    await world.restore()
    await world.pass_time(2)
    assert await soon(anext(watch)) == Changes({"/c/mine": None}, revision + 1)
    assert lease.remaining == 0


async def test_a_store_that_does_not_answer(world: World, store: Store) -> None:
    revision = await store.commit([], [Put("/c/a", b"1")])
    watch = store.watch("/c/", revision)
    await world.cut_off()
    with pytest.raises((Refused, Unknown)) as outcome:
        await store.commit([Unchanged("/c/a", revision)], [Put("/c/a", b"2")])
    assert outcome.value.code == (UNREACHABLE if isinstance(outcome.value, Refused) else OUTCOME_UNKNOWN)
    answers = await asyncio.gather(
        store.get("/c/a"), store.read("/c/"), store.lease(2), return_exceptions=True
    )
    for answer in answers:
        assert isinstance(answer, Refused)
        assert answer.code == UNREACHABLE
    await world.restore()

    async def decided() -> bool:
        # Whether it was carried out shows at the latest when something else has been.
        try:
            await store.commit([Unchanged("/c/b", 0)], [Put("/c/b", b"")])
        except HactlError:
            return await store.get("/c/b") is not None
        return True

    await until(decided)
    found = await store.read("/c/")
    value = found.items["/c/a"].value
    assert value == b"1" if isinstance(outcome.value, Refused) else value in (b"1", b"2")
    told = await collected(watch, found.revision)
    assert all(isinstance(each, Changes) for each in told)
