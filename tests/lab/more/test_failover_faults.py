"""Faults while Pacemaker is in charge: a host with two paths sees pauses, and nothing is lost.

One cluster serves all tests; each leaves it well. None expects r0 on a certain node.
"""

from __future__ import annotations

import pytest

from lab import failover, story
from lab.reservations import KEYS, path_of
from tests.lab.more.failover_scene import SECONDS, Scene

KILLED = {
    "agent": ("systemctl kill --signal=KILL hactl-agent", "hactl status"),
    "capture": ("systemctl kill --signal=KILL hactl-capture", "systemctl is-active hactl-capture"),
    "etcd": ("systemctl kill --signal=KILL hactl-etcd", "systemctl is-active hactl-etcd"),
    "pacemakerd": ("kill -KILL $(pidof pacemakerd)", "pidof pacemakerd && crm_mon --one-shot"),
}
"""How each is killed on the active node, and what succeeds when it is there again."""


def test_without_the_replication_network_io_goes_on_where_it_is(scene: Scene) -> None:
    scene.lab.cut("replication", scene.active)
    # The other disk knows that it is old before a write is acknowledged that it has not got.
    scene.mine.wait_until_succeeds("drbdadm dstate r0 | grep -x UpToDate/Outdated", timeout=SECONDS)
    assert "Outdated" in scene.other.succeed("drbdadm dstate r0")
    scene.load.wait_for_progress(200)
    scene.lab.heal()
    scene.ends(scene.active)


def test_without_the_cluster_network_io_goes_on_where_it_is(scene: Scene) -> None:
    scene.lab.cut("cluster", scene.active)
    address = story.addresses(scene.lab, scene.active, "cluster")[0]
    scene.other.wait_until_succeeds(f"! ping -nc 1 -W 1 {address}")
    # Corosync has another link, so nobody counts as lost; longer than it would take to notice.
    scene.load.wait_for_progress(3000)
    assert failover.all_members(failover.pacemaker(scene.mine))
    assert failover.all_members(failover.pacemaker(scene.other))
    scene.lab.heal()
    scene.ends(scene.active)


@pytest.mark.parametrize("networks", [("cluster", "replication"), ("cluster", "replication", "storage")])
def test_a_node_that_is_cut_off_is_fenced_and_replaced(scene: Scene, networks: tuple[str, ...]) -> None:
    for network in networks:
        scene.lab.cut(network, scene.active)
    scene.promoted(scene.standby)
    scene.lab.heal()
    scene.fenced(scene.active)
    scene.ends(scene.active, scene.standby)


def test_a_frozen_node_is_fenced_and_its_late_writes_reach_nobody(scene: Scene) -> None:
    scene.mine.freeze()
    scene.promoted(scene.standby)
    # There is nothing left to thaw.
    scene.fenced(scene.active)
    scene.ends(scene.active, scene.standby)


def test_nobody_is_promoted_while_nobody_can_be_fenced(scene: Scene) -> None:
    scene.lab.cut("bmc", scene.active)
    scene.mine.crash()
    failed_fencing(scene, scene.active)
    told = f"node {scene.active} is lost and could not be fenced"
    scene.other.wait_until_succeeds(f"hactl status --json | grep -F '{told}'")
    scene.lab.heal()
    scene.promoted(scene.standby)
    scene.fenced_late(scene.active)
    scene.ends(scene.active, scene.standby)


def test_a_frozen_node_that_could_not_be_fenced_goes_on(scene: Scene) -> None:
    scene.lab.cut("bmc", scene.active)
    scene.mine.freeze()
    failed_fencing(scene, scene.active)
    scene.mine.thaw()
    failover.wait_until(scene.lab, "all are members again", failover.all_members, SECONDS)
    scene.load.wait_for_progress(timeout=SECONDS)
    # What was ordered while it was frozen would still be done.
    scene.no_fencing()
    scene.lab.heal()
    scene.ends(scene.active)


def failed_fencing(scene: Scene, victim: str) -> None:
    """Wait until Pacemaker has failed to fence a node; nobody was promoted in its place."""
    failover.wait_until(
        scene.lab,
        f"{victim} could not be fenced",
        lambda s: any(f.target == victim and f.state == "failed" for f in s.fencing),
        SECONDS,
    )
    assert not scene.watch.open_at(scene.standby)
    assert "role:Secondary" in scene.other.succeed("drbdsetup events2 --now r0")


def test_all_machines_lose_their_power_at_once(scene: Scene) -> None:
    for machine in scene.lab.nodes:
        machine.crash()
    for machine in scene.lab.nodes:
        machine.start()
        scene.boots[machine.name] += 1
    owner = failover.wait_until_in_charge(scene.lab, SECONDS)
    scene.load.wait_for_progress(timeout=SECONDS)
    assert owner in (scene.active, scene.standby)
    scene.ends(*dict.fromkeys((scene.active, owner)))


@pytest.mark.parametrize("process", KILLED)
def test_a_killed_process_moves_nothing(scene: Scene, process: str) -> None:
    kill, answers = KILLED[process]
    scene.mine.succeed(kill)
    scene.load.wait_for_progress()
    scene.mine.wait_until_succeeds(answers, timeout=SECONDS)
    # What is reserved is answered again, through the path that was there all the time.
    scene.lab["c1"].wait_until_succeeds(
        f"sg_persist -n --out --register-ignore --param-sark={KEYS[0]} {path_of(scene.lab, 'n1')}",
        timeout=120,
    )
    scene.ends(scene.active)


def test_a_disk_that_fails_under_drbd(scene: Scene) -> None:
    # What DRBD does by itself when the disk under it answers with an error.
    scene.mine.succeed("drbdadm detach --force r0")
    scene.promoted(scene.standby)
    scene.mine.succeed("drbdadm attach r0")
    scene.ends(scene.active, scene.standby)


def test_a_node_whose_kernel_panicked_comes_back_as_standby(scene: Scene) -> None:
    """Also if it is the preferred one: only with automatic failback does it take the role back."""
    scene.lab["n3"].succeed(f"hactl resource set r0 --preferred {scene.active}")
    scene.mine.panic()
    scene.promoted(scene.standby)
    scene.fenced(scene.active)
    scene.ends(scene.active, scene.standby)
