"""Edits of resources, volumes and replicas: what they do, what they refuse and in which words."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from hactl.model import edit
from hactl.model.desired import Desired
from hactl.model.spec import ResourceSpec
from tests.unit.desired_world import THIN, cluster, serials
from tests.unit.test_edit_nodes import good, refused

PLAIN = {"n1": "/dev/sdb", "n2": "/dev/sdb"}


def create(state: Desired, name: str = "r1", start: int = 1, **options: Any) -> Desired:
    return good(edit.create_resource(state, name, "1G", serial=serials(start), **options))


def r1(state: Desired) -> ResourceSpec:
    return state.cluster.resource("r1")


def test_everything_is_allocated() -> None:
    made = r1(create(cluster(), hosts=["h2", "h1"]))
    assert (made.id, made.iqn) == (1, "iqn.2026-11.io.hactl.lab:r1")
    assert made.nodes == made.replicas == ("n1", "n2")
    assert (made.hosts, made.preferred) == (("h1", "h2"), "n1")
    volume = made.volumes[0]
    assert (volume.number, volume.lun, volume.size) == (0, 0, 1 << 30)
    assert volume.serial == "0" * 31 + "1"
    assert volume.disks == {"n1": "pool:ssd", "n2": "pool:ssd"}


def test_resources_are_spread() -> None:
    state = cluster(4)
    for number in range(8):
        state = create(state, f"r{number}", number + 1)
    count = {n.name: sum(n.name in r.replicas for r in state.cluster.resources) for n in state.cluster.nodes}
    assert count == {"n1": 4, "n2": 4, "n3": 4, "n4": 4}
    preferred = [r.preferred for r in state.cluster.resources]
    assert all(preferred.count(n.name) == 2 for n in state.cluster.nodes)


def test_replicas_lie_in_different_failure_domains() -> None:
    state = cluster(4)
    for node, rack in (("n1", "a"), ("n2", "a"), ("n3", "b")):
        state = edit.change_node(state, node, failure_domain=rack)
    assert r1(create(state)).replicas == ("n1", "n3")
    assert r1(create(state, replicas=3)).replicas == ("n1", "n3", "n4")
    error = refused(lambda: create(state, replicas=4))
    assert error.code == "no-room-for-replicas"
    assert "there are 3" in error.message
    assert r1(create(state, nodes=["n2", "n3", "n1"])).nodes == ("n1", "n2", "n3")


def test_a_node_named_like_a_failure_domain_is_not_in_it() -> None:
    state = edit.change_node(cluster(2), "n1", failure_domain="n2")
    assert r1(create(state)).replicas == ("n1", "n2")


def test_the_pool_is_named_when_there_are_several() -> None:
    state = edit.add_pool(edit.add_pool(cluster(), "n2", THIN), "n3", THIN)
    assert refused(lambda: create(state)).code == "pool-ambiguous"
    assert r1(create(state, pool="thin")).replicas == ("n2", "n3")
    assert refused(lambda: create(state, pool="none")).code == "pool-unknown"
    bare = cluster()
    for node in ("n1", "n2", "n3"):
        bare = edit.remove_pool(bare, node, "ssd")
    assert refused(lambda: create(bare)).code == "pool-unknown"


def test_named_disks() -> None:
    made = r1(create(cluster(), disks=PLAIN, nodes=["n3", "n1", "n2"], preferred="n2", port=9000))
    assert (made.nodes, made.replicas, made.preferred) == (("n1", "n2", "n3"), ("n1", "n2"), "n2")
    assert made.drbd_port == 9000


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"disks": PLAIN, "nodes": ["n1"]}, "disk-node-not-listed"),
        ({"disks": PLAIN, "pool": "ssd"}, "disks-and-placement"),
        ({"disks": PLAIN, "replicas": 3}, "disks-and-placement"),
        ({"disks": {"n9": "/dev/sdb"}}, "unknown-node"),
        ({"disks": {"n1": "sdb"}}, "invalid"),
        ({"disks": {}}, "too-short"),
        ({"replicas": 0}, "out-of-range"),
        ({"nodes": ["n9"]}, "unknown-node"),
        ({"hosts": ["h9"]}, "unknown-host"),
        ({"preferred": "n3"}, "preferred-not-replica"),
        ({"iqn": "r1"}, "invalid"),
        ({"port": 80}, "out-of-range"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], code: str) -> None:
    assert refused(lambda: create(cluster(), **options)).code == code


def test_a_size_is_refused_in_words() -> None:
    for size in ("10X", 0, -5):
        error = refused(lambda: edit.create_resource(cluster(), "r1", size, serial=serials()))  # noqa: B023
        assert "resource r1: volume 0" in error.message


def test_ids_that_leftovers_have_are_not_given_out() -> None:
    state = create(create(cluster()), "r2", 2)
    gone = good(edit.delete_resource(state, "r1", destroy=True))
    assert gone.cluster.resource("r2").id == 2
    assert create(gone, "r3", 3).cluster.resource("r3").id == 3
    cleaned = edit.remove_leftovers(gone, gone.leftovers)
    assert create(cleaned, "r3", 3).cluster.resource("r3").id == 1


def test_ids_whose_port_or_minor_is_somebodys_are_not_given_out() -> None:
    state = create(cluster(), port=7002)
    assert create(state, "r2", 2).cluster.resource("r2").id == 3
    assert create(state, "r2", 2, port=7005).cluster.resource("r2").id == 2


def test_a_name_is_free_when_its_leftovers_are_gone() -> None:
    state = create(cluster())
    assert refused(lambda: create(state)).code == "resource-exists"
    gone = edit.delete_resource(state, "r1", destroy=False)
    error = refused(lambda: create(gone))
    assert error.code == "leftover-pending"
    assert "n1: r1/0; n2: r1/0" in error.message
    assert [left.destroy for left in gone.leftovers] == [False, False]
    cleaned = edit.remove_leftovers(gone, gone.leftovers)
    assert r1(create(cleaned, start=7)).volumes[0].serial != gone.leftovers[0].serial


def test_leftovers_say_all_that_has_to_be_known() -> None:
    state = create(cluster(), disks={"n1": "/dev/sdb", "n2": "pool:ssd"}, nodes=["n1", "n2", "n3"])
    gone = good(edit.delete_resource(state, "r1", destroy=True).ordered())
    assert [(left.node, left.disk, left.device) for left in gone.leftovers] == [
        ("n1", "/dev/sdb", "/dev/sdb"),
        ("n2", "pool:ssd", "/dev/vg0/hactl.r1.0"),
        ("n3", None, None),
    ]
    assert {(left.resource_id, left.minor, left.port, left.iqn) for left in gone.leftovers} == {
        (1, 16, 7001, "iqn.2026-11.io.hactl.lab:r1")
    }


def test_a_leftover_is_removed_as_it_was_seen() -> None:
    state = edit.delete_resource(create(cluster()), "r1", destroy=True)
    first = state.leftovers[:1]
    less = edit.remove_leftovers(state, first)
    assert less.leftovers == state.leftovers[1:]
    assert edit.remove_leftovers(less, first) is less


def test_volumes_come_and_go() -> None:
    new = serials(2)
    state = good(edit.add_volume(create(cluster(), hosts=["h1"]), "r1", "2G", serial=new))
    state = good(edit.add_volume(state, "r1", "3G", serial=new, lun=9))
    assert [(v.number, v.lun, v.size >> 30) for v in r1(state).volumes] == [(0, 0, 1), (1, 1, 2), (2, 9, 3)]
    state = edit.export(state, "r1", "h2", {1: None})
    less = good(edit.remove_volume(state, "r1", 1, destroy=True))
    assert [v.number for v in r1(less).volumes] == [0, 2]
    assert r1(less).exports == {}
    assert {(left.node, left.volume, left.minor) for left in less.leftovers} == {("n1", 1, 17), ("n2", 1, 17)}
    again = good(edit.add_volume(less, "r1", "1G", serial=new))
    assert r1(again).volumes[-1].number == 3
    cleaned = edit.remove_leftovers(less, less.leftovers)
    assert r1(good(edit.add_volume(cleaned, "r1", "1G", serial=new))).volumes[-1].number == 1


def test_a_lun_that_is_taken_is_passed_over_or_refused() -> None:
    new = serials(2)
    state = edit.add_volume(create(cluster()), "r1", "1G", serial=new, lun=2)
    state = good(edit.add_volume(state, "r1", "1G", serial=new))
    assert [v.lun for v in r1(state).volumes] == [0, 2, 1]
    error = refused(lambda: edit.add_volume(state, "r1", "1G", serial=new, lun=2))
    assert error.code == "lun-duplicate"


def test_sixteen_volumes_are_the_most() -> None:
    state, new = create(cluster()), serials(2)
    for _ in range(15):
        state = edit.add_volume(state, "r1", "1G", serial=new)
    good(state)
    assert refused(lambda: edit.add_volume(state, "r1", "1G", serial=new)).code == "too-many-volumes"


def test_disks_of_another_volume() -> None:
    plain = create(cluster(), disks=PLAIN)
    assert refused(lambda: edit.add_volume(plain, "r1", "1G", serial=serials(2))).code == "disk-needed"
    some = {"n1": "/dev/sdc"}
    error = refused(lambda: edit.add_volume(plain, "r1", "1G", serial=serials(2), disks=some))
    assert error.code == "replica-incomplete"
    both = {"n1": "/dev/sdc", "n2": "pool:ssd"}
    state = good(edit.add_volume(plain, "r1", "1G", serial=serials(2), disks=both))
    assert r1(state).volumes[1].disks == both


def test_the_last_volume_stays() -> None:
    assert refused(lambda: edit.remove_volume(create(cluster()), "r1", 0, destroy=True)).code == "last-volume"


def test_volumes_grow_and_never_shrink() -> None:
    state = create(cluster())
    more = good(edit.grow_volume(state, "r1", 0, "2G"))
    assert r1(more).volumes[0].size == 2 << 30
    assert edit.grow_volume(more, "r1", 0, 2 << 30) is more
    error = refused(lambda: edit.grow_volume(more, "r1", 0, "1G"))
    assert (error.code, "2G" in error.message) == ("size-shrink", True)
    assert refused(lambda: edit.grow_volume(state, "r1", 1, "2G")).code == "unknown-volume"
    assert refused(lambda: edit.grow_volume(state, "r1", 0, "much")).code == "invalid"


def test_replicas_come_and_go() -> None:
    state = good(edit.add_replica(create(cluster()), "r1", "n3"))
    assert r1(state).replicas == ("n1", "n2", "n3")
    assert refused(lambda: edit.add_replica(state, "r1", "n3")).code == "replica-exists"
    less = good(edit.remove_replica(state, "r1", "n1", destroy=True))
    assert (r1(less).replicas, r1(less).preferred) == (("n2", "n3"), None)
    assert [(left.node, left.volume) for left in less.leftovers] == [("n1", 0)]
    assert edit.remove_replica(less, "r1", "n1", destroy=True) is less
    assert refused(lambda: edit.add_replica(less, "r1", "n1")).code == "leftover-pending"
    assert refused(lambda: edit.add_exporter(less, "r1", "n1")).code == "leftover-pending"
    cleaned = edit.remove_leftovers(less, less.leftovers)
    assert r1(good(edit.add_replica(cleaned, "r1", "n1"))).nodes == ("n1", "n2", "n3")
    last = edit.remove_replica(less, "r1", "n2", destroy=True)
    assert refused(lambda: edit.remove_replica(last, "r1", "n3", destroy=True)).code == "last-replica"


def test_a_new_replica_needs_a_disk_for_every_volume() -> None:
    state = edit.add_volume(create(cluster()), "r1", "1G", serial=serials(2))
    error = refused(lambda: edit.add_replica(state, "r1", "n3", disks={0: "/dev/sdb"}))
    assert error.code == "replica-incomplete"
    assert refused(lambda: edit.add_replica(state, "r1", "n3", disks={9: "/dev/x"})).code == "unknown-volume"
    assert refused(lambda: edit.add_replica(state, "r1", "n3", pool="no")).code == "pool-unknown"
    disks = {0: "/dev/sdb", 1: "/dev/sdc"}
    assert r1(good(edit.add_replica(state, "r1", "n3", disks=disks))).volumes[1].disks["n3"] == "/dev/sdc"


def test_a_node_exports_without_a_replica_and_then_gets_one() -> None:
    state = good(edit.add_exporter(create(cluster()), "r1", "n3"))
    assert (r1(state).nodes, r1(state).replicas) == (("n1", "n2", "n3"), ("n1", "n2"))
    assert edit.add_exporter(state, "r1", "n3") is state
    assert r1(good(edit.add_replica(state, "r1", "n3"))).replicas == ("n1", "n2", "n3")
    gone = edit.remove_replica(state, "r1", "n3", destroy=True)
    assert [(left.node, left.disk) for left in gone.leftovers] == [("n3", None)]


def test_the_preferred_node() -> None:
    state = create(cluster())
    assert r1(good(edit.set_preferred(state, "r1", "n2"))).preferred == "n2"
    assert edit.set_preferred(state, "r1", "n1") is state
    assert r1(good(edit.set_preferred(state, "r1", None))).preferred is None
    error = refused(lambda: edit.set_preferred(state, "r1", "n3"))
    assert (error.code, error.hint) == ("preferred-not-replica", "name one of: n1, n2")


def test_a_hundred_resources_have_different_everything() -> None:
    state, new = cluster(5), serials()
    for number in range(100):
        state = edit.create_resource(state, f"r{number}", "1G", serial=new)
    good(state)
    ids = sorted(r.id for r in state.cluster.resources)
    assert all(b - a == 1 for a, b in pairwise(ids))
