"""Commands that change the configuration, on a store in memory and without any agent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hactl.cli.exits import Exit
from hactl.store.memory import Fault
from tests.unit.cli_world import IQN, OTHER_SECRET, SECRET, World

CREATE = ("resource", "create", "r0", "--size", "10G", "--no-wait")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def busy(world: World) -> World:
    """With a host and a resource that it sees."""
    world.ok("host", "add", "c1", "--initiator", IQN)
    world.ok(*CREATE, "--host", "c1")
    return world


def test_nodes(world: World) -> None:
    lines = [" ".join(line.split()) for line in world.ok("node", "list").splitlines()]
    assert lines[0] == "NODE ID CLUSTER REPLICATION STORAGE FAILURE DOMAIN POOLS"
    assert lines[3] == "n3 3 10.0.1.3 10.0.2.3 10.0.3.3, fd00::3 - -"
    assert [n["name"] for n in world.json("node", "list")["nodes"]] == ["n1", "n2", "n3"]
    assert "fast" in world.ok("node", "show", "n1")
    document = world.json("node", "show", "n1")
    assert document["addresses"]["storage"] == ["10.0.3.1"]
    assert document["resources"] == document["leftovers"] == []
    assert world.code("node", "show", "n9") == "unknown-node"


def test_a_nodes_addresses(world: World) -> None:
    document = world.json("node", "set-address", "n1", "--storage", "10.0.3.9", "--storage", "10.0.4.9")
    assert document["changed"] is True
    assert document["node"]["addresses"] == {
        "cluster": "10.0.1.1",
        "replication": "10.0.2.1",
        "storage": ["10.0.3.9", "10.0.4.9"],
    }
    again = world.json("node", "set-address", "n1", "--storage", "10.0.3.9", "--storage", "10.0.4.9")
    assert (again["changed"], again["generation"]) == (False, document["generation"])
    assert world.code("node", "set-address", "n1", "--cluster", "10.0.1.2") == "address-duplicate"
    assert world.code("node", "set-address", "n1", "--cluster", "here") == "invalid"
    assert world.cli("node", "set-address", "n1").exit_code == Exit.USAGE


def test_failure_domains_and_pools(world: World) -> None:
    assert "rack1" in world.ok("node", "set", "n1", "--failure-domain", "rack1")
    assert world.desired.cluster.node("n1").failure_domain == "rack1"
    world.ok("node", "set", "n1", "--failure-domain", "")
    assert world.desired.cluster.node("n1").failure_domain is None
    world.ok("node", "pool", "add", "n3", "slow", "--files", "/srv/hactl")
    world.ok("node", "pool", "add", "n3", "thin", "--lvm-thin", "vg0/tp")
    assert "slow=files:/srv/hactl, thin=lvm_thin:vg0/tp" in world.ok("node", "list")
    assert world.code("node", "pool", "add", "n3", "slow", "--lvm", "vg0") == "pool-exists"
    assert world.code("node", "pool", "add", "n3", "x", "--lvm-thin", "vg0") == "invalid"
    assert world.cli("node", "pool", "add", "n3", "x").exit_code == Exit.USAGE
    world.ok("node", "pool", "remove", "n3", "thin")
    assert world.code("node", "pool", "remove", "n3", "thin") == "pool-unknown"


def test_nodes_go_when_nothing_is_on_them(busy: World) -> None:
    assert busy.code("node", "remove", "n1") == "node-in-use"
    assert "removed" in busy.ok("node", "remove", "n3")
    busy.ok("node", "remove", "n2", "--lost")
    assert [n.name for n in busy.desired.cluster.nodes] == ["n1"]
    assert busy.code("node", "remove", "n1", "--lost") in ("last-replica", "last-node")


def test_a_node_is_replaced(busy: World) -> None:
    assert busy.code("node", "replace", "n2", "n3") == "pool-unknown"
    busy.ok("node", "pool", "add", "n3", "fast", "--lvm", "vg9")
    busy.ok("node", "replace", "n2", "n3", "--lost")
    assert busy.desired.cluster.resource("r0").replicas == ("n1", "n3")
    assert busy.desired.leftovers == ()


def test_a_resource_is_created_and_shown(busy: World) -> None:
    made = busy.desired.cluster.resource("r0")
    assert (made.replicas, made.hosts, made.iqn) == (("n1", "n2"), ("c1",), "iqn.2026-11.io.hactl.lab:r0")
    assert made.volumes[0].serial is not None
    rows = [" ".join(line.split()) for line in busy.ok("resource", "list").splitlines()]
    assert rows[1].startswith("r0 10G n1, n2 n1 c1 iqn.")
    document = busy.json("resource", "show", "r0")
    assert document["volumes"][0]["devices"] == {"n1": "/dev/vg0/hactl.r0.0", "n2": "/dev/vg0/hactl.r0.0"}
    assert busy.json("resource", "list")["resources"] == [
        {k: v for k, v in document.items() if k not in ("schema", "leftovers")}
    ]
    assert "size: 10G" in busy.ok("resource", "show", "r0")
    assert busy.code(*CREATE) == "resource-exists"


def test_a_resource_on_named_disks(world: World) -> None:
    disks = ("--disk", "n2=/dev/sdb", "--disk", "n3=/dev/sdc")
    world.ok(
        *CREATE, *disks, "--preferred", "n3", "--nodes", "n1,n2,n3", "--iqn", "iqn.2026-01.com.example:a"
    )
    made = world.desired.cluster.resource("r0")
    assert (made.nodes, made.replicas, made.preferred) == (("n1", "n2", "n3"), ("n2", "n3"), "n3")
    world.ok("resource", "set", "r0", "--preferred", "n2")
    assert world.desired.cluster.resource("r0").preferred == "n2"
    assert world.code("resource", "set", "r0", "--preferred", "n1") == "preferred-not-replica"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--size", "10X"], "invalid"),
        (["--size", "1"], "size-too-small"),
        (["--host", "c9"], "unknown-host"),
        (["--nodes", "n9"], "unknown-node"),
        (["--pool", "slow"], "pool-unknown"),
        (["--replicas", "3"], "no-room-for-replicas"),
        (["--preferred", "n3"], "preferred-not-replica"),
        (["--disk", "n1=/tmp/x"], "invalid"),
        (["--disk", "n1=pool:none"], "pool-unknown"),
        (["--iqn", "nonsense"], "invalid"),
    ],
)
def test_what_cannot_be_created_is_refused(world: World, more: list[str], code: str) -> None:
    assert world.code(*CREATE, *more) == code


@pytest.mark.parametrize("more", [["--disk", "n1"], ["--disk", "n1=/dev/a", "--disk", "n1=/dev/b"]])
def test_a_malformed_disk(world: World, more: list[str]) -> None:
    assert world.cli(*CREATE, *more).exit_code == Exit.USAGE


def test_growing(busy: World) -> None:
    busy.ok("resource", "resize", "r0", "12G")
    assert busy.desired.cluster.resource("r0").volumes[0].size == 12 << 30
    assert "nothing to change" in busy.ok("resource", "resize", "r0", "12G")
    assert busy.code("resource", "resize", "r0", "1G") == "size-shrink"
    busy.ok("volume", "add", "r0", "--size", "1G")
    assert busy.code("resource", "resize", "r0", "20G") == "which-volume"
    busy.ok("volume", "resize", "r0", "1", "2G")
    assert [v.size >> 30 for v in busy.desired.cluster.resource("r0").volumes] == [12, 2]


def test_deleting_asks_for_the_name(busy: World) -> None:
    assert busy.code("resource", "delete", "r0") == "confirmation-needed"
    assert busy.code("resource", "delete", "r0", "--yes-destroy", "r1") == "confirmation-needed"
    assert busy.code("resource", "delete", "r9", terminal=True, text="r9\n") == "unknown-resource"
    assert busy.code("resource", "delete", "r0", terminal=True, text="r1\n") == "confirmation-wrong"
    aborted = busy.cli("resource", "delete", "r0", terminal=True, text="")
    assert aborted.exit_code == Exit.INTERRUPTED
    assert [*busy.desired.leftovers] == []
    contradiction = busy.cli("resource", "delete", "r0", "--keep-data", "--yes-destroy", "r0")
    assert contradiction.exit_code == Exit.USAGE
    result = busy.cli("resource", "delete", "r0", terminal=True, text="r0\n")
    assert result.exit_code == Exit.OK, result.output
    leftovers = busy.desired.leftovers
    assert [(left.node, left.destroy) for left in leftovers] == [("n1", True), ("n2", True)]
    assert "r0/0: still to be removed by n1" in busy.ok("resource", "list")
    assert busy.code(*CREATE) == "leftover-pending"


def test_deleting_without_a_question(busy: World) -> None:
    document = busy.json("resource", "delete", "r0", "--keep-data")
    assert [left["destroy"] for left in document["leftovers"]] == [False, False]
    world = World()
    world.ok(*CREATE)
    assert world.json("resource", "delete", "r0", "--yes-destroy", "r0")["changed"] is True


def test_volumes(busy: World) -> None:
    assert (
        busy.json("volume", "add", "r0", "--size", "2G", "--lun", "7")["resource"]["volumes"][1]["lun"] == 7
    )
    assert busy.code("volume", "add", "r0", "--size", "2G", "--lun", "7") == "lun-duplicate"
    assert busy.code("volume", "remove", "r0", "1") == "confirmation-needed"
    assert busy.code("volume", "remove", "r0", "5", terminal=True, text="r0\n") == "unknown-volume"
    busy.ok("volume", "remove", "r0", "1", "--yes-destroy", "r0")
    assert [v.number for v in busy.desired.cluster.resource("r0").volumes] == [0]
    assert busy.code("volume", "remove", "r0", "0", "--keep-data") == "last-volume"


def test_replicas(busy: World) -> None:
    busy.ok("resource", "add-replica", "r0", "n3", "--disk", "0=/dev/sdz")
    assert busy.desired.cluster.resource("r0").replicas == ("n1", "n2", "n3")
    assert busy.code("resource", "add-replica", "r0", "n3", "--pool", "fast") == "replica-exists"
    assert busy.code("resource", "remove-replica", "r0", "n2") == "confirmation-needed"
    busy.ok("resource", "remove-replica", "r0", "n2", "--yes-destroy", "r0")
    busy.ok("resource", "remove-replica", "r0", "n3", "--keep-data")
    assert busy.desired.cluster.resource("r0").replicas == ("n1",)
    assert busy.code("resource", "remove-replica", "r0", "n1", "--yes-destroy", "r0") == "last-replica"
    assert busy.cli("resource", "add-replica", "r0", "n3", "--disk", "x=/dev/a").exit_code == Exit.USAGE


def test_exports(busy: World) -> None:
    busy.ok("volume", "add", "r0", "--size", "1G")
    busy.ok("host", "add", "c2", "--initiator", "iqn.1993-08.org.debian:01:c2")
    document = busy.json("export", "r0", "c2", "--volume", "1", "--lun", "4")
    assert document["resource"]["exports"] == {"c2": {"1": 4}}
    assert busy.json("host", "show", "c2")["exports"] == {"r0": {"1": 4}}
    assert busy.code("export", "r0", "c2", "--volume", "1", "--lun", "5") == "lun-change"
    assert busy.code("export", "r0", "c9") == "unknown-host"
    assert "nothing to change" in busy.ok("export", "r0", "c1")
    assert busy.code("host", "remove", "c2") == "host-in-use"
    busy.ok("unexport", "r0", "c2")
    busy.ok("host", "remove", "c2")
    for wrong in (
        ["--lun", "1"],
        ["--volume", "1", "--lun", "1", "--lun", "2"],
        ["--volume", "1", "--volume", "1"],
    ):
        assert busy.cli("export", "r0", "c1", *wrong).exit_code == Exit.USAGE


def test_secrets_are_shown_on_request_only(world: World, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET + "\n")
    chap = ("--chap-user", "u1", "--chap-password-file")
    file.chmod(0o644)
    assert world.code("host", "add", "c1", "--initiator", IQN, *chap, str(file)) == "secrets-readable"
    file.chmod(0o600)
    mutual = ("--mutual-user", "t1", "--mutual-password-file", "-")
    result = world.cli("host", "add", "c1", "--initiator", IQN, *chap, str(file), *mutual, text=OTHER_SECRET)
    assert result.exit_code == Exit.OK, result.output
    world.ok("host", "list")
    world.ok("host", "show", "c1")
    assert world.json("host", "show", "c1")["chap"]["password"] is None
    world.json("host", "list")
    world.ok(*CREATE, "--host", "c1")
    world.json("host", "set", "c1", "--add-initiator", IQN + "b")
    assert world.code("host", "script", "c1", terminal=True) == "script-has-secrets"
    assert world.cli("--debug", "host", "script", "c1", terminal=True).exit_code == Exit.REFUSED
    short = world.cli("--debug", "host", "set", "c1", *chap, "-", text="short")
    assert short.exit_code == Exit.REFUSED
    for output in world.outputs:
        assert SECRET not in output
        assert OTHER_SECRET not in output
    shown = world.cli("host", "show", "c1", "--show-secrets").stdout
    assert SECRET in shown
    assert OTHER_SECRET in shown
    assert SECRET in world.cli("host", "list", "--show-secrets").stdout
    assert SECRET in world.cli("host", "script", "c1").stdout
    assert SECRET in world.cli("host", "script", "c1", "--show-secrets", "--json", terminal=True).stdout
    record = world.state.items["/hactl/lab/hosts/c1"]
    assert SECRET.encode() not in record.value


def test_a_password_is_asked_for_twice(world: World) -> None:
    add = ("host", "add", "c1", "--initiator", IQN, "--chap-user", "u1")
    assert world.code(*add) == "password-needed"
    result = world.cli(*add, terminal=True, text=f"{SECRET}\n{SECRET}\n")
    assert result.exit_code == Exit.OK, result.output
    assert SECRET not in result.output
    chap = world.desired.cluster.host("c1").chap
    assert chap is not None
    assert chap.password.get_secret_value() == SECRET
    world.ok("host", "set", "c1", "--no-chap")
    assert world.desired.cluster.host("c1").chap is None
    assert world.code("host", "set", "c1", "--remove-initiator", IQN) == "last-initiator"


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_password(world: World, text: str) -> None:
    add = ("host", "add", "c1", "--initiator", IQN, "--chap-user", "u1", "--chap-password-file", "-")
    assert world.code(*add, text=text) == "password-file"
    assert world.code(*add[:-1], "/nonexistent/p") == "password-file"


def test_a_store_that_cannot_be_reached(world: World) -> None:
    store = world.store()
    store.reachable = False
    world.store = lambda: store  # type: ignore[method-assign]  # a client that is cut off
    for command in (["node", "list"], ["resource", "delete", "r0"], list(CREATE)):
        result = world.cli(*command)
        assert result.exit_code == Exit.UNREACHABLE
        assert "is the network up?; nothing was changed" in result.stderr
        assert "switchover still work" in " ".join(result.stderr.split())


def test_a_change_whose_answer_is_lost(world: World) -> None:
    store = world.store()
    store.faults.append(Fault.DONE)
    world.store = lambda: store  # type: ignore[method-assign]  # this client, whose next answer is lost
    assert world.ok(*CREATE) == "r0: created on n1, n2\n"
    assert len(world.desired.cluster.resources) == 1


def test_a_machine_in_no_cluster(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hactl.cli.main import app

    result = CliRunner().invoke(app, ["--node-file", str(tmp_path / "none"), "node", "list", "--json"])
    assert result.exit_code == Exit.REFUSED
    assert json.loads(result.stderr)["error"]["code"] == "not-in-cluster"


def test_without_this_nodes_agent_it_works_and_says_so(world: World) -> None:
    result = world.cli(*CREATE)
    assert (result.exit_code, result.stdout) == (Exit.OK, "r0: created on n1, n2\n")
    assert "this node's agent does not run" in result.stderr
    assert world.cli("resource", "resize", "r0", "10G").stderr == "", "nothing was changed"


def test_names_that_cannot_be(world: World) -> None:
    for arguments, code in [
        (["node", "show", "N1"], "node-name"),
        (["resource", "show", "../r"], "resource-name"),
        (["host", "show", "a b"], "host-name"),
        (["export", "r0", "C1"], "host-name"),
        (["node", "set", "n1", "--failure-domain", "Rack"], "failure-domain-name"),
    ]:
        assert world.code(*arguments) == code
