"""The storage network in memory: who is on it, who answers what, and what is cut."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hactl.model.spec import IpAddress


@dataclass
class MemoryStorageNetwork:
    """``owners``: who has an address, by address. ``apart``: owners that are cut off from all others but each
    other. ``mute``: addresses that do not answer ICMP, ``closed``: those that do not answer TCP either.
    ``unplugged``: addresses without a link, and why. ``sessions``: seconds since a host last sent something,
    by portal and host; of a session through a cut they go on, and the session stays."""

    owners: dict[IpAddress, str] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)
    mute: set[IpAddress] = field(default_factory=set)
    closed: set[IpAddress] = field(default_factory=set)
    unplugged: dict[IpAddress, str] = field(default_factory=dict)
    sessions: dict[tuple[IpAddress, IpAddress], float] = field(default_factory=dict)

    def probes(self, node: str) -> MemoryProbes:
        """What one owner sees."""
        return MemoryProbes(self, node)

    def connected(self, one: IpAddress, other: IpAddress) -> bool:
        """Whether messages pass between two addresses."""
        if one.version != other.version or one == other or {one, other} & self.unplugged.keys():
            return False
        sides = {self.owners.get(one) in self.apart, self.owners.get(other) in self.apart}
        return {one, other} <= self.owners.keys() and len(sides) == 1


class MemoryProbes:
    """Keeps :class:`hactl.agents.reach_probes.StorageProbes`; takes no time."""

    def __init__(self, network: MemoryStorageNetwork, node: str) -> None:
        self._network = network
        self._node = node
        self.asked: list[str] = []
        """Names of the questions so far."""

    def _own(self, portals: Collection[IpAddress]) -> list[IpAddress]:
        return [p for p in portals if self._network.owners.get(p) == self._node]

    def _answered(
        self, portals: Collection[IpAddress], targets: Collection[IpAddress], deaf: Collection[IpAddress]
    ) -> frozenset[IpAddress]:
        reached = {t for t in targets if t not in deaf}
        own = self._own(portals)
        return frozenset(p for p in own if any(self._network.connected(p, t) for t in reached))

    async def echo(
        self,
        portals: Collection[IpAddress],
        targets: Collection[IpAddress],
        seconds: float,  # noqa: ARG002 - whoever answers does so at once
    ) -> frozenset[IpAddress]:
        self.asked.append("echo")
        return self._answered(portals, targets, self._network.mute)

    async def connect(
        self,
        portals: Collection[IpAddress],
        targets: Collection[IpAddress],
        seconds: float,  # noqa: ARG002 - whoever answers does so at once
    ) -> frozenset[IpAddress]:
        self.asked.append("connect")
        return self._answered(portals, targets, self._network.closed)

    async def faults(self, portals: Collection[IpAddress]) -> Mapping[IpAddress, str]:
        self.asked.append("faults")
        missing = {p: "is on no interface" for p in portals if p not in self._own(portals)}
        return {**missing, **{p: why for p, why in self._network.unplugged.items() if p in portals}}

    async def hosts(self, portals: Collection[IpAddress]) -> Mapping[IpAddress, float]:
        self.asked.append("hosts")
        found: dict[IpAddress, float] = {}
        for (portal, host), silence in self._network.sessions.items():
            if portal in self._own(portals):
                found[host] = min(silence, found.get(host, math.inf))
        return found
