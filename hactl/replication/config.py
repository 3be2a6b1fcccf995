"""The DRBD resource file that a specification asks for; pure text in, pure text out.

Syntax: drbd.conf-8.4(5) and drbd.conf-9.0(5). Debian's ``/etc/drbd.conf`` includes ``drbd.d/*.res``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address

from hactl.errors import Failed, Refused
from hactl.model.spec import ClusterSpec, NodeSpec, ResourceSpec, VolumeSpec
from hactl.pacemaker.charge import fences

Version = tuple[int, int, int]

HANDLER = "/usr/lib/hactl/fence-peer"
"""What DRBD runs when it needs to know what has become of a peer (``ocf/fence-peer``)."""

_HEADER = "# Written by hactl; changes are overwritten."
_ON = re.compile(r"^ {4}on (\S+) \{$")
_VOLUME = re.compile(r"^ {8}volume (\d+) \{ device minor (\d+); disk (\S+);(?: meta-disk internal;)? \}$")


@dataclass(frozen=True)
class LocalVolume:
    """A volume as a resource file places it on one node; ``disk`` is None on a node without a replica."""

    number: int
    minor: int
    disk: str | None


def file_name(resource: str) -> str:
    """Name of a resource's file in DRBD's configuration folder."""
    return f"hactl-{resource}.res"


def resource_of(name: str) -> str | None:
    """The resource whose file this is, or None if the file is not hactl's."""
    return name[6:-4] if name.startswith("hactl-") and name.endswith(".res") else None


def render(cluster: ClusterSpec, resource: ResourceSpec, version: Version) -> str:
    """The resource file for a DRBD of that version; with DRBD's fencing where Pacemaker fences.

    There is deliberately no ``disk { size }``: the device takes what the smaller disk offers, and the gate
    above it cuts off at the volume's size, so that growing a volume is one change here and not two.

    Raises :class:`hactl.errors.Refused` for what that DRBD cannot do.
    """
    replicas = resource.replicas
    for volume in resource.volumes:
        for node in volume.disks:
            if node not in replicas:
                reason = "but not for all" if node in resource.nodes else "but does not export the resource"
                raise Refused(
                    "drbd-partial-replica",
                    f"resource {resource.name}: node {node} has a disk for volume {volume.number}, {reason}",
                    "name a disk for every volume on each node that holds a replica, and list that node",
                )
    if version >= (9,):
        return _text(resource, _lines9(cluster, resource))
    if len(replicas) != 2:
        raise Refused(
            "drbd-two-replicas",
            f"resource {resource.name} has {len(replicas)} replicas, and DRBD "
            f"{'.'.join(map(str, version))} keeps exactly two",
            "name disks on two nodes, or use DRBD 9",
        )
    return _text(resource, _lines84(cluster, resource))


def _text(resource: ResourceSpec, lines: Iterator[str]) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return f"{_HEADER}\nresource {resource.name} {{\n{body}}}\n"


_NET = """\
net {
    # A write is done when both disks have it: what an initiator was told is never lost with one node.
    protocol C;
    # One active node; the cluster decides which.
    allow-two-primaries no;
    # Data that diverged is never thrown away by itself: an operator chooses.
    after-sb-0pri disconnect;
    after-sb-1pri disconnect;
    after-sb-2pri disconnect;
    rr-conflict disconnect;
    # A peer that is silent for 6 s (tenths of a second) is given up%s.
    timeout 60;
    ping-int 3;
    ping-timeout 10;
    connect-int 3;
    # Resync skips blocks that are equal; the digest must be strong, since equal means not copied.
    csums-alg sha256;
    verify-alg crc32c;
%s}
disk {
    # A failing disk is dropped, and I/O goes on with the peer's.
    on-io-error detach;
    # While hosts write, a resync still gets this much (bytes per second). By default it would get 250 KiB,
    # and a replica that was away be without its data for weeks.
    c-min-rate 10M;
%s}"""

_FENCING = """\
    # I/O waits until the lost peer is known to be off, or to know that its data is old.
    fencing resource-and-stonith;
"""


def _common(*, fencing: bool, disks_have_it: bool) -> Iterator[str]:
    """The sections that are the same on all nodes. The policy belongs to the disks in DRBD 8.4, to the
    connections in DRBD 9."""
    after = ", and then asked after" if fencing else ", so that writes go on without it"
    policy = _FENCING if fencing else ""
    yield from (_NET % (after, *(("", policy) if disks_have_it else (policy, "")))).splitlines()
    if fencing:
        yield "handlers {"
        yield f'    fence-peer "{HANDLER}";'
        yield "}"


def _lines84(cluster: ClusterSpec, resource: ResourceSpec) -> Iterator[str]:
    yield from _common(fencing=fences(cluster), disks_have_it=True)
    for name in resource.replicas:
        yield from _on(cluster.node(name), resource, with_id=False)


def _lines9(cluster: ClusterSpec, resource: ResourceSpec) -> Iterator[str]:
    majority = len(resource.nodes) >= 3
    yield "options {"
    yield "    # Roles are ordered by hactl, never taken by opening the device."
    yield "    auto-promote no;"
    yield f"    quorum {'majority' if majority else 'off'};"
    if majority:
        yield "    # Initiators see a pause and not an error; fencing or the peers' return ends it."
        yield "    on-no-quorum suspend-io;"
    yield "}"
    yield from _common(fencing=fences(cluster), disks_have_it=False)
    for name in resource.nodes:
        yield from _on(cluster.node(name), resource, with_id=True)
    if len(resource.nodes) > 1:
        yield f"connection-mesh {{ hosts {' '.join(resource.nodes)}; }}"


def _on(node: NodeSpec, resource: ResourceSpec, *, with_id: bool) -> Iterator[str]:
    yield f"on {node.name} {{"
    if with_id:
        yield f"    node-id {node.id};"
    yield f"    address {_address(node, resource)};"
    for volume in resource.volumes:
        yield f"    {_volume(node, resource, volume)}"
    yield "}"


def _volume(node: NodeSpec, resource: ResourceSpec, volume: VolumeSpec) -> str:
    disk = volume.disks.get(node.name)
    where = "disk none;" if disk is None else f"disk {disk}; meta-disk internal;"
    return f"volume {volume.number} {{ device minor {resource.minor(volume)}; {where} }}"


def _address(node: NodeSpec, resource: ResourceSpec) -> str:
    address = node.addresses.replication
    if isinstance(address, IPv6Address):
        return f"ipv6 [{address}]:{resource.drbd_port}"
    return f"ipv4 {address}:{resource.drbd_port}"


def read_nodes(text: str) -> dict[str, tuple[LocalVolume, ...]]:
    """The volumes of each node in a file that :func:`render` wrote; :class:`hactl.errors.Failed` for
    another's."""
    if not text.startswith(_HEADER):
        raise Failed("drbd-foreign-config", "the resource file was not written by hactl", "move it away")
    nodes: dict[str, tuple[LocalVolume, ...]] = {}
    node = ""
    for line in text.splitlines():
        if found := _ON.match(line):
            node = found[1]
            nodes[node] = ()
        elif found := _VOLUME.match(line):
            disk = None if found[3] == "none" else found[3]
            nodes[node] += (LocalVolume(int(found[1]), int(found[2]), disk),)
    return nodes


def read_peer(text: str, node: str) -> str | None:
    """The other node in a file of two; None if there are more, fewer, or ``node`` is not one of them."""
    names = list(read_nodes(text))
    if len(names) != 2 or node not in names:
        return None
    return names[1 - names.index(node)]
