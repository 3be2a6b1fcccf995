"""Desired state from the store, with a copy for when there is no store; and from a file."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from hactl.agents.source import FileSource, StoreSource
from hactl.errors import HactlError, Refused
from hactl.model import records
from hactl.model.desired import Desired
from hactl.model.spec import ChapSpec, ClusterSpec, HostSpec
from hactl.store.desired import Edit, Origin, change, create
from hactl.store.memory import MemoryStore
from hactl.store.protocol import Delete, Put
from tests.unit.agents_world import cluster, refused

ORIGIN = Origin("n1")
SECRET = "s3cret-of-16-chr"


def with_secret() -> ClusterSpec:
    spec = cluster()
    chap = ChapSpec(user="user", password=SecretStr(SECRET))
    host = HostSpec(name="h1", initiators=spec.hosts[0].initiators, chap=chap)
    return spec.model_copy(update={"hosts": (host,)})


def renamed(iqn: str) -> Edit:
    """An edit that gives r0 another target."""

    def edit(desired: Desired) -> Desired:
        (r0,) = desired.cluster.resources
        resources = (r0.model_copy(update={"iqn": f"iqn.2024-01.example:{iqn}"}),)
        return Desired(desired.cluster.model_copy(update={"resources": resources}), desired.leftovers)

    return edit


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore()
    await create(store, with_secret(), ORIGIN)
    yield store
    await store.close()


class Reader:
    """A source and what it gave."""

    def __init__(self, store: MemoryStore, cache: Path, **more: Any) -> None:
        self.source = StoreSource(store, "c", cache=cache, patience=0.05, backoff=(0.005,), **more)
        self.states = self.source.states()
        self.waiting: asyncio.Future[Desired] = asyncio.get_running_loop().create_future()

    async def next(self) -> Desired:
        async with asyncio.timeout(5):
            return await anext(self.states)

    async def problem(self, word: str) -> None:
        """Wait until it has one with that word in it; it gives nothing new meanwhile."""
        task = asyncio.ensure_future(anext(self.states))
        for _ in range(5000):
            if word in (self.source.problem or ""):
                break
            await asyncio.sleep(0.001)
        assert word in (self.source.problem or "")
        assert not task.done()
        self.waiting = task

    async def pending(self) -> Desired:
        """What it gives after a problem."""
        async with asyncio.timeout(5):
            return await self.waiting


@asynccontextmanager
async def reading(store: MemoryStore, cache: Path, **more: Any) -> AsyncIterator[Reader]:
    reader = Reader(store, cache, **more)
    async with aclosing(reader.states):
        try:
            yield reader
        finally:
            reader.waiting.cancel()
            await asyncio.gather(reader.waiting, return_exceptions=True)


def iqn(state: Desired) -> str:
    return state.cluster.resources[0].iqn.rpartition(":")[2]


async def test_it_gives_what_the_store_holds_and_then_each_change(store: MemoryStore, tmp_path: Path) -> None:
    async with reading(store, tmp_path / "desired.json") as reader:
        first = await reader.next()
        assert first.cluster == with_secret()
        await change(store, "c", renamed("other"), what="renamed", origin=ORIGIN)
        second = await reader.next()
        assert (iqn(second), second.generation) == ("other", first.generation + 1)
        assert reader.source.problem is None
        assert second.cluster.nodes is first.cluster.nodes


async def test_the_copy_is_for_root_only_and_there_before_the_state_is_given(
    store: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "lib" / "desired.json"
    async with reading(store, path) as reader:
        state = await reader.next()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert SECRET in path.read_text()
        store.reachable = False
        async with reading(store, path) as second:
            again = await second.next()
    assert again == state
    assert again.cluster.hosts[0].chap == with_secret().hosts[0].chap
    assert [p.name for p in path.parent.iterdir()] == ["desired.json"]


async def test_without_the_store_it_begins_with_the_copy_and_follows_later(
    store: MemoryStore, tmp_path: Path
) -> None:
    path = tmp_path / "desired.json"
    async with reading(store, path) as reader:
        await reader.next()
    store.reachable = False
    async with reading(store, path) as reader:
        assert iqn(await reader.next()) == "r0"
        assert "out of date" in (reader.source.problem or "")
        await reader.problem("no member")
        other = store.client()
        await change(other, "c", renamed("meanwhile"), what="renamed", origin=ORIGIN)
        store.reachable = True
        assert iqn(await reader.pending()) == "meanwhile"
        assert reader.source.problem is None


async def test_with_neither_store_nor_copy_it_does_not_begin(store: MemoryStore, tmp_path: Path) -> None:
    store.reachable = False
    async with reading(store, tmp_path / "desired.json") as reader:
        error = await refused(reader.next())
        assert (type(error), error.code) == (Refused, "store-unreachable")


async def test_a_store_that_never_answers_is_not_waited_for(store: MemoryStore, tmp_path: Path) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    store.arrive = never  # type: ignore[method-assign]  # a network that swallows everything
    async with reading(store, tmp_path / "desired.json") as reader:
        assert (await refused(reader.next())).code == "store-unreachable"


async def raw(store: MemoryStore, key: str, **changes: Any) -> None:
    """Write parts of a record past all checks."""
    item = await store.get(records.prefix("c") + key)
    assert item is not None
    value = {**json.loads(item.value), **changes}
    await store.commit((), [Put(item.key, json.dumps(value).encode())])


async def test_a_newer_schema_is_a_problem_and_the_last_state_stays(
    store: MemoryStore, tmp_path: Path
) -> None:
    async with reading(store, tmp_path / "desired.json") as reader:
        await reader.next()
        await raw(store, "resources/r0", schema=99)
        await reader.problem("schema 99")
        await raw(store, "resources/r0", schema=1, iqn="iqn.2024-01.example:mended")
        assert iqn(await reader.pending()) == "mended"
        assert reader.source.problem is None


async def test_what_does_not_fit_together_is_a_problem(store: MemoryStore, tmp_path: Path) -> None:
    async with reading(store, tmp_path / "desired.json") as reader:
        await reader.next()
        await raw(store, "resources/r0", hosts=["nobody"])
        await reader.problem("does not fit together")
        await raw(store, "resources/r0", hosts=["h1"])
        assert (await reader.pending()).cluster == with_secret()


async def test_a_resource_that_has_lost_its_second_replica_is_served_from_the_first(tmp_path: Path) -> None:
    spec = with_secret()
    (r0,) = spec.resources
    volumes = tuple(v.model_copy(update={"disks": {"n1": v.disks["n1"]}}) for v in r0.volumes)
    alone = r0.model_copy(update={"volumes": volumes})
    store = MemoryStore()
    await create(store, spec.model_copy(update={"resources": (alone,)}), ORIGIN)
    async with reading(store, tmp_path / "desired.json", max_replicas=2) as reader:
        assert (await reader.next()).cluster.resources == (alone,)
        assert reader.source.problem is None
    await store.close()


async def test_a_store_that_went_back_in_time_is_not_followed(store: MemoryStore, tmp_path: Path) -> None:
    path = tmp_path / "desired.json"
    async with reading(store, path) as reader:
        await reader.next()
        await change(store, "c", renamed("new"), what="renamed", origin=ORIGIN)
        assert iqn(await reader.next()) == "new"
        await raw(store, "config", generation=1)
        await reader.problem("restored from an old copy")
    async with reading(store, path) as reader:
        # The copy knows, so that a restart changes nothing.
        assert iqn(await reader.next()) == "new"
        assert "restored" in (reader.source.problem or "")
    path.unlink()
    async with reading(store, path) as reader:
        assert (await reader.next()).generation == 1
        assert reader.source.problem is None


async def test_a_cluster_that_is_gone_from_the_store_takes_nothing_down(
    store: MemoryStore, tmp_path: Path
) -> None:
    async with reading(store, tmp_path / "desired.json") as reader:
        await reader.next()
        found = await store.read(records.prefix("c"))
        await store.commit((), [Delete(key) for key in found.items])
        await reader.problem("no cluster c")


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', '{"schema": 1, "cluster": "other"}', "{"])
async def test_a_copy_that_is_not_understood_is_not_used(
    store: MemoryStore, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "desired.json"
    path.write_text(text)
    async with reading(store, path) as reader:
        assert iqn(await reader.next()) == "r0"
    assert json.loads(path.read_text())["cluster"] == "c"


async def test_a_copy_that_cannot_be_written_is_told_of(store: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with reading(store, tmp_path / "file" / "desired.json") as reader:
        await reader.next()
        assert "cannot write" in (reader.source.problem or "")
        await change(store, "c", renamed("other"), what="renamed", origin=ORIGIN)
        assert iqn(await reader.next()) == "other"


async def test_a_file_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(json.dumps(cluster().model_dump(mode="json", exclude_defaults=True)))
    states = FileSource(path).states()
    assert (await anext(states)).cluster == cluster()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(states)
    path.write_text("nothing: good")
    with pytest.raises(HactlError):
        await anext(FileSource(path).states())
