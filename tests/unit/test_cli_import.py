"""``hactl import`` of what targetcli saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hactl.cli import imports
from hactl.cli.exits import Exit
from tests.unit.cli_world import IQN, SECRET, World

TARGET = "iqn.2003-01.org.linux-iscsi.old:disk1"


def saved() -> dict[str, Any]:
    return {
        "storage_objects": [
            {
                "plugin": "block",
                "name": "disk1",
                "dev": "/dev/vg9/disk1",
                "wwn": "0f6a1c1e-2b5d-4a3c-9d7e-8f9a0b1c2d3e",
                "readonly": False,
                "attributes": {"block_size": 512},
            }
        ],
        "targets": [
            {
                "fabric": "iscsi",
                "wwn": TARGET,
                "tpgs": [
                    {
                        "tag": 1,
                        "enable": True,
                        "attributes": {"generate_node_acls": 0, "authentication": 1},
                        "luns": [{"index": 0, "storage_object": "/backstores/block/disk1"}],
                        "node_acls": [
                            {
                                "node_wwn": IQN,
                                "attributes": {},
                                "chap_userid": "u1",
                                "chap_password": SECRET,
                                "mapped_luns": [{"index": 0, "tpg_lun": 0, "write_protect": False}],
                            }
                        ],
                        "portals": [{"ip_address": "0.0.0.0", "port": 3260}],
                    }
                ],
            }
        ],
        "fabric_modules": [],
    }


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    # No block device of that name is on the machine that runs the tests.
    monkeypatch.setattr(imports, "device_sizes", lambda paths: dict.fromkeys(paths, 11 << 30))
    return World()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "saveconfig.json"
    path.write_text(json.dumps(saved()))
    return path


DEVICE = "/dev/vg9/disk1"
KEPT = ("--node", "n1", "--adopt", "--copy-to", "n2", "--disk", f"{DEVICE}=/dev/vdb")
GROWN = ("--size", f"{DEVICE}=10G")


def test_a_target_becomes_a_resource(world: World, file: Path) -> None:
    before = dict(world.state.items)
    shown = world.ok("import", str(file), "--node", "n1", *GROWN, "--dry-run")
    assert world.state.items == before
    assert shown.startswith(f"{TARGET}: resource disk1\n")
    assert shown.endswith("nothing was changed\n")
    document = world.json("import", str(file), "--node", "n1", *GROWN)
    assert (document["changed"], document["resources"]) == (True, {"disk1": TARGET})
    made = world.desired.cluster.resource("disk1")
    assert (made.iqn, made.replicas, made.volumes[0].size) == (TARGET, ("n1",), 10 << 30)
    assert made.volumes[0].serial == "0f6a1c1e2b5d4a3c9d7e8f9a0b1c2d3e"
    again = world.json("import", str(file), "--node", "n1", *GROWN)
    assert (again["changed"], again["remarks"][0]["code"]) == (False, "resource-exists")
    assert SECRET not in "".join(world.outputs)


def test_what_cannot_be_taken_over_is_refused_or_left_out(world: World, file: Path) -> None:
    assert world.code("import", str(file), "--node", "n1") == "import-incomplete"
    told = world.cli("import", str(file), "--node", "n1")
    assert told.stdout == ""
    assert f"left out: {TARGET}" in told.stderr
    assert "[disk-too-small]" in told.stderr
    document = world.json("import", str(file), "--node", "n1", "--partial")
    assert (document["changed"], document["resources"]) == (False, {})
    assert document["remarks"][0]["skipped"] is True


def adopting(file: Path) -> tuple[str, ...]:
    """The command that keeps the data on n1, and has them copied to a disk of n2."""
    more = ("--adopt", "--copy-to", "n2", "--disk", f"{DEVICE}=/dev/vdb")
    return ("import", str(file), "--node", "n1", *more)


def test_data_that_stay(world: World, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logical volume needs no room beforehand, and nobody has to tell what hosts saw of it."""
    arguments = adopting(file)
    monkeypatch.setattr(imports, "logical_volume", lambda path: path == DEVICE)
    document = world.json(*arguments)
    assert document["resources"] == {"disk1": TARGET}
    assert [r["code"] for r in document["remarks"]] == ["vendor-changes"]
    made = world.desired.cluster.resource("disk1")
    assert (made.volumes[0].adopt, made.volumes[0].size) == ("n1", 11 << 30)
    assert made.volumes[0].disks == {"n1": DEVICE, "n2": "/dev/vdb"}
    assert world.json("resource", "show", "disk1")["volumes"][0]["adopt"] == "n1"


