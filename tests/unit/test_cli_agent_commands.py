"""Commands that talk to the agent, against a real server on a Unix socket."""

from __future__ import annotations

import json
import socket as sockets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hactl.cli.exits import Exit
from hactl.cli.main import app
from tests.unit.fake_agent import FakeAgent, serving
from tests.unit.test_model_load import TEXT


class Cli:
    """Runs ``hactl`` in this process against one agent."""

    def __init__(self, agent: FakeAgent, socket: Path) -> None:
        self.agent = agent
        self.socket = socket

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"HACTL_SOCKET": str(self.socket)})


@pytest.fixture
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    # A short path: a Unix socket's has 107 bytes at most.
    agent, socket = FakeAgent(), tmp_path_factory.mktemp("s") / "a.sock"
    with serving(agent, socket):
        yield Cli(agent, socket)


def error(result: Result) -> dict[str, str]:
    """The error of a command run with --json."""
    assert result.stdout == ""
    found = json.loads(result.stderr)["error"]
    assert isinstance(found, dict)
    return found


def words(line: str) -> str:
    return " ".join(line.split())


def test_status_of_this_node_for_people(cli: Cli) -> None:
    cli.agent.resync = 12.3456
    result = cli("status", "--here")
    assert result.exit_code == Exit.OK
    lines = result.stdout.splitlines()
    assert lines[0] == "node n1, hactl 0.1.0; all agents reachable"
    assert words(lines[1]) == "RESOURCE ROLE ACTIVE ON LUN SIZE GATE DISK REPLICATION ALUA"
    assert words(lines[2]) == (
        "r0 standby nobody 0 10G closed UpToDate n2 Secondary Inconsistent SyncSource 12.3 % "
        "n1=standby n2=standby"
    )
    assert lines[3].split()[:6] == ["r1", "active", "n1", "0", "10G", "open"]
    assert len(lines) == 4


def test_status_of_the_cluster_for_people(cli: Cli) -> None:
    cli.agent.resync = 50.0
    lines = [words(line) for line in cli("status").stdout.splitlines()]
    assert lines[0] == "NODE AGENT HACTL CONFIG ACTIVE STANDBY IN TROUBLE"
    assert lines[1:3] == ["n1 (here) up 0.1.0 4 1 1 0", "n2 up 0.1.0 4 0 2 0"]
    assert lines[4] == "RESOURCE ACTIVE ON LUN SIZE NODE ROLE GATE DISK REPLICATION ALUA"
    assert lines[5] == (
        "r0 nobody 0 10G n1 standby closed UpToDate n2 Connected SyncSource n1=standby n2=standby"
    )
    assert lines[6].endswith("50.0 %")
    assert lines[6] != "50.0 %", "no bar"
    assert lines[7].startswith("n2 standby closed UpToDate n1 Connected")
    assert lines[9].startswith("r1 n1 0 10G n1 active open")


def test_status_says_what_is_wrong(cli: Cli) -> None:
    cli.agent.reason, cli.agent.peer_reachable, cli.agent.up_to_date = "[red]disk gone[/red]", False, False
    out = cli("status", "--here").stdout
    assert "agents not reachable: n2" in out
    assert "r0: [red]disk gone[/red]" in out
    assert "r0: pending: wait for resync" in out
    whole = cli("status").stdout
    assert "r0 on n1: [red]disk gone[/red]" in whole
    assert "not reached from n1: n2" in whole
    assert "still work" in whole
    assert "make sure that it is off" in whole


def test_status_as_json_is_the_agents_documents(cli: Cli) -> None:
    assert json.loads(cli("status", "--json").stdout) == {
        **cli.agent.status(),
        "cluster": cli.agent.cluster(),
    }
    here = json.loads(cli("status", "--json", "--here").stdout)
    assert here == {**cli.agent.status(), "cluster": None}


def test_status_without_the_others(cli: Cli) -> None:
    """An agent that cannot tell about the others still tells about itself."""
    cli.agent.cluster = lambda: {"schema": 9}  # type: ignore[method-assign]  # of another version
    result = cli("status")
    assert result.exit_code == Exit.OK
    assert "node n1, hactl 0.1.0" in result.stdout
    assert "only this node's view" in result.stdout
    document = json.loads(cli("status", "--json").stdout)
    assert document["cluster"] is None
    assert document["cluster_error"]["code"] == "agent-schema"


