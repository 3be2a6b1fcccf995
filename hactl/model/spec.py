"""What a cluster shall be: nodes, hosts and replicated resources, as frozen values.

Only shapes and what follows from one value alone are checked here; ``hactl.model.check`` compares values with
each other, and ``hactl.model.load`` turns a file into values and errors into lines.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    StrictBool,
    field_validator,
    model_validator,
)

from hactl.model.names import address, iscsi_name, valid_name, volume_number
from hactl.model.size import parse_size

ISCSI_PORT = 3260
"""IANA's port of iSCSI targets (RFC 7143)."""

POOL = "pool:"
"""What a disk begins with that a node's agent creates in one of its pools."""

LVM_NAME = r"^[A-Za-z0-9_+.][A-Za-z0-9_+.-]*$"
"""What lvm(8) allows as the name of a volume group or logical volume, more or less."""

Name = Annotated[str, AfterValidator(valid_name)]
"""Names of nodes, hosts and resources: valid as a host name, a DRBD resource and a configfs folder."""

InitiatorName = Annotated[str, AfterValidator(iscsi_name)]
"""An iSCSI name in its normalised (lower-case) form: iqn, eui or naa (RFC 3721, RFC 7143 4.2.7)."""

IpAddress = IPv4Address | IPv6Address
Address = Annotated[IpAddress, PlainValidator(address)]
"""An IP address, written as text."""


VolumeNumber = Annotated[int, BeforeValidator(volume_number), Field(ge=0, le=15, strict=True)]
"""Number of a volume where it is a key, which files and records write as text."""

LunNumber = Annotated[int, Field(ge=0, le=16383, strict=True)]
"""A LUN: what fits into the flat addressing method (SAM-5 4.7.7.1)."""

FenceOption = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
"""Name of a fence agent's option as its ``-o metadata`` has it."""


def _plain_text(value: object) -> object:
    """What YAML takes for a number or a truth where a fence agent reads text, as that text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


FenceValue = Annotated[str, BeforeValidator(_plain_text)]
"""Value of a fence agent's option."""


class Frozen(BaseModel):
    """A value that neither changes nor accepts what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Addresses(Frozen):
    """A node's addresses, one network each; storage may have several portals."""

    cluster: Address
    replication: Address
    storage: tuple[Address, ...] = Field(min_length=1)


class LvmPool(Frozen):
    """A volume group; each disk is a thick logical volume (lvm(8))."""

    vg: str = Field(pattern=LVM_NAME)


class LvmThinPool(Frozen):
    """A thin pool in a volume group; each disk is a thin logical volume (lvmthin(7))."""

    vg: str = Field(pattern=LVM_NAME)
    thin_pool: str = Field(pattern=LVM_NAME)


class FilesPool(Frozen):
    """A folder; each disk is a file behind a loop device. For trials: a second file system in the path."""

    path: str = Field(pattern=r"^/[A-Za-z0-9_.:+@=,/-]*$")


class PoolSpec(Frozen):
    """Where a node's agent creates disks: exactly one kind."""

    name: Name
    lvm: LvmPool | None = None
    lvm_thin: LvmThinPool | None = None
    files: FilesPool | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> PoolSpec:
        if sum(kind is not None for kind in (self.lvm, self.lvm_thin, self.files)) != 1:
            raise ValueError("must have exactly one of lvm, lvm_thin and files")
        return self

    def device(self, resource: str, volume: int) -> str:
        """Path of the block device of a volume's disk in this pool."""
        name = f"hactl.{resource}.{volume}"
        if self.files is not None:
            return f"/dev/hactl/{resource}.{volume}"
        vg = self.lvm.vg if self.lvm is not None else self.lvm_thin.vg if self.lvm_thin is not None else ""
        return f"/dev/{vg}/{name}"


class FenceSpec(Frozen):
    """How the other nodes switch a node off: a fence agent (fence_ipmilan(8)) with its options by name.

    ``secrets`` are the options whose values nobody else shall see: the agent gets those from a script.
    """

    agent: str = Field(pattern=r"^fence_[a-z0-9_]+$", max_length=64)
    options: dict[FenceOption, FenceValue] = Field(default_factory=dict)
    secrets: dict[FenceOption, SecretStr] = Field(default_factory=dict)


class NodeSpec(Frozen):
    """A storage node. ``id`` is its target port group tag, 1 to 15, and never changes."""

    name: Name
    id: int = Field(ge=1, le=15, strict=True)
    addresses: Addresses
    failure_domain: Name | None = None
    pools: tuple[PoolSpec, ...] = ()
    fencing: FenceSpec | None = None

    def pool(self, name: str) -> PoolSpec:
        """The pool of that name; :class:`KeyError` if there is none."""
        return next((p for p in self.pools if p.name == name), None) or _missing(name)


class ChapSpec(Frozen):
    """CHAP credentials (RFC 7143 12.1): the initiator proves itself, and with ``mutual_*`` the target too."""

    user: str = Field(min_length=1, max_length=255)
    password: SecretStr = Field(min_length=12, max_length=255)
    mutual_user: str | None = None
    mutual_password: SecretStr | None = None


class HostSpec(Frozen):
    """A machine that uses units: one or more initiator names, and optionally CHAP."""

    name: Name
    initiators: tuple[InitiatorName, ...] = Field(min_length=1)
    chap: ChapSpec | None = None