def test_a_partition_has_to_have_room(world: World, file: Path) -> None:
    arguments = adopting(file)
    assert world.code(*arguments) == "import-incomplete"
    assert "[disk-too-small]" in world.cli(*arguments).stderr
    assert world.json(*arguments, *GROWN)["resources"] == {"disk1": TARGET}


def test_the_word_is_given_and_taken_back(world: World, file: Path) -> None:
    world.ok("import", str(file), "--node", "n1", *GROWN)
    assert world.desired.cluster.resource("disk1").volumes[0].adopt is None
    document = world.json("resource", "adopt", "disk1", "--node", "n1")
    assert (document["changed"], document["resource"]["volumes"][0]["adopt"]) == (True, "n1")
    assert world.json("resource", "adopt", "disk1", "--node", "n1")["changed"] is False
    assert world.code("resource", "adopt", "disk1", "--node", "n2") == "adopt-two-nodes"
    assert world.json("resource", "adopt", "disk1", "--node", "n1", "--withdraw")["changed"] is True
    assert world.desired.cluster.resource("disk1").volumes[0].adopt is None
    assert world.json("resource", "adopt", "disk1", "--node", "n1", "--withdraw")["changed"] is False
    assert world.code("resource", "adopt", "disk1", "--node", "n2") == "adopt-no-disk"
    assert world.code("resource", "adopt", "disk9", "--node", "n1") == "unknown-resource"
    assert world.code("resource", "adopt", "disk1", "--node", "n1", "--volume", "3") == "unknown-volume"


def test_options_that_do_not_fit_together(world: World, file: Path) -> None:
    for words in (("--pool", "fast"), ("--disk", f"{DEVICE}=/dev/vdb")):
        assert world.cli("import", str(file), "--node", "n1", *words).exit_code == Exit.USAGE


def test_logical_volumes_are_told_by_what_lvm_noted(tmp_path: Path) -> None:
    for name, uuid in (("dm-0", "LVM-abc"), ("dm-1", "CRYPT-LUKS2-abc")):
        (tmp_path / name / "dm").mkdir(parents=True)
        (tmp_path / name / "dm" / "uuid").write_text(uuid)
    (tmp_path / "sda1").mkdir()
    found = [imports.logical_volume(f"/nonexistent/{n}", tmp_path) for n in ("dm-0", "dm-1", "sda1", "sdz")]
    assert found == [True, False, False, False]


def test_bad_input(world: World, file: Path) -> None:
    assert world.code("import", str(file), "--node", "n9") == "unknown-node"
    assert world.code("import", str(file) + ".none", "--node", "n1") == "file-unreadable"
    assert world.code("import", "-", "--node", "n1", text="[]") == "saveconfig-damaged"
    assert world.cli("import", str(file), "--node", "n1", "--size", "x").exit_code == Exit.USAGE


def test_only_block_devices_have_a_size(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    assert imports.device_sizes([str(tmp_path / "plain"), str(tmp_path / "none"), "\0", "/dev/null"]) == {}


def mutated(value: Any, path: list[int], junk: Any) -> Any:
    """``value`` with ``junk`` somewhere in it."""
    if not path or not isinstance(value, dict | list) or not value:
        return junk
    if isinstance(value, dict):
        key = sorted(value)[path[0] % len(value)]
        return value | {key: mutated(value[key], path[1:], junk)}
    index = path[0] % len(value)
    return [*value[:index], mutated(value[index], path[1:], junk), *value[index + 1 :]]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.lists(st.integers(0, 9), max_size=9), junk=JUNK)
def test_whatever_a_file_holds_is_no_traceback(
    world: World, tmp_path: Path, path: list[int], junk: Any
) -> None:
    file = tmp_path / "fuzz.json"
    file.write_text(json.dumps(mutated(saved(), path, junk)))
    before = dict(world.state.items)
    for more in ([], ["--partial", "--dry-run"]):
        result = world.cli("import", str(file), "--node", "n1", *more)
        assert result.exit_code in (Exit.OK, Exit.REFUSED), result.output
        assert "Traceback" not in result.output
        assert SECRET not in result.output
        assert world.state.items == before


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_whatever_bytes_come_are_no_traceback(world: World, tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "fuzz.json"
    file.write_bytes(data)
    assert world.code("import", str(file), "--node", "n1") == "saveconfig-damaged"
