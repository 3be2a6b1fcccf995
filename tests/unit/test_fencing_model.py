"""Fence devices in the specification: which are good, where their secrets appear, and what follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from hactl.errors import Refused
from hactl.model import edit
from hactl.model.check import check
from hactl.model.desired import Desired
from hactl.model.draft import diff, draft, dump
from hactl.model.edit_replace import replace as exchange
from hactl.model.load import SpecError, load, parse
from hactl.model.spec import ClusterSpec, FenceSpec
from hactl.pacemaker import charge
from tests.unit.desired_world import cluster, serials

SECRET = "bmc secret'$(id)"
DEVICE = edit.fence_device("fence_ipmilan", {"ip": "10.0.9.1", "username": "hactl"}, {"password": SECRET})
SBD = edit.fence_device("fence_sbd", {"devices": "/dev/sda1"}, {})


PASSWORDS = "user: h1, password: correct-horse-9"


def made(nodes: int = 2, *, pacemaker: bool = True, fenced: int = 1) -> Desired:
    state = cluster(nodes)
    state = replace(state, cluster=state.cluster.model_copy(update={"pacemaker": pacemaker}))
    for number in range(1, fenced + 1):
        state = edit.set_fencing(state, f"n{number}", DEVICE)
    return state


def codes(device: FenceSpec) -> set[str]:
    return {p.code for p in check(edit.set_fencing(cluster(1), "n1", device).cluster)}


def test_what_a_device_may_have() -> None:
    assert codes(DEVICE) == codes(SBD) == set()
    more = {"community": "public", "identity_file": "/root/key", "passwd_script": "/root/x", "port": "3"}
    assert codes(edit.fence_device("fence_apc_snmp", more, {"snmp_priv_passwd": "x"})) == set()


@pytest.mark.parametrize(
    ("options", "secrets", "code"),
    [
        ({"password": "x"}, {}, "fence-secret-open"),
        ({"passwd": "x"}, {}, "fence-secret-open"),
        ({"snmp_priv_passwd": "x"}, {}, "fence-secret-open"),
        ({"api_token": "x"}, {}, "fence-secret-open"),
        ({"secret_key": "x"}, {}, "fence-secret-open"),
        ({"action": "off"}, {}, "fence-option-ours"),
        ({"pcmk_host_list": "n1"}, {}, "fence-option-ours"),
        ({"password_script": "/x"}, {"password": "x"}, "fence-option-ours"),
        ({"ip": ""}, {}, "fence-option-value"),
        ({"ip": "a\nb"}, {}, "fence-option-value"),
        ({}, {"passwd": "x"}, "fence-secret-unknown"),
        ({}, {"api_token": "x"}, "fence-secret-unknown"),
        ({}, {"password": ""}, "fence-secret-value"),
        ({}, {"password": " x"}, "fence-secret-value"),
        ({}, {"password": "a\nb"}, "fence-secret-value"),
    ],
)
def test_what_it_must_not_have(options: dict[str, str], secrets: dict[str, str], code: str) -> None:
    assert codes(edit.fence_device("fence_ipmilan", options, secrets)) == {code}


@pytest.mark.parametrize(
    ("agent", "options"),
    [
        ("ipmilan", {}),
        ("fence_Ipmi", {}),
        ("fence_x; id", {}),
        ("fence_", {}),
        ("fence_ipmilan", {"IP": "x"}),
        ("fence_ipmilan", {"a b": "x"}),
        ("fence_ipmilan", {"": "x"}),
    ],
)
def test_names_are_checked(agent: str, options: dict[str, str]) -> None:
    with pytest.raises(Refused) as error:
        edit.fence_device(agent, options, {})
    assert error.value.code == "invalid"
    assert "fence_" in error.value.message or "option" in error.value.message


def test_a_secret_is_in_no_text() -> None:
    spec = made().cluster
    assert SECRET not in repr(spec) + str(spec.node("n1").fencing) + dump(spec)
    others = edit.set_fencing(made(), "n1", edit.fence_device("fence_ipmilan", {}, {"password": "other"}))
    for old, new in ((made(fenced=0), made()), (made(), others), (others, made()), (made(), made(fenced=0))):
        told = "; ".join(map(str, diff(old.cluster, new.cluster)))
        assert "fencing" in told
        assert SECRET not in told
        assert "other" not in told
    assert "fencing.secrets.password changed" in str(diff(made().cluster, others.cluster)[0])
    assert SECRET in dump(spec, secrets=True)
    assert dump(spec, secrets=True).startswith("# Passwords are in here")


@pytest.mark.parametrize("secrets", [True, False])
def test_a_dump_applied_changes_nothing(secrets: bool) -> None:
    state = edit.create_resource(made(fenced=2), "r1", "1G", serial=serials(), pool="ssd")
    state = edit.set_policy(edit.set_preferred(state, "r1", "n2"), "r1", failback=True, maintenance=True)
    text = dump(state.cluster, secrets=secrets)
    assert draft(text, state, serial=serials()) == state.cluster
    if secrets:
        # Also elsewhere: nothing of it is in the cluster alone.
        assert parse(text) == state.cluster


def test_what_a_file_leaves_out_stays() -> None:
    state = made()
    chosen = state.cluster.model_copy(update={"unfenced_promotion": True})
    state = replace(state, cluster=chosen)
    text = dump(chosen).replace("pacemaker: true\n", "").replace("unfenced_promotion: true\n", "")
    assert "pacemaker" not in text
    assert draft(text, state, serial=serials()) == chosen
    none = dump(chosen).replace("agent: fence_ipmilan\n", "agent: fence_ipmilan\n    secrets: {}\n")
    read = draft(none, state, serial=serials()).node("n1").fencing
    assert none != dump(chosen)
    assert read is not None
    assert read.secrets == {}


def test_a_file_with_a_secret_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(dump(made().cluster, secrets=True))
    file.chmod(0o644)
    with pytest.raises(SpecError) as error:
        load(file)
    assert [f.code for f in error.value.findings] == ["secrets-readable"]
    file.chmod(0o600)
    assert load(file) == made().cluster


def test_findings_in_a_file_show_no_secret() -> None:
    text = dump(made().cluster, secrets=True)
    told = []
    for bad in (
        text.replace("{password: bmc", "{Pass word: bmc"),
        text.replace("{password: bmc", "{passwd: bmc"),
        text.replace("secrets:", "option:"),
        text.replace("secrets:", "secret:"),
        text.replace("username: hactl", "username: [x]"),
    ):
        assert bad != text
        with pytest.raises(SpecError) as error:
            parse(bad)
        told.append(str(error.value))
    assert SECRET not in "".join(told)
    assert "call it password" in told[1]
    assert "did you mean secrets?" in told[3]


def test_yaml_may_have_numbers_and_truths_as_values() -> None:
    text = dump(made().cluster).replace("username: hactl", "lanplus: true, timeout: 10")
    device = parse(text.replace("user: h1, mutual_user: lab", PASSWORDS)).node("n1").fencing
    assert device is not None
    assert device.options == {"ip": "10.0.9.1", "lanplus": "true", "timeout": "10"}


def test_pacemaker_is_in_charge_only_if_what_is_lost_is_fenced() -> None:
    def judged(state: Desired) -> tuple[bool, bool, int]:
        spec = state.cluster
        assert bool(charge.remedy(spec)) is not charge.in_charge(spec)
        return charge.in_charge(spec), charge.fences(spec), len(charge.reasons(spec))

    assert judged(made(3, fenced=3)) == (True, True, 0)
    assert judged(made(3, fenced=1)) == (False, False, 2)
    assert judged(made(3, pacemaker=False, fenced=3)) == (False, False, 1)
    without = edit.set_failover(made(3), automatic=True, without_fencing=True)
    assert judged(without) == (True, False, 0)
    by_hand = edit.set_failover(made(3, fenced=3), automatic=False)
    assert judged(by_hand) == (False, False, 1)
    assert judged(edit.set_failover(without, automatic=False)) == (False, False, 3)
    fenced = edit.set_failover(without, automatic=True, without_fencing=True)
    for node in ("n2", "n3"):
        fenced = edit.set_fencing(fenced, node, SBD)
    assert judged(fenced) == (True, True, 0)
    assert edit.set_failover(fenced, automatic=True).cluster.unfenced_promotion is False


def test_a_resource_in_maintenance_is_left_alone() -> None:
    state = edit.create_resource(made(fenced=2), "r1", "1G", serial=serials(), pool="ssd")
    assert charge.rules(state.cluster, "r1")
    assert not charge.rules(edit.set_policy(state, "r1", maintenance=True).cluster, "r1")


def refused(state: Desired, wanted: ClusterSpec) -> str:
    with pytest.raises(Refused) as error:
        exchange(state, wanted)
    return error.value.code


def test_what_a_file_cannot_change() -> None:
    state = made()
    for update, code in (
        ({"pacemaker": False}, "pacemaker-change"),
        ({"unfenced_promotion": True}, "unfenced-promotion"),
    ):
        assert refused(state, state.cluster.model_copy(update=update)) == code
    without = edit.set_failover(state, automatic=True, without_fencing=True)
    assert exchange(without, state.cluster).cluster == state.cluster


def test_failover_by_itself_needs_pacemaker_and_fencing() -> None:
    for state, code in (
        (made(pacemaker=False, fenced=2), "failover-no-pacemaker"),
        (made(fenced=1), "failover-unfenced"),
    ):
        with pytest.raises(Refused) as error:
            edit.set_failover(state, automatic=True)
        assert error.value.code == code
        assert error.value.hint
    state = made(fenced=2)
    assert edit.set_failover(state, automatic=True) is state


def test_a_resource_goes_back_to_the_node_that_it_prefers() -> None:
    state = edit.create_resource(made(), "r1", "1G", serial=serials(), pool="ssd")
    nowhere = edit.set_policy(edit.set_preferred(state, "r1", None), "r1", failback=True)
    assert [p.code for p in check(nowhere.cluster)] == ["failback-nowhere"]
    assert check(edit.set_preferred(nowhere, "r1", "n1").cluster) == ()
    assert edit.set_policy(state, "r1", failback=False) is state


def test_edits_of_devices() -> None:
    state = made()
    assert edit.set_fencing(state, "n1", DEVICE) is state
    assert edit.remove_fencing(edit.remove_fencing(state, "n1"), "n1").cluster.node("n1").fencing is None
    same = DEVICE.model_copy(update={"secrets": {"password": SecretStr(SECRET)}})
    assert edit.set_fencing(state, "n1", same) is state
    with pytest.raises(Refused):
        edit.set_fencing(state, "n9", DEVICE)
