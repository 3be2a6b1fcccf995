"""Edits of nodes and their pools. Pure; each refuses with the reason, or gives the new state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

from hactl.errors import Refused
from hactl.model import allocate, find, leave
from hactl.model.desired import Desired
from hactl.model.edit_replicas import drop, refuse_last_replica
from hactl.model.put import put_node, put_resources
from hactl.model.spec import POOL, Addresses, ClusterSpec, NodeSpec, PoolSpec
from hactl.model.values import changed, make


class Keep(Enum):
    """Stands for "leave it as it is" where None means "none"."""

    KEEP = "keep"


KEEP = Keep.KEEP


def addresses(cluster: object, replication: object = None, storage: Sequence[object] = ()) -> Addresses:
    """A node's addresses; those not given are the cluster address."""
    return make(
        Addresses,
        "addresses",
        cluster=cluster,
        replication=cluster if replication is None else replication,
        storage=list(storage) or [cluster],
    )


def new_cluster(
    name: str,
    node: str,
    where: Addresses,
    *,
    failure_domain: str | None = None,
    pools: Sequence[PoolSpec] = (),
    iqn_prefix: str | None = None,
) -> ClusterSpec:
    """A cluster of one node, with id 1."""
    first = make(
        NodeSpec,
        f"node {node}",
        name=node,
        id=1,
        addresses=where,
        failure_domain=failure_domain,
        pools=list(pools),
    )
    return make(ClusterSpec, f"cluster {name}", name=name, iqn_prefix=iqn_prefix, nodes=[first])


def add_node(
    desired: Desired,
    name: str,
    where: Addresses,
    *,
    id: int | None = None,  # noqa: A002 - it is called id wherever it is written
    failure_domain: str | None = None,
    pools: Sequence[PoolSpec] = (),
) -> Desired:
    """A new node with the smallest free id, or the one given. Added already with the same: unchanged."""
    nodes = desired.cluster.nodes
    there = next((n for n in nodes if n.name == name), None)
    parts: dict[str, Any] = {"addresses": where, "failure_domain": failure_domain, "pools": tuple(pools)}
    if there is not None:
        if id in (None, there.id) and changed(there, f"node {name}", **parts) == there:
            return desired
        raise Refused(
            "node-exists",
            f"there is a node {name} already, with other settings",
            "choose another name, or change that node: hactl node set",
        )
    if id is None:
        id = allocate.node_id({n.id for n in nodes})  # noqa: A001
    elif taken := next((n for n in nodes if n.id == id), None):
        raise Refused("node-id-duplicate", f"id {id} is that of node {taken.name}", "leave the id out")
    return put_node(desired, make(NodeSpec, f"node {name}", name=name, id=id, **parts))


def change_node(
    desired: Desired,
    name: str,
    *,
    where: Addresses | None = None,
    failure_domain: str | Keep | None = KEEP,
) -> Desired:
    """Other addresses (its portals are the storage addresses), or another failure domain."""
    parts: dict[str, Any] = {}
    if where is not None:
        parts["addresses"] = where
    if failure_domain is not KEEP:
        parts["failure_domain"] = failure_domain
    node = find.node(desired, name)
    new = changed(node, f"node {name}", **parts)
    return desired if new is node else put_node(desired, new)


def add_pool(desired: Desired, node: str, pool: PoolSpec) -> Desired:
    """Another pool on a node. There already, the same: unchanged."""
    spec = find.node(desired, node)
    there = next((p for p in spec.pools if p.name == pool.name), None)
    if there == pool:
        return desired
    if there is not None:
        raise Refused(
            "pool-exists",
            f"node {node} has a pool {pool.name} already, which is another one",
            "choose another name",
        )
    pools = tuple(sorted([*spec.pools, pool], key=lambda p: p.name))
    return put_node(desired, changed(spec, f"node {node}", pools=pools))


def remove_pool(desired: Desired, node: str, pool: str) -> Desired:
    """Without a pool that no disk is in, nor a leftover's. What it is made of is not touched."""
    spec = find.node(desired, node)
    if all(p.name != pool for p in spec.pools):
        known = ", ".join(p.name for p in spec.pools)
        raise Refused(
            "pool-unknown",
            f"node {node} has no pool {pool}",
            f"it has: {known}" if known else "it has none",
        )
    disk = POOL + pool
    using = sorted(
        f"{r.name}/{v.number}"
        for r in desired.cluster.resources
        for v in r.volumes
        if v.disks.get(node) == disk
    )
    if using:
        raise Refused(
            "pool-in-use",
            f"pool {pool} of node {node} holds disks of {', '.join(using)}",
            "move their replicas to another node, or delete them",
        )
    found = (left for left in leave.pending(desired, node=node) if left.disk == disk)
    leave.refuse_pending(found, f"pool {pool} of node {node} cannot be removed yet")
    return put_node(
        desired, changed(spec, f"node {node}", pools=tuple(p for p in spec.pools if p.name != pool))
    )


def remove_node(desired: Desired, name: str, *, lost: bool = False) -> Desired:
    """Without a node that nothing is on any more.

    ``lost``: the machine will never come back as it was. Its replicas are struck off the resources that have
    another one, and what it had still to take down is forgotten; nothing on it is removed. Refused where it
    has the only replica.
    """
    find.node(desired, name)
    on = [r for r in desired.cluster.resources if name in r.nodes]
    if on and not lost:
        raise Refused(
            "node-in-use",
            f"node {name} exports {', '.join(r.name for r in on)}",
            "move or remove its replicas first; if the machine is lost for good, add --lost",
        )
    if len(desired.cluster.nodes) == 1:
        raise Refused("last-node", f"{name} is the only node of the cluster", "a cluster needs a node")
    if lost:
        for resource in on:
            refuse_last_replica(resource, name)
        desired = put_resources(desired, [drop(resource, name) for resource in on])
        kept = tuple(left for left in desired.leftovers if left.node != name)
        desired = replace(desired, leftovers=kept)
    leave.refuse_pending(leave.pending(desired, node=name), f"node {name} cannot be removed yet")
    nodes = tuple(n for n in desired.cluster.nodes if n.name != name)
    return replace(desired, cluster=changed(desired.cluster, "", nodes=nodes))
