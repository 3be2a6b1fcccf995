"""Persistent reservations through reboots, the loss of all power at once, and a store without a quorum."""

from __future__ import annotations

import pytest

from lab import story
from lab.api import Lab
from lab.reservations import KEYS, TYPE, path_of, register
from tests.lab import test_reservations
from tests.lab.test_reservations import seen_through_both, without_generation


@pytest.fixture
def reserved(cluster: Lab, device: str) -> str:
    """Both paths are registered, that through n1 holds a reservation; what is seen through both."""
    return test_reservations.reserved(cluster)


def test_each_node_boots_in_turn(cluster: Lab, reserved: str, load: story.Load) -> None:
    for node in ("n1", "n2"):
        if story.active_node(cluster) == node:
            cluster[node].succeed(f"hactl switchover r0 --to {story.standby_node(cluster)}")
        other = story.active_node(cluster)
        cluster[node].crash()
        load.wait_for_progress()
        cluster[node].start()
        cluster[other].wait_until_succeeds(story.BOTH, timeout=180)
        story.wait_until_settled(cluster)
        story.wait_until_paths(cluster["c1"], active=other, lab=cluster)
        assert seen_through_both(cluster) == reserved
    load.wait_for_progress()


def test_without_a_quorum_io_goes_on_and_nothing_is_reserved(
    cluster: Lab, reserved: str, load: story.Load
) -> None:
    client, path = cluster["c1"], path_of(cluster, "n1")
    for node in ("n2", "n3"):
        cluster[node].succeed("systemctl stop hactl-etcd")
    answered = client.execute(
        f"sg_persist -n --out --release --param-rk={KEYS[0]} --prout-type={TYPE} {path}"
    )
    assert answered.status != 0
    load.wait_for_progress()
    for node in ("n2", "n3"):
        cluster[node].succeed("systemctl start --no-block hactl-etcd")
    story.wait_until_settled(cluster)
    story.wait_until_paths(client, active=story.active_node(cluster), lab=cluster)
    # It leaves no trace, and with the quorum back everything goes on by itself.
    assert without_generation(seen_through_both(cluster)) == without_generation(reserved)
    register(client, path, KEYS[0])
    assert without_generation(seen_through_both(cluster)) == without_generation(reserved)
    load.wait_for_progress()


def test_all_machines_lose_their_power_at_once(cluster: Lab, reserved: str) -> None:
    active = story.active_node(cluster)
    before = seen_through_both(cluster)
    for node in cluster.nodes:
        node.crash()
    for node in cluster.nodes:
        node.start()
    cluster[active].wait_until_succeeds(story.BOTH, timeout=180)
    cluster[active].wait_until_succeeds("hactl promote r0", timeout=180)
    story.wait_until_settled(cluster)
    story.wait_until_paths(cluster["c1"], active=active, lab=cluster)
    assert seen_through_both(cluster) == before
