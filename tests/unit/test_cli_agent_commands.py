"""Commands that talk to the agent, against a real server on a Unix socket."""

from __future__ import annotations

import json
import socket as sockets
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


def test_status_for_people(cli: Cli) -> None:
    cli.agent.resync = 12.3456
    result = cli("status")
    assert result.exit_code == Exit.OK
    lines = result.stdout.splitlines()
    assert lines[0] == "node n1, hactl 0.1.0; all agents reachable"
    assert " ".join(lines[1].split()) == "RESOURCE ROLE ACTIVE ON LUN SIZE GATE DISK REPLICATION ALUA"
    assert " ".join(lines[2].split()) == (
        "r0 standby nobody 0 10G - UpToDate n2 Secondary Inconsistent SyncSource 12.3 % n1=standby n2=standby"
    )
    assert lines[3].split()[:6] == ["r1", "active", "n1", "0", "10G", "open"]
    assert len(lines) == 4


def test_status_says_what_is_wrong(cli: Cli) -> None:
    cli.agent.reason, cli.agent.peer_reachable, cli.agent.up_to_date = "[red]disk gone[/red]", False, False
    out = cli("status").stdout
    assert "agents not reachable: n2" in out
    assert "r0: [red]disk gone[/red]" in out
    assert "r0: pending: wait for resync" in out


def test_status_as_json_is_the_agents_document(cli: Cli) -> None:
    assert json.loads(cli("status", "--json").stdout) == cli.agent.status()


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
    cli.agent.status = lambda: {"schema": 1, "node": "n1"}  # type: ignore[method-assign]  # a broken agent
    result = cli("status")
    assert result.exit_code == Exit.FAILED
    assert "agent-bad-answer" in result.stderr
    assert "Traceback" not in result.output
