"""``hactl cluster`` as it is typed: tokens out of sight, JSON, refusals with their exit code."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hactl.cli.main import app
from hactl.cluster import invite, pki
from hactl.cluster.kit import Kit
from hactl.cluster.layout import Layout
from hactl.cluster.memory_machine import MemoryMachine
from hactl.cluster.memory_members import MemoryEtcd, MemoryMembers, MemoryServices
from hactl.cluster.memory_ring import MemoryRing
from hactl.model.names import address
from hactl.store.memory import MemoryStore
from tests.unit.cluster_world import allow_loopback, free_network

ADDRESS = f"127.{free_network()}.1.1"
run = CliRunner()


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """One machine, in memory, that every command finds."""
    allow_loopback(monkeypatch)
    monkeypatch.delenv("HACTL_TOKEN", raising=False)
    etcd, layout, state = MemoryEtcd(), Layout(tmp_path), MemoryStore()

    async def nothing() -> None:
        pass

    services = MemoryServices(layout, etcd, nothing, nothing)
    made = Kit(
        layout=layout,
        machine=MemoryMachine("n1", [address(ADDRESS)]),
        services=services,
        ring=MemoryRing(services.corosync, "n1"),
        members=lambda endpoints: MemoryMembers(etcd, endpoints),
        store=lambda _: state.client(),
    )
    monkeypatch.setattr("hactl.cluster.kit.real", lambda: made)
    return made


def test_init_prints_one_command_with_the_token_out_of_argv(kit: Kit) -> None:
    done = run.invoke(app, ["cluster", "init", "lab"])
    assert done.exit_code == 0, done.output
    (command,) = [line.strip() for line in done.stdout.splitlines() if "hactl1-" in line]
    assert command.startswith("hactl cluster join <<< hactl1-")
    token = invite.parse(command.split()[-1])
    assert (token.cluster, str(token.address)) == ("lab", ADDRESS)
    assert token.expires - pki.utc_now() < timedelta(hours=1)


def test_init_sets_up_pacemaker_unless_it_shall_not(kit: Kit) -> None:
    assert run.invoke(app, ["cluster", "init", "lab", "--without-pacemaker"]).exit_code == 0
    assert not asyncio.run(kit.services.active("pacemaker.service"))
    run.invoke(app, ["cluster", "leave", "--end-cluster", "lab"])
    done = run.invoke(app, ["cluster", "init", "other"])
    assert done.exit_code == 0, done.output
    assert asyncio.run(kit.services.active("pacemaker.service"))
    assert kit.layout.corosync_file.read_text().startswith("# Written by hactl")


def test_status_and_invitations_as_json(kit: Kit) -> None:
    made = json.loads(run.invoke(app, ["cluster", "init", "lab", "--json"]).stdout)
    assert invite.parse(made["token"]).id == made["invitation"]
    told = json.loads(run.invoke(app, ["cluster", "status", "--json"]).stdout)
    assert told["store"]["leader"] == "n1"
    listed = run.invoke(app, ["cluster", "invite", "--list", "--json"]).stdout
    assert [i["id"] for i in json.loads(listed)["invitations"]] == [made["invitation"]]
    assert invite.parse(made["token"]).secret not in listed
    assert run.invoke(app, ["cluster", "invite", "--revoke", made["invitation"]]).exit_code == 0
    assert run.invoke(app, ["cluster", "invite", "--revoke", made["invitation"]]).exit_code == 3
    shown = run.invoke(app, ["cluster", "status"])
    assert "leader" in shown.stdout
    assert "n1" in shown.stdout


def test_a_token_as_an_argument_is_refused(kit: Kit) -> None:
    done = run.invoke(app, ["cluster", "join", "hactl1-abc"])
    assert done.exit_code == 3
    assert "token-exposed" in done.stderr
    assert "hactl1-abc" not in done.output


@pytest.mark.parametrize("way", ["stdin", "dash", "environment", "file"])
def test_the_ways_of_a_token(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    # Damaged, which is what the answer tells of: it has arrived.
    token, arguments, given = "hactl1-damaged", [], None
    if way == "stdin":
        given = token + "\n"
    elif way == "dash":
        arguments, given = ["-"], token + "\n"
    elif way == "environment":
        monkeypatch.setenv("HACTL_TOKEN", token)
    else:
        (tmp_path / "token").write_text(token)
        arguments = ["--token-file", str(tmp_path / "token")]
    done = run.invoke(app, ["cluster", "join", *arguments], input=given)
    assert done.exit_code == 3
    assert "token-damaged" in done.stderr


def test_no_token_and_an_unreadable_one(kit: Kit) -> None:
    assert "token-missing" in run.invoke(app, ["cluster", "join"], input="").stderr
    assert "token-file" in run.invoke(app, ["cluster", "join", "--token-file", "/nowhere"]).stderr


def test_join_without_a_token_on_a_node_finishes_what_is_missing(kit: Kit) -> None:
    run.invoke(app, ["cluster", "init", "lab"])
    asyncio.run(kit.services.stop("hactl-agent.service"))
    done = run.invoke(app, ["cluster", "join"], input="")
    assert done.exit_code == 0, done.output
    assert asyncio.run(kit.services.active("hactl-agent.service"))


def test_leaving_and_being_in_no_cluster(kit: Kit) -> None:
    assert "not-in-cluster" in run.invoke(app, ["cluster", "status"]).stderr
    run.invoke(app, ["cluster", "init", "lab"])
    assert "last-node" in run.invoke(app, ["cluster", "leave"]).stderr
    assert run.invoke(app, ["cluster", "leave", "--lost", "n9", "--only-here"]).exit_code == 2
    done = run.invoke(app, ["cluster", "leave", "--end-cluster", "lab"])
    assert done.exit_code == 0, done.output
    assert not kit.layout.node_file.exists()


def test_renewal_by_hand(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    run.invoke(app, ["cluster", "init", "lab"])
    assert "not due" in run.invoke(app, ["cluster", "renew-certificates"]).stdout
    later = replace(kit, now=lambda: pki.utc_now() + timedelta(days=300))
    monkeypatch.setattr("hactl.cluster.kit.real", lambda: later)
    told = json.loads(run.invoke(app, ["cluster", "renew-certificates", "--json"]).stdout)
    assert told["renewed"] is True


def test_several_obstacles_are_listed(kit: Kit) -> None:
    machine = kit.machine
    assert isinstance(machine, MemoryMachine)
    machine.etcd = False
    done = run.invoke(app, ["--debug", "cluster", "init", "lab", "--pool", "p=files:/nowhere", "--json"])
    assert done.exit_code == 3
    body = json.loads(done.stderr[done.stderr.index("{\n") :])["error"]
    assert body["code"] == "node-not-ready"
    assert [f["code"] for f in body["findings"]] == ["etcd-missing", "pool-missing"]
    assert not kit.layout.etc.exists()
