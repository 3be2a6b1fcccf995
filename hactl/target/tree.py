"""What this node's LIO tree shall hold, as frozen values that follow from the specification alone.

Every node that exports a resource has one target portal group (TPG) per exporting node, its tag the node's
id. The node's own one listens; the others ("shadows") are disabled and have no portals: SendTargets does not
show them, while REPORT TARGET PORT GROUPS lists the groups and relative port identifiers of all nodes on
every path. Where one node exports a resource alone and keeps its reservations in the log, there is one more
group, the spare one: the agent acts there as it does in shadows elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address

from pydantic import SecretStr

from hactl.errors import Refused
from hactl.model.spec import (
    ISCSI_PORT,
    ChapSpec,
    ClusterSpec,
    HostSpec,
    IpAddress,
    NodeSpec,
    ResourceSpec,
    VolumeSpec,
)
from hactl.target.attributes import DEVICE, PORTAL_GROUP, PRODUCT, VENDOR
from hactl.target.gates import gate_name

PREFIX = "hactl."
"""Backstores with this prefix are hactl's."""

DEFAULT_GROUP = "default_tg_pt_gp"
"""The port group that LIO makes for every backstore and puts every new LUN into; active/optimized unless
changed."""

HBA_BASE = 1 << 20
HBA_STEP = 1 << 16
HBA_END = 1 << 24
"""Range of HBA numbers that hactl uses, far above what others count up from 0; one HBA per backstore."""

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PortGroup:
    """A target port group of one backstore. ``id`` is None while it has none, which only a half-made one has;
    ``implicit`` is set, as the last step, once the group was put to standby and takes implicit ALUA only."""

    name: str
    id: int | None
    implicit: bool = True


@dataclass(frozen=True)
class Backstore:
    """A backstore: ``plugin`` iblock on the block device ``path``, or fileio on the file ``path`` of ``size``
    bytes.

    ``quiet``: the default port group is in standby. ``hba`` is where it lies (``iblock_1048592``); for a
    desired one, where it is put if it does not exist yet and nobody else is there.
    """

    name: str
    plugin: str
    path: str
    size: int | None
    serial: str
    vendor: str
    product: str
    attributes: Pairs
    groups: tuple[PortGroup, ...]
    enabled: bool = True
    quiet: bool = True
    hba: str = field(default="", compare=False)
    imports: tuple[str, ...] = field(default=(), compare=False)
    """Registrations that a backstore is given before anything links to it, as the kernel reads them."""


@dataclass(frozen=True)
class Lun:
    """A LUN of a portal group: the backstore it links to and its port group (None: not linked). A link to
    something that is not hactl's is its path."""

    number: int
    backstore: str | None
    group: str | None


@dataclass(frozen=True)
class MappedLun:
    """A LUN as one initiator sees it: its number there, and the portal group's LUN it links to (None: no
    link)."""

    number: int
    lun: int | None
    write_protect: bool = False


@dataclass(frozen=True)
class Chap:
    """CHAP credentials in the kernel; what is not set is empty."""

    user: str
    password: SecretStr
    mutual_user: str = ""
    mutual_password: SecretStr = field(default_factory=lambda: SecretStr(""))


@dataclass(frozen=True)
class Acl:
    """An initiator that may log in. ``authentication``: CHAP required, or None for "as the portal group
    says"."""

    initiator: str
    authentication: bool | None
    chap: Chap | None
    luns: tuple[MappedLun, ...]


@dataclass(frozen=True)
class Tpg:
    """A target portal group. ``auth_methods`` is what it offers to initiators: ``CHAP`` or ``CHAP,None``."""

    tag: int
    rtpi: int
    enabled: bool
    portals: tuple[str, ...]
    attributes: Pairs
    auth_methods: str
    luns: tuple[Lun, ...]
    acls: tuple[Acl, ...]
    door: bool = field(default=False, compare=False)
    """Of a desired one: who opens and closes it does so by himself, so both are right."""


@dataclass(frozen=True)
class Target:
    """An iSCSI target."""

    iqn: str
    tpgs: tuple[Tpg, ...]


@dataclass(frozen=True)
class PrTree:
    """What keeping persistent reservations in step needs of one resource's tree.

    ``open``: this node's own portal group may take logins. ``secret``: CHAP password of the agent's sessions,
    random, this node's alone. ``imports`` by volume: registrations of a backstore that is made anew.
    ``absent``: nothing shall be exported just now. Backstores stay: made anew on an open gate, they would
    take limits from the device below it.
    """

    open: bool
    secret: SecretStr
    imports: Mapping[int, tuple[str, ...]]
    absent: bool = False


