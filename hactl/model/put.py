"""The desired state with one of its parts exchanged, in the store's order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hactl.model.desired import Desired
from hactl.model.spec import HostSpec, NodeSpec, ResourceSpec
from hactl.model.values import changed


def put_node(desired: Desired, node: NodeSpec) -> Desired:
    """With ``node`` in the place of the one of that name, or added."""
    others = [n for n in desired.cluster.nodes if n.name != node.name]
    nodes = tuple(sorted([*others, node], key=lambda n: n.name))
    return replace(desired, cluster=changed(desired.cluster, "", nodes=nodes))


def put_resources(desired: Desired, resources: Sequence[ResourceSpec], *gone: str) -> Desired:
    """With ``resources`` in the place of those of their names, or added, and without those in ``gone``."""
    names = {r.name for r in resources} | set(gone)
    kept = [r for r in desired.cluster.resources if r.name not in names]
    every = tuple(sorted([*kept, *resources], key=lambda r: r.name))
    return replace(desired, cluster=changed(desired.cluster, "", resources=every))


def put_host(desired: Desired, host: HostSpec) -> Desired:
    """With ``host`` in the place of the one of that name, or added."""
    others = [h for h in desired.cluster.hosts if h.name != host.name]
    hosts = tuple(sorted([*others, host], key=lambda h: h.name))
    return replace(desired, cluster=changed(desired.cluster, "", hosts=hosts))
