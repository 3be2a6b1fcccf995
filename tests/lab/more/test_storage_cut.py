"""Cuts of the network between hosts and nodes while Pacemaker is in charge: a node that hosts do not reach is
left, nobody is fenced for it, and where nobody is better off everything stays.

One cluster serves all tests; each leaves it well. None expects r0 on a certain node.
"""

from __future__ import annotations

import time

from lab import failover, story
from lab.api import Machine
from tests.lab.more.failover_scene import SECONDS, Scene

SCORE = "crm_attribute --node {} --name master-hactl-r0 --lifetime reboot --query --quiet"


def wait_for_verdict(machine: Machine, *verdicts: str) -> None:
    """Wait until an agent says one of these about its storage network."""
    end = time.monotonic() + SECONDS
    while (seen := story.status(machine)["storage"])["verdict"] not in verdicts:
        if time.monotonic() > end:
            raise TimeoutError(f"{machine.name} says {seen}, not {verdicts}")
        time.sleep(0.3)


def wait_for_scores_below(scene: Scene, score: int) -> None:
    """Wait until Pacemaker knows that neither replica is reached."""
    for node in (scene.active, scene.standby):
        scene.other.wait_until_succeeds(f'[ "$({SCORE.format(node)})" -le {score} ]', timeout=SECONDS)


def test_a_node_that_its_host_cannot_reach_is_left(scene: Scene) -> None:
    scene.lab.cut("storage", scene.active)
    scene.promoted(scene.standby)
    wait_for_verdict(scene.mine, "silent")
    assert "hosts cannot reach this node" in scene.mine.succeed("hactl status")
    assert scene.booted() == scene.boots, "nobody is fenced for it"
    scene.lab.heal()
    wait_for_verdict(scene.mine, "reachable")
    # It does not take the role back: the node that took over is the last one that was active.
    scene.ends(scene.active, scene.standby)


def test_a_node_that_its_host_reaches_stays_although_no_other_node_does(scene: Scene) -> None:
    scene.lab.cut("storage", scene.active, "c1")
    address = story.portals(scene.lab, scene.active)[0]
    scene.other.wait_until_succeeds(f"! ping -nc 1 -W 1 {address}")
    # 50 a second: longer than it takes to call a node isolated, and to tell Pacemaker.
    scene.load.wait_for_progress(1500, timeout=SECONDS)
    assert story.status(scene.mine)["storage"]["verdict"] in ("reachable", "unknown")
    scene.lab.heal()
    scene.ends(scene.active)


def test_where_nobody_reaches_anybody_everything_stays(scene: Scene) -> None:
    """As when the switch is off that all are connected to."""
    for node in ("n3", scene.standby, scene.active):
        scene.lab.cut("storage", node)
    for machine in (scene.mine, scene.other):
        wait_for_verdict(machine, "silent")
    wait_for_scores_below(scene, 5000)
    scene.mine.succeed(f"crm_resource --wait --timeout={SECONDS}s", timeout=SECONDS)
    assert failover.promoted(failover.pacemaker(scene.mine)) == scene.active
    scene.lab.heal()
    scene.load.wait_for_progress(timeout=SECONDS)
    scene.ends(scene.active)
