"""What Pacemaker's configuration shall be."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from xml.etree.ElementTree import Element

import pytest

from hactl.errors import Refused
from hactl.model.spec import ClusterSpec
from hactl.pacemaker import charge, difference, elements, read
from hactl.pacemaker import wanted as wanted_module
from hactl.pacemaker.elements import text
from hactl.pacemaker.wanted import wanted
from tests.unit.pacemaker_world import PASSWORD, cluster, node, resource


def values(found: Element, path: str) -> dict[str, str]:
    return {p.attrib["name"]: p.attrib["value"] for p in found.findall(f"{path}/nvpair")}


def clone(spec: ClusterSpec, name: str) -> dict[str, str]:
    return values(wanted(spec)[f"hactl-{name}-clone"][1], "meta_attributes")


def options(spec: ClusterSpec) -> Mapping[str, str]:
    return values(wanted(spec)["hactl-options"][1], ".")


def test_a_resource_is_a_promotable_clone_with_a_monitor_for_each_role() -> None:
    _, found = wanted(cluster(resource(0, "n1 n2 n3")))["hactl-r0-clone"]
    meta = values(found, "meta_attributes")
    assert (meta["promotable"], meta["promoted-max"], meta["clone-max"]) == ("true", "1", "3")
    primitive = found.find("primitive")
    assert primitive is not None
    assert primitive.attrib == {"id": "hactl-r0", "class": "ocf", "provider": "hactl", "type": "resource"}
    assert values(primitive, "instance_attributes") == {"name": "r0"}
    monitors = {
        op.get("role"): op.get("interval") for op in primitive.iter("op") if op.get("name") == "monitor"
    }
    assert set(monitors) == {"Promoted", "Unpromoted"}
    assert len(set(monitors.values())) == 2


def test_it_runs_only_where_it_is_exported_and_after_the_agent() -> None:
    found = wanted(cluster(resource(0)))
    assert found["hactl-r0-not-on-n3"][1].attrib == {
        "id": "hactl-r0-not-on-n3", "rsc": "hactl-r0-clone", "node": "n3", "score": "-INFINITY",
    }  # fmt: skip
    assert "hactl-r0-not-on-n1" not in found
    order = found["hactl-r0-after-agent"][1]
    assert (order.get("first"), order.get("then")) == ("hactl-agent-clone", "hactl-r0-clone")


def test_the_preferred_node_is_so_for_the_promoted_role() -> None:
    _, found = wanted(cluster(resource(0, preferred="n2")))["hactl-r0-prefers-n2"]
    assert (found.get("role"), found.get("node"), found.get("score")) == ("Promoted", "n2", "100")
    assert not any("prefers" in name for name in wanted(cluster(resource(0))))


def test_a_node_takes_back_only_what_it_is_fit_for() -> None:
    _, found = wanted(cluster(resource(0, preferred="n2", failback=True)))["hactl-r0-prefers-n2"]
    rule = found.find("rule")
    assert rule is not None
    assert (rule.get("role"), rule.get("score"), rule.get("boolean-op")) == ("Promoted", "50000", "and")
    assert [(e.get("attribute"), e.get("operation"), e.get("value"), e.get("type")) for e in rule] == [
        ("#uname", "eq", "n2", None),
        ("master-hactl-r0", "gte", "10000", "number"),
    ]


def test_nobody_is_promoted_whose_agent_gave_no_score() -> None:
    rule = wanted(cluster(resource(0)))["hactl-r0-only-scored"][1].find("rule")
    assert rule is not None
    assert (rule.get("role"), rule.get("score"), rule.get("boolean-op")) == ("Promoted", "-INFINITY", "or")
    assert {e.get("attribute") for e in rule} == {"master-hactl-r0"}
    assert {e.get("operation") for e in rule} == {"not_defined", "lte"}


def test_maintenance_is_for_one_resource_or_for_all_while_roles_are_ordered_by_hand() -> None:
    both = (resource(0, maintenance=True), resource(1))
    fenced = cluster(*both)
    assert "maintenance" in clone(fenced, "r0")
    assert "maintenance" not in clone(fenced, "r1")
    assert "maintenance" not in clone(fenced, "agent")
    by_hand = _without_device(fenced)
    for name in ("r0", "r1"):
        assert clone(by_hand, name)["maintenance"] == "true"
    # It is started by then when resources are no more in maintenance.
    assert "maintenance" not in clone(by_hand, "agent")


def _without_device(spec: ClusterSpec) -> ClusterSpec:
    first = spec.nodes[0].model_copy(update={"fencing": None})
    return spec.model_copy(update={"nodes": (first, *spec.nodes[1:])})


def test_without_quorum_what_is_active_goes_on_only_if_others_wait_for_its_fencing() -> None:
    fenced = cluster(resource(0))
    assert options(fenced)["stonith-enabled"] == "true"
    assert options(fenced)["no-quorum-policy"] == "freeze"
    unfenced = _without_device(fenced).model_copy(update={"unfenced_promotion": True})
    assert options(unfenced)["stonith-enabled"] == "false"
    assert options(unfenced)["no-quorum-policy"] == "stop"
    by_hand = _without_device(fenced)
    assert options(by_hand)["stonith-enabled"] == "false"
    assert options(by_hand)["no-quorum-policy"] == "freeze"


def test_a_fence_device_never_runs_on_its_own_node_and_holds_no_secret() -> None:
    found = wanted(cluster())
    section, device = found["hactl-fence-n2"]
    assert (section, device.get("class"), device.get("type")) == ("resources", "stonith", "fence_ipmilan")
    shown = values(device, "instance_attributes")
    assert shown["pcmk_host_list"] == "n2"
    assert shown["ip"] == "10.77.1.102"
    assert shown["password_script"] == "/etc/hactl/fence/n2"
    assert found["hactl-fence-n2-not-on-n2"][1].get("score") == "-INFINITY"
    assert not any(PASSWORD in text(element) for _, element in found.values())


def test_of_two_nodes_one_is_spared_for_a_moment() -> None:
    delays = [values(wanted(cluster(nodes=2))[f"hactl-fence-n{i}"][1], "instance_attributes") for i in (1, 2)]
    assert ["pcmk_delay_base" in d for d in delays] == [True, False]
    three = values(wanted(cluster())["hactl-fence-n1"][1], "instance_attributes")
    assert "pcmk_delay_base" not in three


def test_a_watchdog_is_a_device_that_pacemaker_has_by_itself() -> None:
    watched = ClusterSpec.model_validate(
        {
            "name": "demo",
            "pacemaker": True,
            "nodes": [node(1, fencing={"agent": "fence_watchdog"}), node(2), node(3)],
        }
    )
    assert "hactl-fence-n1" not in wanted(watched)
    assert options(watched)["stonith-watchdog-timeout"] == "-1"
    assert "stonith-watchdog-timeout" not in options(cluster())


@pytest.mark.parametrize("name", ["agent", "options", "fence-n1", "r0-clone"])
def test_a_name_that_would_make_an_id_of_something_else_is_refused(name: str) -> None:
    other = {**resource(1), "name": name}
    with pytest.raises(Refused) as caught:
        wanted(cluster(resource(0), other))
    assert caught.value.code == "pacemaker-id-taken"


def test_a_cluster_without_pacemaker_wants_nothing() -> None:
    assert wanted(cluster(resource(0), pacemaker=False)) == {}


@pytest.mark.parametrize("module", [charge, difference, elements, read, wanted_module])
def test_decisions_import_no_adapter(module: ModuleType) -> None:
    assert module.__file__ is not None
    nodes = ast.walk(ast.parse(Path(module.__file__).read_text()))
    imported = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    assert imported
    assert not {m for m in imported if m.rpartition(".")[2] in ("memory", "runner", "tools", "upkeep", "os")}
