"""Agents that are killed in the middle of their work, and neighbours in LIO that are not hactl's."""

from __future__ import annotations

from lab import story
from lab.api import Lab


def test_agents_killed_in_the_middle(cluster: Lab, load: story.Load) -> None:
    """kill -9 of either agent at moments spread over a switchover: it ends in one of two sound states."""
    ended = []
    for number in range(12):
        active, standby = story.active_node(cluster), story.standby_node(cluster)
        victim = cluster[active if number % 2 else standby]
        delay = 0.05 + 0.15 * (number // 2)
        order = f"hactl switchover r0 --to {standby} >/tmp/order 2>&1; echo $? >/tmp/ended"
        cluster[active].succeed(
            f"rm -f /tmp/ended; systemd-run --unit=order --collect --expand-environment=no bash -c '{order}'"
        )
        # Not waiting for anything: the moment of the kill is what is varied here.
        victim.succeed(f"sleep {delay}; systemctl kill --signal=KILL hactl-agent")
        load.wait_for_progress()
        ended.append(int(cluster[active].wait_until_succeeds("cat /tmp/ended", timeout=60)))
        # Done, failed, refused, not reachable, unknown: every end that hactl documents, and no other.
        assert ended[-1] in (0, 1, 3, 4, 5), cluster[active].succeed("cat /tmp/order")
        story.wait_until_settled(cluster)
        story.wait_until_paths(cluster["c1"], active=story.active_node(cluster), lab=cluster)
    # The kills fell into the middle of some switchovers, and not of all.
    assert len(set(ended)) > 1, ended


def test_foreign_targets_are_left_alone(cluster: Lab) -> None:
    node = cluster["n1"]
    node.succeed(
        "truncate -s 16M /root/other.img && targetcli /backstores/fileio create other /root/other.img 16M"
        " && targetcli /iscsi create iqn.2003-01.org.example:other"
        " && targetcli /iscsi/iqn.2003-01.org.example:other/tpg1/luns create /backstores/fileio/other"
    )
    node.succeed("systemctl restart hactl-agent")
    story.wait_until_settled(cluster)
    assert "other" in node.succeed("targetcli ls /iscsi/iqn.2003-01.org.example:other/tpg1/luns")
    node.succeed(
        "targetcli /iscsi delete iqn.2003-01.org.example:other && targetcli /backstores/fileio delete other"
    )
    assert story.active_node(cluster) in ("n1", "n2")
