"""What the in-memory twin of DRBD keeps of each disk and each node."""

from __future__ import annotations

from dataclasses import dataclass, field

from hactl.model.spec import ResourceSpec
from hactl.replication.state import DiskState, Role

JUST_CREATED = 0
"""The data generation of fresh meta-data."""


@dataclass
class MetaData:
    """What outlives a crash. ``dirty`` holds the blocks a peer misses, or None for all of them.
    ``outdated_peers`` were known to be older when this node went down."""

    generation: int = JUST_CREATED
    ancestors: frozenset[int] = frozenset()
    consistent: bool = False
    outdated: bool = False
    dirty: dict[str, set[int] | None] = field(default_factory=dict)
    outdated_peers: set[str] = field(default_factory=set)


@dataclass
class Disk:
    """A backing disk: its blocks outlive crashes, and so does what it is used for. ``kind`` as lsblk calls
    it; ``exported``: the backstore of another LIO target that has it."""

    size: int = 1 << 40
    blocks: dict[int, str] = field(default_factory=dict)
    metadata: MetaData | None = None
    signature: str | None = None
    failed: bool = False
    kind: str = "disk"
    exported: str | None = None


@dataclass
class Replica:
    """One volume of a resource that is up on a node. ``unsure``: its disk is Consistent, and whether it is
    the newest is not known."""

    minor: int
    disk: Disk | None
    size: int | None = None
    opens: int = 0
    syncing_from: str | None = None
    unsure: bool = False


@dataclass
class Instance:
    """A resource that is up on a node. ``fencing``: its policy is resource-and-stonith; ``frozen``: I/O is
    suspended by that. ``lost``: what is known of volumes of peers that are not connected, if anything;
    ``losses`` counts how often each connection was lost."""

    spec: ResourceSpec
    role: Role = Role.SECONDARY
    quorum: bool = True
    replicas: dict[int, Replica] = field(default_factory=dict)
    standalone: set[str] = field(default_factory=set)
    fencing: bool = False
    frozen: bool = False
    lost: dict[tuple[str, int], DiskState] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)


@dataclass
class Node:
    """What a node's kernel knows; ``files`` are its resource files, which outlive a crash."""

    name: str
    alive: bool = True
    instances: dict[str, Instance] = field(default_factory=dict)
    files: dict[str, tuple[str, ResourceSpec]] = field(default_factory=dict)
