"""States of the port groups: what is written, what is left out, in which order, and what is refused."""

from __future__ import annotations

import pytest

from hactl.alua.groups import observe_states, set_states
from hactl.alua.states import AccessState
from hactl.alua.states import wanted as wanted_state
from hactl.errors import Failed, Refused
from hactl.target.memory import MemoryConfigFs
from hactl.target.observe import observe
from hactl.target.plan import plan
from tests.unit.target_cases import cluster, converge, resource, volume, wanted

RES = resource(1, volumes=(volume(0, 0), volume(1, 1)))
SPEC = cluster(RES)
AO, STANDBY, TRANSITIONING = (
    AccessState.ACTIVE_OPTIMIZED,
    AccessState.STANDBY,
    AccessState.TRANSITIONING,
)


@pytest.fixture
def fs() -> MemoryConfigFs:
    """Resource r1 set up on n1."""
    memory = MemoryConfigFs()
    converge(memory, wanted(SPEC))
    return memory


def test_everything_begins_in_standby(fs: MemoryConfigFs) -> None:
    expected = {"n1": STANDBY, "n2": STANDBY}
    assert observe_states(fs, SPEC, RES) == {0: expected, 1: expected}


def test_promotion_reaches_every_volume_and_is_done_once(fs: MemoryConfigFs) -> None:
    states = {n: wanted_state(n, "n1") for n in RES.nodes}
    assert set_states(fs, SPEC, RES, states) == 2
    assert observe_states(fs, SPEC, RES) == {0: states, 1: states}
    writes = fs.writes
    assert set_states(fs, SPEC, RES, states) == 0
    assert fs.writes == writes


def test_never_two_groups_active_at_once(fs: MemoryConfigFs) -> None:
    set_states(fs, SPEC, RES, {"n1": AO, "n2": STANDBY})
    seen: list[int] = []

    def before(_: str) -> None:
        states = observe_states(fs, SPEC, RES).values()
        seen.extend(list(volume.values()).count(AO) for volume in states)

    fs.before = before
    assert set_states(fs, SPEC, RES, {"n2": AO, "n1": STANDBY}) == 4
    assert seen
    assert max(seen) == 1
    assert observe_states(fs, SPEC, RES)[0] == {"n1": STANDBY, "n2": AO}


@pytest.mark.parametrize(
    ("states", "code"),
    [({"n1": AO, "n2": AO}, "two-active"), ({"n2": AO}, "two-active"), ({"n3": AO}, "node-not-exporting")],
)
def test_two_active_groups_and_strangers_are_refused(
    fs: MemoryConfigFs, states: dict[str, AccessState], code: str
) -> None:
    set_states(fs, SPEC, RES, {"n1": AO})
    writes = fs.writes
    with pytest.raises(Refused) as refused:
        set_states(fs, SPEC, RES, states)
    assert refused.value.code == code
    assert fs.writes == writes


def test_transitioning_is_written_and_read(fs: MemoryConfigFs) -> None:
    set_states(fs, SPEC, RES, {"n1": TRANSITIONING})
    assert observe_states(fs, SPEC, RES)[1] == {"n1": TRANSITIONING, "n2": STANDBY}


def test_a_resource_that_is_not_set_up_is_refused() -> None:
    empty = MemoryConfigFs()
    with pytest.raises(Refused) as refused:
        set_states(empty, SPEC, RES, {"n1": AO})
    assert refused.value.code == "group-missing"
    with pytest.raises(Refused):
        observe_states(empty, SPEC, RES)


def test_an_unknown_state_is_loud(fs: MemoryConfigFs) -> None:
    class Odd(MemoryConfigFs):
        def read(self, path: str) -> str:
            return "4" if path.endswith("alua_access_state") else super().read(path)

    odd = Odd()
    with pytest.raises(Failed) as failed:
        converge(odd, wanted(SPEC))
    assert failed.value.code == "alua-state-unknown"


def test_states_are_no_business_of_the_tree_plan(fs: MemoryConfigFs) -> None:
    set_states(fs, SPEC, RES, {"n1": AO})
    assert plan(wanted(SPEC), observe(fs)) == ()


def test_a_node_that_joins_changes_nobodys_state(fs: MemoryConfigFs) -> None:
    set_states(fs, SPEC, RES, {"n1": AO})
    grown = RES.model_copy(update={"nodes": ("n1", "n2", "n3")})
    spec = cluster(grown)
    converge(fs, wanted(spec))
    assert observe_states(fs, spec, grown)[0] == {"n1": AO, "n2": STANDBY, "n3": STANDBY}


@pytest.mark.parametrize("access_type", ["0", "2", "3"])
def test_access_types_are_put_right_without_touching_the_state_in_use(
    fs: MemoryConfigFs, access_type: str
) -> None:
    set_states(fs, SPEC, RES, {"n1": AO})
    backstore = f"core/{observe(fs).backstores[0].hba}/hactl.r1.0"
    for group in fs.listdir(f"{backstore}/alua"):
        fs.write(f"{backstore}/alua/{group}/alua_access_type", access_type)
    converge(fs, wanted(SPEC))
    assert observe_states(fs, SPEC, RES)[0] == {"n1": AO, "n2": STANDBY}
