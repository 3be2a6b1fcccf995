"""What making, joining and leaving a cluster works with, put together once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from hactl.cluster import pki
from hactl.cluster.etcd_log import EtcdLog, FileLog
from hactl.cluster.etcd_members import GrpcMembers
from hactl.cluster.invite import Random
from hactl.cluster.layout import Layout
from hactl.cluster.machine import LocalMachine, Machine
from hactl.cluster.members import Members
from hactl.cluster.node_config import NodeConfig
from hactl.cluster.ring import CorosyncRing, Ring
from hactl.cluster.services import Services, Systemd
from hactl.runner import SubprocessRunner
from hactl.store.etcd import EtcdStore, Tls
from hactl.store.protocol import Store

Tell = Callable[[str], None]
"""Told what is being done, one line each."""


@dataclass(frozen=True)
class Waits:
    """Seconds. ``pause``: between two looks at something that nobody reports; ``etcd``: until a member takes
    part, learning included; ``start``: until a started etcd answers, before it is looked at anew."""

    pause: float = 0.5
    etcd: float = 180.0
    start: float = 15.0


@dataclass(frozen=True)
class Kit:
    """Adapters. ``members`` are reached through the client URLs given to it, the store as a node's settings
    say."""

    layout: Layout
    machine: Machine
    services: Services
    ring: Ring
    members: Callable[[Sequence[str]], Members]
    store: Callable[[NodeConfig], Store]
    log: EtcdLog = field(default_factory=FileLog)
    now: Callable[[], datetime] = pki.utc_now
    random: Random = field(default=secrets.token_bytes)
    waits: Waits = field(default_factory=Waits)


def real(layout: Layout | None = None) -> Kit:
    """For this machine."""
    where = layout or Layout()
    runner = SubprocessRunner()
    return Kit(
        layout=where,
        machine=LocalMachine(runner),
        services=Systemd(runner, where),
        ring=CorosyncRing(runner),
        members=lambda endpoints: GrpcMembers(endpoints, where.certificates),
        store=lambda config: open_store(config, where),
    )


def open_store(config: NodeConfig, layout: Layout | None = None) -> EtcdStore:
    """The cluster's store, with this node's certificates. A member on this node comes first."""
    c = (layout or Layout()).certificates
    return EtcdStore(config.etcd, Tls(ca=c.ca, cert=c.certificate, key=c.key))
