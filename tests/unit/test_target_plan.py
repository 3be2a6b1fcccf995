"""Plans: complete, minimal, ordered, resumable after any step and any write, and blind to what is not
hactl's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.errors import Failed, Refused
from hactl.model.spec import ClusterSpec, HostSpec, ResourceSpec
from hactl.target import changes as c
from hactl.target.apply import apply
from hactl.target.memory import MemoryConfigFs
from hactl.target.observe import observe
from hactl.target.plan import plan
from hactl.target.tree import HBA_BASE, HBA_STEP, Backstore, Tree
from tests.unit.target_cases import (
    FOREIGN,
    MUTUAL,
    OWN,
    SECRET,
    check_invariants,
    cluster,
    converge,
    foreign_state,
    host,
    resource,
    volume,
    wanted,
    with_foreign,
)

MIXED = (host("h1", chap=True, mutual=True), host("h2"), host("h3", chap=True))
BIG = cluster(
    resource(1, hosts=("h1", "h2"), volumes=(volume(0, 0), volume(1, 5))),
    resource(2, hosts=("h3",), nodes=("n1", "n2", "n3")),
    hosts=MIXED,
)
ONE = cluster(resource(1, hosts=("h1", "h2"), volumes=(volume(0, 0), volume(1, 5))), hosts=MIXED)
MOVED = resource(1, hosts=("h3",), volumes=(volume(1, 0),), nodes=("n1", "n3"))


class KilledError(Exception):
    """The process is gone."""


@st.composite
def specs(draw: st.DrawFn) -> ClusterSpec:
    """Clusters of which any may follow any other: names keep their identity, all else varies."""
    hosts: list[HostSpec] = [
        host(
            f"h{i}",
            chap=draw(st.booleans()),
            mutual=draw(st.booleans()),
            secret=draw(st.sampled_from([SECRET, SECRET.upper()])),
        )
        for i in (1, 2, 3)
    ]
    resources: list[ResourceSpec] = []
    for number in draw(st.sets(st.integers(1, 3), max_size=2)):
        luns = draw(st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True))
        numbers = draw(st.lists(st.integers(0, 2), min_size=len(luns), max_size=len(luns), unique=True))
        resources.append(
            resource(
                number,
                nodes=tuple(draw(st.lists(st.sampled_from(["n1", "n2", "n3"]), min_size=1, unique=True))),
                hosts=tuple(draw(st.lists(st.sampled_from(["h1", "h2", "h3"]), unique=True))),
                volumes=tuple(volume(n, lun) for n, lun in zip(numbers, luns, strict=True)),
            )
        )
    return cluster(*resources, hosts=hosts)


def watch(fs: MemoryConfigFs, *specifications: ClusterSpec) -> Callable[[str], None]:
    """A hook that checks the invariants before every write, so after every other one."""

    def before(_: str) -> None:
        for spec in specifications:
            check_invariants(fs, spec)

    return before


def test_from_nothing_and_back_to_nothing() -> None:
    fs = with_foreign()
    foreign = foreign_state(fs)
    fs.before = watch(fs, BIG)
    converge(fs, wanted(BIG))
    assert fs.claims() == {OWN + "r1", OWN + "r2"}
    converge(fs, Tree())
    assert foreign_state(fs) == foreign
    assert fs.claims() == frozenset()
    assert fs.listdir("core") == ["alua", "iblock_0"]
    assert [n for n in fs.listdir("iscsi") if n.startswith("iqn")] == [FOREIGN]


@settings(max_examples=30, deadline=None)
@given(specs(), specs(), st.sampled_from(["n1", "n2", "n3"]))
def test_from_any_cluster_to_any_other_one_step_and_plan_at_a_time(
    first: ClusterSpec, second: ClusterSpec, node: str
) -> None:
    fs = with_foreign()
    foreign = foreign_state(fs)
    fs.before = watch(fs, first, second)
    converge(fs, wanted(first, node))
    target = wanted(second, node)
    rest = plan(target, observe(fs))
    while rest:
        if isinstance(enable := rest[0], c.EnableTpg):
            assert _export(observe(fs), enable) == _export(target, enable)
        apply(fs, rest[0])
        before, rest = len(rest), plan(target, observe(fs))
        assert len(rest) < before, "a plan made after a step is longer than what was left of the one before"
    assert observe(fs) == target
    assert foreign_state(fs) == foreign


def _export(tree: Tree, where: c.OfTpg) -> object:
    """What a portal group exports, and to whom."""
    tpgs = [p for t in tree.targets for p in t.tpgs if (t.iqn, p.tag) == (where.iqn, where.tag)]
    return [(p.rtpi, p.luns, p.acls) for p in tpgs]


def _killed_at(fs: MemoryConfigFs, tree: Tree, write: int) -> bool:
    """Carry out a plan but die before the n-th write; whether there was such a write."""
    left = write

    def before(_: str) -> None:
        nonlocal left
        if left == 0:
            raise KilledError
        left -= 1

    fs.before = before
    try:
        converge(fs, tree)
    except KilledError:
        return True
    finally:
        fs.before = lambda _: None
    return False


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (cluster(), ONE),
        (cluster(resource(2, hosts=("h2",)), hosts=MIXED), ONE),
        (BIG, cluster(MOVED, hosts=MIXED)),
    ],
)
def test_a_kill_before_any_single_write_is_recovered_from(first: ClusterSpec, second: ClusterSpec) -> None:
    tree, write, killed = wanted(second), 0, True
    while killed:
        fs = MemoryConfigFs()
        converge(fs, wanted(first))
        killed = _killed_at(fs, tree, write)
        check_invariants(fs, second)
        converge(fs, tree)
        write += 1
    assert write > 50


@settings(max_examples=25, deadline=None)
@given(specs(), specs(), st.lists(st.integers(0, 60), max_size=4))
def test_a_kill_while_recovering_is_recovered_from(
    first: ClusterSpec, second: ClusterSpec, kills: list[int]
) -> None:
    fs = with_foreign()
    foreign = foreign_state(fs)
    for index, kill in enumerate(kills):
        _killed_at(fs, wanted((first, second)[index % 2]), kill)
    converge(fs, wanted(second))
    assert foreign_state(fs) == foreign


def test_enabling_comes_after_luns_and_acls_and_before_portals() -> None:
    changes = plan(wanted(BIG), observe(MemoryConfigFs()))
    for iqn in (OWN + "r1", OWN + "r2"):
        own = [x for x in changes if isinstance(x, c.OfTpg) and x.iqn == iqn and x.tag == 1]
        enabled = next(i for i, x in enumerate(own) if isinstance(x, c.EnableTpg))
        before, after = own[:enabled], own[enabled + 1 :]
        assert any(isinstance(x, c.MapLun) for x in before)
        assert not [x for x in after if isinstance(x, c.CreateLun | c.CreateAcl | c.MapLun | c.SetRtpi)]
        assert [x for x in after if isinstance(x, c.AddPortal)]
    assert [x.tag for x in changes if isinstance(x, c.EnableTpg)] == [1, 1]
    assert {x.tag for x in changes if isinstance(x, c.AddPortal)} == {1}


def test_removal_order() -> None:
    fs = MemoryConfigFs()
    converge(fs, wanted(BIG))
    kinds = [type(x) for x in plan(Tree(), observe(fs))]
    order = [
        c.DisableTpg,
        c.UnmapLun,
        c.RemoveAcl,
        c.RemoveLun,
        c.RemovePortal,
        c.RemoveTpg,
        c.RemoveTarget,
        c.ReleaseTarget,
        c.RemovePortGroup,
        c.RemoveBackstore,
        c.RemoveHba,
    ]
    firsts = [kinds.index(kind) for kind in order]
    assert firsts == sorted(firsts)
    assert set(kinds) == set(order)


def test_a_lun_number_passes_from_one_volume_to_another() -> None:
    fs = MemoryConfigFs()
    before = cluster(resource(1, volumes=(volume(0, 0), volume(1, 1))))
    after = cluster(resource(1, volumes=(volume(0, 1), volume(1, 0))))
    fs.before = watch(fs, before, after)
    converge(fs, wanted(before))
    converge(fs, wanted(after))
    # The initiator must not be shown the other unit while it still uses the first: hidden, then shown again.
    changes = plan(wanted(before), observe(fs))
    shown = [i for i, x in enumerate(changes) if isinstance(x, c.MapLun)]
    hidden = [i for i, x in enumerate(changes) if isinstance(x, c.UnmapLun)]
    linked = [i for i, x in enumerate(changes) if isinstance(x, c.CreateLun)]
    assert len(shown) == len(hidden) == len(linked) == 4
    assert max(hidden) < min(linked)


def test_one_more_host_costs_what_one_host_costs() -> None:
    fs = MemoryConfigFs()
    converge(fs, wanted(cluster(resource(1, hosts=("h2",)), resource(2, hosts=("h3",)), hosts=MIXED)))
    after = wanted(
        cluster(resource(1, hosts=("h2", "h4")), resource(2, hosts=("h3",)), hosts=(*MIXED, host("h4")))
    )
    changes = plan(after, observe(fs))
    assert {type(x) for x in changes} == {c.CreateAcl, c.MapLun}
    assert len(changes) == 4


def test_chap_is_changed_live_and_never_shown() -> None:
    fs = MemoryConfigFs()
    before = cluster(resource(1), hosts=(host("h1", chap=True, mutual=True),))
    after = cluster(resource(1), hosts=(host("h1", chap=True, secret="another-secret"),))
    converge(fs, wanted(before))
    changes = plan(wanted(after), observe(fs))
    assert [type(x) for x in changes] == [c.SetChap, c.SetChap]
    text = f"{changes} {[x.describe() for x in changes]} {observe(fs)}"
    for secret in (SECRET, MUTUAL, "another-secret"):
        assert secret not in text
    converge(fs, wanted(after))


def test_hosts_with_and_without_chap_share_a_portal_group() -> None:
    fs = MemoryConfigFs()
    converge(fs, wanted(BIG))
    tpg = f"iscsi/{OWN}r1/tpgt_1"
    assert fs.read(f"{tpg}/param/AuthMethod") == "CHAP,None"
    assert fs.read(f"{tpg}/attrib/authentication") == "1"
    acls = {n: fs.read(f"{tpg}/acls/{n}/attrib/authentication") for n in fs.listdir(f"{tpg}/acls")}
    assert sorted(acls.values()) == ["0", "1"]
    # Taken down from outside, as after the loss of the lease: until "None" is offered again nobody can knock.
    fs.write(f"{tpg}/enable", "0")
    kinds = [type(x) for x in plan(wanted(BIG), observe(fs))]
    assert kinds == [*[c.RemovePortal] * 2, c.EnableTpg, c.SetAuthMethods, *[c.AddPortal] * 2]
    converge(fs, wanted(BIG))


def test_a_target_of_that_name_that_is_not_ours_is_refused_and_left_alone() -> None:
    fs = with_foreign()
    foreign = foreign_state(fs)
    with pytest.raises(Refused) as refused:
        plan(wanted(cluster(resource(1, iqn=FOREIGN))), observe(fs))
    assert refused.value.code == "target-foreign"
    assert FOREIGN in refused.value.message
    assert foreign_state(fs) == foreign


def test_a_target_made_between_planning_and_doing_is_not_taken_over() -> None:
    fs = MemoryConfigFs()
    changes = plan(wanted(cluster(resource(1))), observe(fs))
    fs.mkdir(f"iscsi/{OWN}r1")
    claim = next(x for x in changes if isinstance(x, c.ClaimTarget))
    with pytest.raises(Refused) as refused:
        apply(fs, claim)
    assert refused.value.code == "precondition"
    assert fs.claims() == frozenset()


def test_a_target_that_exports_our_backstore_is_ours_also_without_ledger() -> None:
    fs = MemoryConfigFs()
    converge(fs, wanted(cluster(resource(1))))
    fs.release(OWN + "r1")
    assert [type(x) for x in plan(wanted(cluster(resource(1))), observe(fs))] == [c.ClaimTarget]
    converge(fs, Tree())
    assert not fs.exists(f"iscsi/{OWN}r1")


def test_a_lun_that_somebody_put_into_the_default_group_is_put_back() -> None:
    fs = MemoryConfigFs()
    tree = wanted(cluster(resource(1)))
    converge(fs, tree)
    fs.write(f"iscsi/{OWN}r1/tpgt_1/lun/lun_0/alua_tg_pt_gp", "NULL")
    assert [type(x) for x in plan(tree, observe(fs))] == [c.SetLunGroup]
    converge(fs, tree)


def _other(backstore: Backstore, field: str) -> Backstore:
    match field:
        case "serial":
            return replace(backstore, serial="0" * 32)
        case "path":
            return replace(backstore, path="/dev/dm-9")
        case "vendor":
            return replace(backstore, vendor="OTHER")
        case _:
            attributes = dict(backstore.attributes) | {field: "0"}
            return replace(backstore, attributes=tuple(sorted(attributes.items())))


@pytest.mark.parametrize("field", ["serial", "path", "vendor", "force_pr_aptpl"])
def test_identity_of_an_exported_unit_never_changes(field: str) -> None:
    fs = MemoryConfigFs()
    tree = wanted(cluster(resource(1)))
    converge(fs, tree)
    changed = replace(tree, backstores=(_other(tree.backstores[0], field),))
    writes = fs.writes
    with pytest.raises(Refused) as refused:
        plan(changed, observe(fs))
    assert refused.value.code == "unit-in-use"
    assert "hactl.r1.0" in refused.value.message
    assert refused.value.hint
    assert fs.writes == writes


def test_a_backstore_that_nobody_uses_is_made_anew_on_another_device() -> None:
    fs = MemoryConfigFs()
    tree = wanted(cluster(resource(1)))
    unexported = replace(tree, targets=())
    converge(fs, unexported)
    moved = replace(unexported, backstores=(replace(tree.backstores[0], path="/dev/dm-9"),))
    kinds = {type(x) for x in plan(moved, observe(fs))}
    assert c.RemoveBackstore in kinds
    assert c.CreateBackstore in kinds
    converge(fs, moved)


def test_the_port_identifier_of_an_enabled_portal_group_never_changes() -> None:
    fs = MemoryConfigFs()
    converge(fs, wanted(cluster(resource(1))))
    with pytest.raises(Refused) as refused:
        plan(wanted(cluster(resource(1, id=9))), observe(fs))
    assert refused.value.code == "rtpi-in-use"


def test_a_port_identifier_that_somebody_else_uses_is_an_error_that_names_it() -> None:
    fs = with_foreign()
    fs.write(f"iscsi/{FOREIGN}/tpgt_1/enable", "0")
    fs.write(f"iscsi/{FOREIGN}/tpgt_1/rtpi", str(1 << 4 | 1))
    fs.write(f"iscsi/{FOREIGN}/tpgt_1/enable", "1")
    with pytest.raises(Failed) as failed:
        converge(fs, wanted(cluster(resource(1))))
    assert f"iscsi/{OWN}r1/tpgt_1/enable" in failed.value.message


def test_an_hba_number_that_somebody_else_uses_is_left_to_them() -> None:
    fs = MemoryConfigFs()
    taken = f"core/iblock_{HBA_BASE + 16}"
    fs.mkdir(taken)
    fs.mkdir(f"{taken}/theirs")
    converge(fs, wanted(cluster(resource(1))))
    assert observe(fs).backstores[0].hba == f"iblock_{HBA_BASE + 16 + HBA_STEP}"
    converge(fs, Tree())
    assert fs.exists(f"{taken}/theirs")


def test_a_kernel_without_force_pr_aptpl_is_refused_loudly() -> None:
    fs = MemoryConfigFs()
    tree = wanted(cluster(resource(1)))
    attributes = tuple(sorted([*tree.backstores[0].attributes, ("from_the_future", "1")]))
    tree = replace(tree, backstores=(replace(tree.backstores[0], attributes=attributes),))
    with pytest.raises(Refused) as refused:
        converge(fs, tree)
    assert refused.value.code == "kernel-too-old"
    assert "from_the_future" in refused.value.message


def test_every_change_says_what_and_why() -> None:
    fs = MemoryConfigFs()
    changes = [*plan(wanted(BIG), observe(fs))]
    converge(fs, wanted(BIG))
    changes += plan(Tree(), observe(fs))
    assert all(x.describe() and x.reason for x in changes)
    assert len({x.describe() for x in changes}) == len(changes)


@pytest.mark.parametrize(
    "change",
    [
        c.RemoveBackstore(backstore="core/iblock_0/disk", reason="x"),
        c.RemoveHba(hba="iblock_0", reason="x"),
        c.RemoveTarget(iqn=FOREIGN, reason="x"),
        c.DisableTpg(iqn=FOREIGN, tag=1, reason="x"),
        c.RemoveLun(iqn=FOREIGN, tag=1, lun=0, reason="x"),
        c.ClaimTarget(iqn=FOREIGN, reason="x"),
        c.ClaimTarget(iqn=FOREIGN, adopt=True, reason="x"),
    ],
)
def test_changes_to_what_is_not_ours_are_refused_also_without_a_plan(change: c.Change) -> None:
    fs = with_foreign()
    foreign, writes = foreign_state(fs), fs.writes
    with pytest.raises(Refused) as refused:
        apply(fs, change)
    assert refused.value.code == "precondition"
    assert fs.writes == writes
    assert foreign_state(fs) == foreign