CONTROL = "iqn.2026-11.io.hactl:reservations"
"""The initiator as which the agent looks at its own units."""

SPARE_TAG = 16
"""Tag of the spare portal group: that of no node."""


def spare_rtpi(resource: ResourceSpec) -> int:
    """Relative target port identifier of the spare group: those of nodes differ from it by the node's id."""
    return resource.id << 4


DOOR_USER = "hactl"
"""CHAP user of the agent's own sessions."""

DOOR_PORT = 7790
"""TCP port of the shadows' portals."""


def door(tag: int) -> str:
    """Address of the loopback interface that shadows with this tag listen on. One each: LIO finds the portal
    group of a login by target and address."""
    return f"127.77.{tag >> 8}.{tag & 255}"


@dataclass(frozen=True)
class Tree:
    """hactl's part of LIO's tree, each tuple sorted by name or number.

    Not compared, and empty in a desired tree: ``empty_hbas`` without any backstore in hactl's range,
    ``taken_hbas`` which hold somebody else's, ``claims`` (the ledger), and ``foreign``, the names of others'
    targets.
    """

    backstores: tuple[Backstore, ...] = ()
    targets: tuple[Target, ...] = ()
    empty_hbas: frozenset[str] = field(default=frozenset(), compare=False)
    taken_hbas: frozenset[str] = field(default=frozenset(), compare=False)
    claims: frozenset[str] = field(default=frozenset(), compare=False)
    foreign: frozenset[str] = field(default=frozenset(), compare=False)


def group_name(node: NodeSpec) -> str:
    """Name of a node's target port group."""
    return f"hactl-n{node.id}"


def portal(address: IpAddress) -> str:
    """A portal as LIO names it: ``192.0.2.1:3260`` or ``[2001:db8::1]:3260``."""
    return f"[{address}]:{ISCSI_PORT}" if isinstance(address, IPv6Address) else f"{address}:{ISCSI_PORT}"


def hba_name(plugin: str, resource: ResourceSpec, volume: VolumeSpec) -> str:
    """The HBA that a volume's backstore is put into if nobody else's backstore is there."""
    return f"{plugin}_{HBA_BASE + resource.id * 16 + volume.number}"


def desired(
    cluster: ClusterSpec,
    node: str,
    devices: Mapping[tuple[str, int], str],
    reservations: Mapping[str, PrTree] | None = None,
) -> Tree:
    """The tree for one node.

    ``devices`` gives the gate per resource name and volume number: the path of a block device under ``/dev``,
    best a name that stays (``/dev/mapper/hactl.r1.0``), or of a file for a fileio backstore. Of resources in
    ``reservations`` persistent reservations are kept in step. Raises :class:`Refused` if a gate is missing or
    if CHAP credentials are such that LIO cannot hold them.
    """
    backstores: list[Backstore] = []
    targets: list[Target] = []
    for resource in cluster.resources:
        if node not in resource.nodes:
            continue
        pr = (reservations or {}).get(resource.name)
        for volume in resource.volumes:
            imports = () if pr is None else pr.imports.get(volume.number, ())
            backstores.append(replace(_backstore(cluster, resource, volume, devices), imports=imports))
        if pr is None or not pr.absent:
            targets.append(_target(cluster, resource, node, pr))
    return Tree(
        tuple(sorted(backstores, key=lambda b: b.name)),
        tuple(sorted(targets, key=lambda t: t.iqn)),
    )


def _backstore(
    cluster: ClusterSpec, resource: ResourceSpec, volume: VolumeSpec, devices: Mapping[tuple[str, int], str]
) -> Backstore:
    path = devices.get((resource.name, volume.number))
    if path is None:
        raise Refused(
            "gate-missing",
            f"volume {volume.number} of {resource.name} has no gate on this node",
            "the gate has to be created before the unit can be exported",
        )
    plugin = "iblock" if path.startswith("/dev/") else "fileio"
    groups = [PortGroup(group_name(n), n.id) for n in map(cluster.node, resource.nodes)]
    return Backstore(
        name=gate_name(resource.name, volume.number),
        plugin=plugin,
        path=path,
        size=volume.size if plugin == "fileio" else None,
        serial=cluster.serial(resource, volume),
        vendor=VENDOR,
        product=PRODUCT,
        attributes=tuple(sorted(DEVICE.items())),
        groups=tuple(sorted(groups, key=lambda g: g.name)),
        hba=hba_name(plugin, resource, volume),
    )


