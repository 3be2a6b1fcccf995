"""Reservations outlive switchovers in both directions, and every process of hactl's that is killed."""

from __future__ import annotations

from lab import story
from lab.api import Lab
from lab.reservations import KEYS, path_of
from tests.lab.test_reservations import reserve, seen_through_both, without_generation


def test_a_reservation_outlives_switchovers_and_killed_processes(
    cluster: Lab, device: str, load: story.Load
) -> None:
    before = reserve(cluster)
    for _ in range(2):
        source, destination = story.active_node(cluster), story.standby_node(cluster)
        cluster[source].succeed(f"hactl switchover r0 --to {destination}")
        load.wait_for_progress()
        assert seen_through_both(cluster) == before
    for unit in ("hactl-capture", "hactl-agent"):
        for node in ("n1", "n2"):
            kill(cluster, node, unit)
            # Only PRgeneration has gone on.
            assert without_generation(seen_through_both(cluster)) == without_generation(before)
    load.wait_for_progress()


def kill(cluster: Lab, node: str, unit: str) -> None:
    """Kill a process of hactl's, and register again while it is not there or not ready again: the command
    waits, or its session is cut and it is sent again; it is never answered and then forgotten."""
    client = cluster["c1"]
    cluster[node].succeed(f"systemctl kill --signal=KILL {unit}")
    again = f"sg_persist -n --out --register-ignore --param-sark={KEYS[0]} {path_of(cluster, 'n1')}"
    client.wait_until_succeeds(again, timeout=120)
    story.wait_until_paths(client, active=story.active_node(cluster), lab=cluster)
