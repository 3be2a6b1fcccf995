"""What leaves the specification, as what nodes have still to take down. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from hactl.errors import Refused
from hactl.model.desired import Desired, Leftover
from hactl.model.spec import POOL, ClusterSpec, ResourceSpec, VolumeSpec


def leftovers(
    cluster: ClusterSpec,
    resource: ResourceSpec,
    volumes: Iterable[VolumeSpec],
    nodes: Iterable[str],
    *,
    destroy: bool,
) -> tuple[Leftover, ...]:
    """Leftovers of these volumes on these nodes, as the cluster that still has them describes them."""
    on = tuple(nodes)
    return tuple(_one(cluster, resource, v, n, destroy) for v in volumes for n in on)


def _one(
    cluster: ClusterSpec, resource: ResourceSpec, volume: VolumeSpec, node: str, destroy: bool
) -> Leftover:
    disk = volume.disks.get(node)
    return Leftover(
        node=node,
        resource=resource.name,
        volume=volume.number,
        resource_id=resource.id,
        minor=resource.minor(volume),
        port=resource.drbd_port,
        iqn=resource.iqn,
        serial=cluster.serial(resource, volume),
        disk=disk,
        device=None if disk is None else cluster.device(resource, volume, node),
        destroy=destroy,
    )


def remove_leftovers(desired: Desired, done: Iterable[Leftover]) -> Desired:
    """Without the leftovers that a node has taken down; unchanged for those that are not there any more.

    They are compared as a whole: a later leftover of the same node, resource and volume stays.
    """
    gone = set(done)
    kept = tuple(left for left in desired.leftovers if left not in gone)
    return desired if len(kept) == len(desired.leftovers) else replace(desired, leftovers=kept)


def pending(desired: Desired, *, resource: str | None = None, node: str | None = None) -> Iterator[Leftover]:
    """Leftovers of a resource, or on a node, or both."""
    for left in desired.leftovers:
        if resource in (None, left.resource) and node in (None, left.node):
            yield left


def refuse_pending(found: Iterable[Leftover], what: str) -> None:
    """:class:`Refused` ``leftover-pending`` if there are any: ``what`` has to wait until they are gone."""
    nodes: dict[str, set[str]] = {}
    for left in found:
        nodes.setdefault(left.node, set()).add(f"{left.resource}/{left.volume}")
    if nodes:
        told = "; ".join(f"{node}: {', '.join(sorted(of))}" for node, of in sorted(nodes.items()))
        raise Refused(
            "leftover-pending",
            f"{what}: nodes have still to take down what was removed before ({told})",
            "wait until they have, see hactl status on each; if a node is lost for good: "
            "hactl node remove NODE --lost",
        )


def is_pool(disk: str) -> bool:
    """Whether a disk is one that the node's agent creates and removes."""
    return disk.startswith(POOL)
