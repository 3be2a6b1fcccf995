"""kill -9 of agents and of the store's servers at random moments, while resources come and go.

HACTL_LAB_ROUNDS: how many kills; HACTL_LAB_SEED: a number that was printed, to have the same choices again.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from functools import partial

import pytest

from lab import story
from lab.api import Lab, Machine, in_parallel
from tests.lab import world

ROUNDS = int(os.environ.get("HACTL_LAB_ROUNDS", "30"))
SEED = int(os.environ.get("HACTL_LAB_SEED") or random.SystemRandom().randrange(1 << 32))
BETWEEN = 10
"""Rounds between two looks at everything, with promotions."""
FOLDER, GROUP, DEVICE = "/srv/kills", "kills", "/srv/kills.img"
MOST = 5
NAMES = tuple(f"k{number}" for number in range(MOST + 3))
UNITS = ("hactl-agent", "hactl-etcd")
RIGHT = {"leftover-pending", "leftover-taken", "size-shrink"}
"""Codes of refusals that are right: a name is not free until all of its last bearer is gone, and no unit
shrinks."""


@pytest.fixture
def members(lab: Lab) -> Iterator[Lab]:
    """A cluster with a pool of files and one of logical volumes on each node, and a host."""
    story.make_cluster(lab)

    def add(node: Machine) -> None:
        node.succeed(
            f"modprobe loop && mkdir -p {FOLDER} && truncate -s 400M {DEVICE}"
            f" && vgcreate -y {GROUP} $(losetup --find --show {DEVICE})"
        )
        node.succeed(f"hactl node pool add {node.name} files --files {FOLDER}")
        node.succeed(f"hactl node pool add {node.name} lvm --lvm {GROUP}")

    def remove(node: Machine) -> None:
        node.succeed(f"hactl node pool remove {node.name} files")
        node.succeed(f"hactl node pool remove {node.name} lvm")
        loop = f"$(losetup --noheadings --output NAME --associated {DEVICE})"
        node.succeed(f"vgremove {GROUP} && losetup --detach {loop} && rm {DEVICE}")

    in_parallel(*(partial(add, m) for m in lab.nodes))
    lab["n1"].succeed("hactl host add k --initiator iqn.2026-11.io.hactl.lab:k")
    yield lab
    in_parallel(*(partial(remove, m) for m in lab.nodes))
    lab["n1"].succeed("hactl host remove k")


class Campaign:
    """What was ordered so far, and what must have come of it."""

    def __init__(self, lab: Lab, chance: random.Random) -> None:
        self.lab = lab
        self.chance = chance
        self.there: set[str] = set()
        self.outcomes: dict[int, int] = {}

    def round(self) -> str:
        """One command, and one or two kills while it runs; a line about it."""
        choose = self.chance
        name, command, comes = self._command()
        via = choose.choice(self.lab.nodes)
        kills = [
            (choose.choice(self.lab.nodes), unit, choose.uniform(0, 3))
            for unit in choose.sample(UNITS, k=choose.choice((1, 1, 1, 2)))
        ]
        tried, *_ = in_parallel(
            lambda: via.execute(f"hactl {command} --json", timeout=300),
            # Not waiting for anything: the moment is what is varied here.
            *(partial(m.succeed, f"sleep {d:.2f}; systemctl kill --signal=KILL {u}") for m, u, d in kills),
        )
        self.outcomes[tried.status] = self.outcomes.get(tried.status, 0) + 1
        said = ", ".join(f"{u.removeprefix('hactl-')} of {m.name} after {d:.2f} s" for m, u, d in kills)
        line = f"{via.name}: {command}: {tried.status}; killed {said}"
        assert tried.status in (0, 3, 4, 5), f"{line}\n{tried.err}"
        if tried.status == 3:
            assert json.loads(tried.err)["error"]["code"] in RIGHT, f"{line}\n{tried.err}"
        # An election may be going on; it ends.
        via.wait_until_succeeds("hactl resource list")
        found = world.resource_names(via)
        before = set(self.there)
        after = {0: [before ^ {name}], 3: [before], 4: [before]}.get(tried.status, [before, before ^ {name}])
        assert found in (after if comes is not None else [before]), f"{line}\nthere are {sorted(found)}"
        self.there = found
        return line

    def _command(self) -> tuple[str, str, bool | None]:
        """Resource, command, and whether the resource comes (True), goes (False) or stays (None)."""
        choose = self.chance
        kinds = ["create"] * 4 * (len(self.there) < MOST) + ["delete", "delete", "grow", "export"] * bool(
            self.there
        )
        kind = choose.choice(kinds)
        if kind == "create":
            name = choose.choice([n for n in NAMES if n not in self.there])
            nodes = ",".join(sorted(m.name for m in choose.sample(self.lab.nodes, 2)))
            pool = choose.choice(("files", "lvm"))
            return name, f"resource create {name} --size 16M --pool {pool} --nodes {nodes} --no-wait", True
        name = choose.choice(sorted(self.there))
        if kind == "delete":
            return name, f"resource delete {name} --yes-destroy {name}", False
        if kind == "grow":
            # The same again is no change.
            return name, f"resource resize {name} {choose.choice((20, 24))}M", None
        return name, f"{choose.choice(('export', 'unexport'))} {name} k", None

    def settle(self) -> None:
        """Everything is as it shall be, without any order; then every resource is made active somewhere."""
        world.wait_until_right(self.lab, timeout=300)
        resources = world.dump(self.lab["n1"])["cluster"]["resources"]
        assert {r["name"] for r in resources} == self.there
        for r in resources:
            node = self.chance.choice(r["nodes"])
            tried = self.lab["n1"].execute(f"hactl promote {r['name']} --node {node}")
            assert tried.status == 0 or "active-elsewhere" in tried.err, tried.err


def test_nothing_is_left_over_or_lost(members: Lab) -> None:
    print(f"HACTL_LAB_SEED={SEED} HACTL_LAB_ROUNDS={ROUNDS}")
    campaign = Campaign(members, random.Random(SEED))
    for number in range(1, ROUNDS + 1):
        print(f"{number}: {campaign.round()}", flush=True)
        if number % BETWEEN == 0:
            campaign.settle()
    campaign.settle()
    print(f"exit codes: {campaign.outcomes}; resources at the end: {sorted(campaign.there)}")
    for name in sorted(campaign.there):
        members["n1"].succeed(f"hactl resource delete {name} --yes-destroy {name}")
    world.wait_until_right(members)
