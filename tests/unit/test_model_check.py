"""Cross-checks: one valid specification, and what each single change to it makes wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from hactl.model.check import Problem, check
from hactl.model.spec import ClusterSpec


def valid() -> dict[str, Any]:
    """A specification without problems: three nodes, two hosts, two resources."""
    return {
        "name": "lab",
        "nodes": [
            {
                "name": f"n{i}",
                "id": i,
                "addresses": {
                    "cluster": f"10.0.1.{i}",
                    "replication": f"10.0.2.{i}",
                    "storage": [f"10.0.3.{i}"],
                },
            }
            for i in (1, 2, 3)
        ],
        "hosts": [
            {
                "name": "h1",
                "initiators": ["iqn.2026-01.com.example:h1"],
                "chap": {
                    "user": "h1",
                    "password": "first-secret-1",
                    "mutual_user": "lab",
                    "mutual_password": "first-secret-2",
                },
            },
            {
                "name": "h2",
                "initiators": ["iqn.2026-01.com.example:h2"],
                "chap": {"user": "h2", "password": "other-secret-1"},
            },
        ],
        "resources": [
            {
                "name": f"r{i}",
                "id": i,
                "iqn": f"iqn.2026-01.com.example:r{i}",
                "nodes": ["n1", "n2", "n3"],
                "hosts": ["h1", "h2"],
                "volumes": [
                    {
                        "number": k,
                        "lun": k,
                        "size": "1G",
                        "disks": {"n1": f"/dev/vg/r{i}v{k}", "n2": f"/dev/vg/r{i}v{k}"},
                    }
                    for k in (0, 1)
                ],
            }
            for i in (1, 2)
        ],
    }


Change = Callable[[dict[str, Any]], None]


def put(*path: str | int, to: Any) -> Change:
    """A change that sets the value at a path."""

    def change(spec: dict[str, Any]) -> None:
        here: Any = spec
        for step in path[:-1]:
            here = here[step]
        here[path[-1]] = to

    return change


def problems(*changes: Change, max_replicas: int | None = None) -> tuple[Problem, ...]:
    spec = copy.deepcopy(valid())
    for change in changes:
        change(spec)
    return check(ClusterSpec.model_validate(spec), max_replicas=max_replicas)


def test_the_valid_specification_has_no_problem() -> None:
    assert problems(max_replicas=2) == ()


N2, H1, R2 = ("nodes", 1), ("hosts", 0), ("resources", 1)
V = (*R2, "volumes", 1)
SSD = {"name": "ssd", "lvm": {"vg": "vg"}}


def files(path: str) -> dict[str, Any]:
    return {"name": "trial", "files": {"path": path}}


CASES = [
    (put(*N2, "name", to="n1"), "node-name-duplicate", (*N2, "name")),
    (put(*N2, "id", to=1), "node-id-duplicate", (*N2, "id")),
    (put(*N2, "addresses", "cluster", to="10.0.1.1"), "address-duplicate", (*N2, "addresses", "cluster")),
    (
        put(*N2, "addresses", "storage", to=["10.0.1.1"]),
        "address-duplicate",
        (*N2, "addresses", "storage", 0),
    ),
    (
        put(*N2, "addresses", "storage", to=["10.0.3.2", "10.0.3.2"]),
        "address-duplicate",
        (*N2, "addresses", "storage"),
    ),
    (put(*N2, "addresses", "cluster", to="0.0.0.0"), "address-unusable", (*N2, "addresses", "cluster")),
    (put(*N2, "addresses", "cluster", to="127.0.0.5"), "address-unusable", (*N2, "addresses", "cluster")),
    (put(*N2, "addresses", "cluster", to="239.1.1.1"), "address-unusable", (*N2, "addresses", "cluster")),
    (put(*N2, "addresses", "cluster", to="169.254.0.9"), "address-unusable", (*N2, "addresses", "cluster")),
    (
        put(*N2, "addresses", "storage", to=["fe80::1%eth0"]),
        "address-unusable",
        (*N2, "addresses", "storage", 0),
    ),
    (
        put(*N2, "addresses", "replication", to="fd00::2"),
        "address-family-mixed",
        (*N2, "addresses", "replication"),
    ),
    (put("hosts", 1, "name", to="h3"), "host-unknown", ("resources", 0, "hosts", 1)),
    (put("hosts", 1, "initiators", to=["iqn.2026-01.com.example:h1"]), "initiator-duplicate", None),
    (put("hosts", 1, "initiators", to=["iqn.2026-01.com.example:r1"]), "initiator-is-target", None),
    (put(*H1, "chap", "password", to="longer-than-sixteen"), "chap-secret-length", (*H1, "chap", "password")),
    (put(*H1, "chap", "mutual_password", to="short"), "chap-secret-length", (*H1, "chap", "mutual_password")),
    (put(*H1, "chap", "mutual_password", to="first-secret-1"), "chap-mutual-same", None),
    (put(*H1, "chap", "mutual_password", to="other-secret-1"), "chap-mutual-same", None),
    (put(*H1, "chap", "mutual_password", to=None), "chap-mutual-incomplete", (*H1, "chap", "mutual_user")),
    (put(*H1, "chap", "mutual_user", to=None), "chap-mutual-incomplete", (*H1, "chap", "mutual_password")),
    (put(*H1, "chap", "password", to="NULLnullNULL1"), "chap-null", (*H1, "chap", "password")),
    (put(*H1, "chap", "user", to="NULL"), "chap-null", (*H1, "chap", "user")),
    (put(*H1, "chap", "user", to="a b"), "chap-user", (*H1, "chap", "user")),
    (put(*H1, "chap", "password", to="with space in"), "chap-secret-characters", (*H1, "chap", "password")),
    (put(*H1, "chap", "password", to="höher-und-mehr"), "chap-secret-characters", (*H1, "chap", "password")),
    (put(*R2, "iqn", to="iqn.2026-01.com.example:r1"), "iqn-duplicate", (*R2, "iqn")),
    (put(*R2, "port", to=7001), "port-duplicate", (*R2, "port")),
    (put(*R2, "port", to=3260), "port-taken", (*R2, "port")),
    (put(*R2, "nodes", to=["n1", "n2", "n9"]), "node-unknown", (*R2, "nodes", 2)),
    (put(*R2, "nodes", to=["n1", "n2", "n1"]), "node-listed-twice", (*R2, "nodes", 2)),
    (put(*R2, "hosts", to=["h1", "h1"]), "host-listed-twice", (*R2, "hosts", 1)),
    (put(*V, "number", to=0), "volume-number-duplicate", (*V, "number")),
    (put(*V, "lun", to=0), "lun-duplicate", (*V, "lun")),
    (put(*V, "minor", to=17), "minor-duplicate", (*V, "minor")),
    (put(*V, "size", to=(1 << 20) - 4096), "size-too-small", (*V, "size")),
    (put(*V, "size", to=(1 << 50) + 4096), "size-too-large", (*V, "size")),
    (put(*V, "size", to=(1 << 30) + 512), "size-not-aligned", (*V, "size")),
    (put(*V, "disks", to={"n1": "/dev/vg/x"}), "replica-incomplete", (*V, "disks")),
    (put(*V, "disks", "n1", to="/dev/vg/r1v0"), "disk-duplicate", (*V, "disks", "n1")),
    (put(*V, "disks", "n1", to="/dev//vg/./r1v0"), "disk-duplicate", (*V, "disks", "n1")),
    (put(*V, "disks", "n1", to="/dev/../etc/passwd"), "disk-path", (*V, "disks", "n1")),
    (put(*V, "disks", "n1", to='/dev/sdb"; }'), "disk-path", (*V, "disks", "n1")),
    (put(*V, "disks", "n1", to="/dev/drbd5"), "disk-path", (*V, "disks", "n1")),
    (put(*V, "disks", "n1", to="/dev/mapper/hactl.r1.0"), "disk-path", (*V, "disks", "n1")),
    (put(*V, "disks", "n1", to="/dev/hactl/r1.0"), "disk-path", (*V, "disks", "n1")),
    (put(*V, "disks", "n1", to="pool:ssd"), "pool-unknown", (*V, "disks", "n1")),
    (put(*V, "disks", "n1", to="pool:"), "pool-unknown", (*V, "disks", "n1")),
    (put(*N2, "pools", to=[SSD, SSD]), "pool-name-duplicate", (*N2, "pools", 1, "name")),
    (put(*N2, "pools", to=[files("/srv/../x")]), "pool-path", (*N2, "pools", 0, "files", "path")),
    (put(*N2, "pools", to=[files("/dev/shm")]), "pool-path", (*N2, "pools", 0, "files", "path")),
    (put(*N2, "pools", to=[files("/")]), "pool-path", (*N2, "pools", 0, "files", "path")),
    (put(*R2, "preferred", to="n3"), "preferred-not-replica", (*R2, "preferred")),
    (put(*R2, "preferred", to="n9"), "preferred-not-replica", (*R2, "preferred")),
    (put(*R2, "exports", to={"h9": {"0": 0}}), "host-unknown", (*R2, "exports", "h9")),
    (put(*R2, "exports", to={"h1": {"0": 0}}), "host-exported-twice", (*R2, "exports", "h1")),
    (put(*R2, "exports", to={"h1": {}}), "export-empty", (*R2, "exports", "h1")),
    (put(*R2, "exports", to={"h1": {"7": 0}}), "volume-unknown", (*R2, "exports", "h1", "7")),
    (put(*R2, "exports", to={"h1": {"0": 3, "1": 3}}), "lun-duplicate", (*R2, "exports", "h1", "1")),
]


@pytest.mark.parametrize(("change", "code", "path"), CASES, ids=[f"{i}-{c[1]}" for i, c in enumerate(CASES)])
def test_each_mistake_is_found_where_it_is(
    change: Change, code: str, path: tuple[str | int, ...] | None
) -> None:
    found = problems(change)
    assert code in {p.code for p in found}
    if path is not None:
        assert path in {p.path for p in found if p.code == code}
    assert all(p.message and p.hint for p in found)


def test_two_resources_of_one_id_clash_in_everything_that_follows_from_it() -> None:
    codes = {p.code for p in problems(put(*R2, "id", to=1))}
    assert codes == {"resource-id-duplicate", "port-duplicate", "minor-duplicate"}


def test_one_serial_for_two_volumes() -> None:
    serial = "0123456789abcdef" * 2
    found = problems(put(*V, "serial", to=serial), put("resources", 0, "volumes", 0, "serial", to=serial))
    assert [(p.code, p.path) for p in found] == [("serial-duplicate", (*V, "serial"))]


def test_a_third_replica_needs_another_drbd() -> None:
    def third(spec: dict[str, Any]) -> None:
        for volume in spec["resources"][1]["volumes"]:
            volume["disks"]["n3"] = f"/dev/vg/third{volume['number']}"

    assert problems(third) == ()
    assert [p.code for p in problems(third, max_replicas=2)] == ["too-many-replicas"]


def test_a_disk_of_a_node_that_does_not_export() -> None:
    found = problems(put(*R2, "nodes", to=["n1", "n3"]))
    assert {p.code for p in found} == {"disk-node-not-listed"}
    assert {p.path for p in found} == {(*R2, "volumes", k, "disks", "n2") for k in (0, 1)}


def test_more_than_sixteen_volumes() -> None:
    def many(spec: dict[str, Any]) -> None:
        spec["resources"][1]["volumes"] = [
            {
                "number": min(k, 15),
                "lun": k,
                "size": "1G",
                "minor": 1000 + k,
                "disks": {"n1": f"/dev/vg/m{k}"},
            }
            for k in range(17)
        ]

    assert "too-many-volumes" in {p.code for p in problems(many)}


def test_all_problems_are_reported_at_once() -> None:
    found = problems(put(*V, "lun", to=0), put(*N2, "name", to="n1"), put(*H1, "chap", "user", to="a b"))
    assert {"lun-duplicate", "node-name-duplicate", "chap-user"} <= {p.code for p in found}


def test_no_message_shows_a_secret() -> None:
    found = problems(
        put(*H1, "chap", "password", to="NULL-and-much-too-long-to-use"),
        put("hosts", 1, "chap", "mutual_password", to="NULL-and-much-too-long-to-use"),
    )
    assert {"chap-secret-length", "chap-null", "chap-mutual-same"} <= {p.code for p in found}
    assert not any("much-too-long" in p.message + p.hint for p in found)


def test_disks_in_pools_and_exports_of_chosen_volumes_are_good() -> None:
    def pooled(spec: dict[str, Any]) -> None:
        for node in spec["nodes"]:
            node["pools"] = [SSD, files("/srv/hactl")]
            node["failure_domain"] = "rack-1"
        for volume in spec["resources"][1]["volumes"]:
            volume["disks"] = {"n1": "pool:ssd", "n2": "pool:trial"}
        spec["resources"][1] |= {"hosts": [], "exports": {"h1": {"1": 0}, "h2": {"0": 9}}, "preferred": "n2"}

    assert problems(pooled) == ()


def test_a_disk_in_a_pool_is_not_used_by_its_path_as_well() -> None:
    def both(spec: dict[str, Any]) -> None:
        spec["nodes"][0]["pools"] = [SSD]
        spec["resources"][1]["volumes"][0]["disks"]["n1"] = "pool:ssd"
        spec["resources"][0]["volumes"][0]["disks"]["n1"] = "/dev/vg/hactl.r2.0"

    assert [(p.code, p.path) for p in problems(both)] == [
        ("disk-duplicate", ("resources", 1, "volumes", 0, "disks", "n1"))
    ]
