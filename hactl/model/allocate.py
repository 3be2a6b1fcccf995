"""Ids, LUNs and places for what is new: the smallest that are free, the nodes with the least on them. Pure.

What a leftover still has counts as taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from hactl.errors import Refused
from hactl.model.check import AGENT_PORTS, MAX_VOLUMES, TAKEN_PORTS
from hactl.model.desired import Desired
from hactl.model.spec import NodeSpec

MAX_NODES = 15
"""Node ids are target port group tags in the lower four bits of an RTPI."""

MAX_RESOURCES = 4095
"""Resource ids are the upper twelve bits of an RTPI."""


def node_id(taken: Collection[int]) -> int:
    """The smallest free id of a node."""
    for number in range(1, MAX_NODES + 1):
        if number not in taken:
            return number
    raise Refused(
        "ids-exhausted",
        f"the cluster has {MAX_NODES} nodes, which are the most",
        "remove a node that is not needed any more",
    )


class ResourceIds:
    """Ids for new resources of one cluster, each given out once: such that the minors and the port that
    follow from them are free as well."""

    def __init__(self, desired: Desired) -> None:
        self._ids: set[int] = set()
        self._minors: set[int] = set()
        self._ports: set[int] = {*TAKEN_PORTS, *AGENT_PORTS}
        for r in desired.cluster.resources:
            self.take(r.id, r.drbd_port, (r.minor(v) for v in r.volumes))
        for left in desired.leftovers:
            self.take(left.resource_id, left.port, [left.minor])
        self._next = 1

    def take(self, number: int | None, port: int | None, minors: Iterable[int]) -> None:
        """Count an id, a port and minors as taken."""
        if number is not None:
            self._ids.add(number)
        if port is not None:
            self._ports.add(port)
        self._minors.update(minors)

    def new(self, *, port: bool = True) -> int:
        """The smallest free id. ``port``: also 7000 + id has to be free, since no other port is wished."""
        for number in range(self._next, MAX_RESOURCES + 1):
            minors = range(number * MAX_VOLUMES, (number + 1) * MAX_VOLUMES)
            free = number not in self._ids and not (port and 7000 + number in self._ports)
            if free and self._minors.isdisjoint(minors):
                self._ids.add(number)
                self._next = number + 1 if port else self._next
                return number
        raise Refused(
            "ids-exhausted",
            f"no id from 1 to {MAX_RESOURCES} is free for another resource",
            "remove what is not needed, or put several volumes into one resource",
        )


def volume_number(taken: Collection[int], resource: str) -> int:
    """The smallest free number of a volume."""
    for number in range(MAX_VOLUMES):
        if number not in taken:
            return number
    raise Refused(
        "too-many-volumes",
        f"resource {resource} has {MAX_VOLUMES} volumes, which are the most (those that nodes have still to "
        "remove count too)",
        "create another resource",
    )


def lun(wish: int, taken: Collection[int]) -> int:
    """``wish`` if it is free, else the smallest free LUN."""
    if wish not in taken:
        return wish
    return next(number for number in range(len(taken) + 1) if number not in taken)


def place(desired: Desired, candidates: Sequence[NodeSpec], count: int, *, what: str) -> tuple[str, ...]:
    """``count`` of the candidates for the replicas of ``what``, in different failure domains (a node without
    one is its own), those with the fewest replicas first, then by id; sorted by id.

    :class:`Refused` ``no-room-for-replicas`` if there are not as many domains.
    """
    load = replicas_by_node(desired)
    domains: dict[tuple[bool, str], NodeSpec] = {}
    for node in sorted(candidates, key=lambda n: (load.get(n.name, 0), n.id)):
        domain = (True, node.failure_domain) if node.failure_domain else (False, node.name)
        domains.setdefault(domain, node)
    if len(domains) < count:
        names = ", ".join(n.name for n in candidates) or "none"
        raise Refused(
            "no-room-for-replicas",
            f"{what}: {count} replicas need {count} nodes in different failure domains; there are "
            f"{len(domains)} (nodes that qualify: {names})",
            "name the nodes yourself, ask for fewer replicas, or add nodes or pools",
        )
    chosen = sorted(list(domains.values())[:count], key=lambda n: n.id)
    return tuple(n.name for n in chosen)


def replicas_by_node(desired: Desired) -> dict[str, int]:
    """How many resources have a replica on each node that has any."""
    load: dict[str, int] = {}
    for resource in desired.cluster.resources:
        for name in resource.replicas:
            load[name] = load.get(name, 0) + 1
    return load


def prefer(desired: Desired, replicas: Sequence[str]) -> str:
    """The node of ``replicas`` that the fewest resources prefer; of equals, the first."""
    preferred = [r.preferred for r in desired.cluster.resources]
    return min(replicas, key=preferred.count)


def only_pool(nodes: Iterable[NodeSpec]) -> str:
    """The name that all pools of these nodes have; :class:`Refused` ``pool-ambiguous`` or ``pool-unknown``
    if there are several names or none."""
    names = sorted({pool.name for node in nodes for pool in node.pools})
    if len(names) == 1:
        return names[0]
    if not names:
        raise Refused(
            "pool-unknown", "no node has a pool", "add pools to nodes, or name a disk for each replica"
        )
    raise Refused("pool-ambiguous", f"there are several pools: {', '.join(names)}", "name the one to use")
