"""Which logical units there are, and where each is found on every node; from the specification. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.pr_sync.aptpl import Places, TargetPort
from hactl.pr_sync.commands import Access
from hactl.target.tree import CONTROL, SPARE_TAG, spare_rtpi

OWN_PORT = 0
"""Stands for a port of no node in commands of the agents' own initiator: each node sends them at the port of
another node. No target port has this RTPI (SPC-4 7.7.16)."""


@dataclass(frozen=True)
class Port:
    """The target port of a node: its portal group has the tag ``tag`` on every node."""

    node: str
    rtpi: int
    tag: int


NOBODY = ""
"""Stands for the node of the spare port."""


@dataclass(frozen=True)
class Unit:
    """A logical unit. ``mapped``: the LUN that each initiator sees it under; the same at all ports.

    ``serial`` names the unit in the log, in the kernel's APTPL file and to initiators (VPD 0x80). ``spare``
    is there if one node exports it alone: the port of no node, through which that one's agent acts.
    """

    resource: str
    volume: int
    serial: str
    target: str
    lun: int
    ports: tuple[Port, ...]
    mapped: Mapping[str, int] = field(default_factory=dict)
    spare: Port | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mapped", MappingProxyType(dict(sorted(self.mapped.items()))))

    @property
    def name(self) -> str:
        """For messages: ``r0/0``."""
        return f"{self.resource}/{self.volume}"

    @property
    def access(self) -> Access:
        """In the order in which the unit is linked into the portal groups: by tag."""
        return {port.rtpi: frozenset(self.mapped) for port in sorted(self.ports, key=lambda p: p.tag)}

    @property
    def acting(self) -> Access:
        """``access``, and the agents' own initiator, which clears what is registered."""
        return {**self.access, OWN_PORT: frozenset({CONTROL})}

    def port(self, node: str) -> Port:
        """The port of a node; :class:`KeyError` if the unit is not exported from there."""
        found = next((p for p in self.ports if p.node == node), None)
        if found is None:
            raise KeyError(node)
        return found

    def at(self, rtpi: int) -> Port:
        """The port with this identifier, also the spare one; :class:`KeyError` if it is none of this
        unit's."""
        found = next((p for p in (*self.ports, self.spare) if p is not None and p.rtpi == rtpi), None)
        if found is None:
            raise KeyError(rtpi)
        return found

    def back(self, node: str) -> Port:
        """The port through which the agent of ``node`` acts as an initiator of its own: one that no host
        uses there."""
        found = next((p for p in self.ports if p.node != node), self.spare)
        if found is None:
            raise KeyError(node)
        return found

    @property
    def places(self) -> Places:
        """Where an import of registrations has to put them."""
        return Places(
            {p.rtpi: TargetPort(self.target, p.tag, self.lun) for p in self.ports},
            {(name, p.rtpi): lun for name, lun in self.mapped.items() for p in self.ports},
        )


def units(cluster: ClusterSpec, node: str) -> tuple[Unit, ...]:
    """The units that ``node`` exports, by resource and volume."""
    return tuple(u for r in cluster.resources if node in r.nodes for u in units_of(cluster, r))


def units_of(cluster: ClusterSpec, resource: ResourceSpec) -> Iterator[Unit]:
    """The units of one resource."""
    members = [cluster.node(name) for name in resource.nodes]
    ports = tuple(Port(m.name, resource.rtpi(m), m.id) for m in members)
    spare = Port(NOBODY, spare_rtpi(resource), SPARE_TAG) if len(ports) == 1 else None
    for volume in resource.volumes:
        mapped = {name: volume.lun for host in resource.hosts for name in cluster.host(host).initiators}
        for host, luns in resource.exports.items():
            if volume.number in luns and host not in resource.hosts:
                mapped |= dict.fromkeys(cluster.host(host).initiators, luns[volume.number])
        serial = cluster.serial(resource, volume)
        yield Unit(resource.name, volume.number, serial, resource.iqn, volume.lun, ports, mapped, spare)
