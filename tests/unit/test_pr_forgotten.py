"""What is left of a unit's reservations when it is removed, and when it is made anew."""

from __future__ import annotations

from dataclasses import replace

from pydantic import SecretStr

from hactl.model.desired import Desired, Leftover
from hactl.pr_sync.forgotten import forget
from hactl.pr_sync.log import KEEP, PrLog, prefix
from hactl.pr_sync.records import Head
from hactl.pr_sync.state import State
from hactl.store.memory import MemoryState, MemoryStore
from hactl.target.changes import OfBackstore, RemoveBackstore
from hactl.target.gates import gate_name
from hactl.target.plan import plan
from hactl.target.tree import PrTree, desired
from tests.unit.target_cases import cluster, resource

SPEC = cluster(resource(1), resource(2))
SERIALS = [SPEC.serial(r, v) for r in SPEC.resources for v in r.volumes]
DEVICES = {
    (r.name, v.number): f"/dev/mapper/{gate_name(r.name, v.number)}"
    for r in SPEC.resources
    for v in r.volumes
}


def left_of(node: str, serial: str) -> Leftover:
    return Leftover(
        node, "r9", 0, 9, 9, 7809, "iqn.2026-11.org.example:r9", serial, None, None, destroy=False
    )


async def logged(serial: str, store: MemoryStore, entries: int) -> PrLog:
    log = PrLog(store, "c", "n1")
    head = Head()
    for number in range(entries):
        head = await log.append(serial, head, (), State(number + 1))
    await log.join(serial, head)
    return log


async def test_the_log_of_a_removed_unit_goes_with_its_last_leftover() -> None:
    state = MemoryState()
    store = MemoryStore(state)
    gone, goes_on = "b" * 32, SERIALS[0]
    log = await logged(gone, store, KEEP // 2)
    await logged(goes_on, store, 2)
    mine, others = left_of("n1", gone), left_of("n2", gone)
    there = len(state.items)
    await forget(log, [mine], Desired(SPEC, (others,)))
    assert len(state.items) == there
    # One node has left a resource that goes on elsewhere: its log is that of the others.
    await forget(log, [mine, left_of("n2", goes_on)], Desired(SPEC, ()))
    assert {key.removeprefix(prefix("c")).partition("/")[0] for key in state.items} == {goes_on}
    assert len(state.items) == 4


async def test_a_log_that_cannot_be_removed_keeps_nothing_from_going_on() -> None:
    store = MemoryStore()
    gone = "b" * 32
    log = await logged(gone, store, 1)
    store.reachable = False
    await forget(log, [left_of("n1", gone)], Desired(SPEC, ()))
    store.reachable = True
    assert (await log.head(gone)).index == 1


def test_a_rebuild_on_the_active_node_keeps_the_backstore() -> None:
    """Made anew on an open gate, it would take its limits from the device below."""
    serving = PrTree(True, SecretStr("secret"), {0: ()})
    names = {r.name: serving for r in SPEC.resources}
    before = desired(SPEC, "n1", DEVICES, names)
    down = desired(SPEC, "n1", DEVICES, names | {"r1": replace(serving, open=False, absent=True)})
    assert [t.iqn for t in down.targets] == [
        t.iqn for t in before.targets if t.iqn != SPEC.resource("r1").iqn
    ]
    taken = plan(down, before)
    assert taken
    assert not [change for change in taken if isinstance(change, RemoveBackstore)]
    # On the way back nothing of it is made anew either.
    assert not [change for change in plan(before, down) if isinstance(change, OfBackstore)]