def test_status_says_what_is_still_to_be_taken_down(cli: Cli) -> None:
    left = {"resource": "r5", "volume": 0, "device": "/dev/vg0/x", "destroy": True, "reason": "it is in use"}
    more = {
        "reason": "the store is not reached",
        "leaving": [{"name": "r6", "reason": None}],
        "leftovers": [left],
    }
    document = cli.agent.status() | more
    cli.agent.status = lambda: document  # type: ignore[method-assign]  # a node with work left
    for arguments in (["status"], ["status", "--here"]):
        lines = cli(*arguments).stdout.splitlines()
        assert "n1: the store is not reached" in lines
        assert "r6 on n1: is being taken down" in lines
        assert "r5/0 on n1: has still to be removed: it is in use" in lines


def test_watching_goes_on_until_it_is_interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def sleep(_: float) -> None:
        looks.append(1)
        cli.agent.schema = 2 if len(looks) == 1 else 1
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    result = cli("status", "--watch")
    assert result.exit_code == Exit.INTERRUPTED
    assert "r1" in result.stdout
    assert "Traceback" not in result.output
    assert len(looks) == 3


def test_watching_is_not_for_programs(cli: Cli) -> None:
    result = cli("status", "--watch", "--json")
    assert (error(result)["code"], result.exit_code) == ("watch-json", Exit.REFUSED)


def test_status_compared_with_a_file(cli: Cli, tmp_path: Path) -> None:
    spec = tmp_path / "c.yaml"
    spec.write_text(TEXT.replace("r0", "r7"))
    out = cli("status", "--spec", str(spec)).stdout
    assert "only in file: r7" in out
    assert "only in agent: r0, r1" in out
    document = json.loads(cli("status", "--json", "--spec", str(spec)).stdout)
    assert document["spec"] == {"only_in_file": ["r7"], "only_in_agent": ["r0", "r1"]}


def test_orders_change_the_agent(cli: Cli) -> None:
    for arguments, says, roles in [
        (["promote", "r0"], "r0 is active on this node (0.2 s)", {"r0": "active", "r1": "active"}),
        (["switchover", "r0", "--to", "n2"], "r0 is active on n2 (0.2 s)", {"r0": "standby", "r1": "active"}),
        (["demote", "r1"], "r1 is demoted on this node (0.2 s)", {"r0": "standby", "r1": "demoted"}),
    ]:
        result = cli(*arguments)
        assert (result.exit_code, result.stdout.strip(), result.stderr) == (Exit.OK, says, "")
        assert cli.agent.roles == roles
    assert json.loads(cli("promote", "r0", "--json").stdout) == {"done": "promote", "seconds": 0.25}


def test_orders_for_another_node_go_through_this_ones_agent(cli: Cli) -> None:
    assert cli("promote", "r0", "--node", "n2").stdout == "r0 is active on n2 (0.2 s)\n"
    assert cli("demote", "r0", "--node", "n2").stdout == "r0 is demoted on n2 (0.2 s)\n"
    assert cli.agent.orders == ["promote r0 on n2", "demote r0 on n2"]
    assert cli("promote", "r0", "--node", "N2").exit_code == Exit.REFUSED


def test_a_switchover_goes_to_the_other_replica(cli: Cli) -> None:
    assert cli("switchover", "r1").stdout == "r1 is active on n2 (0.2 s)\n"
    assert cli.agent.orders == ["switchover r1"]


def test_a_switchover_that_could_go_anywhere_is_refused(cli: Cli) -> None:
    result = cli("switchover", "r0", "--json")
    assert (error(result)["code"], result.exit_code) == ("switchover-where", Exit.REFUSED)
    assert error(cli("switchover", "r9", "--json"))["code"] == "unknown-resource"
    assert cli.agent.orders == []


def test_plan(cli: Cli) -> None:
    assert cli("plan").stdout == "node n1: nothing to do\n"
    cli.agent.roles["r0"] = "active"
    assert cli("plan").stdout == "r0: make r0 primary (ordered active)\n"
    document = json.loads(cli("plan", "--json").stdout)
    assert document["resources"][0]["actions"][0]["action"] == "DrbdPrimary"


