"""What the benchmark on a real node brings up: small units, each a target of its own."""

from __future__ import annotations

from hactl.model.spec import ClusterSpec

VOLUME = 4 << 20
DISK = 8 << 20
"""Bytes of a disk: the volume, and room for DRBD's meta-data."""


def spec_of(count: int, node: str, address: str) -> ClusterSpec:
    """``count`` resources of one volume, seen by one host, on ``node`` and a second one that is not there.
    ``address``: of the node, for everything."""
    other = address.rpartition(".")[0] + ".250"
    places = {node: address, "absent": other}
    return ClusterSpec.model_validate(
        {
            "name": "bench",
            "nodes": [
                {"name": name, "id": n, "addresses": {"cluster": a, "replication": a, "storage": [a]}}
                for n, (name, a) in enumerate(places.items(), 1)
            ],
            "hosts": [{"name": "h1", "initiators": ["iqn.2026-11.example.bench:h1"]}],
            "resources": [
                {
                    "name": f"r{n}",
                    "id": n + 1,
                    "iqn": f"iqn.2026-11.example.bench:r{n}",
                    "nodes": list(places),
                    "hosts": ["h1"],
                    "volumes": [
                        {
                            "number": 0,
                            "lun": 0,
                            "size": VOLUME,
                            "serial": f"{n + 1:032x}",
                            "disks": dict.fromkeys(places, disk_of(n)),
                        }
                    ],
                }
                for n in range(count)
            ],
        }
    )


def disk_of(number: int) -> str:
    """Where the disk of a resource is: a slice of the node's disk."""
    return f"/dev/mapper/bench.{number}"
