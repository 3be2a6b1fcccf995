"""What leftovers have stays taken until their node has taken it down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hactl.model.check import check
from hactl.model.desired import Leftover
from hactl.model.spec import ClusterSpec
from tests.unit.test_model_check import valid

LEFT = Leftover(
    node="n3",
    resource="old",
    volume=0,
    resource_id=7,
    minor=112,
    port=7007,
    iqn="iqn.2026-01.com.example:old",
    serial="f" * 32,
    disk="/dev/sdx",
    device="/dev/sdx",
    destroy=True,
)


def cluster(**changes: Any) -> ClusterSpec:
    spec = valid()
    spec["resources"][1] |= changes
    return ClusterSpec.model_validate(spec)


def volumes(**changes: Any) -> list[dict[str, Any]]:
    first, second = valid()["resources"][1]["volumes"]
    return [first | changes, second]


def codes(spec: ClusterSpec, *left: Leftover) -> list[tuple[str, Any]]:
    found = check(spec, left)
    assert all(p.hint for p in found)
    return [(p.code, p.path[2:]) for p in found]


def test_a_leftover_of_something_else_is_in_nobodys_way() -> None:
    assert codes(cluster(), LEFT) == []


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"name": "old"}, ("name",)),
        ({"id": 7, "port": 9001}, ("id",)),
        ({"port": 7007}, ("port",)),
        ({"iqn": LEFT.iqn}, ("iqn",)),
        ({"volumes": volumes(minor=112)}, ("volumes", 0, "minor")),
        ({"volumes": volumes(serial="f" * 32)}, ("volumes", 0, "serial")),
    ],
)
def test_what_a_leftover_has_is_taken(changes: dict[str, Any], path: tuple[str | int, ...]) -> None:
    found = codes(cluster(**changes), LEFT)
    assert ("leftover-taken", path) in found
    assert {code for code, _ in found} == {"leftover-taken"}


def test_a_leftovers_disk_is_taken_on_its_node_only() -> None:
    on_n1 = replace(LEFT, node="n1", device="/dev/vg/r2v0", disk="/dev/vg/r2v0")
    assert codes(cluster(), on_n1) == [("leftover-taken", ("volumes", 0, "disks", "n1"))]
    assert codes(cluster(), replace(on_n1, device="/dev//vg/r2v0")) == codes(cluster(), on_n1)
    assert codes(cluster(), replace(on_n1, node="n3")) == []
    assert codes(cluster(), replace(on_n1, device=None, disk=None)) == []


def mine(spec: ClusterSpec, node: str, volume: int = 0) -> Leftover:
    """What is left of a replica of r2."""
    r2 = spec.resource("r2")
    of = r2.volume(volume)
    return Leftover(
        node=node,
        resource="r2",
        volume=volume,
        resource_id=r2.id,
        minor=r2.minor(of),
        port=r2.drbd_port,
        iqn=r2.iqn,
        serial=spec.serial(r2, of),
        disk="/dev/sdx",
        device="/dev/sdx",
        destroy=True,
    )


def test_a_resource_goes_on_where_it_is_not_left() -> None:
    spec = cluster(nodes=["n1", "n2"])
    assert codes(spec, mine(spec, "n3"), mine(spec, "n3", 1)) == []


def test_a_node_does_not_get_back_what_it_has_still_to_take_down() -> None:
    spec = cluster()
    assert codes(spec, mine(spec, "n3", 1)) == [("leftover-pending", ("volumes", 1))]


def test_a_volumes_number_is_not_used_again_before_it_is_gone() -> None:
    spec = cluster()
    left = mine(spec, "n1")
    again = cluster(volumes=volumes(serial="e" * 32))
    assert codes(again, left) == [("leftover-taken", ("volumes", 0, "number"))]
