"""Data from before hactl that a volume takes over: that it is said of one disk only, and of one that can have
them. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hactl.model.problem import Path, Problem
from hactl.model.spec import POOL, ClusterSpec


def adopt_problems(cluster: ClusterSpec) -> Iterator[Problem]:
    """What is wrong with the volumes' ``adopt``."""
    for i, resource in enumerate(cluster.resources):
        first = next((v for v in resource.volumes if v.adopt is not None), None)
        for k, volume in enumerate(resource.volumes):
            path: Path = ("resources", i, "volumes", k, "adopt")
            node = volume.adopt
            what = f"volume {volume.number} of {resource.name}"
            if node is None or first is None:
                continue
            disk = volume.disks.get(node)
            if disk is None or node not in resource.nodes:
                yield Problem(
                    path,
                    "adopt-no-disk",
                    f"{what} shall take over the data on node {node}, and has no disk there",
                    "name the node that has the disk with the data, or leave it out",
                )
            elif disk.startswith(POOL):
                yield Problem(
                    path,
                    "adopt-pool",
                    f"{what} shall take over the data on node {node}, where it is in pool "
                    f"{disk.removeprefix(POOL)}, in which disks are made empty",
                    "name the disk that has the data by its path under /dev",
                )
            elif node != first.adopt:
                yield Problem(
                    path,
                    "adopt-two-nodes",
                    f"{what} shall take over the data on node {node}, and volume {first.number} those on "
                    f"{first.adopt}; DRBD makes all volumes of a resource active on the same node",
                    "take over the volumes of one node, and copy the others' data",
                )
