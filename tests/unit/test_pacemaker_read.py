"""What crm_mon says, as recorded from real clusters, and what it would have to say to be misunderstood."""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.errors import Failed
from hactl.pacemaker.protocol import Fencing, State
from hactl.pacemaker.read import read

DATA = Path(__file__).parent / "data" / "pacemaker"


def recorded(name: str) -> State:
    return read((DATA / f"{name}.xml").read_text())


def test_a_cluster_of_three_at_work() -> None:
    state = recorded("3.0.0-three")
    assert (state.dc, state.quorum, state.stonith_enabled, state.maintenance) == ("n1", True, True, False)
    assert [(m.name, m.online, m.clean) for m in state.members] == [(f"n{i}", True, True) for i in (1, 2, 3)]
    assert (state.promoted("hactl-r0"), state.promoted("hactl-r1")) == ("n1", "n2")
    roles = {(i.node, i.role) for i in state.instances if i.primitive == "hactl-r1"}
    assert roles == {("n1", "Unpromoted"), ("n2", "Promoted"), ("n3", "Unpromoted")}
    assert not state.gone("n2")
    assert state.fencing == ()
    assert state.failures == ()


def test_a_node_that_is_lost_and_not_fenced_yet_is_not_gone() -> None:
    state = recorded("3.0.0-lost")
    member = state.member("n2")
    assert member is not None
    assert (member.online, member.clean) == (False, False)
    assert not state.gone("n2")


def test_a_node_that_was_fenced_is_gone_and_what_it_ran_is_elsewhere() -> None:
    state = recorded("3.0.0-fenced")
    assert state.gone("n2")
    assert state.promoted("hactl-r1") == "n3"
    assert state.fencing == (Fencing("n2", "reboot", "success", "n1", 1795451859.244701),)
    assert state.failures == ("hactl-r0_asyncmon_0 on n1: Simulated failure",)


def test_the_release_before_names_roles_the_same() -> None:
    state = recorded("2.1.5-file")
    assert (state.promoted("hactl-r0"), state.promoted("hactl-r1")) == ("n1", "n3")
    assert state.gone("n2")
    assert not state.gone("n1")


def crm_mon(inside: str = "", dc: str = '<current_dc present="false"/>', options: str = "") -> str:
    return (
        f"<pacemaker-result><summary>{dc}<cluster_options {options}/></summary>"
        f"<nodes/>{inside}</pacemaker-result>"
    )


def test_names_of_roles_of_old_and_instances_with_a_number() -> None:
    node = '<node name="n1"/>'
    state = read(
        crm_mon(
            f'<resources><clone><resource id="a:0" role="Master" managed="true">{node}</resource>'
            f'<resource id="a:1" role="Slave" managed="false" failed="true">{node}</resource>'
            "</clone></resources>"
        )
    )
    assert state.promoted("a") == "n1"
    assert [(i.primitive, i.role, i.managed, i.failed) for i in state.instances] == [
        ("a", "Promoted", True, False),
        ("a", "Unpromoted", False, True),
    ]


def test_without_a_controller_and_without_fencing() -> None:
    state = read(crm_mon(options='stonith-enabled="false" maintenance-mode="true"'))
    assert (state.dc, state.quorum, state.stonith_enabled, state.maintenance) == (None, False, False, True)


@pytest.mark.parametrize(
    ("completed", "seconds"),
    [
        ('completed="2026-11-23 16:37:39.244701Z"', 1795451859.244701),
        ('completed="2026-11-23 17:37:39 +01:00"', 1795451859.0),
        ("", None),
    ],
)
def test_times_of_fencing(completed: str, seconds: float | None) -> None:
    event = f'<fence_event action="off" target="n2" status="pending" {completed}/>'
    assert read(crm_mon(f"<fence_history>{event}</fence_history>")).fencing[0].completed == seconds


@pytest.mark.parametrize(
    "said",
    [
        "",
        "<pacemaker-result/>",
        crm_mon(options='stonith-enabled="perhaps"'),
        crm_mon('<resources><resource id="a"/></resources>'),
        crm_mon(
            '<fence_history><fence_event action="off" target="a" status="x" completed="now"/></fence_history>'
        ),
    ],
)
def test_what_is_not_understood_is_said(said: str) -> None:
    with pytest.raises(Failed) as caught:
        read(said)
    assert caught.value.code == "pacemaker-output"
