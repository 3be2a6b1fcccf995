"""What holds for every implementation of Pacemaker: in memory, and with HACTL_REAL=1 the real tools on a CIB
in a file, for which no daemon has to run."""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.errors import Failed
from hactl.model.spec import ClusterSpec
from hactl.pacemaker.difference import difference
from hactl.pacemaker.elements import parse
from hactl.pacemaker.memory import MemoryCluster
from hactl.pacemaker.protocol import Change, Pacemaker
from hactl.pacemaker.tools import Tools
from hactl.pacemaker.wanted import wanted
from hactl.runner import SubprocessRunner
from tests.contract.conftest import REAL
from tests.unit.pacemaker_world import cluster, resource

SPEC = cluster(resource(0, preferred="n1"), resource(1, "n1 n2 n3", preferred="n2", failback=True))
CIB = """<cib crm_feature_set="3.16.1" validate-with="pacemaker-3.9" admin_epoch="0" epoch="1"
  num_updates="0"><configuration>
  <crm_config><cluster_property_set id="cib-bootstrap-options"/></crm_config>
  <nodes><node id="1" uname="n1"/><node id="2" uname="n2"/><node id="3" uname="n3"/></nodes>
  <resources/><constraints/></configuration><status/></cib>
"""
THEIRS = '<primitive id="theirs" class="ocf" provider="pacemaker" type="Dummy"/>'


@pytest.fixture(params=["memory", *(["real"] if REAL else [])])
def pacemaker(request: pytest.FixtureRequest, tmp_path: Path) -> Pacemaker:
    """A cluster of three nodes without any resource."""
    if request.param == "memory":
        return MemoryCluster(("n1", "n2", "n3")).on("n1")
    file = tmp_path / "cib.xml"
    file.write_text(CIB)
    return Tools(SubprocessRunner(), environment={"CIB_file": str(file)}, timeout=120.0)


async def bring(pacemaker: Pacemaker, spec: ClusterSpec) -> tuple[str, ...]:
    """Make the configuration what ``spec`` wants; what was changed, in words."""
    found = difference(await pacemaker.configuration(), wanted(spec))
    await pacemaker.commit(found.change)
    return found.words


async def ids(pacemaker: Pacemaker) -> set[str | None]:
    root = parse(await pacemaker.configuration(), "the configuration")
    return {
        node.get("id") for section in ("resources", "constraints") for node in root.findall(f"{section}/*")
    }


async def test_what_was_committed_is_there_and_needs_nothing_more(pacemaker: Pacemaker) -> None:
    assert await bring(pacemaker, SPEC)
    assert await ids(pacemaker) == set(wanted(SPEC)) - {"hactl-options"}
    assert await bring(pacemaker, SPEC) == ()


async def test_the_instances_are_those_of_the_configuration(pacemaker: Pacemaker) -> None:
    assert {i.primitive for i in (await pacemaker.state()).instances if "r" in i.primitive} == set()
    await bring(pacemaker, SPEC)
    state = await pacemaker.state()
    assert {m.name for m in state.members} == {"n1", "n2", "n3"}
    assert state.stonith_enabled
    assert not state.gone("n4")


async def test_changes_are_made_in_place_and_what_is_not_wanted_goes(pacemaker: Pacemaker) -> None:
    await bring(pacemaker, SPEC)
    by_hand = SPEC.model_copy(update={"manual_failover": True, "resources": SPEC.resources[:1]})
    words = await bring(pacemaker, by_hand)
    assert "change hactl-r0-clone" in words
    assert "remove hactl-r1-clone" in words
    assert await ids(pacemaker) == set(wanted(by_hand)) - {"hactl-options"}
    assert await bring(pacemaker, by_hand) == ()
    assert not (await pacemaker.state()).stonith_enabled


async def test_what_others_have_stays(pacemaker: Pacemaker) -> None:
    await pacemaker.commit(Change(put=(("resources", THEIRS),)))
    await bring(pacemaker, SPEC)
    assert "theirs" in await ids(pacemaker)
    await bring(pacemaker, SPEC.model_copy(update={"resources": ()}))
    assert "theirs" in await ids(pacemaker)


async def test_an_id_that_is_taken_changes_nothing(pacemaker: Pacemaker) -> None:
    group = '<group id="g"><primitive id="hactl-r0" class="ocf" provider="pacemaker" type="Dummy"/></group>'
    await pacemaker.commit(Change(put=(("resources", group),)))
    before = await ids(pacemaker)
    with pytest.raises(Failed) as caught:
        await bring(pacemaker, SPEC)
    assert caught.value.code == "pacemaker-refused"
    assert await ids(pacemaker) == before


async def test_a_preference_is_set_and_cleared_and_a_ban_of_the_operator_stays(pacemaker: Pacemaker) -> None:
    await bring(pacemaker, SPEC)
    clean = await ids(pacemaker)
    ban = (
        '<rsc_location id="cli-ban-hactl-r1-clone-on-n3" rsc="hactl-r1-clone" node="n3" score="-INFINITY" '
        'role="Promoted"/>'
    )
    await pacemaker.commit(Change(put=(("constraints", ban),)))
    await pacemaker.move("hactl-r0-clone", "n2")
    await pacemaker.move("hactl-r0-clone", "n1")
    assert await ids(pacemaker) - clean == {"cli-prefer-hactl-r0-clone", "cli-ban-hactl-r1-clone-on-n3"}
    # It does not disturb what is kept up.
    assert await bring(pacemaker, SPEC) == ()
    for _ in range(2):
        await pacemaker.clear("hactl-r0-clone")
    await pacemaker.clear("hactl-r1-clone")
    assert await ids(pacemaker) - clean == {"cli-ban-hactl-r1-clone-on-n3"}


async def test_a_move_to_a_node_that_does_not_exist_fails(pacemaker: Pacemaker) -> None:
    await bring(pacemaker, SPEC)
    with pytest.raises(Failed) as caught:
        await pacemaker.move("hactl-r0-clone", "n9")
    assert caught.value.code == "pacemaker-failed"
