"""What nodes ask beside each other: the configuration, its commands, and what the doctor says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hactl.doctor.judge import Severity, judge
from hactl.model import edit
from hactl.model.load import parse
from hactl.model.record import decode
from hactl.model.records import differences, join, split
from tests.unit.cli_world import CLUSTER, World
from tests.unit.fake_agent import FakeAgent, serving
from tests.unit.test_cli_doctor import WELL


@pytest.fixture
def world() -> World:
    return World()


def test_a_witness_is_added_shown_and_removed(world: World) -> None:
    told = world.json("witness", "add", "10.0.3.254")
    assert (told["changed"], told["witnesses"]) == (True, ["10.0.3.254"])
    assert world.json("witness", "add", "10.0.3.254")["changed"] is False
    assert world.json("witness", "add", "fd00::fe")["witnesses"] == ["10.0.3.254", "fd00::fe"]
    assert world.json("witness", "list")["witnesses"] == ["10.0.3.254", "fd00::fe"]
    assert "10.0.3.254, fd00::fe" in world.ok("witness", "list")
    assert world.json("witness", "remove", "10.0.3.254")["witnesses"] == ["fd00::fe"]
    assert world.json("witness", "remove", "10.0.3.254")["changed"] is False
    assert "nobody else" in world.ok("witness", "remove", "fd00::fe")
    assert world.desired.cluster.storage_witnesses == ()


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("gateway", "invalid"),
        ("10.0.3.0/24", "invalid"),
        ("10.0.3.2", "witness-node"),
        ("10.0.1.2", "witness-node"),
    ],
)
def test_what_is_refused(world: World, address: str, code: str) -> None:
    assert world.code("witness", "add", address) == code


def test_a_witness_that_no_portal_could_ask() -> None:
    only4 = CLUSTER.replace(', "fd00::3"', "")
    assert World(cluster=only4).code("witness", "add", "fd00::fe") == "witness-family"


def test_a_file_keeps_the_witnesses_it_does_not_name(world: World, tmp_path: Path) -> None:
    world.ok("witness", "add", "10.0.3.254")
    file = tmp_path / "cluster.yaml"
    file.write_text(world.ok("dump"))
    assert "10.0.3.254" in file.read_text()
    file.write_text(CLUSTER)
    world.ok("apply", "-f", str(file))
    assert [str(a) for a in world.desired.cluster.storage_witnesses] == ["10.0.3.254"]
    file.write_text(CLUSTER.replace("name: lab", "name: lab\nstorage_witnesses: []", 1))
    assert "storage_witnesses" in world.cli("diff", "-f", str(file)).output
    world.ok("apply", "-f", str(file))
    assert world.desired.cluster.storage_witnesses == ()


def test_in_the_store_they_are_of_the_newer_schema_and_nothing_else_is(world: World) -> None:
    plain = world.desired
    new = edit.add_witness(plain, "10.0.3.254")
    changes = differences(plain, new)
    assert list(changes) == ["cluster"]
    assert json.loads(changes["cluster"] or b"")["schema"] == 2
    assert json.loads(split(plain)["cluster"])["schema"] == 1
    assert decode("cluster", changes["cluster"] or b"") == {"storage_witnesses": ["10.0.3.254"]}
    records = {**split(new), "config": b'{"schema":1,"generation":1,"id":"x","changed_at":"","changed_by":"",'
               b'"what":"","recent":[]}'}  # fmt: skip
    assert join("lab", records).cluster.storage_witnesses == new.cluster.storage_witnesses


def test_the_doctor_passes_on_what_the_agent_says() -> None:
    cluster = parse(CLUSTER)
    well = replace(WELL, cluster=cluster)
    assert "doctor-storage-cut" not in {d.code for d in judge(well)}
    (found,) = (d for d in judge(replace(well, storage_cut="no link")) if d.code == "doctor-storage-cut")
    assert (found.severity, found.message) == (Severity.ERROR, "no link")


def test_two_nodes_that_pacemaker_rules_are_told_of_witnesses() -> None:
    cluster = parse(CLUSTER.replace("name: lab", "name: lab\npacemaker: true\nunfenced_promotion: true", 1))
    two = cluster.model_copy(update={"nodes": cluster.nodes[:2]})
    by_hand = two.model_copy(update={"manual_failover": True})
    named = two.model_copy(update={"storage_witnesses": cluster.node("n3").addresses.storage[:1]})
    told = {
        name: {d.code for d in judge(replace(WELL, cluster=spec))} & {"doctor-no-witness"}
        for name, spec in {"three": cluster, "two": two, "by hand": by_hand, "named": named}.items()
    }
    assert told == {"three": set(), "two": {"doctor-no-witness"}, "by hand": set(), "named": set()}


class Watching(FakeAgent):
    """An agent that says what it knows of its storage network."""

    def __init__(self, reason: str | None) -> None:
        super().__init__()
        self.storage = {"verdict": "reachable" if reason is None else "silent", "reason": reason}

    def status(self) -> dict[str, Any]:
        return super().status() | {"storage": self.storage}


@pytest.mark.parametrize(
    ("agent", "cut"), [(FakeAgent(), False), (Watching(None), False), (Watching("nobody answers"), True)]
)
def test_the_doctor_asks_the_agent(world: World, agent: FakeAgent, cut: bool, tmp_path: Path) -> None:
    with serving(agent, tmp_path / "agent.sock"):
        world.socket = tmp_path / "agent.sock"
        told = json.loads(world.cli("--node-file", "/nonexistent/node.yaml", "doctor", "--json").stdout)
    assert ("doctor-storage-cut" in {found["code"] for found in told["findings"]}) is cut
