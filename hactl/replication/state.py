"""What DRBD says of itself, in DRBD's own words (drbdsetup(8), ``events2``), as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """Role of a resource on a node."""

    PRIMARY = "Primary"
    SECONDARY = "Secondary"
    UNKNOWN = "Unknown"


class DiskState(StrEnum):
    """State of a replica's backing disk."""

    DISKLESS = "Diskless"
    ATTACHING = "Attaching"
    DETACHING = "Detaching"
    FAILED = "Failed"
    NEGOTIATING = "Negotiating"
    INCONSISTENT = "Inconsistent"
    OUTDATED = "Outdated"
    UNKNOWN = "DUnknown"
    CONSISTENT = "Consistent"
    UP_TO_DATE = "UpToDate"


class ConnectionState(StrEnum):
    """State of the connection to one peer."""

    STANDALONE = "StandAlone"
    DISCONNECTING = "Disconnecting"
    UNCONNECTED = "Unconnected"
    TIMEOUT = "Timeout"
    BROKEN_PIPE = "BrokenPipe"
    NETWORK_FAILURE = "NetworkFailure"
    PROTOCOL_ERROR = "ProtocolError"
    TEAR_DOWN = "TearDown"
    CONNECTING = "Connecting"
    CONNECTED = "Connected"


class ReplicationState(StrEnum):
    """State of one volume's replication to one peer."""

    OFF = "Off"
    ESTABLISHED = "Established"
    STARTING_SYNC_S = "StartingSyncS"
    STARTING_SYNC_T = "StartingSyncT"
    WF_BITMAP_S = "WFBitMapS"
    WF_BITMAP_T = "WFBitMapT"
    WF_SYNC_UUID = "WFSyncUUID"
    SYNC_SOURCE = "SyncSource"
    SYNC_TARGET = "SyncTarget"
    VERIFY_S = "VerifyS"
    VERIFY_T = "VerifyT"
    PAUSED_SYNC_S = "PausedSyncS"
    PAUSED_SYNC_T = "PausedSyncT"
    AHEAD = "Ahead"
    BEHIND = "Behind"


@dataclass(frozen=True)
class PeerVolume:
    """One volume as this node knows it of one peer. ``done`` is resync progress in percent, if one runs."""

    replication: ReplicationState
    disk: DiskState
    done: float | None = None
    resync_suspended: str = "no"


@dataclass(frozen=True)
class Connection:
    """The connection to one peer node."""

    peer: str
    state: ConnectionState
    role: Role
    volumes: dict[int, PeerVolume] = field(default_factory=dict)


@dataclass(frozen=True)
class Volume:
    """One volume on this node. ``size`` in bytes if known; ``quorum`` is True on DRBD 8.4, which has none."""

    minor: int
    disk: DiskState
    size: int | None = None
    quorum: bool = True


@dataclass(frozen=True)
class ResourceState:
    """One resource on this node."""

    name: str
    role: Role
    suspended: str = "no"
    volumes: dict[int, Volume] = field(default_factory=dict)
    connections: dict[str, Connection] = field(default_factory=dict)

    @property
    def up_to_date(self) -> bool:
        """Every local disk is UpToDate."""
        return bool(self.volumes) and all(v.disk is DiskState.UP_TO_DATE for v in self.volumes.values())

    def connected(self, peer: str) -> bool:
        """The connection to a peer is up."""
        connection = self.connections.get(peer)
        return connection is not None and connection.state is ConnectionState.CONNECTED

    def peer_up_to_date(self, peer: str) -> bool:
        """The peer is connected and each of its disks is UpToDate as far as this node knows."""
        connection = self.connections.get(peer)
        return (
            connection is not None
            and connection.state is ConnectionState.CONNECTED
            and bool(connection.volumes)
            and all(v.disk is DiskState.UP_TO_DATE for v in connection.volumes.values())
        )