def test_a_refusal_has_code_message_and_hint_once(cli: Cli) -> None:
    cli.agent.up_to_date = False
    result = cli("promote", "r0")
    assert result.exit_code == Exit.REFUSED
    assert result.stdout == ""
    assert result.stderr == (
        "hactl: drbd-not-uptodate: the disk of r0 is Inconsistent\nhint: wait for the resync\n"
    )
    assert error(cli("promote", "r0", "--json")) == {
        "code": "drbd-not-uptodate",
        "message": "the disk of r0 is Inconsistent",
        "hint": "wait for the resync",
    }
    assert cli.agent.orders == []


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["promote", "r9"], "unknown-resource", Exit.REFUSED),
        (["switchover", "r1", "--to", "n9"], "unknown-node", Exit.REFUSED),
        (["demote", "r1"], "device-busy", Exit.FAILED),
        (["switchover", "r1", "--to", "n2"], "peer-timeout", Exit.UNKNOWN),
        (["promote", "../r0"], "resource-name", Exit.REFUSED),
        (["switchover", "r1", "--to", "N2"], "node-name", Exit.REFUSED),
    ],
)
def test_the_agents_errors_decide_the_exit_code(
    cli: Cli, arguments: list[str], code: str, exit_code: Exit
) -> None:
    cli.agent.reason, cli.agent.peer_reachable = "a process has it open", False
    result = cli(*arguments, "--json")
    assert result.exit_code == exit_code
    assert error(result)["code"] == code
    assert cli.agent.orders == []


@pytest.mark.parametrize(
    ("trouble", "order", "question"),
    [
        ("hang", ("agent-timeout", Exit.UNKNOWN), None),
        ("drop", ("agent-connection-lost", Exit.UNKNOWN), ("agent-connection-lost", Exit.UNREACHABLE)),
        ("garbage", ("agent-bad-answer", Exit.UNKNOWN), ("agent-bad-answer", Exit.UNREACHABLE)),
        ("mute", ("agent-bad-answer", Exit.UNKNOWN), ("agent-bad-answer", Exit.FAILED)),
    ],
)
def test_an_order_without_an_answer_is_unknown(
    cli: Cli, trouble: str, order: tuple[str, Exit], question: tuple[str, Exit] | None
) -> None:
    cli.agent.trouble = trouble
    result = cli("promote", "r0", "--json", "--timeout", "0.3")
    assert (error(result)["code"], result.exit_code) == order
    assert cli.agent.orders == ["promote r0"], "it was carried out all the same"
    if question is not None:
        result = cli("status", "--json")
        assert (error(result)["code"], result.exit_code) == question


def test_a_newer_agent_is_not_guessed_at(cli: Cli) -> None:
    cli.agent.schema = 2
    result = cli("status", "--json")
    assert (error(result)["code"], result.exit_code) == ("agent-schema", Exit.FAILED)


def test_an_agent_that_is_not_there(cli: Cli) -> None:
    result = cli("promote", "r0", "--socket", str(cli.socket) + ".none")
    assert result.exit_code == Exit.UNREACHABLE
    assert "agent-unreachable" in result.stderr
    assert "systemctl status hactl-agent" in result.stderr


def test_a_socket_nobody_listens_on(cli: Cli) -> None:
    left = cli.socket.with_name("left")
    with sockets.socket(sockets.AF_UNIX) as stale:
        stale.bind(str(left))
    assert cli("status", "--socket", str(left)).exit_code == Exit.UNREACHABLE
    assert cli("status", "--socket", str(left) + "x" * 200).exit_code == Exit.UNREACHABLE


def test_a_malformed_status_is_an_error_and_no_traceback(cli: Cli) -> None:
    cli.agent.active.clear()
    cli.agent.roles = {}
    assert "no resources" in cli("status").stdout
    assert "no resources" in cli("status", "--here").stdout
    malformed = {"schema": 1, "node": "n1", "nodes": [{"node": "n1", "reachable": True, "status": {}}]}
    cli.agent.cluster = lambda: malformed  # type: ignore[method-assign]  # a broken agent
    cli.agent.status = lambda: {"schema": 1, "node": "n1"}  # type: ignore[method-assign]  # a broken agent
    for arguments in (["status"], ["status", "--here"], ["switchover", "r0"]):
        result = cli(*arguments)
        assert result.exit_code == Exit.FAILED
        assert "agent-bad-answer" in result.stderr
        assert "Traceback" not in result.output


def test_an_agent_that_is_down_leaves_configuration_to_do(cli: Cli) -> None:
    result = cli("status", "--socket", str(cli.socket) + ".none")
    assert result.exit_code == Exit.UNREACHABLE
    assert "configuration still works" in result.stderr
