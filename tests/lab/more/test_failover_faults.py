"""Faults while Pacemaker is in charge: a host with two paths sees pauses, and nothing is lost.

One cluster serves all tests; each leaves it well. None expects r0 on a certain node.
"""

from __future__ import annotations

from tests.lab.more.failover_scene import SECONDS, Scene

CLONE = "hactl-r0-clone"


def test_without_the_replication_network_io_goes_on_where_it_is(scene: Scene) -> None:
    scene.lab.cut("replication", scene.active)
    # The other disk knows that it is old before a write is acknowledged that it has not got.
    scene.mine.wait_until_succeeds("drbdadm dstate r0 | grep -x UpToDate/Outdated", timeout=SECONDS)
    assert "Outdated" in scene.other.succeed("drbdadm dstate r0")
    scene.load.wait_for_progress(200)
    scene.lab.heal()
    scene.ends(scene.active)


def test_crm_resource_move(scene: Scene) -> None:
    scene.mine.succeed(f"crm resource move {CLONE} {scene.standby}")
    scene.promoted(scene.standby)
    scene.mine.succeed(f"crm resource clear {CLONE}")
    scene.ends(scene.active, scene.standby)


def test_a_node_whose_kernel_panicked_comes_back_as_standby(scene: Scene) -> None:
    """Also if it is the preferred one: only with automatic failback does it take the role back."""
    scene.lab["n3"].succeed(f"hactl resource set r0 --preferred {scene.active}")
    scene.mine.panic()
    scene.promoted(scene.standby)
    scene.fenced(scene.active)
    scene.ends(scene.active, scene.standby)
