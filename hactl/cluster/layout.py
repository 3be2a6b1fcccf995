"""Where the files of a node's membership in its cluster are."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from hactl.cluster.certificates import Certificates

ETCD_UNIT = "hactl-etcd.service"
AGENT_UNIT = "hactl-agent.service"
CAPTURE_UNIT = "hactl-capture.service"
"""Started by the agent's unit."""
COROSYNC_UNIT = "corosync.service"
PACEMAKER_UNIT = "pacemaker.service"
AGENT_PORT = 7788
"""For the other nodes' agents, on the node's cluster address."""


@dataclass(frozen=True)
class Layout:
    """Paths under ``root``, which is another folder than / in tests only."""

    root: Path = Path("/")

    @property
    def etc(self) -> Path:
        """hactl's own folder of settings."""
        return self.root / "etc/hactl"

    @property
    def node_file(self) -> Path:
        """Which cluster and node this machine is: :mod:`hactl.cluster.node_config`."""
        return self.etc / "node.yaml"

    @property
    def unfinished(self) -> Path:
        """What was begun and is not finished: :mod:`hactl.cluster.unfinished`."""
        return self.etc / "unfinished.json"

    @property
    def tls(self) -> Path:
        """Certificates and keys: :mod:`hactl.cluster.pki`."""
        return self.etc / "tls"

    @property
    def etcd_file(self) -> Path:
        """etcd's settings: :mod:`hactl.cluster.etcd_config`."""
        return self.etc / "etcd.conf"

    @property
    def etcd_data(self) -> Path:
        """etcd's data folder; it has ``member`` in it once etcd has started."""
        return self.root / "var/lib/hactl/etcd"

    @property
    def recovery_log(self) -> Path:
        """What etcd says while :mod:`hactl.cluster.recover` has it run apart from its unit."""
        return self.root / "var/lib/hactl/etcd-recovery.log"

    @property
    def corosync_key(self) -> Path:
        """The key that Corosync's nodes share: whoever has it can take part in the membership."""
        return self.etc / "corosync.key"

    @property
    def corosync_file(self) -> Path:
        """Corosync's settings: :mod:`hactl.cluster.corosync`."""
        return self.root / "etc/corosync/corosync.conf"

    @property
    def corosync_before(self) -> Path:
        """The settings that were there before this node was in a cluster of hactl's."""
        return self.corosync_file.with_name("corosync.conf.before-hactl")

    @property
    def cib(self) -> Path:
        """Pacemaker's folder with the cluster's configuration, and earlier ones."""
        return self.root / "var/lib/pacemaker/cib"

    @property
    def desired_copy(self) -> Path:
        """The agent's copy of the cluster's desired state: :mod:`hactl.agents.source`."""
        return self.root / "var/lib/hactl/desired.json"

    @property
    def units(self) -> Path:
        """systemd's folder for units that the administrator, or hactl, has put there."""
        return self.root / "etc/systemd/system"

    @property
    def certificates(self) -> Certificates:
        """What agents and clients of etcd show and trust."""
        return Certificates(self.tls / "ca.crt", self.tls / "node.crt", self.tls / "node.key")

    @property
    def authority_key(self) -> Path:
        """Key of the cluster's authority: whoever has it can admit nodes."""
        return self.tls / "ca.key"


def write(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Put a file in place whole: after a crash there is the old one or the new one, on the disk itself.

    Never readable by others in between. A missing folder is made, for its owner alone unless the file is for
    everybody.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755 if mode & 0o044 else 0o700)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(descriptor)
        scratch.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    _sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, on the disk itself; none there is no error."""
    if path.exists():
        path.unlink()
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
