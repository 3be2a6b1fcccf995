"""Edits of hosts and exports: what they do, what they refuse and in which words."""

from __future__ import annotations

import pytest

from hactl.model import edit
from hactl.model.desired import Desired
from tests.unit.desired_world import cluster, serials
from tests.unit.test_edit_nodes import good, refused

IQN = "iqn.2026-01.com.example:"


def two_volumes() -> Desired:
    """Resource r1 with volumes 0 (LUN 0) and 1 (LUN 5)."""
    new = serials()
    state = edit.create_resource(cluster(), "r1", "1G", serial=new)
    return edit.add_volume(state, "r1", "1G", serial=new, lun=5)


def seen(state: Desired, host: str) -> object:
    r1 = state.cluster.resource("r1")
    return "all" if host in r1.hosts else r1.exports.get(host)


def test_a_host_is_added_once() -> None:
    state = good(edit.add_host(cluster(), "h3", [IQN + "h3"]))
    assert edit.add_host(state, "h3", [IQN + "h3"]) is state
    assert refused(lambda: edit.add_host(state, "h3", [IQN + "x"])).code == "host-exists"
    assert refused(lambda: edit.add_host(state, "h4", [IQN + "h3"])).code == "initiator-duplicate"
    error = refused(lambda: edit.add_host(state, "h4", ["h4"]))
    assert "initiators" in error.message
    assert refused(lambda: edit.add_host(state, "h4", [])).code == "too-short"


def test_a_secret_that_cannot_be_is_not_shown() -> None:
    error = refused(lambda: edit.chap("h1", "pass-word"))
    assert "pass-word" not in error.message + error.hint + repr(error)


def test_initiators_come_and_go() -> None:
    state = good(edit.change_host(cluster(), "h1", add=[IQN + "a", IQN + "h1"]))
    assert state.cluster.host("h1").initiators == (IQN + "h1", IQN + "a")
    assert edit.change_host(state, "h1", add=[IQN + "a"], remove=[IQN + "zz"]) is state
    state = good(edit.change_host(state, "h1", remove=[IQN + "h1"]))
    assert state.cluster.host("h1").initiators == (IQN + "a",)
    assert refused(lambda: edit.change_host(state, "h1", remove=[IQN + "a"])).code == "last-initiator"
    assert refused(lambda: edit.change_host(state, "h1", add=[IQN + "h2"])).code == "initiator-duplicate"


def test_credentials_stay_unless_they_are_changed() -> None:
    state = cluster()
    chap = state.cluster.host("h1").chap
    assert edit.change_host(state, "h1", add=[IQN + "a"]).cluster.host("h1").chap == chap
    assert edit.change_host(state, "h1", credentials=chap) is state
    assert edit.change_host(state, "h1", credentials=None).cluster.host("h1").chap is None
    new = edit.chap("h1", "another-one-1")
    assert good(edit.change_host(state, "h1", credentials=new)).cluster.host("h1").chap == new


def test_a_host_that_sees_something_stays() -> None:
    state = edit.export(two_volumes(), "r1", "h1", {1: None})
    error = refused(lambda: edit.remove_host(state, "h1"))
    assert (error.code, error.hint) == ("host-in-use", "take them from it first: hactl unexport r1 h1")
    state = edit.unexport(state, "r1", "h1")
    assert [h.name for h in good(edit.remove_host(state, "h1")).cluster.hosts] == ["h2"]
    assert refused(lambda: edit.remove_host(state, "h7")).code == "unknown-host"


def test_exporting_all_volumes() -> None:
    state = good(edit.export(two_volumes(), "r1", "h1"))
    assert seen(state, "h1") == "all"
    assert edit.export(state, "r1", "h1") is state
    assert edit.export(state, "r1", "h1", {1: 5}) is state
    assert edit.export(state, "r1", "h1", {1: None}) is state
    assert refused(lambda: edit.export(state, "r1", "h1", {1: 6})).code == "lun-change"
    assert refused(lambda: edit.export(state, "r1", "h1", {7: None})).code == "unknown-volume"


def test_exporting_chosen_volumes() -> None:
    state = good(edit.export(two_volumes(), "r1", "h1", {1: 9}))
    assert seen(state, "h1") == {1: 9}
    assert edit.export(state, "r1", "h1", {1: 9}) is state
    assert edit.export(state, "r1", "h1", {1: None}) is state
    assert seen(good(edit.export(state, "r1", "h1", {0: None})), "h1") == {0: 0, 1: 9}
    assert refused(lambda: edit.export(state, "r1", "h1", {1: 5})).code == "lun-change"
    assert refused(lambda: edit.export(state, "r1", "h1", {0: 9})).code == "lun-duplicate"
    assert refused(lambda: edit.export(state, "r1", "h1")).code == "lun-change"
    assert refused(lambda: edit.export(state, "r1", "h2", {})).code == "export-empty"
    assert refused(lambda: edit.export(state, "r1", "h2", {0: 99999})).code == "out-of-range"
    taken = edit.export(state, "r1", "h2", {1: 0})
    assert seen(good(edit.export(taken, "r1", "h2", {0: None})), "h2") == {0: 1, 1: 0}


def test_from_chosen_volumes_to_all() -> None:
    state = edit.export(two_volumes(), "r1", "h1", {1: None})
    assert seen(state, "h1") == {1: 5}
    assert seen(good(edit.export(state, "r1", "h1")), "h1") == "all"


def test_two_volumes_under_one_lun_at_once() -> None:
    assert refused(lambda: edit.export(two_volumes(), "r1", "h1", {0: 3, 1: 3})).code == "lun-duplicate"


def test_unexporting() -> None:
    state = edit.export(two_volumes(), "r1", "h1")
    assert seen(good(edit.unexport(state, "r1", "h1", [0])), "h1") == {1: 5}
    assert seen(good(edit.unexport(state, "r1", "h1", [0, 1])), "h1") is None
    none = good(edit.unexport(state, "r1", "h1"))
    assert seen(none, "h1") is None
    assert edit.unexport(none, "r1", "h1") is none
    assert edit.unexport(none, "r1", "h1", [0]) is none
    assert refused(lambda: edit.unexport(state, "r1", "h1", [7])).code == "unknown-volume"
    assert refused(lambda: edit.unexport(state, "r1", "h9")).code == "unknown-host"
    assert refused(lambda: edit.unexport(state, "r9", "h1")).code == "unknown-resource"


@pytest.mark.parametrize("luns", [{0: -1}, {0: 16384}])
def test_luns_that_cannot_be(luns: dict[int, int | None]) -> None:
    assert refused(lambda: edit.export(two_volumes(), "r1", "h1", luns)).code == "out-of-range"
