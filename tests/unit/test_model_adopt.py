"""Which disk holds a volume's data from before hactl: what is refused of it, and where it goes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from hactl.errors import Refused
from hactl.model import edit, records
from hactl.model.check import check
from hactl.model.desired import Change, Desired
from hactl.model.preflight import BlockDevice, Signature, judge
from hactl.model.spec import POOL
from hactl.replication.metadata import required_disk_size
from tests.unit.agents_world import R0, cluster

V84 = (8, 4, 11)
SIZE = 64 << 20


def desired(volumes: int = 1) -> Desired:
    return Desired(cluster(volumes))


def said(state: Desired) -> list[str | None]:
    return [v.adopt for v in state.cluster.resource(R0).volumes]


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        work()
    return caught.value.code


def test_the_word_is_given_once_and_taken_back() -> None:
    state = edit.adopt(desired(2), R0, "n1")
    assert said(state) == ["n1", "n1"]
    assert edit.adopt(state, R0, "n1").same(state)
    assert check(state.cluster) == ()
    assert said(edit.adopted(state, R0, "n1", [1])) == ["n1", None]
    assert edit.adopted(state, R0, "n2") is state
    assert edit.adopted(state, "r9", "n1") is state
    assert said(edit.adopted(state, R0, "n1")) == [None, None]
    assert said(edit.adopt(desired(2), R0, "n1", [0])) == ["n1", None]


def test_what_cannot_be_said() -> None:
    state = edit.adopt(desired(2), R0, "n1", [0])
    assert refused(lambda: edit.adopt(state, R0, "n2", [1])) == "adopt-two-nodes"
    assert refused(lambda: edit.adopt(desired(), R0, "n3")) == "adopt-no-disk"
    assert refused(lambda: edit.adopt(desired(), R0, "n9")) == "unknown-node"
    assert refused(lambda: edit.adopt(desired(), R0, "n1", [4])) == "unknown-volume"


def test_findings_in_a_file() -> None:
    whole = cluster(2)
    first, second = whole.resources[0].volumes

    def codes(*volumes: object) -> list[str]:
        changed = whole.resources[0].model_copy(update={"volumes": volumes})
        return [p.code for p in check(whole.model_copy(update={"resources": (changed,)}))]

    one = first.model_copy(update={"adopt": "n1"})
    assert codes(one, second) == []
    assert codes(one, second.model_copy(update={"adopt": "n2"})) == ["adopt-two-nodes"]
    assert codes(first.model_copy(update={"adopt": "n3"}), second) == ["adopt-no-disk"]
    pooled = {"adopt": "n1", "disks": {"n1": f"{POOL}fast", "n2": "/dev/vd0"}}
    assert "adopt-pool" in codes(first.model_copy(update=pooled), second)


def test_a_replica_that_goes_takes_the_word_with_it() -> None:
    state = edit.adopt(desired(), R0, "n1")
    assert said(edit.remove_replica(state, R0, "n1", destroy=False)) == [None]
    assert said(edit.remove_replica(state, R0, "n2", destroy=False)) == ["n1"]


def test_older_readers_are_told_only_while_it_is_there() -> None:
    def schema(state: Desired) -> int:
        found: int = json.loads(records.split(state)[f"resources/{R0}"])["schema"]
        return found

    state = edit.adopt(desired(), R0, "n1")
    assert schema(state) > schema(desired())
    assert schema(edit.adopted(state, R0, "n1")) == schema(desired())
    everything = {**records.split(state), "config": records.config(1, CHANGE)}
    assert said(records.join("c", everything)) == ["n1"]


CHANGE = Change(id="x", at="2026-01-01T00:00:00Z", who="n1", what="x")


def codes(**device: object) -> list[str]:
    found = BlockDevice(path="/dev/vd0", **{"size": required_disk_size(SIZE, 1), **device})  # type: ignore[arg-type]
    return [p.code for p in judge(cluster(), "n1", {"/dev/vd0": found}, version=V84, adopt={(R0, 0)})]


def test_data_are_no_hindrance_and_everything_else_is() -> None:
    ext4, drbd = Signature("ext4", "filesystem"), Signature("drbd")
    assert codes(signatures=(ext4,)) == []
    assert codes(signatures=(Signature("gpt", "partition-table"),), holders=("/dev/vd01 (part)",)) == []
    assert codes(signatures=(ext4, drbd)) == ["disk-has-drbd"]
    assert codes(size=SIZE) == ["disk-too-small"]
    assert codes(size=SIZE, kind="lvm") == []
    assert codes(size=SIZE - 4096, kind="lvm") == ["disk-too-small"], "the data themselves are not all there"
    assert codes(exported_by="block/x", claimed=True) == ["disk-exported"]
    assert codes(claimed=True) == ["disk-busy"]
    assert codes(in_use_by=("other", 0)) == ["disk-in-use"]


def test_what_lio_exports_is_not_given_away_either() -> None:
    found = BlockDevice(path="/dev/vd0", size=1 << 40, exported_by="fileio/x")
    (problem,) = judge(cluster(), "n1", {"/dev/vd0": found}, version=V84)
    assert (problem.code, "targetcli /backstores/fileio delete x" in problem.hint) == ("disk-exported", True)
