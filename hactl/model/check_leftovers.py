"""What a specification must not take from a leftover before a node has taken it down. Pure."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterator

from hactl.model.desired import Leftover
from hactl.model.problem import Path, Problem
from hactl.model.spec import POOL, ClusterSpec, ResourceSpec, VolumeSpec

_HINT = (
    "wait until that node has taken it down (hactl status there), or choose another; "
    "if the node is lost for good: hactl node remove NODE --lost"
)


def leftover_problems(cluster: ClusterSpec, leftovers: tuple[Leftover, ...]) -> Iterator[Problem]:
    """Names, ids, minors, ports, targets, serials and disks that a leftover still has.

    A leftover of a resource that goes on elsewhere (the same name and id, and for a volume the same serial)
    shares them with it; only the node itself cannot have that volume again yet.
    """
    if not leftovers:
        return
    every: dict[tuple[str, object], list[Leftover]] = defaultdict(list)
    for left in leftovers:
        for key in (
            ("name", left.resource),
            ("id", left.resource_id),
            ("port", left.port),
            ("iqn", left.iqn),
            ("minor", left.minor),
            ("serial", left.serial),
            ("disk", (left.node, posixpath.normpath(left.device)) if left.device else None),
        ):
            every[key].append(left)
    devices = _Devices(cluster)
    for i, resource in enumerate(cluster.resources):
        base: Path = ("resources", i)
        other = [left for left in every["name", resource.name] if left.resource_id != resource.id]
        yield from _taken((*base, "name"), "name", resource.name, other)
        # A name that is taken has been reported; that the same leftover has more of it is no news.
        by = _without(every, resource.name) if other else every
        for what, value in (("id", resource.id), ("port", resource.drbd_port), ("iqn", resource.iqn)):
            yield from _taken((*base, what), what, value, _others(resource, by[what, value]))
        for k, volume in enumerate(resource.volumes):
            yield from _volume((*base, "volumes", k), cluster, resource, volume, by, devices)


def _without(
    by: dict[tuple[str, object], list[Leftover]], name: str
) -> dict[tuple[str, object], list[Leftover]]:
    kept = {key: [left for left in of if left.resource != name] for key, of in by.items()}
    return defaultdict(list, kept)


def _volume(
    base: Path,
    cluster: ClusterSpec,
    resource: ResourceSpec,
    volume: VolumeSpec,
    by: dict[tuple[str, object], list[Leftover]],
    devices: _Devices,
) -> Iterator[Problem]:
    serial = cluster.serial(resource, volume)

    def goes_on(left: Leftover) -> bool:
        same = (left.resource, left.resource_id, left.volume, left.serial)
        return same == (resource.name, resource.id, volume.number, serial)

    for left in by["name", resource.name]:
        if left.resource_id != resource.id or left.volume != volume.number:
            continue
        if not goes_on(left):
            yield from _taken((*base, "number"), "number", volume.number, [left])
        elif left.node in resource.nodes:
            yield Problem(
                base,
                "leftover-pending",
                f"node {left.node} has still to take down its earlier part in volume {volume.number} of "
                f"{resource.name}",
                _HINT,
            )
    for key, value in (("minor", resource.minor(volume)), ("serial", serial)):
        others = [left for left in by[key, value] if not goes_on(left)]
        # A number that is taken has been reported, and what follows from it is no news.
        others = [left for left in others if (left.resource, left.volume) != (resource.name, volume.number)]
        yield from _taken((*base, key), key, value, others)
    for node in volume.disks:
        device = devices.path(resource, volume, node)
        if device is not None:
            yield from _taken((*base, "disks", node), "disk", device, by["disk", (node, device)])


def _others(resource: ResourceSpec, found: list[Leftover]) -> list[Leftover]:
    return [left for left in found if (left.resource, left.resource_id) != (resource.name, resource.id)]


def _taken(path: Path, what: str, value: object, by: list[Leftover]) -> Iterator[Problem]:
    for left in by[:1]:
        nodes = ", ".join(sorted({other.node for other in by}))
        yield Problem(
            path,
            "leftover-taken",
            f"{what} {value} is still that of volume {left.volume} of {left.resource}, which was removed and "
            f"which node {nodes} has still to take down",
            _HINT,
        )


class _Devices:
    """Paths of disks; None where the specification does not say which."""

    def __init__(self, cluster: ClusterSpec) -> None:
        self._pools = {(node.name, pool.name): pool for node in cluster.nodes for pool in node.pools}

    def path(self, resource: ResourceSpec, volume: VolumeSpec, node: str) -> str | None:
        disk = volume.disks[node]
        if not disk.startswith(POOL):
            return posixpath.normpath(disk)
        pool = self._pools.get((node, disk.removeprefix(POOL)))
        return None if pool is None else posixpath.normpath(pool.device(resource.name, volume.number))
