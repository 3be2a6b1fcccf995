"""The whole cluster as a file: dumped, compared, applied, and whatever else a file may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hactl.cli.exits import Exit
from hactl.cli.main import app
from tests.unit.cli_world import CLUSTER, IQN, SECRET, World

MORE = f"""\
hosts:
  - name: c1
    initiators: [{IQN}]
    chap: {{user: u1, password: {SECRET}}}
resources:
  - name: r0
    nodes: [n1, n2]
    hosts: [c1]
    volumes:
      - number: 0
        size: 10G
        disks: {{n1: "pool:fast", n2: "pool:fast"}}
"""


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(CLUSTER + MORE)
    path.chmod(0o600)
    return path


def test_a_file_is_compared_applied_and_then_the_same(world: World, file: Path) -> None:
    before = dict(world.state.items)
    result = world.cli("diff", "-f", str(file))
    assert result.exit_code == Exit.DIFFERENT
    assert [line[:14] for line in result.stdout.splitlines()] == ["+ host c1: add", "+ resource r0:"]
    document = json.loads(world.cli("diff", "-f", str(file), "--json").stdout)
    assert document["same"] is False
    assert {d["kind"] for d in document["differences"]} == {"added"}
    assert world.state.items == before
    out = world.ok("apply", "-f", str(file))
    assert f"{file}: applied" in out
    assert "r0: not active yet" in out
    assert world.json("diff", "-f", str(file)) == {"schema": 1, "same": True, "differences": []}
    generation = world.desired.generation
    again = world.json("apply", "-f", str(file))
    assert (again["changed"], again["generation"], again["differences"]) == (False, generation, [])
    assert world.desired.cluster.resource("r0").id == 1
    assert SECRET not in "".join(world.outputs)


def test_what_is_dumped_can_be_applied(world: World, file: Path, tmp_path: Path) -> None:
    world.ok("apply", "-f", str(file))
    text = world.ok("dump")
    assert SECRET not in text
    dumped = tmp_path / "d.yaml"
    dumped.write_text(text)
    assert world.ok("diff", "-f", str(dumped)) == ""
    document = world.json("dump")
    assert [r["name"] for r in document["cluster"]["resources"]] == ["r0"]
    assert document["leftovers"] == []
    assert SECRET not in "".join(world.outputs)
    assert SECRET in world.cli("dump", "--show-secrets").stdout
    assert SECRET in world.cli("dump", "--show-secrets", "--json").stdout


def test_data_is_destroyed_only_by_name(world: World, file: Path) -> None:
    world.ok("apply", "-f", str(file))
    less = (CLUSTER + MORE).partition("resources:")[0]
    file.write_text(less)
    assert world.code("apply", "-f", str(file)) == "would-destroy"
    assert world.code("apply", "-f", str(file), "--yes-destroy", "r1") == "would-destroy"
    assert world.code("apply", "-f", str(file), terminal=True, text="r1\n") == "confirmation-wrong"
    result = world.cli("apply", "-f", str(file), terminal=True, text="r0\n")
    assert result.exit_code == Exit.OK, result.output
    assert {left.node for left in world.desired.leftovers} == {"n1", "n2"}
    file.write_text(CLUSTER + MORE)
    assert world.code("apply", "-f", str(file)) in ("leftover-pending", "spec-invalid")


def test_a_confirmed_name_needs_no_terminal(world: World, file: Path) -> None:
    world.ok("apply", "-f", str(file))
    file.write_text((CLUSTER + MORE).partition("resources:")[0])
    assert world.json("apply", "-f", str(file), "--yes-destroy", "r0")["changed"] is True
    assert world.desired.cluster.resources == ()


def test_from_standard_input(world: World) -> None:
    assert world.cli("diff", "-f", "-", text=CLUSTER).exit_code == Exit.OK
    result = world.cli("apply", "-f", "-", text=CLUSTER + MORE)
    assert result.exit_code == Exit.OK, result.output
    assert world.desired.cluster.resource("r0").hosts == ("c1",)


def test_bytes_on_standard_input_that_are_no_text(world: World) -> None:
    result = CliRunner().invoke(app, ["apply", "-f", "-"], obj=world.mode(), input=b"name: \xff\xfe\x00\n")
    assert result.exit_code == Exit.REFUSED
    assert "Traceback" not in result.output
    assert "internal-error" not in result.output


def test_a_bad_file_is_told_with_lines(world: World, file: Path) -> None:
    file.write_text((CLUSTER + MORE).replace("size: 10G", "size: 10X"))
    before = dict(world.state.items)
    result = world.cli("apply", "-f", str(file))
    assert result.exit_code == Exit.REFUSED
    assert f"{file}:24:" in result.stderr
    assert world.state.items == before
    findings = json.loads(world.cli("apply", "-f", str(file), "--json").stderr)["error"]["findings"]
    assert [f["code"] for f in findings] == ["invalid"]
    file.write_text(CLUSTER.replace("name: lab", "name: other"))
    assert world.code("apply", "-f", str(file)) == "spec-invalid"
    assert world.code("diff", "-f", str(file) + ".none") == "spec-invalid"


PIECES = st.sampled_from(
    [
        *("nodes:", "hosts:", "resources:", "volumes:", "disks:", "- ", "  ", "\n", "name", ": "),
        *("{", "}", "[", "]", "n1", "10G", "-1", "9" * 21, "&a", "*a", "!!python/object:os.system"),
        *("<<", "|", ">", "'", '"', "\x00", "\t", "#", "~", "1e999", "0x1f", "pool:fast", "/dev/sdb"),
        *("\ud800", "\u2028"),
    ]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    junk=st.lists(PIECES, max_size=12).map("".join),
    at=st.integers(0, len(CLUSTER + MORE)),
    cut=st.integers(0, 80),
)
def test_whatever_a_file_holds_is_no_traceback(tmp_path: Path, junk: str, at: int, cut: int) -> None:
    world = World()
    whole = CLUSTER + MORE
    path = tmp_path / "fuzz.yaml"
    path.write_bytes((whole[:at] + junk + whole[at + cut :]).encode(errors="surrogatepass"))
    path.chmod(0o600)
    before = dict(world.state.items)
    for arguments in (["check", str(path)], ["diff", "-f", str(path)], ["apply", "-f", str(path)]):
        result = world.cli(*arguments)
        assert result.exit_code in (Exit.OK, Exit.REFUSED, Exit.DIFFERENT), result.output
        assert "Traceback" not in result.output
        assert "internal-error" not in result.output
        if result.exit_code != Exit.OK:
            assert world.state.items == before
