"""``hactl resource create`` waits for the agents and orders the promotion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hactl.cli.bring_up import PATIENCE, bring_up
from hactl.cli.client import AgentClient
from hactl.cli.cluster_view import Progress, progress
from hactl.cli.exits import Exit
from hactl.errors import MOMENTARY, Unknown
from tests.unit.cli_world import World
from tests.unit.fake_agent import FakeAgent, serving

CREATE = ("resource", "create", "r7", "--size", "10G")


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeAgent, World]]:
    fake, socket = FakeAgent(), tmp_path_factory.mktemp("s") / "a.sock"
    with serving(fake, socket):
        yield fake, World(socket=socket)


def test_it_waits_and_promotes(agent: tuple[FakeAgent, World]) -> None:
    fake, world = agent
    fake.late = ["r7"]
    result = world.cli(*CREATE)
    assert (result.exit_code, result.stdout) == (Exit.OK, "r7: created on n1, n2, active on n1\n")
    assert result.stderr == "r7: waiting for n1: its agent has not begun; n2: its agent has not begun\n"
    assert fake.orders == ["promote r7"]


@pytest.mark.parametrize("code", ["not-ready", *sorted(MOMENTARY)])
def test_an_agent_that_is_not_ready_yet_is_asked_again(agent: tuple[FakeAgent, World], code: str) -> None:
    fake, world = agent
    fake.not_ready_code = code
    fake.late = ["r7"]
    fake.not_ready = ["the LIO tree is not in order: enable portal group 1"]
    result = world.cli(*CREATE)
    assert (result.exit_code, result.stdout) == (Exit.OK, "r7: created on n1, n2, active on n1\n")
    assert "waiting for n1 cannot take over r7: the LIO tree is not in order" in result.stderr
    assert fake.orders == ["promote r7"]


def test_where_pacemaker_is_in_charge_it_waits_for_that(agent: tuple[FakeAgent, World]) -> None:
    fake, world = agent
    fake.late = ["r7"]
    fake.pacemaker = "n2"
    result = world.cli(*CREATE)
    assert (result.exit_code, result.stdout) == (Exit.OK, "r7: created on n1, n2, active on n2\n")
    assert result.stderr.endswith("r7: waiting for Pacemaker to promote it\n")
    assert fake.orders == []


def test_as_json_it_waits_in_silence(agent: tuple[FakeAgent, World]) -> None:
    fake, world = agent
    fake.late = ["r7"]
    document = world.json(*CREATE, "--preferred", "n2")
    assert (document["changed"], document["resource"]["preferred"]) == (True, "n2")
    assert fake.orders == ["promote r7 on n2"]


def test_without_waiting_the_agent_is_not_asked(agent: tuple[FakeAgent, World]) -> None:
    fake, world = agent
    result = world.cli(*CREATE, "--no-wait")
    assert (result.stdout, result.stderr) == ("r7: created on n1, n2\n", "")
    assert fake.orders == []


@pytest.mark.parametrize(("timeout", "why"), [("0.2", "its agent has not begun")])
def test_what_takes_too_long_is_unknown(agent: tuple[FakeAgent, World], timeout: str, why: str) -> None:
    fake, world = agent
    result = world.cli(*CREATE, "--timeout", timeout, "--json")
    told = json.loads(result.stderr)["error"]
    assert (result.exit_code, told["code"]) == (Exit.UNKNOWN, "create-unfinished")
    assert why in told["message"]
    assert "hactl promote r7 --node n1" in told["hint"]
    assert [r.name for r in world.desired.cluster.resources] == ["r7"], "it is created all the same"
    assert fake.orders == []


def test_an_agent_that_is_down(tmp_path: Path) -> None:
    world = World(socket=tmp_path / "none")
    result = world.cli(*CREATE, "--timeout", "0.2")
    assert result.exit_code == Exit.UNKNOWN
    assert "r7 is created, and not active yet" in result.stderr
    assert "cannot be reached" in result.stderr


def test_a_promotion_that_is_refused(agent: tuple[FakeAgent, World]) -> None:
    fake, world = agent
    fake.roles["r7"], fake.active["r7"] = "standby", None
    refusing = fake.cluster()
    for node in refusing["nodes"]:
        node["status"]["resources"][2]["volumes"][0]["disk"] = "UpToDate"
    fake.cluster = lambda: refusing  # type: ignore[method-assign]  # what it was a moment ago
    fake.up_to_date = False
    result = world.cli(*CREATE)
    assert result.exit_code == Exit.UNKNOWN
    assert "drbd-not-uptodate" in result.stderr


def volume(**changes: Any) -> dict[str, Any]:
    return {"number": 0, "gate": "closed", "disk": "UpToDate"} | changes


def cluster(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any]:
    nodes = []
    for name, resource in (("n1", first), ("n2", second)):
        status = None if resource is None else {"resources": [{"name": "r7", "connections": [], **resource}]}
        nodes.append({"node": name, "reachable": resource is not None, "status": status})
    return {"nodes": nodes}


def seen(first: dict[str, Any] | None, second: dict[str, Any] | None) -> Progress:
    return progress(cluster(first, second), "r7", ["n1", "n2"], ["n1"], [0])


def test_progress() -> None:
    ready = {"volumes": [volume()]}
    assert seen(ready, {"volumes": [volume(disk=None)]}).ready, "a node without a replica has no disk"
    assert seen(ready, None).waiting == ("n2: its agent is not reached",)
    assert seen({"volumes": [volume(gate=None)]}, ready).waiting == ("n1: volume 0 is not set up",)
    assert seen({"volumes": []}, ready).waiting == ("n1: volume 0 is not set up",)
    failing = {"volumes": [], "reason": "the pool is full"}
    assert seen(failing, ready).waiting == ("n1: volume 0 is not set up (the pool is full)",)
    shut = {"volumes": [volume()], "pending": ["enable portal group 1", "enable portal group 2"]}
    assert seen(ready, shut).waiting == ("n2: enable portal group 1",)
    assert seen({**shut, "reason": "no such portal"}, ready).waiting == (
        "n1: enable portal group 1 (no such portal)",
    )
    copying = [{"volumes": [{"number": 0, "done": 41.5}]}]
    late = {"volumes": [volume(disk="Inconsistent")], "connections": copying}
    assert seen(late, ready).waiting == ("n1: disk of volume 0 is Inconsistent, 42 %",)
    trouble = {"volumes": [], "problems": [{"code": "disk-in-use", "message": "m", "hint": "h"}]}
    assert seen(trouble, ready).problems == ("n1: m (h) [disk-in-use]",)


class MemoryTime:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_an_agent_that_is_never_ready_ends_the_wait(agent: tuple[FakeAgent, World]) -> None:
    fake, world = agent
    fake.not_ready = ["gate hactl-r7-0 has a table that is not hactl's"] * 100
    world.ok(*CREATE, "--no-wait")
    fake.roles["r7"], fake.active["r7"] = "standby", None
    clock = MemoryTime()
    made = world.desired.cluster.resource("r7")
    with pytest.raises(Unknown, match=r"has a table that is not hactl's"):
        bring_up(AgentClient(str(world.socket)), made, "n1", 600, print, clock=clock.now, sleep=clock.sleep)
    assert PATIENCE < clock.seconds < 2 * PATIENCE
    assert fake.orders == []


def test_a_problem_that_stays_ends_the_wait(agent: tuple[FakeAgent, World]) -> None:
    fake, world = agent
    trouble = {"volumes": [], "problems": [{"code": "disk-in-use", "message": "m", "hint": "h"}]}
    answer = {"schema": 1, **cluster(trouble, trouble)}
    fake.cluster = lambda: answer  # type: ignore[method-assign]  # a node with a disk that is in use
    world.ok(*CREATE, "--no-wait")
    told: list[str] = []
    clock = MemoryTime()
    made = world.desired.cluster.resource("r7")
    with pytest.raises(Unknown, match=r"disk-in-use"):
        bring_up(
            AgentClient(str(world.socket)), made, "n1", 600, told.append, clock=clock.now, sleep=clock.sleep
        )
    assert len(told) == 1
    assert PATIENCE < clock.seconds < 2 * PATIENCE