def _target(cluster: ClusterSpec, resource: ResourceSpec, node: str, pr: PrTree | None) -> Target:
    seen = _seen(resource)
    hosts = [cluster.host(name) for name in seen]
    acls = tuple(sorted((acl for h in hosts for acl in _acls(h, seen[h.name])), key=lambda a: a.initiator))
    # With no host at all the kernel's default, CHAP required, is kept. If hosts differ, the group requires
    # CHAP and the ACL of a host without it says otherwise: so an ACL that is only half made lets nobody in.
    authentication = not hosts or any(h.chap for h in hosts)
    none_offered = any(h.chap is None for h in hosts)
    tpgs = []
    for name in resource.nodes:
        member = cluster.node(name)
        luns = [Lun(v.lun, gate_name(resource.name, v.number), group_name(member)) for v in resource.volumes]
        own = name == node
        tpg = Tpg(
            tag=member.id,
            rtpi=resource.rtpi(member),
            enabled=own,
            portals=tuple(sorted(map(portal, member.addresses.storage))) if own else (),
            attributes=tuple(sorted({**PORTAL_GROUP, "authentication": str(int(authentication))}.items())),
            auth_methods="CHAP,None" if none_offered else "CHAP",
            luns=tuple(sorted(luns, key=lambda x: x.number)),
            acls=acls,
        )
        tpgs.append(tpg if pr is None else _with_reservations(tpg, pr, own=own))
        if pr is not None and len(resource.nodes) == 1:
            spare = replace(tpg, tag=SPARE_TAG, rtpi=spare_rtpi(resource), enabled=False, acls=())
            tpgs.append(_with_reservations(spare, pr, own=False))
    return Target(resource.iqn, tuple(sorted(tpgs, key=lambda t: t.tag)))


def _with_reservations(tpg: Tpg, pr: PrTree, *, own: bool) -> Tpg:
    """The agent looks at units through the own portal group, and acts as any initiator in a shadow."""
    chap = Chap(DOOR_USER, pr.secret)
    control = Acl(CONTROL, True, chap, tuple(MappedLun(lun.number, lun.number) for lun in tpg.luns))
    if own:
        acls = tuple(sorted((*tpg.acls, control), key=lambda a: a.initiator))
        return replace(tpg, enabled=pr.open, acls=acls)
    acls = tuple(replace(acl, authentication=True, chap=chap) for acl in tpg.acls)
    return replace(
        tpg,
        door=True,
        portals=(f"{door(tpg.tag)}:{DOOR_PORT}",),
        attributes=tuple(sorted({**PORTAL_GROUP, "authentication": "1"}.items())),
        auth_methods="CHAP",
        acls=tuple(sorted((*acls, control), key=lambda a: a.initiator)),
    )


def _seen(resource: ResourceSpec) -> dict[str, tuple[MappedLun, ...]]:
    """What each host sees: every volume under its own LUN, or the exported ones under the LUNs given there. A
    host that nothing is exported to is not in it."""
    luns = {v.number: v.lun for v in resource.volumes}
    seen = {name: [MappedLun(lun, lun) for lun in luns.values()] for name in resource.hosts}
    for name, exported in resource.exports.items():
        if name not in seen and exported:
            seen[name] = [MappedLun(lun, luns[number]) for number, lun in exported.items() if number in luns]
    return {name: tuple(sorted(mapped, key=lambda m: m.number)) for name, mapped in seen.items() if mapped}


def _acls(host: HostSpec, luns: tuple[MappedLun, ...]) -> list[Acl]:
    chap = None if host.chap is None else _chap(host, host.chap)
    return [Acl(initiator, chap is not None, chap, luns) for initiator in host.initiators]


def _chap(host: HostSpec, spec: ChapSpec) -> Chap:
    if (spec.mutual_user is None) != (spec.mutual_password is None):
        raise Refused("chap-incomplete", f"host {host.name} has only one of mutual_user and mutual_password")
    chap = Chap(
        spec.user,
        spec.password,
        spec.mutual_user or "",
        spec.mutual_password or SecretStr(""),
    )
    values = {
        "user": chap.user,
        "password": chap.password.get_secret_value(),
        "mutual_user": chap.mutual_user,
        "mutual_password": chap.mutual_password.get_secret_value(),
    }
    for name, value in values.items():
        # LIO takes the letters NULL at the start for "not set", and would keep line ends as part of the
        # secret.
        if value.startswith("NULL") or not value.isprintable() or len(value.encode()) > 255:
            raise Refused(
                "chap-unusable",
                f"the CHAP {name} of host {host.name} cannot be used with LIO",
                "use at most 255 printable characters that do not start with NULL",
            )
    return chap
