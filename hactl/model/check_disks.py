"""Pools and disks: that they can be, and that none is used twice. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator

from hactl.model.problem import Path, Problem, Unique
from hactl.model.spec import POOL, ClusterSpec, ResourceSpec, VolumeSpec

_DISK = re.compile(r"/dev/[A-Za-z0-9_.:+@=,/-]+\Z")

_FAULTS: tuple[tuple[Callable[[str], bool], str, str], ...] = (
    (
        lambda p: not _DISK.match(p),
        "has characters that no device name needs",
        "name it by /dev/disk/by-id",
    ),
    (lambda p: ".." in p.split("/"), "has '..' in it", "write the path without it"),
    (
        lambda p: re.match(r"/dev/(drbd|mapper/hactl\.|hactl/)", posixpath.normpath(p)) is not None,
        "is a device that hactl itself makes",
        "name the disk that shall hold the data",
    ),
)


def pool_problems(cluster: ClusterSpec) -> Iterator[Problem]:
    """What is wrong with the nodes' pools."""
    for i, node in enumerate(cluster.nodes):
        names = Unique()
        for k, pool in enumerate(node.pools):
            base: Path = ("nodes", i, "pools", k)
            if first := names.taken(pool.name, f"pools[{k}]"):
                yield Problem(
                    (*base, "name"),
                    "pool-name-duplicate",
                    f"{first} of node {node.name} is named {pool.name} too",
                    "give every pool of a node a name of its own; pools of different nodes may share one",
                )
            if pool.files is not None and (fault := _folder_fault(pool.files.path)):
                yield Problem(
                    (*base, "files", "path"),
                    "pool-path",
                    f"{pool.files.path!r} {fault}",
                    "name a folder on a file system with room for the disks, such as /var/lib/hactl/disks",
                )


def _folder_fault(path: str) -> str:
    if ".." in path.split("/"):
        return "has '..' in it"
    first = path.lstrip("/").split("/")[0]
    if first in ("", "dev", "proc", "run", "sys", "tmp"):
        return "is no folder for data that has to stay"
    return ""


def disk_problems(cluster: ClusterSpec) -> Iterator[Problem]:
    """What is wrong with the disks of volumes; those in pools count by the devices they will be."""
    disks = Unique()
    nodes = {node.name: node for node in cluster.nodes}
    pools = {(node.name, pool.name): pool for node in cluster.nodes for pool in node.pools}
    for path, resource, volume, node, disk in _disks(cluster):
        device = disk
        if disk.startswith(POOL):
            pool = pools.get((node, disk.removeprefix(POOL)))
            if pool is None:
                # A node that does not exist is reported where the resource lists it.
                if node in nodes:
                    listed = ", ".join(p.name for p in nodes[node].pools)
                    has = f"it has: {listed}" if listed else "it has none"
                    yield Problem(
                        path,
                        "pool-unknown",
                        f"node {node} has no pool {disk.removeprefix(POOL)!r}",
                        f"correct the name, or add the pool to the node ({has})",
                    )
                continue
            device = pool.device(resource.name, volume.number)
        elif fault := next((f for f in _FAULTS if f[0](disk)), None):
            yield Problem(path, "disk-path", f"{disk!r} {fault[1]}", fault[2])
            continue
        owner = f"volume {volume.number} of {resource.name} (resources[{path[1]}].volumes[{path[3]}])"
        if first := disks.taken((node, posixpath.normpath(device)), owner):
            yield Problem(
                path,
                "disk-duplicate",
                f"{device} of node {node} holds {first} already",
                "give every volume a disk (or logical volume, or partition) of its own",
            )


def _disks(cluster: ClusterSpec) -> Iterator[tuple[Path, ResourceSpec, VolumeSpec, str, str]]:
    for i, resource in enumerate(cluster.resources):
        for k, volume in enumerate(resource.volumes):
            for node, disk in volume.disks.items():
                yield ("resources", i, "volumes", k, "disks", node), resource, volume, node, disk
