"""Edits of resources and their volumes. Pure; each refuses with the reason, or gives the new state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hactl.errors import Refused
from hactl.model import allocate, find, leave
from hactl.model.desired import Desired
from hactl.model.put import put_resources
from hactl.model.spec import POOL, NodeSpec, ResourceSpec, VolumeSpec
from hactl.model.values import changed, make

Serials = Callable[[], str]
"""Gives a new serial at each call: 32 hexadecimal digits, random, so that no unit ever looks like another."""


def create_resource(
    desired: Desired,
    name: str,
    size: int | str,
    *,
    serial: Serials,
    replicas: int | None = None,
    nodes: Sequence[str] | None = None,
    disks: Mapping[str, str] | None = None,
    pool: str | None = None,
    hosts: Sequence[str] = (),
    preferred: str | None = None,
    iqn: str | None = None,
    port: int | None = None,
) -> Desired:
    """A new resource with volume 0 under LUN 0.

    ``disks`` names the replicas, each with its disk (a path under /dev, or ``pool:NAME``). Otherwise
    ``replicas`` (two if not given, or as many as there are nodes) are placed on nodes that have the pool, in
    different failure domains, those with the fewest first. ``nodes`` are those that export it, and those that
    replicas are placed among; the replicas' if not given. ``preferred``: among the replicas, the one that the
    fewest resources prefer if not given.
    """
    what = f"resource {name}"
    if any(r.name == name for r in desired.cluster.resources):
        raise Refused("resource-exists", f"there is a resource {name} already", "choose another name")
    leave.refuse_pending(leave.pending(desired, resource=name), f"{what} cannot be created yet")
    among = [find.node(desired, n) for n in dict.fromkeys(nodes or ())]
    for host in hosts:
        find.host(desired, host)
    if disks is None:
        disks = _placed(desired, what, among, replicas, pool)
    else:
        _refuse_contradiction(what, disks, among, replicas, pool)
        for node in disks:
            find.node(desired, node)
    by_id = {n.name: n.id for n in desired.cluster.nodes}
    exporting = sorted([n.name for n in among] or disks, key=lambda n: by_id[n])
    holding = [n for n in exporting if n in disks]
    number = allocate.ResourceIds(desired).new(port=port is None)
    volume = make(
        VolumeSpec, f"{what}: volume 0", number=0, lun=0, size=size, disks=dict(disks), serial=serial()
    )
    spec = make(
        ResourceSpec,
        what,
        name=name,
        id=number,
        iqn=iqn or f"{desired.cluster.target_prefix}:{name}",
        nodes=exporting,
        volumes=[volume],
        hosts=sorted(set(hosts)),
        preferred=_preferred(desired, what, holding, preferred),
        port=port,
    )
    return put_resources(desired, [spec])


def _placed(
    desired: Desired, what: str, among: Sequence[NodeSpec], replicas: int | None, pool: str | None
) -> dict[str, str]:
    candidates = list(among or desired.cluster.nodes)
    name = pool if pool is not None else allocate.only_pool(candidates)
    having = [n for n in candidates if any(p.name == name for p in n.pools)]
    if not having:
        raise Refused(
            "pool-unknown",
            f"{what}: no node has a pool {name}",
            "correct the name, or add the pool to nodes: hactl node pool add",
        )
    count = min(2, len(candidates)) if replicas is None else replicas
    if count < 1:
        raise Refused("out-of-range", f"{what}: {count} replicas cannot be", "ask for one at least")
    return dict.fromkeys(allocate.place(desired, having, count, what=what), POOL + name)


def _refuse_contradiction(
    what: str,
    disks: Mapping[str, str],
    among: Sequence[NodeSpec],
    replicas: int | None,
    pool: str | None,
) -> None:
    outside = [n for n in disks if among and n not in {a.name for a in among}]
    if outside:
        raise Refused(
            "disk-node-not-listed",
            f"{what}: node {outside[0]} is given a disk, but is not among the nodes",
            f"add {outside[0]} to the nodes, or leave its disk out",
        )
    if pool is not None or replicas not in (None, len(disks)):
        raise Refused(
            "disks-and-placement",
            f"{what}: {len(disks)} disks are named, and a pool or another number of replicas as well",
            "name either the disks, or a pool and the number of replicas",
        )


def _preferred(desired: Desired, what: str, holding: Sequence[str], wish: str | None) -> str | None:
    if wish is None:
        return allocate.prefer(desired, holding) if holding else None
    if wish not in holding:
        raise _not_a_replica(what, wish, holding)
    return wish


def _not_a_replica(what: str, node: str, holding: Sequence[str]) -> Refused:
    return Refused(
        "preferred-not-replica",
        f"{what}: node {node} holds no replica and cannot be active",
        f"name one of: {', '.join(holding)}",
    )


def set_preferred(desired: Desired, resource: str, node: str | None) -> Desired:
    """The node that shall be active when there is a choice; None for no preference."""
    spec = find.resource(desired, resource)
    if node is not None:
        find.node(desired, node)
        if node not in spec.replicas:
            raise _not_a_replica(f"resource {resource}", node, spec.replicas)
    new = changed(spec, f"resource {resource}", preferred=node)
    return desired if new is spec else put_resources(desired, [new])


def set_policy(
    desired: Desired, resource: str, *, failback: bool | None = None, maintenance: bool | None = None
) -> Desired:
    """Whether it goes back to its preferred node by itself, and whether Pacemaker leaves it alone; None: as
    it is."""
    spec = find.resource(desired, resource)
    given = {"failback": failback, "maintenance": maintenance}
    parts = {name: value for name, value in given.items() if value is not None}
    new = changed(spec, f"resource {resource}", **parts)
    return desired if new is spec else put_resources(desired, [new])


def delete_resource(desired: Desired, name: str, *, destroy: bool) -> Desired:
    """Without a resource: its nodes take it down, and with ``destroy`` remove its data."""
    spec = find.resource(desired, name)
    left = leave.leftovers(desired.cluster, spec, spec.volumes, spec.nodes, destroy=destroy)
    return put_resources(replace(desired, leftovers=(*desired.leftovers, *left)), [], name)
