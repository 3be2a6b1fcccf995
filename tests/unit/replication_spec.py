"""A small specification for tests of replication."""

from __future__ import annotations

from ipaddress import ip_address

from hactl.model.spec import Addresses, ClusterSpec, NodeSpec, ResourceSpec, VolumeSpec


def node(name: str, number: int, replication: str | None = None) -> NodeSpec:
    return NodeSpec(
        name=name,
        id=number,
        addresses=Addresses(
            cluster=ip_address(f"10.77.1.{number}"),
            replication=ip_address(replication or f"10.77.2.{number}"),
            storage=(ip_address(f"10.77.3.{number}"),),
        ),
    )


def resource(
    *, nodes: tuple[str, ...] = ("n1", "n2"), replicas: tuple[str, ...] = ("n1", "n2"), volumes: int = 1
) -> ResourceSpec:
    return ResourceSpec(
        name="r0",
        id=1,
        iqn="iqn.2025-01.org.example:r0",
        nodes=nodes,
        volumes=tuple(
            VolumeSpec(number=n, lun=n, size=8 << 20, disks=dict.fromkeys(replicas, f"/dev/vd{'bcd'[n]}"))
            for n in range(volumes)
        ),
    )


def cluster(*resources: ResourceSpec, nodes: tuple[NodeSpec, ...] = ()) -> ClusterSpec:
    return ClusterSpec(
        name="lab", nodes=nodes or tuple(node(f"n{i}", i) for i in (1, 2, 3)), resources=resources
    )
