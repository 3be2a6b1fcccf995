"""What operators do while Pacemaker is in charge, and what comes back by itself: a host sees pauses only.

One cluster serves all tests; each leaves it well. None expects r0 on a certain node.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.more.failover_scene import Scene, wait_until_off

CLONE = "hactl-r0-clone"


def test_crm_resource_move(scene: Scene) -> None:
    scene.mine.succeed(f"crm resource move {CLONE} {scene.standby}")
    scene.promoted(scene.standby)
    scene.mine.succeed(f"crm resource clear {CLONE}")
    scene.ends(scene.active, scene.standby)


def test_crm_node_standby(scene: Scene) -> None:
    scene.mine.succeed(f"crm node standby {scene.active}")
    scene.promoted(scene.standby)
    scene.mine.succeed(f"crm node online {scene.active}")
    scene.ends(scene.active, scene.standby)


def test_a_clean_reboot_of_the_active_node(scene: Scene) -> None:
    scene.mine.succeed("systemctl --no-block reboot")
    scene.promoted(scene.standby)
    wait_until_off(scene.mine)
    # Nobody has fenced it: it is off until somebody switches it on.
    scene.mine.start()
    scene.boots[scene.active] += 1
    scene.ends(scene.active, scene.standby)


@pytest.fixture
def failback(scene: Scene) -> Iterator[None]:
    """Automatic failback to the node that is active when the test begins."""
    anywhere = scene.lab["n3"]
    anywhere.succeed(f"hactl resource set r0 --preferred {scene.active} --failback")
    yield
    anywhere.wait_until_succeeds("hactl resource set r0 --no-failback")


def test_with_automatic_failback_the_preferred_node_takes_the_role_back_once(
    scene: Scene, failback: None
) -> None:
    scene.mine.crash()
    scene.promoted(scene.standby)
    scene.fenced(scene.active)
    scene.promoted(scene.active)
    scene.ends(scene.active, scene.standby, scene.active)
