"""Nodes that come and go under load: one that is lost and replaced by an empty machine, and one that
leaves."""

from __future__ import annotations

import json
import time

from lab import product, story
from lab.api import Lab, Machine
from tests.lab import world


def join(lab: Lab, name: str, via: Machine) -> None:
    """Bring a machine into the cluster."""
    token = json.loads(via.succeed("hactl cluster invite --json"))["token"]
    lab[name].succeed(
        f"hactl cluster join - {story.node_options(lab, name)}", timeout=300, stdin=token.encode()
    )


def progress(machine: Machine, resource: str, timeout: float = 300) -> list[float]:
    """How far the copying was whenever somebody looked (per cent), until every disk is UpToDate."""
    end = time.monotonic() + timeout
    seen: list[float] = []
    while True:
        told = next(r for r in story.status(machine)["resources"] if r["name"] == resource)
        volumes = [v for c in told["connections"] for v in c["volumes"]]
        seen += [v["done"] for v in volumes if v["done"] is not None]
        if volumes and all(v["disk"] == "UpToDate" for v in volumes):
            return seen
        if time.monotonic() > end:
            raise TimeoutError(f"not copied after {timeout:g} s: {told}; seen so far: {seen}")
        time.sleep(0.2)


def test_a_node_is_replaced_by_an_empty_machine(cluster: Lab, device: str, load: story.Load) -> None:
    lost, here = cluster[story.standby_node(cluster)], cluster[story.active_node(cluster)]
    lost.crash()
    # As long as its agent's lease lasts, nobody knows that it is off.
    assert "node-alive" in here.fail(f"hactl cluster leave --lost {lost.name}")
    here.wait_until_succeeds(f"hactl cluster leave --lost {lost.name}", timeout=90)
    load.wait_for_progress()
    rest = [m.name for m in cluster.nodes if m is not lost]
    assert [n["name"] for n in world.dump(here)["cluster"]["nodes"]] == rest

    lost.empty()
    lost.start()
    product.install(cluster)
    join(cluster, lost.name, here)
    here.succeed(f"hactl resource add-replica r0 {lost.name} --disk 0={story.DISK}")
    seen = progress(here, "r0")
    print(f"copied to {lost.name}; seen on the way, in per cent: {seen}")
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    world.wait_until_whole(cluster)
    # Sessions come back by themselves: it has the portal, the tag and the RTPI of the one before it.
    story.wait_until_paths(cluster["c1"], active=here.name, lab=cluster, timeout=180)
    here.succeed(f"hactl switchover r0 --to {lost.name}")
    story.wait_until_paths(cluster["c1"], active=lost.name, lab=cluster)
    load.wait_for_progress()


def test_a_node_gives_everything_to_another_and_leaves(cluster: Lab, device: str, load: story.Load) -> None:
    goes, here = cluster[story.standby_node(cluster)], cluster[story.active_node(cluster)]
    comes = next(m for m in cluster.nodes if m not in (goes, here))
    assert "node-in-use" in goes.fail("hactl cluster leave")
    here.succeed(f"hactl resource remove-replica r0 {goes.name} --yes-destroy r0")
    here.succeed(f"hactl resource add-replica r0 {comes.name} --disk 0={story.DISK}")
    assert len(set(progress(here, "r0"))) > 1
    world.wait_until_right(cluster)
    load.wait_for_progress()
    goes.succeed("hactl cluster leave")
    told = json.loads(here.succeed("hactl cluster status --json"))
    assert len(told["store"]["members"]) == len(told["nodes"]) == len(cluster.nodes) - 1
    # Nothing of the cluster is left there, and nothing of it runs.
    world.wait_until_right(cluster)
    assert goes.execute("ls /etc/hactl/node.yaml /etc/hactl/tls /var/lib/hactl/etcd").out == ""
    for unit in ("hactl-agent", "hactl-etcd"):
        assert "inactive" in goes.fail(f"systemctl is-active {unit}")
    client = cluster["c1"]
    old, new = story.portals(cluster, goes.name)[0], story.portals(cluster, comes.name)[0]
    client.succeed(f"iscsiadm -m discovery -t sendtargets -p {new}")
    client.succeed(f"iscsiadm -m node -T {story.TARGET} -p {new} --login")
    client.succeed(f"iscsiadm -m node -T {story.TARGET} -p {old} --logout")
    story.wait_until_paths(client, active=here.name, lab=cluster)
    here.succeed(f"hactl switchover r0 --to {comes.name}")
    story.wait_until_paths(client, active=comes.name, lab=cluster)
    load.wait_for_progress()
    # It may come again.
    join(cluster, goes.name, here)
    world.wait_until_right(cluster)
