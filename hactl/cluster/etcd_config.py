"""etcd's settings for a member, as text. Pure.

Names are etcd's own flags (etcd 3.4 and 3.5, "Configuration options"), as environment variables, which
systemd reads from the file: etcd's YAML file lacks ``--experimental-peer-skip-client-san-verification``,
and passes over keys that it does not know, while unknown variables are told in its log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hactl.cluster.layout import Layout
from hactl.cluster.node_config import CLIENT_PORT, PEER_PORT, url
from hactl.model.spec import IpAddress

MAX_TXN_OPS = 10240
"""Keys in one transaction: a change of the specification is one, and may touch thousands."""
QUOTA = 2 << 30
"""Bytes of etcd's database; beyond that it takes no more writes. What hactl keeps there is some megabytes."""

_TEXT = """\
# Settings of etcd for this member of the cluster's store (hactl-etcd.service). Written by "hactl cluster",
# which overwrites changes.
ETCD_NAME={node}
ETCD_DATA_DIR={data}
ETCD_LISTEN_CLIENT_URLS={client}
ETCD_ADVERTISE_CLIENT_URLS={client}
ETCD_LISTEN_PEER_URLS={peer}
ETCD_INITIAL_ADVERTISE_PEER_URLS={peer}

# Read only while there are no data. "existing", and after the first start none but itself: a member that lost
# its data must neither make a new cluster nor be taken for the one it was. See: hactl cluster join
ETCD_INITIAL_CLUSTER={peers}
ETCD_INITIAL_CLUSTER_TOKEN=hactl-{cluster}
ETCD_INITIAL_CLUSTER_STATE={state}
ETCD_STRICT_RECONFIG_CHECK=true

ETCD_CERT_FILE={certificate}
ETCD_KEY_FILE={key}
ETCD_TRUSTED_CA_FILE={ca}
ETCD_CLIENT_CERT_AUTH=true
ETCD_PEER_CERT_FILE={certificate}
ETCD_PEER_KEY_FILE={key}
ETCD_PEER_TRUSTED_CA_FILE={ca}
ETCD_PEER_CLIENT_CERT_AUTH=true
# A peer is known by its certificate alone. Otherwise it must come from the address in it, and the kernel may
# choose another one of a node that has several.
ETCD_EXPERIMENTAL_PEER_SKIP_CLIENT_SAN_VERIFICATION=true

# Milliseconds, etcd's defaults: the loss of the leader costs one to two seconds of the store, and links of
# some milliseconds carry it with room to spare. Change neither on one node alone.
ETCD_HEARTBEAT_INTERVAL=100
ETCD_ELECTION_TIMEOUT=1000

ETCD_MAX_TXN_OPS={operations}
ETCD_QUOTA_BACKEND_BYTES={quota}
ETCD_AUTO_COMPACTION_MODE=periodic
ETCD_AUTO_COMPACTION_RETENTION=1h
# A tenth of the default: less to keep in memory, and what a new member is sent is small.
ETCD_SNAPSHOT_COUNT=10000
ETCD_LOGGER=zap
ETCD_LOG_OUTPUTS=stderr
"""


@dataclass(frozen=True)
class MemberSettings:
    """What one member differs from another in. ``peers``: names and peer URLs of all members, itself
    included, for its first start; after that of itself alone. ``new``: whether that start makes a new cluster
    instead of joining one."""

    cluster: str
    node: str
    address: IpAddress
    peers: Mapping[str, str]
    new: bool = False


def render(settings: MemberSettings, layout: Layout) -> str:
    """The file."""
    return _TEXT.format(
        node=settings.node,
        cluster=settings.cluster,
        data=layout.etcd_data,
        client=url(settings.address, CLIENT_PORT),
        peer=url(settings.address, PEER_PORT),
        peers=",".join(f"{name}={u}" for name, u in sorted(settings.peers.items())),
        state="new" if settings.new else "existing",
        certificate=layout.certificates.certificate,
        key=layout.certificates.key,
        ca=layout.certificates.ca,
        operations=MAX_TXN_OPS,
        quota=QUOTA,
    )


def variables(text: str) -> dict[str, str]:
    """The variables in such a file."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}
