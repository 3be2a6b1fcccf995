"""The client's persistent reservations on r0, with sg_persist."""

from __future__ import annotations

from lab import story
from lab.api import Lab, Machine

KEYS = ("0xa1", "0xa2")
TYPE = 5
"""Write exclusive, registrants only."""


def path_of(cluster: Lab, node: str) -> str:
    """The client's device for the unit through a node."""
    portal = story.portals(cluster, node)[0]
    return next(f"/dev/{p.device}" for p in story.paths(cluster["c1"]) if p.portal == portal)


def pr_out(client: Machine, path: str, action: str, key: str, *more: str) -> None:
    """A service action under a registered key."""
    client.succeed(f"sg_persist -n --out --{action} --param-rk={key} {' '.join(more)} {path}", timeout=60)


def register(client: Machine, path: str, key: str) -> None:
    """A registration, whatever was registered before."""
    client.succeed(f"sg_persist -n --out --register-ignore --param-sark={key} {path}", timeout=60)


def register_both(cluster: Lab) -> None:
    """A registration through each node, under a key of its own."""
    for node, key in zip(("n1", "n2"), KEYS, strict=True):
        register(cluster["c1"], path_of(cluster, node), key)


def reserve(cluster: Lab) -> None:
    """A registration through each node, and a reservation through n1."""
    register_both(cluster)
    pr_out(cluster["c1"], path_of(cluster, "n1"), "reserve", KEYS[0], f"--prout-type={TYPE}")
