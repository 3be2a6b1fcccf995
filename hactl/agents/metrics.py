"""Prometheus metrics of one node, made from its status document at each scrape."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hactl.agents.reach import Verdict

ROLES = ("active", "demoted", "standby")


class Metrics:
    """Counters of what the agent did; gauges come from the status document."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.orders = Counter(
            "hactl_orders",
            "Orders carried out, refused, failed, or with unknown outcome.",
            ("order", "outcome"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "hactl_order_seconds",
            "Duration of orders that were carried out.",
            ("order",),
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
            registry=self.registry,
        )
        self._role = Gauge(
            "hactl_resource_role", "1 for the role ordered.", ("resource", "role"), registry=self.registry
        )
        self._trouble = Gauge(
            "hactl_resource_trouble",
            "1 if something needs attention (see hactl status).",
            ("resource",),
            registry=self.registry,
        )
        self._pending = Gauge(
            "hactl_resource_pending_actions",
            "Steps the agent has still to take.",
            ("resource",),
            registry=self.registry,
        )
        self._disk = Gauge(
            "hactl_volume_up_to_date",
            "1 if the local replica is UpToDate.",
            ("resource", "volume"),
            registry=self.registry,
        )
        self._open = Gauge(
            "hactl_volume_gate_open", "1 if I/O flows here.", ("resource", "volume"), registry=self.registry
        )
        self._connected = Gauge(
            "hactl_connection_up", "1 if DRBD is connected.", ("resource", "peer"), registry=self.registry
        )
        self._peer = Gauge(
            "hactl_peer_reachable", "1 if the node's agent answers.", ("node",), registry=self.registry
        )
        self._storage = Gauge(
            "hactl_storage_network",
            "1 for what is known about whether hosts reach this node; silent and down mean that they do not.",
            ("verdict",),
            registry=self.registry,
        )

    def render(self, status: dict[str, Any]) -> bytes:
        """The text exposition format, for a status document of schema 1."""
        # What the specification has no more must not go on being reported.
        gauges = (
            self._role,
            self._trouble,
            self._pending,
            self._disk,
            self._open,
            self._connected,
            self._peer,
        )
        for gauge in gauges:
            gauge.clear()
        for resource in status["resources"]:
            name = resource["name"]
            for role in ROLES:
                self._role.labels(name, role).set(resource["role"] == role)
            self._trouble.labels(name).set(resource["reason"] is not None)
            self._pending.labels(name).set(len(resource["pending"]))
            for volume in resource["volumes"]:
                self._disk.labels(name, volume["number"]).set(volume["disk"] == "UpToDate")
                self._open.labels(name, volume["number"]).set(volume["gate"] == "open")
            for connection in resource["connections"]:
                self._connected.labels(name, connection["peer"]).set(connection["state"] == "Connected")
        for peer in status["peers"]:
            self._peer.labels(peer["node"]).set(peer["reachable"])
        for verdict in Verdict:
            self._storage.labels(verdict.value).set(status["storage"]["verdict"] == verdict)
        return generate_latest(self.registry)
