"""The active node is lost and an operator promotes the other one; the lost one comes back and catches up."""

from __future__ import annotations

from lab import reservations, story
from lab.api import Lab
from tests.lab import test_reservations


def test_power_loss_and_promotion_by_hand(cluster: Lab, device: str, load: story.Load) -> None:
    lost, heir = story.active_node(cluster), story.standby_node(cluster)
    client = cluster["c1"]
    load.wait_for_progress()
    # Afterwards multipathd may not answer for a while: its checkers wait for the path that is gone.
    held = "sg_persist -n --in -r " + reservations.path_of(cluster, heir)
    cluster[lost].crash()
    refused = cluster[heir].execute(f"hactl switchover r0 --to {heir}")
    assert refused.status != 0
    cluster[heir].wait_until_succeeds("drbdadm cstate r0 | grep -v Connected", timeout=60)
    cluster[heir].succeed("hactl promote r0")
    # The reservation that was there is there, on the path that is left.
    assert "Write Exclusive, registrants only" in client.wait_until_succeeds(held)
    load.wait_for_progress(timeout=180)
    report = load.stop()
    assert report.error == 0
    cluster[lost].start()
    # What was written meanwhile reaches it, and it does not take back the role it had.
    cluster[heir].wait_until_succeeds(story.BOTH, timeout=120)
    story.wait_until_settled(cluster)
    assert story.active_node(cluster) == heir
    story.wait_until_paths(client, active=heir, lab=cluster)
    # The one that was lost has it too, before anybody can reach it there.
    state = test_reservations.seen_through_both(cluster)
    assert sorted(test_reservations.shown(state)) == sorted(reservations.KEYS)
    cluster[heir].succeed(f"hactl switchover r0 --to {lost}")
    assert story.active_node(cluster) == lost
