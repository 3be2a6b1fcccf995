"""Two of three nodes are lost for good under load: the store goes on from the third one, and the cluster
grows again, with an empty machine and with one that comes back as it was."""

from __future__ import annotations

import json

from lab import product, reservations, story
from lab.api import Lab
from tests.lab import world
from tests.lab.long.test_membership import join, progress

KEY = "0xa1"


def test_the_store_goes_on_from_the_only_node_that_is_left(
    cluster: Lab, device: str, load: story.Load
) -> None:
    here, lost = cluster[story.active_node(cluster)], cluster[story.standby_node(cluster)]
    old = next(m for m in cluster.nodes if m not in (here, lost))
    name = world.dump(here)["cluster"]["name"]
    load.wait_for_progress()
    before = world.dump(here)
    words = f"hactl cluster recover --lost {lost.name} --lost {old.name} --yes-recover {name}"
    assert "store-has-majority" in here.fail(words)
    lost.crash()
    # Two of three are a majority.
    assert "store-has-majority" in here.fail(words)
    old.crash()
    # I/O needs no store; nothing else works.
    load.wait_for_progress()
    tried = here.execute("hactl host add late --initiator iqn.2026-11.io.hactl.lab:late")
    assert tried.status in (4, 5), tried.err
    assert "lost-unnamed" in here.fail(f"hactl cluster recover --lost {old.name} --yes-recover {name}")

    told = json.loads(here.succeed(f"{words} --json", timeout=300))

    assert (told["resources"], told["stay"], told["behind"]) == (["r0"], [], 0)
    mode = here.succeed(f"stat --format '%U %a' {told['aside']}").split()
    assert mode == ["root", "700"]
    after = world.dump(here)["cluster"]
    assert [n["name"] for n in after["nodes"]] == [here.name]
    assert after["hosts"] == before["cluster"]["hosts"]
    here.wait_until_succeeds("hactl host add late --initiator iqn.2026-11.io.hactl.lab:late", timeout=60)
    here.succeed("hactl host remove late")
    # Its reservations change again: nobody waits for nodes that are no more.
    cluster["c1"].succeed(f"sg_persist --out --register-ignore --param-sark={KEY} {device}")
    # One vote of one: Corosync has quorum again, and has forgotten the others.
    here.wait_until_succeeds("corosync-quorumtool -s | grep -x 'Quorate: *Yes'", timeout=120)
    load.wait_for_progress()

    lost.empty()
    lost.start()
    product.install(cluster, lost)
    join(cluster, lost.name, here)
    here.succeed(f"hactl resource add-replica r0 {lost.name} --disk 0={story.DISK}")
    progress(here, "r0")
    load.wait_for_progress()

    # The other one comes back as it was: its part of the store learns that it was given up, and ends.
    old.start()
    old.wait_until_succeeds(
        "journalctl -u hactl-etcd -b | grep -q 'data-dir used by this member'", timeout=120
    )
    assert [n["name"] for n in world.dump(here)["cluster"]["nodes"]] == sorted([here.name, lost.name])
    load.wait_for_progress()
    old.succeed("hactl cluster leave --only-here", timeout=300)
    join(cluster, old.name, here)
    world.wait_until_whole(cluster)
    story.wait_until_paths(cluster["c1"], active=here.name, lab=cluster, timeout=180)
    here.succeed(f"hactl switchover r0 --to {lost.name}")
    paths = story.wait_until_paths(cluster["c1"], active=lost.name, lab=cluster)
    load.wait_for_progress()
    # What was registered when one node was left is on all of them.
    for path in paths:
        assert KEY in cluster["c1"].succeed(f"sg_persist --in --read-keys /dev/{path.device}")
    # By the nexus that has it, whose node is a standby now.
    reservations.pr_out(cluster["c1"], reservations.path_of(cluster, here.name), "clear", KEY)
    for path in paths:
        assert KEY not in cluster["c1"].succeed(f"sg_persist --in --read-keys /dev/{path.device}")
