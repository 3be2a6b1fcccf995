"""Files that are applied: what is left out is filled in, what is written out changes nothing, what would harm
is refused."""

from __future__ import annotations

from dataclasses import replace as with_
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.errors import Refused
from hactl.model import edit
from hactl.model.desired import Desired
from hactl.model.draft import diff, draft, dump, replace
from hactl.model.load import SpecError, load
from hactl.model.spec import ClusterSpec
from tests.unit.desired_world import FILES, THIN, cluster, serials
from tests.unit.test_edit_nodes import good, refused
from tests.unit.test_model_check import valid
from tests.unit.test_model_load import ODD, paths
from tests.unit.test_model_records import full

NEW = """\
name: lab
nodes:
  - name: n1
    addresses: {cluster: 10.0.1.1, replication: 10.0.2.1, storage: [10.0.3.1]}
    pools: [{name: ssd, lvm: {vg: vg0}}]
  - name: n2
    addresses: {cluster: 10.0.1.2, replication: 10.0.2.2, storage: [10.0.3.2]}
    pools: [{name: ssd, lvm: {vg: vg0}}]
  - name: n3
    addresses: {cluster: 10.0.1.3, replication: 10.0.2.3, storage: [10.0.3.3]}
    pools: [{name: ssd, lvm: {vg: vg0}}]
hosts:
  - name: h1
    initiators: [iqn.2026-01.com.example:h1]
    chap: {user: h1, mutual_user: lab}
  - name: h2
    initiators: [iqn.2026-01.com.example:h2]
resources:
  - name: r1
    nodes: [n1, n2]
    hosts: [h1]
    volumes:
      - number: 0
        size: 10G
        disks: {n1: pool:ssd, n2: pool:ssd}
      - number: 1
        size: 20G
        disks: {n1: pool:ssd, n2: pool:ssd}
"""


def drafted(text: str, current: Desired, start: int = 100) -> ClusterSpec:
    return draft(text, current, serial=serials(start))


def applied(text: str, current: Desired, *destroy: str) -> Desired:
    return replace(current, drafted(text, current), destroy=frozenset(destroy))


def written(change: Any, current: Desired) -> str:
    """The dump of a state with a change made to its value."""
    value = yaml.safe_load(dump(current.cluster))
    change(value)
    return yaml.safe_dump(value)


def codes(text: str, current: Desired) -> list[tuple[int, str]]:
    with pytest.raises(SpecError) as error:
        drafted(text, current)
    assert all(f.hint for f in error.value.findings)
    return [(f.line, f.code) for f in error.value.findings]


def test_what_is_left_out_is_allocated() -> None:
    current = cluster()
    state = good(applied(NEW, current))
    r1 = state.cluster.resource("r1")
    assert (r1.id, r1.iqn) == (1, "iqn.2026-11.io.hactl.lab:r1")
    assert [(v.lun, v.serial) for v in r1.volumes] == [(0, f"{100:032x}"), (1, f"{101:032x}")]
    assert state.cluster.nodes == current.ordered().cluster.nodes
    assert state.cluster.hosts == current.ordered().cluster.hosts
    assert applied(NEW, state) is state


def test_what_the_cluster_has_is_taken() -> None:
    current = edit.create_resource(
        cluster(), "r1", "10G", serial=serials(), iqn="iqn.2026-01.com.example:mine", port=9001
    )
    current = edit.add_volume(current, "r1", "20G", serial=serials(7), lun=12)
    spec = drafted(NEW, current)
    r1, old = spec.resource("r1"), current.cluster.resource("r1")
    assert (r1.id, r1.iqn, r1.port) == (old.id, old.iqn, old.port)
    assert [(v.lun, v.serial) for v in r1.volumes] == [(v.lun, v.serial) for v in old.volumes]


def test_ids_in_the_file_and_of_leftovers_are_not_given_out() -> None:
    current = edit.delete_resource(
        edit.create_resource(cluster(), "r9", "1G", serial=serials()), "r9", destroy=True
    )
    second = (
        NEW
        + "  - name: r2\n    id: 2\n    nodes: [n3]\n    volumes:\n"
        + ("      - {number: 0, size: 1G, disks: {n3: pool:ssd}}\n")
    )
    spec = drafted(second, current)
    assert [(r.name, r.id) for r in spec.resources] == [("r1", 3), ("r2", 2)]


@pytest.mark.parametrize("secrets", [False, True])
def test_what_is_written_out_changes_nothing(secrets: bool) -> None:
    state = full()
    text = dump(state.cluster, secrets=secrets)
    assert ("first-secret-1" in text) == secrets
    assert drafted(text, state) == state.cluster
    assert replace(state, drafted(text, state)) is state
    assert diff(state.cluster, drafted(text, state)) == ()
    if secrets:
        assert load(text) == state.cluster


def test_serials_that_follow_from_names_are_written_out() -> None:
    spec = ClusterSpec.model_validate(valid())
    again = load(dump(spec, secrets=True))
    assert again.resource("r1").volumes[0].serial == spec.serial(
        spec.resource("r1"), spec.resource("r1").volumes[0]
    )


