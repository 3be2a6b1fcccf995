"""What of a changed specification concerns which resources of a node: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hactl.model.spec import POOL, ClusterSpec, HostSpec, PoolSpec, ResourceSpec
from hactl.pacemaker.charge import fences

Part = tuple[object, ...]


@dataclass(frozen=True)
class About:
    """Everything in a specification that one resource on one node depends on. ``fencing``: DRBD asks after
    lost peers."""

    spec: ResourceSpec
    cluster: str
    fencing: bool
    nodes: tuple[Part, ...]
    hosts: tuple[HostSpec | None, ...]
    pools: tuple[PoolSpec | None, ...]


@dataclass(frozen=True)
class Difference:
    """Names of the resources that come to a node, are there and change, or go."""

    come: frozenset[str]
    changed: frozenset[str]
    gone: frozenset[str]


def abouts(cluster: ClusterSpec, node: str) -> dict[str, About]:
    """By name, what each resource of ``node`` depends on. ``cluster`` is as written, with names of pools."""
    nodes: dict[str, Part] = {n.name: (n.name, n.id, n.addresses) for n in cluster.nodes}
    hosts = {h.name: h for h in cluster.hosts}
    pools = {p.name: p for n in cluster.nodes if n.name == node for p in n.pools}

    def used(resource: ResourceSpec) -> tuple[PoolSpec | None, ...]:
        own = [v.disks[node] for v in resource.volumes if node in v.disks]
        return tuple(pools.get(disk.removeprefix(POOL)) for disk in own if disk.startswith(POOL))

    return {
        r.name: About(
            r,
            cluster.name,
            fences(cluster),
            tuple(nodes[n] for n in r.nodes if n in nodes),
            tuple(hosts.get(h) for h in (*r.hosts, *r.exports)),
            used(r),
        )
        for r in cluster.resources
        if node in r.nodes
    }


def difference(old: Mapping[str, About], new: Mapping[str, About]) -> Difference:
    """What leads from one to the other."""
    return Difference(
        come=frozenset(new.keys() - old.keys()),
        changed=frozenset(name for name in new.keys() & old.keys() if new[name] != old[name]),
        gone=frozenset(old.keys() - new.keys()),
    )
