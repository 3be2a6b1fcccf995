"""Two administrators change one cluster in any order, with good and bad commands and lost answers: whatever
happens, the store holds a whole and valid state, and a refusal changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hactl.errors import Refused, Unknown
from hactl.model import edit, records
from hactl.model.check import check
from hactl.model.desired import Desired, Leftover
from hactl.model.draft import draft, dump, replace
from hactl.store.desired import Edit, change, read, watch
from hactl.store.memory import Fault, MemoryStore
from tests.unit.desired_world import CLUSTER, THIN, cluster, node_addresses, origin, serials, stored

Result = TypeVar("Result")

NODE = st.sampled_from(["n1", "n2", "n3", "n4"])
HOST = st.sampled_from(["h1", "h2", "h3"])
RESOURCE = st.sampled_from(["r1", "r2", "r3"])
NAME = RESOURCE | st.sampled_from(["r4", "r5", "Bad Name"])
VOLUME = st.integers(0, 2)
SIZE = st.sampled_from(["1G", "2G", "3G", "4G", "1K", "junk", 4096 + 512])
POOL = st.sampled_from([None, None, "ssd", "ssd", "thin", "none"])
LUN = st.sampled_from([None, None, None, 0, 1, 2, 3, 99999])
DISK = st.sampled_from(["/dev/sdb", "/dev/sdc", "pool:ssd", "pool:ssd", "pool:none", "sdb", "/dev/../x"])
DESTROY = st.booleans()
NEW = serials()


def _add_node(name: str, state: Desired) -> Desired:
    return edit.add_node(state, name, node_addresses(int(name[1])), pools=[THIN])


def _apply(gone: str, destroy: bool, state: Desired) -> Desired:
    """The state as a file, without one resource, applied."""
    names = {r.name for r in state.cluster.resources} - {gone}
    kept = tuple(r for r in state.cluster.resources if r.name in names)
    text = dump(state.cluster.model_copy(update={"resources": kept}))
    wanted = draft(text, state, serial=NEW)
    return replace(state, wanted, destroy=frozenset([gone] if destroy else []))


def _agent(node: str, count: int, state: Desired) -> Desired:
    """What an agent does when it has taken something down."""
    return edit.remove_leftovers(state, state.leftovers_of(node)[:count])


def begin() -> Desired:
    """Something for commands to find: r1 with two volumes that h1 and h2 see, r2 on disks, two racks."""
    state = cluster(4)
    for node, rack in (("n1", "rack-1"), ("n3", "rack-2")):
        state = edit.change_node(state, node, failure_domain=rack)
    state = edit.create_resource(state, "r1", "1G", serial=NEW, hosts=["h1"])
    state = edit.add_volume(state, "r1", "1G", serial=NEW)
    state = edit.export(state, "r1", "h2", {1: 0})
    disks = {"n2": "/dev/sdb", "n3": "/dev/sdb"}
    return edit.create_resource(state, "r2", "1G", serial=NEW, disks=disks, nodes=["n1", "n2", "n3"])


def call(function: Callable[..., Desired], *args: Any, **options: Any) -> Edit:
    return lambda state: function(state, *args, **options)


def calls(function: Callable[..., Desired], *args: Any, **options: Any) -> st.SearchStrategy[Edit]:
    return st.builds(partial(call, function), *args, **options)


OPERATIONS: st.SearchStrategy[Edit] = st.one_of(
    calls(
        edit.create_resource,
        NAME,
        SIZE,
        serial=st.just(NEW),
        replicas=st.sampled_from([None, None, 1, 2, 3, 9]),
        pool=POOL,
        hosts=st.lists(HOST, max_size=2),
    ),
    calls(
        edit.create_resource,
        NAME,
        st.just("1G"),
        serial=st.just(NEW),
        disks=st.dictionaries(NODE, DISK, max_size=3),
        nodes=st.none() | st.lists(NODE, max_size=3),
        preferred=st.none() | NODE,
    ),
    calls(edit.delete_resource, RESOURCE, destroy=DESTROY),
    calls(edit.add_volume, RESOURCE, SIZE, serial=st.just(NEW), lun=LUN),
    calls(edit.remove_volume, RESOURCE, VOLUME, destroy=DESTROY),
    calls(edit.grow_volume, RESOURCE, VOLUME, SIZE),
    calls(edit.add_replica, RESOURCE, NODE, pool=POOL),
    calls(edit.add_exporter, RESOURCE, NODE),
    calls(edit.remove_replica, RESOURCE, NODE, destroy=DESTROY),
    calls(edit.replace_node, NODE, NODE, destroy=DESTROY, pool=POOL),
    calls(edit.set_preferred, RESOURCE, st.none() | NODE),
    calls(edit.export, RESOURCE, HOST, st.none() | st.dictionaries(VOLUME, LUN, max_size=3)),
    calls(edit.unexport, RESOURCE, HOST, st.none() | st.lists(VOLUME, max_size=2)),
    calls(edit.add_host, HOST, HOST.map(lambda name: [f"iqn.2026-01.com.example:{name}"])),
    calls(edit.remove_host, HOST),
    calls(edit.change_node, NODE, failure_domain=st.sampled_from([None, "rack-1", "rack-2", "-"])),
    calls(edit.add_pool, NODE, st.just(THIN)),
    calls(edit.remove_pool, NODE, st.sampled_from(["ssd", "thin"])),
    calls(edit.remove_node, NODE),
    st.builds(lambda name: partial(_add_node, name), NODE),
    st.builds(lambda *args: partial(_apply, *args), RESOURCE, DESTROY),
    st.builds(lambda *args: partial(_agent, *args), NODE, st.integers(1, 3)),
)


def parts(state: Desired) -> set[tuple[str, str, int, str]]:
    """What is, or has still to be taken down, on each node: the volume by its serial."""
    exported = {
        (node, r.name, v.number, state.cluster.serial(r, v))
        for r in state.cluster.resources
        for v in r.volumes
        for node in r.nodes
    }
    return exported | {(left.node, left.resource, left.volume, left.serial) for left in state.leftovers}


async def no_pause(seconds: float) -> None:
    await asyncio.sleep(0)


class Administrators(RuleBasedStateMachine):
    """Checks after each step; ``before`` is the state at the step before."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.done_by_agents: set[Leftover] = set()

    def run(self, what: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run(what)

    @initialize()
    def start(self) -> None:
        self.store = self.run(stored(begin()))
        self.other = self.store.client()
        self.before = self.run(read(self.store, CLUSTER))
        self.watched = self.before
        self.states = watch(self.store.client(), CLUSTER, self.before)
        self.changes = 0

    def teardown(self) -> None:
        if hasattr(self, "states"):
            self.run(self.states.aclose())
        self.loop.close()

    def counted(self, operation: Edit) -> Edit:
        """The edit, remembering what agents say that they have taken down."""

        def counting(state: Desired) -> Desired:
            new = operation(state)
            if getattr(operation, "func", None) is _agent:
                self.done_by_agents |= set(state.leftovers) - set(new.leftovers)
            return new

        return counting

    def made(self, store: MemoryStore, operation: Edit, who: str) -> Awaitable[Desired]:
        self.changes += 1
        return change(
            store,
            CLUSTER,
            self.counted(operation),
            what="a step",
            origin=origin(f"{who}-{self.changes}"),
            pause=no_pause,
        )

    async def outcome(self, store: MemoryStore, operation: Edit, who: str) -> Desired | Refused | Unknown:
        try:
            return await self.made(store, operation, who)
        except (Refused, Unknown) as error:
            return error

    @rule(operation=OPERATIONS)
    def one(self, operation: Edit) -> None:
        items = dict(self.store.state.items)
        result = self.run(self.outcome(self.store, operation, "a"))
        assert not isinstance(result, Unknown)
        if isinstance(result, Refused):
            assert result.message
            assert result.hint
            assert self.store.state.items == items
        else:
            assert result == self.run(read(self.store, CLUSTER))
            assert (self.store.state.items == items) == (result.revision == self.before.revision)

    @rule(first=OPERATIONS, second=OPERATIONS)
    def both_at_once(self, first: Edit, second: Edit) -> None:
        items = dict(self.store.state.items)

        async def both() -> tuple[Any, Any]:
            return await asyncio.gather(
                self.outcome(self.store, first, "a"), self.outcome(self.other, second, "b")
            )

        results = self.run(both())
        assert not any(isinstance(result, Unknown) for result in results)
        if all(isinstance(result, Refused) for result in results):
            assert self.store.state.items == items
        else:
            generations = [r.generation for r in results if isinstance(r, Desired)]
            assert self.run(read(self.store, CLUSTER)).generation == max(generations)

    @rule(operation=OPERATIONS, fault=st.sampled_from(Fault), second=OPERATIONS)
    def a_lost_answer(self, operation: Edit, fault: Fault, second: Edit) -> None:
        items = dict(self.store.state.items)
        self.store.faults.append(fault)

        async def both() -> tuple[Any, Any]:
            return await asyncio.gather(
                self.outcome(self.store, operation, "a"), self.outcome(self.other, second, "b")
            )

        results = self.run(both())
        self.store.faults.clear()
        after = dict(self.store.state.items)
        self.store.state.deliver()
        # What was sent late is either known to be done by then, or known never to be.
        if not isinstance(results[0], Unknown):
            assert self.store.state.items == after
        if all(isinstance(result, Refused) for result in results):
            assert self.store.state.items == items

    @invariant()
    def the_store_holds_a_whole_and_valid_state(self) -> None:
        if not hasattr(self, "store"):
            return
        state = self.run(read(self.store, CLUSTER))
        assert check(state.cluster, state.leftovers) == ()
        assert state == state.ordered()
        self._unique(state)
        self._nothing_lost(state)
        self._identities(state)
        keys = {key.removeprefix(records.prefix(CLUSTER)) for key in self.store.state.items}
        assert keys == {*records.split(state), records.CONFIG}
        self.before = state

    def _unique(self, state: Desired) -> None:
        """No two resources, or leftovers of others, share what must be a resource's or volume's own."""
        owners: dict[tuple[str, object], set[str]] = {}
        for r in state.cluster.resources:
            for key in (("id", r.id), ("port", r.drbd_port), ("iqn", r.iqn), ("name", r.name)):
                owners.setdefault(key, set()).add(f"{r.name}={r.id}")
            for v in r.volumes:
                for key in (("minor", r.minor(v)), ("serial", state.cluster.serial(r, v))):
                    owners.setdefault(key, set()).add(f"{r.name}={r.id}/{v.number}")
        for left in state.leftovers:
            owner = f"{left.resource}={left.resource_id}"
            for key in (
                ("id", left.resource_id),
                ("port", left.port),
                ("iqn", left.iqn),
                ("name", left.resource),
            ):
                owners.setdefault(key, set()).add(owner)
            for key in (("minor", left.minor), ("serial", left.serial)):
                owners.setdefault(key, set()).add(f"{owner}/{left.volume}")
        assert [key for key, names in owners.items() if len(names) > 1] == []

    def _nothing_lost(self, state: Desired) -> None:
        """What nodes have goes only by way of an agent that has taken it down."""
        done = {(left.node, left.resource, left.volume, left.serial) for left in self.done_by_agents}
        assert parts(self.before) - parts(state) <= done

    def _identities(self, state: Desired) -> None:
        """What stays keeps what hosts know it by."""
        known = {(r.name, r.id): r for r in self.before.cluster.resources}
        for r in state.cluster.resources:
            old = known.get((r.name, r.id))
            if old is None:
                continue
            luns = {v.serial: (v.number, v.lun) for v in old.volumes}
            assert r.iqn == old.iqn
            assert all(luns.get(v.serial, (v.number, v.lun)) == (v.number, v.lun) for v in r.volumes)

    @invariant()
    def who_watches_sees_it(self) -> None:
        if not hasattr(self, "store"):
            return
        self.run(self._caught_up())
        assert self.watched == self.run(read(self.store, CLUSTER)) or self._same_but_revision()

    async def _caught_up(self) -> None:
        written = self.store.state.items[records.prefix(CLUSTER) + records.CONFIG].revision
        while self.watched.revision < written:
            self.watched = await anext(self.states)

    def _same_but_revision(self) -> bool:
        now = self.run(read(self.store, CLUSTER))
        return self.watched.same(now) and self.watched.generation == now.generation


TestAdministrators = Administrators.TestCase
TestAdministrators.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
