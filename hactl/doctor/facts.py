"""What ``hactl doctor`` looks at, as frozen values; what was not observed is None, and in ``unseen``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from hactl.model.spec import ClusterSpec

Version = tuple[int, ...]


class Module(StrEnum):
    """A kernel module."""

    LOADED = "loaded"
    """Loaded, or built into the kernel."""
    AVAILABLE = "available"
    MISSING = "missing"


@dataclass(frozen=True)
class Service:
    """A systemd unit: ``enabled`` at boot, ``active`` now."""

    enabled: bool
    active: bool


@dataclass(frozen=True)
class Certificate:
    """A certificate's file; ``names``: its DNS alternative names; ``fault``: why it cannot be read."""

    path: str
    not_before: datetime | None = None
    not_after: datetime | None = None
    names: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Key:
    """A private key's file and its mode's permission bits; None: there is no such file."""

    path: str
    mode: int | None


@dataclass(frozen=True)
class Port:
    """A TCP port of a node, and why a connection to it failed (empty: it did not)."""

    node: str
    address: str
    port: int
    purpose: str
    fault: str = ""


@dataclass(frozen=True)
class Lvm:
    """LVM's device filters (lvm.conf(5)): patterns of ``global_filter`` in order, such as ``r|/dev/drbd.*|``;
    ``devices_file``: only listed devices are looked at."""

    global_filter: tuple[str, ...]
    devices_file: bool


@dataclass(frozen=True)
class Facts:
    """One node, seen from itself."""

    node: str
    now: datetime
    in_cluster: bool = True
    """Whether there is a node file, so that etcd is needed."""
    kernel: str | None = None
    """``uname -r``."""
    processors: int | None = None
    """How many run."""
    modules: Mapping[str, Module] = field(default_factory=dict)
    drbd: Version | None = None
    """Version of the kernel module, if it is loaded."""
    drbd_utils: bool | None = None
    etcd: Version | None = None
    """Version of the etcd server on this machine."""
    dbroot: str | None = None
    """LIO's folder for ALUA and APTPL files, if LIO is loaded."""
    dbroot_missing: tuple[str, ...] = ()
    """Folders that LIO needs there and that do not exist."""
    clock_synchronised: bool | None = None
    skews: Mapping[str, float] = field(default_factory=dict)
    """Seconds that another node's clock is ahead of this one's; to about a second."""
    ports: tuple[Port, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    keys: tuple[Key, ...] = ()
    services: Mapping[str, Service] = field(default_factory=dict)
    """Units that are installed."""
    lvm: Lvm | None = None
    cluster: ClusterSpec | None = None
    """What the cluster shall be, if that could be read."""
    missing: frozenset[str] = frozenset()
    """Programs and files that were looked for, and are not there."""
    secrets_missing: tuple[str, ...] = ()
    """Files with the secrets of fence devices that are not there or not as they should be."""
    fence_faults: Mapping[str, str] = field(default_factory=dict)
    """Why the fence devices of other nodes did not answer this one, by node; those that did are not there."""
    storage_cut: str | None = None
    """Why hosts cannot reach this node, in its agent's words; None if they can, or the agent does not say."""
    unseen: tuple[tuple[str, str], ...] = ()
    """What could not be looked at, and why."""