def test_a_file_is_read_as_by_load(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(dump(full().cluster, secrets=True))
    path.chmod(0o644)
    with pytest.raises(SpecError) as error:
        draft(path, full(), serial=serials())
    assert [f.code for f in error.value.findings] == ["secrets-readable"]
    assert error.value.hint == f"correct the file and run: hactl diff -f {path}"
    path.chmod(0o600)
    assert draft(path, full(), serial=serials()) == full().cluster


@pytest.mark.parametrize(
    ("old", "new", "line", "code"),
    [
        ("name: lab", "name: other", 1, "cluster-other"),
        ("size: 10G", "size: 10X", 24, "invalid"),
        ("hosts: [h1]", "hosts: [h3]", 21, "host-unknown"),
        ("hosts: [h1]", "hosts: [h1]\n    exports: {h2: {7: 0}}", 22, "volume-unknown"),
        ("{user: h1, mutual_user: lab}", "{usr: h1}", 15, "unknown-key"),
        ("n1: pool:ssd", "n1: pool:hdd", 25, "pool-unknown"),
        ("- number: 0", "- nummer: 0", 23, "unknown-key"),
        ("lvm: {vg: vg0}", "lvm: {vg: -x}", 5, "invalid"),
        ("lvm: {vg: vg0}", "lvn: {vg: vg0}", 5, "unknown-key"),
    ],
)
def test_a_mistake_is_reported_with_its_line(old: str, new: str, line: int, code: str) -> None:
    assert old in NEW
    assert (line, code) in codes(NEW.replace(old, new, 1), cluster())


def test_a_password_that_nobody_knows_is_missing() -> None:
    text = NEW.replace("[iqn.2026-01.com.example:h2]", "[iqn.2026-01.com.example:h2]\n    chap: {user: h2}")
    assert codes(text, cluster()) == [(18, "missing")]


def test_leftovers_are_told_with_the_line() -> None:
    current = edit.delete_resource(
        edit.create_resource(cluster(), "r1", "1G", serial=serials()), "r1", destroy=True
    )
    assert codes(NEW, current) == [(19, "leftover-taken")]
    assert refused(lambda: replace(current, load_valid(current))).code == "leftover-pending"


def load_valid(current: Desired) -> ClusterSpec:
    free = with_(current, leftovers=())
    return edit.create_resource(free, "r1", "1G", serial=serials(50)).cluster


def test_data_is_destroyed_when_its_name_is_said() -> None:
    state = full()
    gone = written(lambda v: v.pop("resources"), state)
    error = refused(lambda: applied(gone, state))
    assert error.code == "would-destroy"
    assert "--yes-destroy r1" in error.hint
    assert refused(lambda: applied(gone, state, "r2")).code == "would-destroy"
    after = good(applied(gone, state, "r1"))
    new = [left for left in after.leftovers if left.resource == "r1"]
    assert {(left.node, left.volume, left.destroy) for left in new} == {
        (node, volume, True) for node in state.cluster.resource("r1").nodes for volume in (0, 1)
    }


@pytest.mark.parametrize("what", ["volume", "replica"])
def test_a_part_of_the_data_is_destroyed_when_the_name_is_said(what: str) -> None:
    def change(value: Any) -> None:
        r1 = value["resources"][0]
        if what == "volume":
            r1["volumes"].pop()
            r1.pop("exports")
        else:
            r1["nodes"].remove("n2")
            for volume in r1["volumes"]:
                volume["disks"].pop("n2")

    state = full()
    text = written(change, state)
    assert refused(lambda: applied(text, state)).code == "would-destroy"
    after = good(applied(text, state, "r1"))
    left = {(left.node, left.volume) for left in after.leftovers if left.resource == "r1"}
    assert left == ({("n1", 1), ("n2", 1)} if what == "volume" else {("n2", 0), ("n2", 1)})


def resource(**changes: Any) -> Any:
    return lambda value: value["resources"][0].update(changes)


def volume(**changes: Any) -> Any:
    return lambda value: value["resources"][0]["volumes"][1].update(changes)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (resource(id=9), "identity-change"),
        (resource(iqn="iqn.2026-01.com.example:new"), "identity-change"),
        (volume(lun=9), "identity-change"),
        (volume(serial="e" * 32), "identity-change"),
        (volume(minor=5000), "identity-change"),
        (volume(size="1G"), "size-shrink"),
        (resource(exports={"h2": {"1": 6}}), "identity-change"),
        (resource(exports={"h2": {"1": 1}, "h1": {"0": 1}}, hosts=[]), "identity-change"),
        (volume(disks={"n1": "pool:ssd", "n2": "/dev/sdb"}), "disk-change"),
        (lambda v: v["nodes"][0].update(id=9), "identity-change"),
        (lambda v: v["nodes"][2].update(pools=[]), "pool-in-use"),
        (lambda v: v["nodes"][0]["pools"].pop(1), None),
        (lambda v: v["nodes"][0].update(pools=[{"name": "ssd", "lvm": {"vg": "other"}}]), "pool-in-use"),
        (lambda v: v["nodes"].pop(2), "leftover-pending"),
        (resource(port=9005), None),
        (resource(preferred="n2"), None),
        (volume(size="9G"), None),
    ],
)
def test_what_must_not_change_is_refused(change: Any, code: str | None) -> None:
    state = full()
    text = written(change, state)
    if code is None:
        after = good(applied(text, state))
        assert after is not state
        assert diff(state.cluster, after.cluster)
    else:
        assert refused(lambda: applied(text, state, "r1")).code == code


