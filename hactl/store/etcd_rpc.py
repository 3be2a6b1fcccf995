"""etcd's API as aetcd generates it, and gRPC as hactl sets it up.

aetcd's own ``Client`` talks to one member without TLS, reads only the newest revision, and ends a watch with
its connection; so only its generated messages and stubs are used.
"""

from __future__ import annotations

from typing import Any

# aetcd has no annotations; it is imported here and nowhere else.
from aetcd import rpc as _rpc  # type: ignore[import-untyped]

rpc: Any = _rpc

LEADER_NEEDED = (("hasleader", "true"),)
"""Metadata: a member that knows no leader refuses at once, and ends a stream after three elections' time."""

OPTIONS: tuple[tuple[str, int], ...] = (
    # Whole pages and whole transactions: etcd's answers have no limit of their own.
    ("grpc.max_receive_message_length", -1),
    # A member that is back is found again within a second; a connection attempt ends with its call's limit.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A connection that died without a word ends by itself while calls wait on it. Not more often: etcd hangs
    # up on clients that ping at less than 5 s (--grpc-keepalive-min-time), or while no call is open.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
    # Storage traffic is never for the proxy that the environment may name.
    ("grpc.enable_http_proxy", 0),
    # A channel of its own connections: two stores in one process fail apart.
    ("grpc.use_local_subchannel_pool", 1),
)
