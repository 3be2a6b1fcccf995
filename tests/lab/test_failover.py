"""Node loss without an operator: Pacemaker is in charge, fences with the nodes' BMCs, and promotes."""

from __future__ import annotations

from lab import failover, reservations, story
from lab.api import Lab
from tests.lab import test_reservations


def test_a_planned_move_goes_through_pacemaker(fenced: Lab, load: story.Load) -> None:
    source, destination = story.active_node(fenced), story.standby_node(fenced)
    refused = fenced[destination].fail("hactl promote r0")
    assert "pacemaker-in-charge" in refused
    load.wait_for_progress()
    fenced[source].succeed(f"hactl switchover r0 --to {destination}", timeout=120)
    assert failover.wait_until_in_charge(fenced) == destination
    story.wait_until_paths(fenced["c1"], active=destination, lab=fenced)
    load.wait_for_progress()
    # No preference is left behind that would pull it back, or hold it.
    assert "cli-" not in fenced[source].succeed("cibadmin --query --scope=constraints")


def test_power_loss_of_the_active_node(fenced: Lab, device: str, load: story.Load) -> None:
    client = fenced["c1"]
    lost, heir = story.active_node(fenced), story.standby_node(fenced)
    held = "sg_persist -n --in -r " + reservations.path_of(fenced, heir)
    failover.Stranger.admit(fenced)
    stranger = failover.Stranger(fenced, heir)
    stranger.start()
    load.wait_for_progress()
    boots = failover.boots(fenced[lost])
    failover.power_loss(fenced, load)
    fencing = failover.pacemaker(fenced[heir]).fencing
    assert lost in [f.target for f in fencing if f.state == "success"]
    assert "Write Exclusive, registrants only" in client.wait_until_succeeds(held)
    report = load.stop()
    assert report.error == 0
    # Enforced on the new node from its first write on: before, it is a standby path, which fails.
    tried = stranger.stop()
    assert tried.written == 0
    assert tried.refused > 0
    # Its BMC has switched it on again: nobody else did.
    failover.wait_until_up(fenced[lost], boots + 1)
    assert failover.boots(fenced[lost]) == boots + 1
    fenced[heir].wait_until_succeeds(story.BOTH, timeout=180)
    assert failover.wait_until_in_charge(fenced) == heir
    story.wait_until_paths(client, active=heir, lab=fenced)
    state_through_both = test_reservations.seen_through_both(fenced)
    assert sorted(test_reservations.shown(state_through_both)) == sorted(reservations.KEYS)
