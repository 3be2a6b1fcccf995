"""Edits of where a resource is: replicas and exporting nodes. Pure; each refuses with the reason, or gives
the new state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hactl.errors import Refused
from hactl.model import allocate, find, leave
from hactl.model.desired import Desired, Leftover
from hactl.model.put import put_resources
from hactl.model.spec import POOL, NodeSpec, ResourceSpec
from hactl.model.values import changed


def add_replica(
    desired: Desired,
    resource: str,
    node: str,
    *,
    disks: Mapping[int, str] | None = None,
    pool: str | None = None,
) -> Desired:
    """A replica on another node, or on one that only exports so far: ``disks`` by volume number, or all in a
    pool (the node's only one if neither is given). There already: refused."""
    spec = find.resource(desired, resource)
    target = find.node(desired, node)
    what = f"resource {resource}"
    if node in spec.replicas:
        raise Refused("replica-exists", f"{what} has a replica on {node} already", "choose another node")
    leave.refuse_pending(
        leave.pending(desired, resource=resource, node=node), f"{what} cannot have a replica on {node} yet"
    )
    if disks is None:
        name = pool if pool is not None else allocate.only_pool([target])
        disks = {v.number: POOL + name for v in spec.volumes}
        if all(p.name != name for p in target.pools):
            known = ", ".join(p.name for p in target.pools) or "none"
            raise Refused("pool-unknown", f"node {node} has no pool {name}", f"it has: {known}")
    for number in disks:
        find.volume(spec, number)
    missing = [str(v.number) for v in spec.volumes if v.number not in disks]
    if missing:
        raise Refused(
            "replica-incomplete",
            f"{what}: no disk is named on {node} for volume {', '.join(missing)}",
            "a replica has a disk for every volume",
        )
    volumes = tuple(changed(v, what, disks={**v.disks, node: disks[v.number]}) for v in spec.volumes)
    return put_resources(desired, [changed(spec, what, nodes=_with(desired, spec, node), volumes=volumes)])


def add_exporter(desired: Desired, resource: str, node: str) -> Desired:
    """Let a node export a resource without a replica, behind a gate that stays closed. Exported there
    already: unchanged."""
    spec = find.resource(desired, resource)
    find.node(desired, node)
    if node in spec.nodes:
        return desired
    what = f"resource {resource}"
    leave.refuse_pending(
        leave.pending(desired, resource=resource, node=node), f"{what} cannot be exported on {node} yet"
    )
    return put_resources(desired, [changed(spec, what, nodes=_with(desired, spec, node))])


def _with(desired: Desired, spec: ResourceSpec, node: str) -> tuple[str, ...]:
    if node in spec.nodes:
        return spec.nodes
    return tuple(sorted([*spec.nodes, node], key=lambda n: desired.cluster.node(n).id))


def remove_replica(desired: Desired, resource: str, node: str, *, destroy: bool) -> Desired:
    """Without a node: it takes its part down, and with ``destroy`` removes its copy of the data. Not the last
    replica. Not there already: unchanged."""
    spec = find.resource(desired, resource)
    find.node(desired, node)
    if node not in spec.nodes:
        return desired
    refuse_last_replica(spec, node)
    left = leave.leftovers(desired.cluster, spec, spec.volumes, [node], destroy=destroy)
    return put_resources(replace(desired, leftovers=(*desired.leftovers, *left)), [drop(spec, node)])


def refuse_last_replica(resource: ResourceSpec, node: str) -> None:
    """:class:`Refused` if the resource has its only replica on that node."""
    if resource.replicas == (node,) or resource.nodes == (node,):
        raise Refused(
            "last-replica",
            f"node {node} has the only replica of {resource.name}",
            "add a replica on another node and wait until it is UpToDate, or delete the resource",
        )


def drop(resource: ResourceSpec, node: str) -> ResourceSpec:
    """The resource without a node."""
    volumes = tuple(
        changed(
            v,
            f"resource {resource.name}",
            disks={n: d for n, d in v.disks.items() if n != node},
            adopt=None if v.adopt == node else v.adopt,
        )
        for v in resource.volumes
    )
    return changed(
        resource,
        f"resource {resource.name}",
        nodes=tuple(n for n in resource.nodes if n != node),
        volumes=volumes,
        preferred=None if resource.preferred == node else resource.preferred,
    )


def replace_node(
    desired: Desired,
    old: str,
    new: str,
    *,
    pool: str | None = None,
    lost: bool = False,
    destroy: bool = False,
) -> Desired:
    """All that node ``old`` has, on node ``new`` instead, which exists and is used for none of it yet.

    Disks come from pool ``pool`` of the new node, or from its pool of the same name. ``lost`` as for
    :func:`remove_node`, except that the node itself stays until it is removed; otherwise ``old`` takes its
    part down, and with ``destroy`` removes the data. Refused where ``old`` has the only replica.
    """
    find.node(desired, old)
    target = find.node(desired, new)
    on = [r for r in desired.cluster.resources if old in r.nodes]
    made: list[ResourceSpec] = []
    left: tuple[Leftover, ...] = ()
    for resource in on:
        if new in resource.nodes:
            raise Refused(
                "node-in-use",
                f"node {new} exports {resource.name} already",
                "choose a node that exports none of what the other one does",
            )
        leave.refuse_pending(
            leave.pending(desired, resource=resource.name, node=new),
            f"{new} cannot take over {resource.name}",
        )
        if old in resource.replicas:
            refuse_last_replica(resource, old)
        made.append(_moved(resource, old, target, pool))
        if not lost:
            left += leave.leftovers(desired.cluster, resource, resource.volumes, [old], destroy=destroy)
    kept = tuple(one for one in desired.leftovers if not (lost and one.node == old))
    return put_resources(replace(desired, leftovers=(*kept, *left)), made) if on else desired


def _moved(resource: ResourceSpec, old: str, new: NodeSpec, pool: str | None) -> ResourceSpec:
    what = f"resource {resource.name}"
    volumes = []
    for v in resource.volumes:
        disk = v.disks.get(old)
        if disk is not None:
            named = POOL + pool if pool is not None else disk
            if not named.startswith(POOL) or all(p.name != named.removeprefix(POOL) for p in new.pools):
                raise Refused(
                    "pool-unknown",
                    f"node {new.name} has no pool for what is on {disk} of node {old} "
                    f"({resource.name}/{v.number})",
                    "name one of its pools, or move the replicas one by one with their disks",
                )
            disks = {n: d for n, d in v.disks.items() if n != old} | {new.name: named}
            v = changed(v, what, disks=disks, adopt=None if v.adopt == old else v.adopt)
        volumes.append(v)
    return changed(
        resource,
        what,
        nodes=tuple(new.name if n == old else n for n in resource.nodes),
        volumes=tuple(volumes),
        preferred=new.name if resource.preferred == old else resource.preferred,
    )
