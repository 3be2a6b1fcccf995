"""Edits of nodes and pools: what they do, what they refuse and in which words."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hactl.errors import Refused
from hactl.model import edit
from hactl.model.check import check
from hactl.model.desired import Desired
from hactl.model.spec import ClusterSpec, LvmPool, PoolSpec
from tests.unit.desired_world import FILES, THICK, THIN, cluster, node_addresses, serials


def refused(act: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as error:
        act()
    assert error.value.message
    assert error.value.hint
    return error.value


def good(state: Desired) -> Desired:
    assert check(state.cluster, state.leftovers) == ()
    assert state == state.ordered()
    # What no edit checked again is what a specification may hold.
    assert ClusterSpec.model_validate(state.cluster.model_dump()) == state.cluster
    return state


def with_resource(name: str = "r1", nodes: int = 3, **options: object) -> Desired:
    return edit.create_resource(cluster(nodes), name, "1G", serial=serials(), **options)  # type: ignore[arg-type]


def test_ids_are_the_smallest_free() -> None:
    state = edit.remove_node(cluster(4), "n2")
    state = good(edit.add_node(state, "n9", node_addresses(9)))
    assert state.cluster.node("n9").id == 2
    assert good(edit.add_node(state, "a1", node_addresses(8))).cluster.node("a1").id == 5


def test_the_same_node_twice_is_one_node() -> None:
    state = cluster()
    assert edit.add_node(state, "n2", node_addresses(2), pools=[THICK]) is state
    assert edit.add_node(state, "n2", node_addresses(2), id=2, pools=[THICK]) is state
    assert refused(lambda: edit.add_node(state, "n2", node_addresses(4))).code == "node-exists"
    assert refused(lambda: edit.add_node(state, "n4", node_addresses(4), id=2)).code == "node-id-duplicate"


def test_fifteen_nodes_are_the_most() -> None:
    assert refused(lambda: cluster(16)).code == "ids-exhausted"


@pytest.mark.parametrize("name", ["N4", "a b", "", "x" * 40, "n4\n"])
def test_a_name_that_cannot_be(name: str) -> None:
    error = refused(lambda: edit.add_node(cluster(), name, node_addresses(4)))
    assert (error.code, "name" in error.message) == ("invalid", True)


def test_addresses_that_cannot_be() -> None:
    error = refused(lambda: edit.addresses("10.0.0.256"))
    assert error.code == "invalid"
    assert "'10.0.0.256' is not an IP address" in error.message


def test_addresses_default_to_the_clusters() -> None:
    where = edit.addresses("10.0.0.1")
    assert {str(where.cluster), str(where.replication), *map(str, where.storage)} == {"10.0.0.1"}


def test_portals_are_renamed() -> None:
    state = good(edit.change_node(cluster(), "n1", where=edit.addresses("10.0.1.1", None, ["10.9.9.9"])))
    assert [str(a) for a in state.cluster.node("n1").addresses.storage] == ["10.9.9.9"]
    assert state.cluster.node("n1").pools == (THICK,)
    assert edit.change_node(state, "n1", where=state.cluster.node("n1").addresses) is state


def test_a_failure_domain_is_set_and_taken_away() -> None:
    state = good(edit.change_node(cluster(), "n1", failure_domain="rack-1"))
    assert state.cluster.node("n1").failure_domain == "rack-1"
    assert edit.change_node(state, "n1") is state
    assert edit.change_node(state, "n1", failure_domain=None).cluster.node("n1").failure_domain is None


def test_a_node_that_is_not_there_is_answered_with_those_that_are() -> None:
    error = refused(lambda: edit.change_node(cluster(), "n7", failure_domain="x"))
    assert (error.code, error.hint) == ("unknown-node", "known are: n1, n2, n3")


def test_pools() -> None:
    state = good(edit.add_pool(edit.add_pool(cluster(), "n1", THIN), "n1", FILES))
    assert [p.name for p in state.cluster.node("n1").pools] == ["files", "ssd", "thin"]
    assert edit.add_pool(state, "n1", FILES) is state
    other = PoolSpec(name="files", lvm=LvmPool(vg="vg9"))
    assert refused(lambda: edit.add_pool(state, "n1", other)).code == "pool-exists"
    state = good(edit.remove_pool(state, "n1", "files"))
    assert refused(lambda: edit.remove_pool(state, "n1", "files")).code == "pool-unknown"


def test_a_pool_with_disks_or_leftovers_stays() -> None:
    state = with_resource()
    error = refused(lambda: edit.remove_pool(state, "n1", "ssd"))
    assert error.code == "pool-in-use"
    assert "r1/0" in error.message
    left = edit.delete_resource(state, "r1", destroy=True)
    assert refused(lambda: edit.remove_pool(left, "n1", "ssd")).code == "leftover-pending"
    assert good(edit.remove_pool(left, "n3", "ssd")).cluster.node("n3").pools == ()


def test_a_node_in_use_stays() -> None:
    state = with_resource()
    error = refused(lambda: edit.remove_node(state, "n1"))
    assert (error.code, "r1" in error.message) == ("node-in-use", True)
    assert [n.name for n in good(edit.remove_node(state, "n3")).cluster.nodes] == ["n1", "n2"]
    left = edit.delete_resource(state, "r1", destroy=False)
    assert refused(lambda: edit.remove_node(left, "n1")).code == "leftover-pending"


def test_the_last_node_stays() -> None:
    assert refused(lambda: edit.remove_node(cluster(1), "n1")).code == "last-node"


def test_a_lost_node_leaves_nothing_behind() -> None:
    state = edit.create_resource(
        with_resource(preferred="n1"), "r2", "1G", serial=serials(9), nodes=["n1", "n2"]
    )
    state = edit.delete_resource(state, "r2", destroy=True)
    state = good(edit.remove_node(state, "n1", lost=True))
    r1 = state.cluster.resource("r1")
    assert (r1.nodes, r1.replicas, r1.preferred) == (("n2",), ("n2",), None)
    assert {left.node for left in state.leftovers} == {"n2"}


def test_a_lost_node_with_the_only_replica_is_not_struck_off() -> None:
    state = with_resource(replicas=1)
    assert state.cluster.resource("r1").replicas == ("n1",)
    error = refused(lambda: edit.remove_node(state, "n1", lost=True))
    assert error.code == "last-replica"
    both = edit.add_exporter(state, "r1", "n2")
    assert refused(lambda: edit.remove_node(both, "n1", lost=True)).code == "last-replica"
    assert good(edit.remove_node(both, "n2", lost=True)).cluster.resource("r1").nodes == ("n1",)


def test_a_node_is_replaced_by_an_empty_one() -> None:
    state = with_resource(preferred="n1")
    moved = good(edit.replace_node(state, "n1", "n3", destroy=True))
    r1 = moved.cluster.resource("r1")
    assert (set(r1.nodes), r1.preferred) == ({"n2", "n3"}, "n3")
    assert r1.volumes[0].disks == {"n2": "pool:ssd", "n3": "pool:ssd"}
    assert r1.volumes[0].serial == state.cluster.resource("r1").volumes[0].serial
    assert [(left.node, left.destroy) for left in moved.leftovers] == [("n1", True)]
    lost = good(edit.replace_node(state, "n1", "n3", lost=True))
    assert lost.leftovers == ()
    assert edit.remove_node(lost, "n1").cluster.resource("r1") == r1


def test_replacing_needs_room_and_another_replica() -> None:
    state = with_resource()
    assert refused(lambda: edit.replace_node(state, "n1", "n2")).code == "node-in-use"
    plain = edit.create_resource(
        cluster(), "r1", "1G", serial=serials(), disks={"n1": "/dev/sdb", "n2": "/dev/sdb"}
    )
    assert refused(lambda: edit.replace_node(plain, "n1", "n3")).code == "pool-unknown"
    assert good(edit.replace_node(plain, "n1", "n3", pool="ssd")).cluster.resource("r1").volumes[0].disks == {
        "n2": "/dev/sdb",
        "n3": "pool:ssd",
    }
    one = with_resource(replicas=1)
    assert refused(lambda: edit.replace_node(one, "n1", "n3")).code == "last-replica"
    assert edit.replace_node(state, "n3", "n1") is state
