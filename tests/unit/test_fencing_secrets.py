"""The programs that print fence devices' secrets on a node."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hactl.cluster.layout import Layout
from hactl.errors import Failed
from hactl.model import edit
from hactl.model.desired import Desired
from hactl.model.spec import ClusterSpec
from hactl.pacemaker import secrets
from tests.unit.desired_world import cluster

PASSWORD = "it's $(id) `id` \\n %s \"é"


def made(password: str = PASSWORD, *, pacemaker: bool = True) -> ClusterSpec:
    state: Desired = cluster(2)
    device = edit.fence_device("fence_ipmilan", {"ip": "10.0.9.1"}, {"password": password})
    both = edit.fence_device("fence_apc_snmp", {}, {"password": "one", "snmp_priv_passwd": "two"})
    state = edit.set_fencing(edit.set_fencing(state, "n1", device), "n2", both)
    return state.cluster.model_copy(update={"pacemaker": pacemaker})


def told(path: Path) -> str:
    """What a fence agent has of a program: it strips the end."""
    return subprocess.run([path], check=True, capture_output=True, text=True).stdout.rstrip()


def test_each_prints_its_secret_for_root_only(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert secrets.write(layout, made()) is True
    folder = tmp_path / "etc/hactl/fence"
    assert {p.name: told(p) for p in folder.iterdir()} == {
        "n1": PASSWORD,
        "n2": "one",
        "n2.snmp_priv_passwd": "two",
    }
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o700}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert secrets.missing(layout, made()) == ()


def test_pacemaker_is_told_their_names(tmp_path: Path) -> None:
    spec = made()
    assert secrets.parameters(spec.node("n1")) == {
        "ip": "10.0.9.1",
        "password_script": "/etc/hactl/fence/n1",
    }
    assert secrets.parameters(spec.node("n2")) == {
        "password_script": "/etc/hactl/fence/n2",
        "snmp_priv_passwd_script": "/etc/hactl/fence/n2.snmp_priv_passwd",
    }
    assert secrets.parameters(cluster(1).cluster.node("n1")) == {}
    secrets.write(Layout(tmp_path), spec)
    named = {p for n in spec.nodes for p in secrets.parameters(n).values() if p.startswith("/")}
    assert named == {f"/{p.relative_to(tmp_path)}" for p in (tmp_path / "etc/hactl/fence").iterdir()}


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    secrets.write(layout, made())
    folder = secrets.folder_of(layout)
    before = {p.name: p.stat().st_ino for p in folder.iterdir()}
    assert secrets.write(layout, made()) is False
    assert secrets.write(layout, made("another")) is True
    after = {p.name: p.stat().st_ino for p in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"n1"}
    (folder / "n2").chmod(0o755)
    assert secrets.missing(layout, made("another")) == (folder / "n2",)
    assert secrets.write(layout, made("another")) is True
    assert (folder / "n2").stat().st_mode & 0o777 == 0o700


def test_what_is_not_wanted_any_more_is_removed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    secrets.write(layout, made())
    folder = secrets.folder_of(layout)
    (folder / "mine").write_text("#!/bin/sh\n# Somebody's own.\n")
    interrupted = folder / ".n1.12345678"
    interrupted.write_text((folder / "n1").read_text())
    assert secrets.write(layout, made(pacemaker=False)) is True
    assert [p.name for p in folder.iterdir()] == ["mine"]
    assert secrets.write(layout, made(pacemaker=False)) is False


def test_nothing_is_made_where_nothing_is_wanted(tmp_path: Path) -> None:
    assert secrets.write(Layout(tmp_path), cluster(2).cluster) is False
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    secrets.folder_of(Layout(tmp_path)).parent.mkdir(parents=True)
    secrets.folder_of(Layout(tmp_path)).write_text("")
    with pytest.raises(Failed) as error:
        secrets.write(Layout(tmp_path), made())
    assert error.value.code == "fence-secrets"
    assert PASSWORD not in str(error.value)
