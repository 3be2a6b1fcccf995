"""A specification for tests of Pacemaker's configuration."""

from __future__ import annotations

from typing import Any

from hactl.model.spec import ClusterSpec

PASSWORD = "not-for-everybody"


def node(number: int, **parts: Any) -> dict[str, Any]:
    address = {k: f"10.77.{i}.{number}" for i, k in enumerate(("cluster", "replication"), 1)}
    device = {
        "agent": "fence_ipmilan",
        "options": {"ip": f"10.77.1.10{number}", "lanplus": "1"},
        "secrets": {"password": PASSWORD},
    }
    addresses = {**address, "storage": [f"10.77.3.{number}"]}
    return {"name": f"n{number}", "id": number, "addresses": addresses, "fencing": device, **parts}


def resource(number: int, nodes: str = "n1 n2", **parts: Any) -> dict[str, Any]:
    name = f"r{number}"
    disks = dict.fromkeys(nodes.split()[:2], "/dev/vdb")
    return {
        "name": name,
        "id": number + 1,
        "iqn": f"iqn.2026-11.org.example:{name}",
        "nodes": nodes.split(),
        "volumes": [{"number": 0, "lun": 0, "size": "1GiB", "disks": disks}],
        **parts,
    }


def cluster(*resources: dict[str, Any], nodes: int = 3, **parts: Any) -> ClusterSpec:
    """With Pacemaker, and fenced."""
    made = [node(i + 1) for i in range(nodes)]
    values = {"name": "demo", "pacemaker": True, "nodes": made, "resources": resources, **parts}
    return ClusterSpec.model_validate(values)
