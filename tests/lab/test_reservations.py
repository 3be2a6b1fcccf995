"""Persistent reservations are the same through every node, and outlive a switchover."""

from __future__ import annotations

import json
import re

from lab import reservations, story
from lab.api import Lab, Machine
from lab.reservations import KEYS, TYPE, path_of, pr_out, register


def seen(client: Machine, path: str) -> str:
    """READ FULL STATUS and READ RESERVATION through a path."""
    # A unit attention may come first: what happened to this nexus, or that it is a new one.
    return client.wait_until_succeeds(f"sg_persist -n --in -s {path} && sg_persist -n --in -r {path}")


def seen_through_both(cluster: Lab) -> str:
    through = [seen(cluster["c1"], path_of(cluster, node)) for node in ("n1", "n2")]
    assert through[0] == through[1]
    return through[0]


def shown(state: str) -> list[str]:
    return re.findall(r"Key=(0x[0-9a-f]+)", state.partition("Reservation follows")[0])


def without_generation(state: str) -> str:
    return re.sub(r"PR generation=0x[0-9a-f]+", "", state)


def test_what_is_done_through_one_node_is_seen_through_the_other(cluster: Lab, device: str) -> None:
    client = cluster["c1"]
    paths = [path_of(cluster, node) for node in ("n1", "n2")]
    for path, key in zip(paths, KEYS, strict=True):
        register(client, path, key)
        assert key in seen_through_both(cluster)
    state = seen_through_both(cluster)
    assert sorted(shown(state)) == sorted(KEYS)
    # Each registration is at the port it came through: RTPI = resource id * 16 + node id.
    assert re.findall(r"Relative port address: (0x\w+)", state) == ["0x11", "0x12"]
    pr_out(client, paths[1], "reserve", KEYS[1], f"--prout-type={TYPE}")
    state = seen_through_both(cluster)
    assert "Write Exclusive, registrants only" in state
    pr_out(client, paths[0], "preempt", KEYS[0], f"--param-sark={KEYS[1]}", f"--prout-type={TYPE}")
    state = seen_through_both(cluster)
    assert shown(state) == [KEYS[0]]
    assert "<< Reservation holder >>" in state
    pr_out(client, paths[0], "clear", KEYS[0])
    assert shown(seen_through_both(cluster)) == []


def reserve(cluster: Lab) -> str:
    """A registration through each node, and a reservation through n1; what is then seen through both."""
    reservations.reserve(cluster)
    return seen_through_both(cluster)


def reserved(cluster: Lab) -> str:
    """The same where something may be reserved already, which then stays."""
    reservations.register_both(cluster)
    if "Reservation follows" not in seen_through_both(cluster):
        pr_out(cluster["c1"], path_of(cluster, "n1"), "reserve", KEYS[0], f"--prout-type={TYPE}")
    state = seen_through_both(cluster)
    assert sorted(shown(state)) == sorted(KEYS)
    return state


def test_a_reservation_outlives_a_switchover(cluster: Lab, device: str, load: story.Load) -> None:
    before = reserve(cluster)
    source, destination = story.active_node(cluster), story.standby_node(cluster)
    cluster[source].succeed(f"hactl switchover r0 --to {destination}")
    load.wait_for_progress()
    assert seen_through_both(cluster) == before


def test_no_agent_has_anything_to_tell(cluster: Lab) -> None:
    story.wait_until_settled(cluster)
    for node in cluster.nodes:
        plan = json.loads(node.succeed("hactl plan --json"))
        assert [r["actions"] for r in plan["resources"]] == [[] for _ in plan["resources"]], node.name
