"""A small cluster in a store, for the tests of the desired state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count

from hactl.model import edit
from hactl.model.desired import Desired
from hactl.model.spec import ClusterSpec, FilesPool, LvmPool, LvmThinPool, PoolSpec
from hactl.store import desired as store_desired
from hactl.store.desired import Origin
from hactl.store.memory import MemoryStore

CLUSTER = "lab"
THICK = PoolSpec(name="ssd", lvm=LvmPool(vg="vg0"))
THIN = PoolSpec(name="thin", lvm_thin=LvmThinPool(vg="vg0", thin_pool="tp"))
FILES = PoolSpec(name="files", files=FilesPool(path="/srv/hactl"))


def node_addresses(number: int) -> edit.Addresses:
    return edit.addresses(f"10.0.1.{number}", f"10.0.2.{number}", [f"10.0.3.{number}"])


def cluster(nodes: int = 3) -> Desired:
    """Nodes n1, n2, ..., each with the pool ssd; hosts h1 (with CHAP) and h2."""
    first = edit.new_cluster(CLUSTER, "n1", node_addresses(1), pools=[THICK])
    state = Desired(first)
    for number in range(2, nodes + 1):
        state = edit.add_node(state, f"n{number}", node_addresses(number), pools=[THICK])
    state = edit.add_host(
        state,
        "h1",
        ["iqn.2026-01.com.example:h1"],
        edit.chap("h1", "first-secret-1", "lab", "first-secret-2"),
    )
    return edit.add_host(state, "h2", ["iqn.2026-01.com.example:h2"])


def serials(start: int = 1) -> Callable[[], str]:
    """Serials as if random, in order."""
    numbers = count(start)
    return lambda: f"{next(numbers):032x}"


def origin(who: str = "n1", ids: Iterator[int] | None = None) -> Origin:
    numbers = ids if ids is not None else count(1)
    return Origin(who, lambda: datetime(2026, 3, 1, 12, tzinfo=UTC), lambda: f"{who}-{next(numbers)}")


async def stored(state: Desired) -> MemoryStore:
    """A store that holds a state."""
    store = MemoryStore()
    spec: ClusterSpec = state.cluster
    await store_desired.create(store, spec, origin("init"))
    return store