def test_all_replicas_are_not_exchanged_at_once() -> None:
    state = full()

    def change(value: Any) -> None:
        r1 = value["resources"][0]
        r1.update(nodes=["n3"], preferred="n3")
        for one in r1["volumes"]:
            one["disks"] = {"n3": "pool:ssd"}

    assert refused(lambda: applied(written(change, state), state, "r1")).code == "last-replica"


def test_a_node_does_not_go_on_without_its_disk() -> None:
    def change(value: Any) -> None:
        for one in value["resources"][0]["volumes"]:
            one["disks"].pop("n2")

    assert refused(lambda: applied(written(change, full()), full(), "r1")).code == "replica-stays"


def test_a_node_goes_when_nothing_is_on_it() -> None:
    state = with_(full(), leftovers=())
    after = good(applied(written(lambda v: v["nodes"].pop(2), state), state))
    assert [n.name for n in after.cluster.nodes] == ["n1", "n2"]

    def both(value: Any) -> None:
        value["nodes"].pop(2)
        value.pop("resources")

    assert [n.name for n in good(applied(written(both, state), state, "r1")).cluster.nodes] == ["n1", "n2"]


def test_another_cluster_is_not_applied() -> None:
    other = full().cluster.model_copy(update={"name": "other"})
    assert refused(lambda: replace(full(), other)).code == "cluster-other"


def test_differences_in_words() -> None:
    old = full()
    new = edit.grow_volume(old, "r1", 0, "5G")
    new = edit.unexport(new, "r1", "h2")
    new = edit.change_host(new, "h1", credentials=edit.chap("h1", "changed-secret", "lab", "first-secret-2"))
    new = edit.change_host(
        new, "h2", add=["iqn.2026-01.com.example:h3"], credentials=edit.chap("x", "p" * 14)
    )
    new = edit.add_pool(edit.change_node(new, "n1", failure_domain=None), "n3", THIN)
    new = edit.remove_pool(new, "n2", FILES.name)
    new = edit.add_host(new, "h9", ["iqn.2026-01.com.example:h9"])
    told = [str(d) for d in diff(old.cluster, new.ordered().cluster)]
    assert told == [
        "node n1: changed, failure_domain rack-1 → none",
        "node n2: changed, pools - files (files /srv/hactl)",
        "node n3: changed, pools + thin (lvm_thin vg0/tp)",
        "host h1: changed, chap.password changed",
        "host h2: changed, initiators + iqn.2026-01.com.example:h3; chap none → (user x, password (secret))",
        "resource r1: changed, exports.h2 1: 5 → none",
        "resource r1, volume 0: changed, size 1G → 5G",
        "host h9: added, iqn.2026-01.com.example:h9",
    ]
    back = [str(d) for d in diff(new.ordered().cluster, old.cluster)]
    assert back[0] == "host h9: removed, iqn.2026-01.com.example:h9"
    assert all("secret" not in line.replace("(secret)", "") for line in told + back)
    assert diff(old.cluster, old.cluster) == ()


def draft_or_refuse(text: str | bytes, current: Desired) -> None:
    try:
        # As text, whatever is in it: a str without a line break would be a path.
        spec = drafted(text if isinstance(text, str) and "\n" in text else f"{text!s}\n", current)
    except Refused as error:
        assert error.code in ("spec-invalid", "ids-exhausted")  # noqa: PT017 - it need not be raised
        return
    try:
        after = replace(current, spec, destroy=frozenset(r.name for r in current.cluster.resources))
    except Refused as error:
        assert error.message  # noqa: PT017 - it need not be raised
        assert error.hint  # noqa: PT017
    else:
        good(after)


@given(st.sampled_from(paths(yaml.safe_load(NEW))[1:]), ODD)
@settings(max_examples=300, deadline=None)
def test_any_value_anywhere_is_applied_or_refused(path: tuple[str | int, ...], odd: object) -> None:
    value = yaml.safe_load(NEW)
    here: Any = value
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = odd
    draft_or_refuse(yaml.safe_dump(value), full())


@given(st.integers(0, len(NEW)), st.integers(0, 40), st.text(max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_edit_of_a_file_is_applied_or_refused(at: int, cut: int, new: str) -> None:
    draft_or_refuse(NEW[:at] + new + NEW[at + cut :], full())
