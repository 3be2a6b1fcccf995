"""The desired tree: the same unit on every path, one portal group per node, only the own one open."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import SecretStr

from hactl.errors import Refused
from hactl.model.spec import ChapSpec, HostSpec
from hactl.target import attributes, changes, plan, tree
from hactl.target.attributes import DEVICE, LOCKED
from hactl.target.tree import CONTROL, PrTree, Target, Tpg, Tree, desired
from tests.unit.target_cases import cluster, host, resource, volume, wanted

SPEC = cluster(resource(1, volumes=(volume(0, 0), volume(1, 7))), resource(2, nodes=("n2", "n3")))


def _seen(tpg: Tpg) -> object:
    """What initiators can tell of a portal group, whichever kernel answers."""
    return tpg.tag, tpg.rtpi, tpg.luns, tpg.acls, tpg.attributes


def _target(tree: Tree, iqn: str) -> Target:
    return next(t for t in tree.targets if t.iqn == iqn)


def test_identity_is_equal_on_all_nodes() -> None:
    trees = [wanted(SPEC, node) for node in ("n1", "n2")]
    first, second = [_target(tree, SPEC.resources[0].iqn) for tree in trees]
    assert [*map(_seen, first.tpgs)] == [*map(_seen, second.tpgs)]
    assert [b for b in trees[0].backstores if "r1" in b.name] == [
        b for b in trees[1].backstores if "r1" in b.name
    ]


def test_only_the_own_portal_group_is_open() -> None:
    for node in SPEC.nodes:
        for target in wanted(SPEC, node.name).targets:
            for tpg in target.tpgs:
                assert tpg.enabled == (tpg.tag == node.id)
                assert bool(tpg.portals) == (tpg.tag == node.id)


def test_a_lone_exporter_has_a_spare_group_that_only_its_agent_may_use() -> None:
    resource = next(r for r in SPEC.resources if "n2" in r.nodes and r is not SPEC.resources[0])
    alone = resource.model_copy(update={"nodes": ("n2",)})
    spec = SPEC.model_copy(update={"resources": (alone,)})
    pr = PrTree(True, SecretStr("secret"), {})
    devices = {(alone.name, v.number): f"/dev/mapper/{v.number}" for v in alone.volumes}
    unlogged = desired(spec, "n2", devices).targets[0]
    assert [t.tag for t in unlogged.tpgs] == [spec.node("n2").id]
    own, spare = desired(spec, "n2", devices, {alone.name: pr}).targets[0].tpgs
    assert own.enabled
    assert (spare.enabled, spare.door, spare.portals) == (False, True, ("127.77.0.16:7790",))
    assert [acl.initiator for acl in spare.acls] == [CONTROL]
    assert all(acl.authentication and acl.chap is not None for acl in spare.acls)
    assert spare.luns == own.luns
    # No node's, whatever its id may be.
    ids = range(1, 16)
    node = spec.node("n2")
    assert spare.rtpi not in {alone.rtpi(node.model_copy(update={"id": number})) for number in ids}
    assert spare.tag not in ids
    # Elsewhere the other nodes' groups serve for it.
    for several in (r for r in SPEC.resources if len(r.nodes) > 1):
        paths = {(several.name, v.number): f"/dev/mapper/{v.number}" for v in several.volumes}
        one = SPEC.model_copy(update={"resources": (several,)})
        target = desired(one, several.nodes[0], paths, {several.name: pr}).targets[0]
        assert {t.tag for t in target.tpgs} == {SPEC.node(name).id for name in several.nodes}


def test_portals_are_written_as_lio_names_them() -> None:
    own = wanted(SPEC, "n1").targets[0].tpgs[0]
    assert own.portals == ("10.0.2.1:3260", "[2001:db8::1]:3260")


def test_a_node_exports_only_what_it_is_a_node_of() -> None:
    assert [t.iqn for t in wanted(SPEC, "n1").targets] == [SPEC.resources[0].iqn]
    assert len(wanted(SPEC, "n2").targets) == 2


def test_identifiers() -> None:
    tree = wanted(SPEC, "n2")
    rtpis = [tpg.rtpi for target in tree.targets for tpg in target.tpgs]
    assert rtpis == [0x11, 0x12, 0x22, 0x23]
    assert [(g.name, g.id) for g in tree.backstores[0].groups] == [("hactl-n1", 1), ("hactl-n2", 2)]
    assert tree.backstores[0].serial == SPEC.serial(SPEC.resources[0], SPEC.resources[0].volumes[0])
    assert (
        len({b.serial for b in tree.backstores})
        == len(tree.backstores)
        == len({b.hba for b in tree.backstores})
    )


@pytest.mark.parametrize(
    ("hosts", "authentication", "methods", "per_acl"),
    [
        ((host("h1"),), "0", "CHAP,None", [False]),
        ((host("h1", chap=True),), "1", "CHAP", [True]),
        ((host("h1", chap=True), host("h2")), "1", "CHAP,None", [True, False]),
        ((), "1", "CHAP", []),
    ],
)
def test_chap_is_required_of_those_that_have_it(
    hosts: tuple[HostSpec, ...], authentication: str, methods: str, per_acl: list[bool]
) -> None:
    spec = cluster(resource(1, hosts=tuple(h.name for h in hosts)), hosts=hosts)
    tpg = wanted(spec).targets[0].tpgs[0]
    assert dict(tpg.attributes)["authentication"] == authentication
    assert tpg.auth_methods == methods
    assert [acl.authentication for acl in tpg.acls] == per_acl


def test_a_host_sees_the_volumes_that_are_exported_to_it_under_the_luns_given_there() -> None:
    spec = cluster(
        resource(1, hosts=("h1",), volumes=(volume(0, 0), volume(1, 7))),
        hosts=(host("h1"), host("h2"), host("h3")),
    )
    exports = {"h2": {1: 3}, "h3": {}}
    chosen = spec.resources[0].model_copy(update={"exports": exports})
    for name in ("n1", "n2"):
        for tpg in wanted(spec.model_copy(update={"resources": (chosen,)}), name).targets[0].tpgs:
            acls = {acl.initiator: [(m.number, m.lun) for m in acl.luns] for acl in tpg.acls}
            # h3 is let in nowhere: nothing is exported to it.
            assert acls == {
                spec.host("h1").initiators[0]: [(0, 0), (7, 7)],
                spec.host("h2").initiators[0]: [(3, 7)],
            }
            assert [lun.number for lun in tpg.luns] == [0, 7]


@pytest.mark.parametrize(
    ("user", "password"),
    [("NULLify", "long-enough-password"), ("user", "NULL-password-00"), ("user", "two\nlines-of-password")],
)
def test_chap_that_lio_cannot_hold_is_refused_without_showing_it(user: str, password: str) -> None:
    bad = HostSpec(
        name="h1",
        initiators=("iqn.1994-05.com.example:h1",),
        chap=ChapSpec(user=user, password=SecretStr(password)),
    )
    with pytest.raises(Refused) as refused:
        wanted(cluster(resource(1), hosts=(bad,)))
    assert refused.value.code == "chap-unusable"
    assert "h1" in refused.value.message
    assert password not in str(refused.value)


def test_mutual_chap_needs_both_halves() -> None:
    half = ChapSpec(user="u", password=SecretStr("long-enough-password"), mutual_user="target")
    bad = HostSpec(name="h1", initiators=("iqn.1994-05.com.example:h1",), chap=half)
    with pytest.raises(Refused) as refused:
        wanted(cluster(resource(1), hosts=(bad,)))
    assert refused.value.code == "chap-incomplete"


def test_secrets_are_not_in_repr() -> None:
    tree = wanted(cluster(resource(1), hosts=(host("h1", chap=True, mutual=True),)))
    assert "battery" not in repr(tree)


def test_a_unit_without_gate_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        desired(SPEC, "n1", {})
    assert refused.value.code == "gate-missing"


def test_a_path_outside_dev_is_a_file() -> None:
    spec = cluster(resource(1))
    backstore = desired(spec, "n1", {("r1", 0): "/var/tmp/unit"}).backstores[0]
    assert (backstore.plugin, backstore.size) == ("fileio", 1 << 20)
    assert backstore.hba.startswith("fileio_")


def test_what_the_design_asks_of_every_unit() -> None:
    assert DEVICE["force_pr_aptpl"] == "1"
    assert DEVICE["emulate_3pc"] == "0"
    assert "force_pr_aptpl" in LOCKED


@pytest.mark.parametrize("module", [attributes, changes, plan, tree])
def test_decisions_import_no_adapter(module: ModuleType) -> None:
    assert module.__file__ is not None
    nodes = ast.walk(ast.parse(Path(module.__file__).read_text()))
    imported = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    assert imported
    assert not {
        m
        for m in imported
        if m.rpartition(".")[2] in ("configfs", "memory", "observe", "apply", "runner", "os")
    }
