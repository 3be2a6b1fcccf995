"""From installed packages to a unit in use: the commands of README.md, in exactly those words."""

from __future__ import annotations

import json

from lab import newcomer, story
from lab.api import Lab, Machine


def captured(node: Machine) -> bool:
    """Whether LIO writes reservations to where hactl waits for them."""
    return (
        node.execute("findmnt -t fuse.hactl-capture $(cat /sys/kernel/config/target/dbroot)/pr").status == 0
    )


def test_a_cluster_and_a_unit_in_use_take_at_most_eight_commands(lab: Lab) -> None:
    steps = newcomer.steps()
    assert len(steps) <= 8
    newcomer.prepare(lab)
    typist = newcomer.Typist(lab)
    for step in steps:
        typist.type(step)
        if step.machine == "n2":
            # It has LIO use another directory than the one that is captured since the node has joined.
            lab["n2"].succeed("targetcli ls")
            assert not captured(lab["n2"])
    assert all(captured(lab[name]) for name in ("n1", "n2"))
    client = lab["c1"]
    # In use: a file system on the multipath device, over a path to each replica.
    device = story.attach(lab)
    seen = story.wait_until_paths(client, active="n1", lab=lab)
    assert sorted(path.checker for path in seen) == ["ghost", "ready"]
    client.succeed(f"mkfs.ext4 -q {device} && mount {device} /mnt && echo kept > /mnt/file && umount /mnt")
    assert story.active_node(lab) == "n1"
    # Typed a second time nothing changes, and nothing breaks.
    before = lab["n2"].succeed("hactl dump")
    client.succeed(steps[-1].command)
    refused = lab["n1"].fail(steps[0].command)
    assert "in-cluster" in refused or "already" in refused
    assert lab["n3"].succeed("hactl dump") == before


def test_every_node_tells_the_same(lab: Lab) -> None:
    told = [json.loads(node.succeed("hactl status --json"))["cluster"] for node in lab.nodes]
    for document in told:
        assert [n["node"] for n in document["nodes"] if n["reachable"]] == ["n1", "n2", "n3"]
