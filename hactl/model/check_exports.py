"""Exports of chosen volumes, and preferred nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hactl.model.problem import Path, Problem
from hactl.model.spec import ClusterSpec, ResourceSpec


def export_problems(cluster: ClusterSpec) -> Iterator[Problem]:
    """What is wrong with ``exports`` and ``preferred`` of resources."""
    hosts = {h.name for h in cluster.hosts}
    for i, resource in enumerate(cluster.resources):
        yield from _preferred(("resources", i, "preferred"), resource)
        numbers = {v.number for v in resource.volumes}
        for host, luns in resource.exports.items():
            path: Path = ("resources", i, "exports", host)
            if host not in hosts:
                known = f"known are: {', '.join(sorted(hosts))}" if hosts else "there are no hosts"
                yield Problem(
                    path,
                    "host-unknown",
                    f"there is no host {host}",
                    f"correct the name, or add it to hosts ({known})",
                )
            if host in resource.hosts:
                yield Problem(
                    path,
                    "host-exported-twice",
                    f"host {host} is among the hosts of {resource.name} too, which see every volume",
                    "name it in one of hosts and exports only",
                )
            if not luns:
                yield Problem(
                    path,
                    "export-empty",
                    f"host {host} is given no volume",
                    "name volumes, or remove the host",
                )
            yield from _luns(path, resource, host, luns, numbers)


def _luns(
    path: Path, resource: ResourceSpec, host: str, luns: dict[int, int], numbers: set[int]
) -> Iterator[Problem]:
    first: dict[int, int] = {}
    for number, lun in luns.items():
        if number not in numbers:
            listed = ", ".join(str(n) for n in sorted(numbers))
            yield Problem(
                (*path, str(number)),
                "volume-unknown",
                f"resource {resource.name} has no volume {number}",
                f"its volumes are: {listed}",
            )
        if first.setdefault(lun, number) != number:
            yield Problem(
                (*path, str(number)),
                "lun-duplicate",
                f"host {host} would see volume {first[lun]} under LUN {lun} too",
                "choose another LUN",
            )


def _preferred(path: Path, resource: ResourceSpec) -> Iterator[Problem]:
    if resource.preferred is not None and resource.preferred not in resource.replicas:
        replicas = ", ".join(resource.replicas) or "none"
        yield Problem(
            path,
            "preferred-not-replica",
            f"node {resource.preferred} holds no replica of {resource.name} and cannot be active",
            f"name a node with a replica ({replicas}), or leave it out",
        )