class VolumeSpec(Frozen):
    """One logical unit. ``size``: bytes that initiators see; ``disks`` by replica node: a block device under
    /dev that exists, or ``pool:NAME`` for one that the node's agent creates, grows and removes in a pool.
    ``adopt``: the node whose disk holds the volume's data from before hactl, until its agent has taken them
    over."""

    number: int = Field(ge=0, le=15, strict=True)
    lun: LunNumber
    size: int = Field(gt=0, strict=True)
    disks: dict[Name, str] = Field(min_length=1)
    minor: int | None = Field(default=None, ge=0, le=1048575, strict=True)
    serial: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    adopt: Name | None = None

    @field_validator("size", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        return parse_size(value) if isinstance(value, str) else value

    @field_validator("disks")
    @classmethod
    def _disks(cls, value: dict[str, str]) -> dict[str, str]:
        for node, path in value.items():
            if not path.startswith(("/dev/", POOL)):
                raise ValueError(
                    f"disk of node {node} is {path!r}, not a block device under /dev, nor pool:NAME"
                )
        return value


class ResourceSpec(Frozen):
    """A DRBD resource = one iSCSI target = the unit of failover, with one or more volumes.

    ``nodes`` are those that export it; those of them that volumes name a disk for hold a replica, the others
    export a gate that stays closed. ``hosts`` see every volume under the volume's own LUN, those in
    ``exports`` the volumes named there, each under the LUN given there. ``failback``: goes back to the
    preferred node as soon as that is UpToDate. ``maintenance``: Pacemaker leaves it alone.
    """

    name: Name
    id: int = Field(ge=1, le=4095, strict=True)
    iqn: InitiatorName
    nodes: tuple[Name, ...] = Field(min_length=1)
    volumes: tuple[VolumeSpec, ...] = Field(min_length=1)
    hosts: tuple[Name, ...] = ()
    exports: dict[Name, dict[VolumeNumber, LunNumber]] = Field(default_factory=dict)
    preferred: Name | None = None
    port: int | None = Field(default=None, ge=1024, le=65535, strict=True)
    failback: StrictBool = False
    maintenance: StrictBool = False

    @property
    def drbd_port(self) -> int:
        """TCP port of replication: the given one, or 7000 + id."""
        return self.port if self.port is not None else 7000 + self.id

    @property
    def replicas(self) -> tuple[str, ...]:
        """The nodes that hold a replica, in the order of ``nodes``."""
        return tuple(n for n in self.nodes if all(n in v.disks for v in self.volumes))

    def volume(self, number: int) -> VolumeSpec:
        """The volume of that number; :class:`KeyError` if there is none."""
        return next((v for v in self.volumes if v.number == number), None) or _missing(str(number))

    def minor(self, volume: VolumeSpec) -> int:
        """DRBD minor of a volume: the given one, or id * 16 + number."""
        return volume.minor if volume.minor is not None else self.id * 16 + volume.number

    def rtpi(self, node: NodeSpec) -> int:
        """Relative target port identifier of the resource on a node: unique per kernel, never changing."""
        return self.id << 4 | node.id


class ClusterSpec(Frozen):
    """The whole cluster. ``pacemaker``: made with Pacemaker. ``unfenced_promotion``: the operator wants nodes
    to take over although one that is lost may not be really off; ``manual_failover``: wants none to do so.
    ``storage_witnesses``: what always answers on the nodes' storage network, beside the nodes themselves."""

    name: Name
    iqn_prefix: InitiatorName | None = None
    pacemaker: StrictBool = False
    unfenced_promotion: StrictBool = False
    manual_failover: StrictBool = False
    storage_witnesses: tuple[Address, ...] = ()
    nodes: tuple[NodeSpec, ...] = Field(min_length=1)
    hosts: tuple[HostSpec, ...] = ()
    resources: tuple[ResourceSpec, ...] = ()

    @property
    def target_prefix(self) -> str:
        """What the IQN of a new resource begins with; a colon and the resource's name follow."""
        return self.iqn_prefix or f"iqn.2026-11.io.hactl.{self.name}"

    def node(self, name: str) -> NodeSpec:
        """The node of that name; :class:`KeyError` if there is none."""
        return next((n for n in self.nodes if n.name == name), None) or _missing(name)

    def host(self, name: str) -> HostSpec:
        """The host of that name; :class:`KeyError` if there is none."""
        return next((h for h in self.hosts if h.name == name), None) or _missing(name)

    def resource(self, name: str) -> ResourceSpec:
        """The resource of that name; :class:`KeyError` if there is none."""
        return next((r for r in self.resources if r.name == name), None) or _missing(name)

    def device(self, resource: ResourceSpec, volume: VolumeSpec, node: str) -> str:
        """Path of the block device under a replica; :class:`KeyError` if ``node`` holds none or lacks the
        pool."""
        disk = volume.disks[node]
        if not disk.startswith(POOL):
            return disk
        return self.node(node).pool(disk.removeprefix(POOL)).device(resource.name, volume.number)

    def resolved(self) -> ClusterSpec:
        """The same with the paths of block devices in the place of pools; for what works with devices."""

        def volume(resource: ResourceSpec, v: VolumeSpec) -> VolumeSpec:
            return v.model_copy(update={"disks": {n: self.device(resource, v, n) for n in v.disks}})

        def one(r: ResourceSpec) -> ResourceSpec:
            return r.model_copy(update={"volumes": tuple(volume(r, v) for v in r.volumes)})

        return self.model_copy(update={"resources": tuple(one(r) for r in self.resources)})

    def serial(self, resource: ResourceSpec, volume: VolumeSpec) -> str:
        """Unit serial number (VPD 0x80): the given one, or 32 hex digits that follow from the names."""
        if volume.serial is not None:
            return volume.serial
        identity = f"{self.name}/{resource.name}/{volume.number}"
        return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _missing(name: str) -> NoReturn:
    raise KeyError(name)
