"""From installed packages to a unit in use: the commands of README.md, in exactly those words."""

from __future__ import annotations

import json

from lab import newcomer, story
from lab.api import Lab


def test_a_cluster_and_a_unit_in_use_take_at_most_eight_commands(lab: Lab) -> None:
    steps = newcomer.steps()
    assert len(steps) <= 8
    newcomer.prepare(lab)
    typist = newcomer.Typist(lab)
    for step in steps:
        typist.type(step)
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


def test_the_hosts_script_brings_chap_along_and_shows_no_password(lab: Lab) -> None:
    node, client = lab["n2"], lab["c1"]
    passwords = {"/root/password": "initiator-pw-3", "/root/mutual": "target-secret-4"}
    for file, password in passwords.items():
        node.write(file, f"{password}\n", 0o600)
    detach = "multipath -F; iscsiadm -m node --logoutall=all"
    client.execute(detach)
    node.succeed(
        "hactl host set c1 --chap-user bob --chap-password-file /root/password"
        " --mutual-user tim --mutual-password-file /root/mutual"
    )
    client.write("/root/attach.sh", node.succeed("hactl host script c1"), 0o600)
    # Arguments are seen by every user of the machine: a program in the place of iscsiadm writes them down.
    program = '#!/bin/sh\necho "$@" >>/root/arguments\nexec /usr/sbin/iscsiadm "$@"\n'
    client.succeed("mkdir -p /root/bin")
    client.write("/root/bin/iscsiadm", program, 0o755)
    client.succeed("PATH=/root/bin:$PATH sh /root/attach.sh")
    arguments = client.succeed("cat /root/arguments")
    assert "--login" in arguments
    sessions = client.succeed("iscsiadm -m session -P 2 -S")
    assert sessions.count("username: bob") == sessions.count("username_in: tim") == 2
    kept = node.succeed("hactl dump; hactl host show c1; journalctl --no-pager")
    for password in passwords.values():
        assert password not in arguments
        assert password not in kept
    client.execute(detach)
    node.succeed(f"hactl host set c1 --no-chap; rm {' '.join(passwords)}")
    # Once more: what was set for CHAP is taken back in the host's records.
    client.write("/root/attach.sh", node.succeed("hactl host script c1"), 0o600)
    client.succeed("sh /root/attach.sh")
