"""The desired state in a store: changes are all or nothing, made once, and seen by those who watch."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from hactl.errors import Refused, Unknown
from hactl.model import edit, record, records
from hactl.model.desired import Desired
from hactl.store.desired import change, create, read, watch
from hactl.store.memory import Fault, MemoryStore
from hactl.store.protocol import CONFLICT, TOO_LARGE, Put, Unchanged
from tests.unit.desired_world import CLUSTER, cluster, origin, serials, stored

SECRET = "first-secret-1"
CONFIG = records.prefix(CLUSTER) + records.CONFIG


async def no_pause(seconds: float) -> None:
    await asyncio.sleep(0)


def creates(name: str, **options: Any) -> Any:
    new = options.pop("serial", serials())
    return lambda state: edit.create_resource(state, name, "1G", serial=new, **options)


async def made(store: MemoryStore, edits: Any, who: str = "n1", **options: Any) -> Desired:
    return await change(
        store, CLUSTER, edits, what="a test's change", origin=origin(who), pause=no_pause, **options
    )


async def test_what_is_written_is_read() -> None:
    store = await stored(cluster())
    first = await read(store, CLUSTER)
    assert first.same(cluster().ordered())
    assert first.generation == 1
    second = await made(store, creates("r1", hosts=["h1"]))
    assert second == await read(store, CLUSTER)
    assert (second.generation, second.revision) == (2, store.state.revision)
    assert second.change is not None
    assert second.change.who == "n1"
    assert second.change.recent == ("init-1", "n1-1")


async def test_passwords_lie_in_a_prefix_of_their_own() -> None:
    store = await stored(cluster())
    with_secret = [key for key, item in store.state.items.items() if SECRET.encode() in item.value]
    assert with_secret == [f"/hactl/{CLUSTER}/secrets/hosts/h1"]


async def test_a_cluster_is_created_once() -> None:
    store = await stored(cluster())
    before = dict(store.state.items)
    with pytest.raises(Refused) as error:
        await create(store, cluster(1).cluster, origin())
    assert error.value.code == "cluster-exists"
    assert store.state.items == before


async def test_no_cluster_is_said() -> None:
    with pytest.raises(Refused) as error:
        await read(MemoryStore(), CLUSTER)
    assert error.value.code == "no-cluster"
    with pytest.raises(Refused) as error:
        await made(MemoryStore(), creates("r1"))
    assert error.value.code == "no-cluster"


async def test_an_edit_that_changes_nothing_writes_nothing() -> None:
    store = await stored(cluster())
    before, revision = await read(store, CLUSTER), store.state.revision
    after = await made(store, lambda state: edit.add_host(state, "h2", ["iqn.2026-01.com.example:h2"]))
    assert after == before
    assert store.state.revision == revision


async def test_what_the_check_of_the_whole_finds_is_refused() -> None:
    store = await stored(cluster())
    before = dict(store.state.items)
    disk = {"n1": "/dev/sdb", "n2": "/dev/sdb"}
    await made(store, creates("r1", disks=disk))
    middle = dict(store.state.items)
    assert middle != before
    with pytest.raises(Refused) as error:
        await made(store, creates("r2", disks=disk, serial=serials(9)))
    assert error.value.code == "disk-duplicate"
    assert "resources.r2" in error.value.message
    assert error.value.hint
    assert store.state.items == middle


async def test_more_replicas_than_the_clusters_drbd_can_do() -> None:
    store = await stored(cluster())
    with pytest.raises(Refused) as error:
        await made(store, creates("r1", replicas=3), max_replicas=2)
    assert error.value.code == "too-many-replicas"


async def test_a_resource_that_has_lost_its_second_replica_does_not_keep_others_from_changing() -> None:
    store = await stored(cluster())
    await made(store, creates("r1", disks={"n1": "/dev/sdb", "n2": "/dev/sdb"}), max_replicas=2)

    def lost(state: Desired) -> Desired:
        (r1,) = state.cluster.resources
        volumes = tuple(v.model_copy(update={"disks": {"n1": v.disks["n1"]}}) for v in r1.volumes)
        resources = (r1.model_copy(update={"nodes": ("n1",), "volumes": volumes}),)
        return replace(state, cluster=state.cluster.model_copy(update={"resources": resources}))

    with pytest.raises(Refused) as error:
        await made(store, lost, max_replicas=2)
    assert error.value.code == "too-few-replicas"
    # The node is given up, which no check of replicas keeps anybody from.
    await made(store, lost)
    await made(store, lambda state: edit.add_host(state, "h9", ["iqn.2024-01.example:h9"]), max_replicas=2)
    assert "h9" in {host.name for host in (await read(store, CLUSTER)).cluster.hosts}
    # It is for that resource only.
    with pytest.raises(Refused) as error:
        await made(store, creates("r2", disks={"n1": "/dev/sdc"}, serial=serials(9)), max_replicas=2)
    assert error.value.code == "too-few-replicas"
    assert "resources.r2" in error.value.message


async def test_two_administrators_create_at_the_same_time() -> None:
    store = await stored(cluster(nodes=4))
    other = store.client()
    names = [f"r{i}" for i in range(8)]
    await asyncio.gather(
        *(
            made(client, creates(name, serial=serials(start)), f"n{start}")
            for name, start in zip(names, count(1), strict=False)
            for client in [store if start % 2 else other]
        )
    )
    state = await read(store, CLUSTER)
    assert [r.name for r in state.cluster.resources] == names
    assert sorted(r.id for r in state.cluster.resources) == list(range(1, 9))
    assert state.generation == 9


async def test_a_lost_race_makes_the_edit_anew_and_may_then_be_refused() -> None:
    store = await stored(cluster())
    results = await asyncio.gather(
        made(store, creates("r1"), "n1"), made(store.client(), creates("r1"), "n2"), return_exceptions=True
    )
    refused = [r for r in results if isinstance(r, Refused)]
    assert [r.code for r in refused] == ["resource-exists"]
    assert (await read(store, CLUSTER)).generation == 2


async def test_giving_up_when_others_are_always_faster() -> None:
    store = await stored(cluster())
    other = store.client()

    def meddling(state: Desired) -> Desired:
        item = store.state.items[CONFIG]
        store.state.apply((), (Put(CONFIG, item.value),))
        return creates("r1")(state)  # type: ignore[no-any-return]

    with pytest.raises(Refused) as error:
        await made(other, meddling)
    assert error.value.code == CONFLICT
    assert (await read(store, CLUSTER)).cluster.resources == ()


@pytest.mark.parametrize("fault", list(Fault))
async def test_an_answer_that_is_lost(fault: Fault) -> None:
    store = await stored(cluster())
    store.faults.append(fault)
    state = await made(store, creates("r1"))
    store.state.deliver()
    assert state == await read(store, CLUSTER)
    assert (state.generation, len(state.cluster.resources)) == (2, 1)


async def test_an_answer_that_is_lost_while_others_go_on() -> None:
    store = await stored(cluster())
    store.faults.append(Fault.DONE)
    other = store.client()
    seen: list[int] = []

    async def others(seconds: float) -> None:
        seen.append((await made(other, creates("r2", serial=serials(50)), "n2")).generation)

    state = await change(store, CLUSTER, creates("r1"), what="x", origin=origin(), pause=others)
    assert seen == [3]
    assert [r.name for r in state.cluster.resources] == ["r1", "r2"]
    assert state.generation == 3


async def test_a_late_transaction_and_its_second_attempt_are_not_both_carried_out() -> None:
    store = await stored(cluster())
    store.faults.extend([Fault.LATER, Fault.LATER])

    async def arrive(seconds: float) -> None:
        if not store.faults:
            store.state.deliver()

    state = await change(store, CLUSTER, creates("r1"), what="x", origin=origin(), pause=arrive)
    assert state.generation == 2
    assert state == await read(store, CLUSTER)


async def test_what_stays_unknown_is_said_to_be() -> None:
    store = await stored(cluster())
    store.faults.append(Fault.LATER)

    async def cut_off(seconds: float) -> None:
        store.reachable = False

    with pytest.raises(Unknown):
        await change(store, CLUSTER, creates("r1"), what="x", origin=origin(), pause=cut_off)


async def test_after_an_unknown_outcome_a_refusal_does_not_say_that_nothing_was_written() -> None:
    store = await stored(cluster())
    store.faults.append(Fault.LATER)
    calls = count()

    def once(state: Desired) -> Desired:
        if next(calls):
            raise Refused("other-mood", "not this time")
        return creates("r1")(state)  # type: ignore[no-any-return]

    with pytest.raises(Unknown):
        await made(store, once)


async def test_a_change_too_large_for_a_transaction_is_refused() -> None:
    store = await stored(cluster())
    before = dict(store.state.items)

    def everything(state: Desired) -> Desired:
        new = serials()
        names = [f"iqn.2026-01.com.example:{'x' * 190}{i}" for i in range(8000)]
        for i in range(4):
            state = edit.add_host(state, f"many{i}", names[i * 2000 : (i + 1) * 2000])
        return edit.create_resource(state, "r1", "1G", serial=new)

    with pytest.raises(Refused) as error:
        await made(store, everything)
    assert error.value.code == TOO_LARGE
    assert store.state.items == before


async def test_a_watch_sees_changes_and_keeps_what_did_not_change() -> None:
    store = await stored(cluster())
    first = await made(store, creates("r1"))
    first = await made(store, creates("r2", serial=serials(9)), "n2")
    async with aclosing(watch(store, CLUSTER, first)) as states:
        await store.commit([], [Put(f"/hactl/{CLUSTER}/observed/n1/r1", b"{not json")])
        wanted = await made(store, lambda s: edit.export(s, "r1", "h1"), "n3")
        seen = await anext(states)
        assert seen == wanted
        assert seen.cluster.nodes is first.cluster.nodes
        assert seen.cluster.hosts is first.cluster.hosts
        assert seen.cluster.resource("r2") is first.cluster.resource("r2")
        assert seen.cluster.resource("r1") is not first.cluster.resource("r1")
        assert seen.cluster.resource("r1").hosts == ("h1",)
        wanted = await made(
            store,
            lambda s: edit.change_host(s, "h1", credentials=edit.chap("h1", "another-one-1")),
            "n4",
        )
        seen = await anext(states)
        assert seen == wanted
        wanted = await made(store, lambda s: edit.delete_resource(s, "r1", destroy=True), "n5")
        assert await anext(states) == wanted
        wanted = await made(store, lambda s: edit.remove_leftovers(s, s.leftovers[:1]), "n6")
        assert await anext(states) == wanted


async def test_a_watch_after_a_compaction_keeps_what_did_not_change() -> None:
    store = await stored(cluster())
    first = await made(store, creates("r1"))
    await made(store, creates("r2", serial=serials(9)), "n2")
    wanted = await made(store, creates("r3", serial=serials(19)), "n3")
    store.state.compact()
    async with aclosing(watch(store, CLUSTER, first)) as states:
        seen = await anext(states)
    assert seen == wanted
    assert seen.cluster.resource("r1") is first.cluster.resource("r1")
    assert seen.cluster.nodes is first.cluster.nodes


async def test_a_watch_parses_what_changed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    store = await stored(cluster())
    await made(store, _hundred)
    first = await read(store, CLUSTER)
    async with aclosing(watch(store, CLUSTER, first)) as states:
        wanted = await made(store, lambda s: edit.export(s, "r50", "h1"), "n2")
        parsed: list[str] = []
        really = record.decode

        def counted(key: str, value: bytes) -> Any:
            parsed.append(key)
            return really(key, value)

        monkeypatch.setattr(records, "decode", counted)
        seen = await anext(states)
    assert seen == wanted
    assert sorted(parsed) == ["config", "resources/r50"]
    kept = zip(first.cluster.resources, seen.cluster.resources, strict=True)
    assert [b.name for a, b in kept if a is not b] == ["r50"]


def _hundred(state: Desired) -> Desired:
    new = serials()
    for number in range(100):
        state = edit.create_resource(state, f"r{number}", "1G", serial=new)
    return state


async def test_a_change_writes_what_differs_only() -> None:
    store = await stored(cluster())
    await made(store, _hundred)
    before = dict(store.state.items)
    await made(store, lambda s: edit.export(s, "r50", "h1"), "n2")
    written = {key for key, item in store.state.items.items() if before.get(key) != item}
    assert written == {CONFIG, f"/hactl/{CLUSTER}/resources/r50"}


async def test_a_newer_schema_is_refused_by_readers_and_by_changes() -> None:
    store = await stored(cluster())
    key = f"/hactl/{CLUSTER}/nodes/n2"
    await store.commit([Unchanged(key, store.state.items[key].revision)], [Put(key, b'{"schema":99}')])
    for what in (read(store, CLUSTER), made(store, creates("r1"))):
        with pytest.raises(Refused) as error:
            await what
        assert error.value.code == "schema-newer"
        assert "nodes/n2" in error.value.message
        assert "99" in error.value.message


async def test_who_watches_hears_of_a_damaged_record() -> None:
    store = await stored(cluster())
    first = await read(store, CLUSTER)
    async with aclosing(watch(store, CLUSTER, first)) as states:
        await store.commit([], [Put(f"/hactl/{CLUSTER}/hosts/h2", b"\xff")])
        with pytest.raises(Refused) as error:
            await anext(states)
    assert error.value.code == "record-damaged"


async def test_what_was_changed_is_one_line() -> None:
    store = await stored(cluster())
    state = await change(
        store, CLUSTER, creates("r1"), what="create\nr1 \udcff" + "x" * 500, origin=origin(), pause=no_pause
    )
    assert state.change is not None
    assert state.change.what.startswith("create r1 ?xxx")
    assert len(state.change.what) == 200
    assert state == await read(store, CLUSTER)
