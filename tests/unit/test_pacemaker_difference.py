"""What is changed in Pacemaker's configuration, and what is left alone."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element, fromstring, tostring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.errors import Failed
from hactl.model.spec import ClusterSpec
from hactl.pacemaker.difference import difference, edit
from hactl.pacemaker.elements import same
from hactl.pacemaker.protocol import Change
from hactl.pacemaker.wanted import wanted
from tests.unit.pacemaker_world import cluster, resource

EMPTY = (
    '<configuration><crm_config><cluster_property_set id="cib-bootstrap-options"/></crm_config><nodes/>'
    "<resources/><constraints/></configuration>"
)


def brought(spec: ClusterSpec, present: str = EMPTY) -> str:
    return edit(present, difference(present, wanted(spec)).change)


def with_foreign(section: str, xml: str, present: str) -> str:
    root = fromstring(present)
    found = root.find(section)
    assert found is not None
    found.append(fromstring(xml))
    return tostring(root, encoding="unicode")


def test_a_second_time_there_is_nothing_to_do() -> None:
    spec = cluster(resource(0, preferred="n1"), resource(1, "n1 n2 n3"))
    first = difference(EMPTY, wanted(spec))
    assert len(first.change.put) == len(wanted(spec))
    again = difference(edit(EMPTY, first.change), wanted(spec))
    assert not again.change
    assert again.words == again.problems == ()


def test_order_and_white_space_mean_nothing() -> None:
    spec = cluster(resource(0))
    root = fromstring(brought(spec))
    for node in root.iter():
        node[:] = list(reversed(node))
        node.tail = "\n   "
    assert not difference(tostring(root, encoding="unicode"), wanted(spec)).change


def test_what_changed_is_replaced_where_it_is_and_nothing_else() -> None:
    before = brought(cluster(resource(0, preferred="n1"), resource(1)))
    found = difference(before, wanted(cluster(resource(0, preferred="n2"), resource(1))))
    assert found.words == ("add hactl-r0-prefers-n2", "remove hactl-r0-prefers-n1")


def test_a_resource_that_is_gone_takes_all_of_its_objects_along() -> None:
    before = brought(cluster(resource(0, preferred="n1"), resource(1)))
    after = cluster(resource(1))
    found = difference(before, wanted(after))
    # The clone last: nothing refers to it then.
    assert found.change.remove[-1] == "hactl-r0-clone"
    assert "r0" not in edit(before, found.change)


def test_what_the_operator_set_on_a_clone_stays() -> None:
    spec = cluster(resource(0))
    present = brought(spec)
    stopped = present.replace(
        '<nvpair id="hactl-r0-clone-meta_attributes-promotable"',
        '<nvpair id="hactl-r0-clone-meta_attributes-target-role" name="target-role" value="Stopped" />'
        '<nvpair id="hactl-r0-clone-meta_attributes-promotable"',
    )
    assert stopped != present
    assert not difference(stopped, wanted(spec)).change
    changed = edit(
        stopped, difference(stopped, wanted(spec.model_copy(update={"manual_failover": True}))).change
    )
    assert 'name="target-role" value="Stopped"' in changed
    assert 'name="maintenance" value="true"' in changed


def test_what_somebody_else_uses_stays_and_is_told() -> None:
    present = with_foreign(
        "constraints",
        '<rsc_colocation id="theirs" rsc="web" with-rsc="hactl-r0-clone" score="INFINITY"/>',
        brought(cluster(resource(0), resource(1))),
    )
    found = difference(present, wanted(cluster(resource(1))))
    after = edit(present, found.change)
    assert "hactl-r0-clone" not in found.change.remove
    assert "hactl-r0-not-on-n3" in found.change.remove
    assert 'id="theirs"' in after
    assert 'clone id="hactl-r0-clone"' in after
    assert [p for p in found.problems if "theirs" in p and "hactl-r0-clone" in p]


def test_what_a_kept_object_refers_to_is_kept() -> None:
    present = with_foreign(
        "constraints",
        '<rsc_order id="theirs" first="hactl-agent-clone" then="web"/>',
        brought(cluster(resource(0))),
    )
    found = difference(present, {})
    assert "hactl-agent-clone" not in found.change.remove
    assert "hactl-r0-clone" in found.change.remove


def test_the_leftover_of_a_move_does_not_keep_a_resource() -> None:
    present = with_foreign(
        "constraints",
        '<rsc_location id="cli-prefer-hactl-r0-clone" rsc="hactl-r0-clone" node="n1" score="INFINITY"/>',
        brought(cluster(resource(0))),
    )
    found = difference(present, wanted(cluster()))
    assert "hactl-r0-clone" in found.change.remove
    assert found.clear == ("hactl-r0-clone",)
    assert found.problems == ()


def test_a_clone_whose_maintenance_ends_is_named() -> None:
    before = brought(cluster(resource(0, maintenance=True), resource(1)))
    found = difference(before, wanted(cluster(resource(0), resource(1))))
    assert found.awake == ("hactl-r0-clone",)
    back = difference(edit(before, found.change), wanted(cluster(resource(0, maintenance=True), resource(1))))
    assert back.awake == ()
    assert back.words == ("change hactl-r0-clone",)


def test_a_property_that_the_operator_set_otherwise_is_told() -> None:
    present = EMPTY.replace(
        '<cluster_property_set id="cib-bootstrap-options"/>',
        '<cluster_property_set id="cib-bootstrap-options"><nvpair id="x" name="stonith-enabled" '
        'value="false"/><nvpair id="y" name="symmetric-cluster" value="true"/></cluster_property_set>',
    )
    (problem,) = difference(present, wanted(cluster(resource(0)))).problems
    assert "stonith-enabled is false" in problem


def test_an_id_of_hactl_s_inside_of_somebody_else_s_object_is_refused() -> None:
    present = with_foreign(
        "resources", '<group id="g"><primitive id="hactl-r0" class="ocf" type="x"/></group>', EMPTY
    )
    with pytest.raises(Failed) as caught:
        brought(cluster(resource(0)), present)
    assert caught.value.code == "pacemaker-refused"
    assert "hactl-r0" in caught.value.message


@pytest.mark.parametrize("present", ["", "<cib", "<cib/>"])
def test_what_is_no_configuration_is_an_error(present: str) -> None:
    with pytest.raises(Failed) as caught:
        difference(present, {})
    assert caught.value.code == "pacemaker-output"


NAMES = st.from_regex(r"(?!hactl-)[a-z][a-z0-9-]{0,8}", fullmatch=True)
REFERENCES = st.sampled_from(["hactl-r0-clone", "hactl-r1-clone", "hactl-fence-n1", "web", "db"])


@st.composite
def foreign(draw: st.DrawFn) -> list[tuple[str, Element]]:
    """Objects of other people's, some of which refer to hactl's."""
    made: list[tuple[str, Element]] = []
    for name in draw(st.lists(NAMES, max_size=8, unique=True)):
        kind = draw(st.sampled_from(["primitive", "group", "rsc_location", "rsc_order", "tag", "level"]))
        made.append(_foreign(kind, name, draw(REFERENCES)))
    return made


def _foreign(kind: str, name: str, refers: str) -> tuple[str, Element]:
    attributes: dict[str, dict[str, str]] = {
        "primitive": {"class": "ocf", "provider": "heartbeat", "type": "Dummy"},
        "group": {},
        "rsc_location": {"rsc": refers, "node": "n1", "score": "5"},
        "rsc_order": {"first": refers, "then": name},
        "tag": {},
        "level": {"target": "n1", "index": "1", "devices": f"other,{refers}"},
    }
    node = Element(kind, {"id": name, **attributes[kind]})
    if kind == "group":
        node.append(Element("primitive", {"id": f"{name}-in", "class": "ocf", "type": "Dummy"}))
    if kind == "tag":
        node.append(Element("obj_ref", {"id": refers}))
    sections = {"tag": "tags", "level": "fencing-topology"}
    return sections.get(kind, "constraints" if kind.startswith("rsc") else "resources"), node


SPECS: tuple[dict[str, Any], ...] = (
    {},
    {"preferred": "n1"},
    {"preferred": "n2", "failback": True},
    {"maintenance": True},
)


@st.composite
def specs(draw: st.DrawFn) -> ClusterSpec:
    chosen = draw(st.lists(st.sampled_from([0, 1, 2]), unique=True))
    made = [
        resource(n, draw(st.sampled_from(["n1 n2", "n1 n2 n3"])), **draw(st.sampled_from(SPECS)))
        for n in chosen
    ]
    return cluster(*made, manual_failover=draw(st.booleans()))


@settings(deadline=None)
@given(foreign(), specs(), specs())
def test_whatever_others_have_survives(
    others: list[tuple[str, Element]], first: ClusterSpec, second: ClusterSpec
) -> None:
    root = fromstring(EMPTY)
    for section, node in others:
        found = root.find(section)
        if found is None:
            found = Element(section)
            root.append(found)
        found.append(node)
    present = tostring(root, encoding="unicode")
    for spec in (first, second):
        present = edit(present, difference(present, wanted(spec)).change)
        after = fromstring(present)
        for section, node in others:
            (kept,) = [n for n in after.findall(f"{section}/*") if n.get("id") == node.get("id")]
            assert same(kept, node)
        here = {n.get("id") for n in after.iter() if n.tag != "obj_ref"}
        referred = {
            v for _, node in others for n in node.iter() for a in n.attrib.values() for v in a.split(",")
        }
        # Whatever others refer to and was there is there still.
        assert not {r for r in referred if r in wanted(spec)} - here
        assert not difference(present, wanted(spec)).change


def test_removing_what_is_not_there_changes_nothing() -> None:
    assert same(fromstring(edit(EMPTY, Change(remove=("hactl-r9-clone",)))), fromstring(EMPTY))
