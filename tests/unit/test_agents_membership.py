"""What a node tells of itself in the store, under a lease."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from hactl.agents.membership import Membership, member_key, observed_key
from hactl.agents.news import News
from hactl.errors import Failed
from hactl.store.memory import Fault, MemoryState, MemoryStore
from hactl.store.protocol import Put


class Node:
    """The part of an agent that is told of: documents by resource, and how often each was asked for."""

    def __init__(self, *names: str) -> None:
        self.clock = 0.0
        self.state = MemoryState(lambda: self.clock)
        self.store = MemoryStore(self.state)
        self.commits: list[int] = []
        self.documents: dict[str, dict[str, Any]] = {
            name: {"name": name, "role": "standby"} for name in names
        }
        self.asked: list[str] = []
        self.stuck: set[str] = set()
        self.news = News()
        real = self.store.commit

        async def commit(conditions: Any, writes: Any) -> int:
            listed = list(writes)
            self.commits.append(len(listed))
            return await real(conditions, listed)

        self.store.commit = commit  # type: ignore[method-assign]  # to count
        self.membership = Membership(
            self.store,
            "c",
            "n1",
            boot="boot-1",
            since="2026-01-01T00:00:00+00:00",
            document=self.document,
            names=self.documents.keys,
            news=self.news,
            pause=0.001,
            backoff=(0.001,),
        )

    async def document(self, name: str) -> dict[str, Any] | None:
        self.asked.append(name)
        if name in self.stuck:
            raise Failed("gate-dmsetup", "dmsetup failed")
        return self.documents.get(name)

    def keys(self) -> dict[str, Any]:
        """Everything in the store, by the last parts of the keys."""
        items = self.state.items
        return {key.removeprefix("/hactl/c/"): json.loads(item.value) for key, item in items.items()}

    async def until(self, met: Any) -> None:
        for _ in range(5000):
            if met():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("it did not come to that")


@contextlib.asynccontextmanager
async def running(node: Node) -> AsyncIterator[None]:
    task = asyncio.create_task(node.membership.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_node_is_a_member_for_as_long_as_it_runs() -> None:
    node = Node("r0", "r1")
    async with running(node):
        await node.until(lambda: len(node.keys()) == 3)
        found = node.keys()
        member = found["members/n1"]
        assert member.pop("version")
        assert member == {"schema": 1, "boot": "boot-1", "since": "2026-01-01T00:00:00+00:00"}
        assert found["observed/n1/r0"] == {"schema": 1, "name": "r0", "role": "standby"}
        assert node.membership.problem is None
    assert node.keys() == {}
    assert member_key("c", "n1") == "/hactl/c/members/n1"
    assert observed_key("c", "n1", "r0") == "/hactl/c/observed/n1/r0"


async def test_only_what_changed_is_written() -> None:
    node = Node(*(f"r{n}" for n in range(150)))
    async with running(node):
        await node.until(lambda: len(node.keys()) == 151)
        # In batches that any store takes.
        assert node.commits == [1, 64, 64, 22]
        node.commits.clear()
        node.asked.clear()
        node.documents["r7"]["role"] = "active"
        node.news.add("r7", "r8")
        await node.until(lambda: node.keys()["observed/n1/r7"]["role"] == "active")
        assert (node.commits, sorted(node.asked)) == ([1], ["r7", "r8"])
        del node.documents["r9"]
        node.news.add("r9")
        await node.until(lambda: "observed/n1/r9" not in set(node.keys()))
        assert len(node.keys()) == 150


async def test_a_lost_lease_is_taken_anew_and_everything_written_again() -> None:
    node = Node("r0")
    async with running(node):
        await node.until(lambda: len(node.keys()) == 2)
        node.store.reachable = False
        node.clock += 20
        node.state.settle()
        assert node.keys() == {}
        await node.until(lambda: node.membership.problem is not None)
        assert "not a member" in (node.membership.problem or "")
        node.documents["r0"]["role"] = "active"
        node.store.reachable = True
        await node.until(lambda: len(node.keys()) == 2)
        assert node.keys()["observed/n1/r0"]["role"] == "active"
        assert node.membership.problem is None


async def test_an_outcome_that_is_not_known_is_made_good() -> None:
    node = Node("r0")
    async with running(node):
        await node.until(lambda: len(node.keys()) == 2)
        for fault in (Fault.DROPPED, Fault.DONE):
            node.documents["r0"]["role"] = str(fault)
            node.store.faults.append(fault)
            node.news.add("r0")
            await node.until(lambda: not node.store.faults)
            await node.until(lambda fault=fault: node.keys()["observed/n1/r0"]["role"] == str(fault))
        del node.documents["r0"]
        node.store.faults.append(Fault.DROPPED)
        node.news.add("r0")
        await node.until(lambda: set(node.keys()) == {"members/n1"})


async def test_one_that_cannot_be_looked_at_does_not_keep_the_others_from_being_told_of() -> None:
    node = Node("r0", "r1")
    node.stuck.add("r0")
    async with running(node):
        await node.until(lambda: len(node.keys()) == 3)
        assert "dmsetup failed" in node.keys()["observed/n1/r0"]["reason"]
        assert node.keys()["observed/n1/r1"]["role"] == "standby"


async def test_keys_of_a_predecessor_go_over_to_the_new_lease() -> None:
    node = Node("r0")
    old = await node.store.lease(10)
    await node.store.client().commit((), [Put(member_key("c", "n1"), b"{}", old.id)])
    async with running(node):
        await node.until(lambda: len(node.keys()) == 2)
        await old.revoke()
        assert set(node.keys()) == {"members/n1", "observed/n1/r0"}
