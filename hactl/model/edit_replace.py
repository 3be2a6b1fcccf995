"""The edit that brings about a whole specification. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from hactl.errors import Refused
from hactl.model import leave
from hactl.model.desired import Desired, Leftover
from hactl.model.edit_volumes import refuse_shrink
from hactl.model.spec import ClusterSpec, NodeSpec, ResourceSpec, VolumeSpec


def replace(desired: Desired, wanted: ClusterSpec, *, destroy: frozenset[str] = frozenset()) -> Desired:
    """``wanted`` in the place of the specification; what goes becomes leftovers.

    Resources that go, or lose a volume or a replica, lose data: refused with ``would-destroy`` unless named
    in ``destroy``. What hosts and nodes know things by never changes (``identity-change``), nothing shrinks
    (``size-shrink``), and a node goes only when nothing is on it any more.
    """
    current = desired.cluster
    if wanted.name != current.name:
        raise Refused(
            "cluster-other",
            f"this is cluster {current.name}, and the file is of cluster {wanted.name}",
            "is it the right file?",
        )
    _failover(current, wanted)
    wanted_resources = {r.name: r for r in wanted.resources}
    known = {r.name: r for r in current.resources}
    left: list[Leftover] = []
    for resource in current.resources:
        new = wanted_resources.get(resource.name)
        if new is not resource:
            left += _goes(current, resource, new)
    losing = sorted({one.resource for one in left if one.disk is not None})
    unconfirmed = [name for name in losing if name not in destroy]
    if unconfirmed:
        raise Refused(
            "would-destroy",
            f"data of {', '.join(unconfirmed)} would be destroyed",
            "put what is missing back into the file, or confirm each by its name: "
            + " ".join(f"--yes-destroy {name}" for name in unconfirmed),
        )
    for resource in wanted.resources:
        old = known.get(resource.name)
        if old is None:
            pending = leave.pending(desired, resource=resource.name)
            leave.refuse_pending(pending, f"resource {resource.name} cannot be created yet")
        elif old is not resource:
            _refuse_changes(current, wanted, old, resource)
    used: set[tuple[str, str]] = {
        (left.node, left.disk) for left in (*desired.leftovers, *left) if left.disk is not None
    } | {(n, d) for r in current.resources for v in r.volumes for n, d in v.disks.items()}
    by_name = {n.name: n for n in wanted.nodes}
    busy = {one.node for one in (*desired.leftovers, *left)}
    for node in current.nodes:
        _node(node, by_name.get(node.name), busy, used)
    new_state = dataclasses.replace(desired, cluster=wanted, leftovers=(*desired.leftovers, *left)).ordered()
    return desired if new_state.same(desired.ordered()) else new_state


def _failover(current: ClusterSpec, wanted: ClusterSpec) -> None:
    if wanted.pacemaker != current.pacemaker:
        raise Refused(
            "pacemaker-change",
            f"whether cluster {current.name} has Pacemaker is decided when it is made",
            f"write pacemaker: {str(current.pacemaker).lower()}, or leave it out",
        )
    if wanted.unfenced_promotion and not current.unfenced_promotion:
        raise Refused(
            "unfenced-promotion",
            "a file cannot switch failover without fencing on: two nodes may then write to their copies "
            "of the same data",
            "leave unfenced_promotion out; give every node a fence device (hactl fencing set), or read what "
            "this says first: hactl failover automatic --without-fencing",
        )


def _goes(current: ClusterSpec, old: ResourceSpec, new: ResourceSpec | None) -> Iterator[Leftover]:
    """Leftovers of a resource in the place of which ``new`` comes."""
    if new is None:
        yield from leave.leftovers(current, old, old.volumes, old.nodes, destroy=True)
        return
    stays = {v.number for v in new.volumes}
    for volume in old.volumes:
        nodes = [n for n in old.nodes if volume.number not in stays or n not in new.nodes]
        yield from leave.leftovers(current, old, [volume], nodes, destroy=True)


def _refuse_changes(current: ClusterSpec, wanted: ClusterSpec, old: ResourceSpec, new: ResourceSpec) -> None:
    what = f"resource {old.name}"
    _identity(what, "id", old.id, new.id)
    _identity(what, "iqn", old.iqn, new.iqn)
    if old.replicas and not set(old.replicas) & set(new.replicas):
        raise Refused(
            "last-replica",
            f"{what} would have none of the replicas that have its data ({', '.join(old.replicas)})",
            "add the new replicas first, wait until they are UpToDate, and then remove the old ones",
        )
    numbers = {v.number: v for v in old.volumes}
    for volume in new.volumes:
        before = numbers.get(volume.number)
        if before is None:
            continue
        which = f"{what}: volume {volume.number}"
        _identity(which, "lun", before.lun, volume.lun)
        _identity(which, "serial", current.serial(old, before), wanted.serial(new, volume))
        _identity(which, "minor", old.minor(before), new.minor(volume))
        refuse_shrink(which, before, volume)
        _disks(which, before, volume, new)
    for host in old.hosts + tuple(old.exports):
        was, now = _seen(old, host), _seen(new, host)
        for number in was.keys() & now.keys():
            _identity(f"{what}: volume {number}", f"LUN for host {host}", was[number], now[number])


def _seen(resource: ResourceSpec, host: str) -> dict[int, int]:
    if host in resource.hosts:
        return {v.number: v.lun for v in resource.volumes}
    return resource.exports.get(host, {})


def _identity(what: str, part: str, old: object, new: object) -> None:
    if old != new:
        raise Refused(
            "identity-change",
            f"{what}: {part} would change from {old} to {new}, by which hosts or nodes know it",
            f"write {old}, or leave it out where that can be done; or remove the object first and create it "
            "anew",
        )


def _disks(what: str, old: VolumeSpec, new: VolumeSpec, resource: ResourceSpec) -> None:
    for node, disk in old.disks.items():
        now = new.disks.get(node)
        if now is None and node in resource.nodes:
            raise Refused(
                "replica-stays",
                f"{what}: node {node} would go on exporting it without its disk {disk}",
                f"remove {node} from the resource's nodes too, and add it again when it has taken its part "
                "down",
            )
        if now is not None and now != disk and (leave.is_pool(disk) or leave.is_pool(now)):
            raise Refused(
                "disk-change",
                f"{what}: node {node} would have it on {now} instead of {disk}, and a disk in a pool is not "
                "moved",
                "remove that replica, wait until the node has taken it down, and add it again",
            )


def _node(old: NodeSpec, new: NodeSpec | None, busy: set[str], used: set[tuple[str, str]]) -> None:
    if new is None:
        if old.name in busy:
            raise Refused(
                "leftover-pending",
                f"node {old.name} cannot be removed yet: it has still to take down what is removed from it",
                "leave the node in the file until it has, and then remove it; if it is lost for good: "
                f"hactl node remove {old.name} --lost",
            )
        return
    _identity(f"node {old.name}", "id", old.id, new.id)
    for pool in old.pools:
        if pool not in new.pools and (old.name, "pool:" + pool.name) in used:
            raise Refused(
                "pool-in-use",
                f"pool {pool.name} of node {old.name} holds disks, and would change or go",
                "move or delete what is on it first",
            )
