"""``hactl fencing`` and ``hactl failover``, on a store in memory and against a small agent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hactl.cli.exits import Exit
from hactl.doctor.facts import Facts, Service
from hactl.doctor.fence_devices import faults
from hactl.doctor.judge import Severity, judge
from hactl.doctor.judge_failover import FILES, PACKAGES, needed
from hactl.model import edit
from hactl.model.load import parse
from hactl.runner import CommandTimeout, Completed
from tests.unit.cli_world import CLUSTER, World
from tests.unit.desired_world import cluster
from tests.unit.fake_agent import FakeAgent, serving
from tests.unit.test_cli_doctor import WELL

SECRET = "bmc-secret-1"
SET = ("fence_ipmilan", "ip=10.0.9.1", "username=hactl")


@pytest.fixture
def world() -> World:
    return World(cluster=CLUSTER.replace("name: lab", "name: lab\npacemaker: true", 1))


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return str(path)


def fenced(world: World, *nodes: str) -> World:
    for node in nodes:
        world.ok("fencing", "set", node, "fence_sbd", "devices=/dev/sda1")
    return world


def test_a_device_is_set_shown_and_removed(world: World, file: str) -> None:
    told = world.json("fencing", "set", "n1", *SET, "--password-file", file)
    assert told["changed"] is True
    assert told["fencing"] == {
        "agent": "fence_ipmilan",
        "options": {"ip": "10.0.9.1", "username": "hactl"},
        "secrets": {"password": None},
    }
    assert told["failover"]["automatic"] is False
    assert len(told["failover"]["reasons"]) == 2
    assert world.json("fencing", "set", "n1", *SET, "--password-file", file)["changed"] is False
    assert world.json("node", "show", "n1")["fencing"] == told["fencing"]
    shown = world.json("fencing", "show")
    assert shown["fencing"] == {"n1": told["fencing"], "n2": None, "n3": None}
    assert SECRET not in "".join(world.outputs)
    assert world.json("fencing", "show", "--show-secrets")["fencing"]["n1"]["secrets"] == {"password": SECRET}
    assert f"password={SECRET}" in world.ok("fencing", "show", "--show-secrets")
    assert world.json("fencing", "remove", "n1")["changed"] is True
    assert world.json("fencing", "remove", "n1")["changed"] is False
    assert world.desired.cluster.node("n1").fencing is None


def test_no_secret_is_printed_or_kept_outside(world: World, file: str) -> None:
    world.ok("fencing", "set", "n1", *SET, "--password-file", file)
    for words in (
        ("dump",),
        ("dump", "--json"),
        ("fencing", "show"),
        ("node", "list", "--json"),
        ("fencing", "set", "n1", "fence_ipmilan", "--keep-secrets"),
    ):
        assert SECRET not in world.ok(*words)
    outside = [v for k, v in world.state.items.items() if "/secrets/" not in k]
    assert not [v for v in outside if SECRET in str(v)]
    assert SECRET in world.ok("dump", "--show-secrets")


def test_secrets_that_are_kept(world: World, file: str) -> None:
    world.ok("fencing", "set", "n1", *SET, "--password-file", file)
    world.ok("fencing", "set", "n1", "fence_ipmilan", "ip=10.0.9.2", "username=other", "--keep-secrets")
    device = world.desired.cluster.node("n1").fencing
    assert device is not None
    assert device.options == {"ip": "10.0.9.2", "username": "other"}
    assert device.secrets["password"].get_secret_value() == SECRET
    world.ok("fencing", "set", "n1", "fence_apc_snmp", "--secret-file", f"snmp_priv_passwd={file}")
    device = world.desired.cluster.node("n1").fencing
    assert device is not None
    assert list(device.secrets) == ["snmp_priv_passwd"]


def test_a_password_is_asked_for_where_there_is_a_user(world: World) -> None:
    result = world.cli("fencing", "set", "n1", *SET, terminal=True, text=f"{SECRET}\n{SECRET}\n")
    assert result.exit_code == Exit.OK, result.output
    assert SECRET not in result.output
    device = world.desired.cluster.node("n1").fencing
    assert device is not None
    assert device.secrets["password"].get_secret_value() == SECRET
    assert world.code("fencing", "set", "n2", *SET) == "password-needed"
    world.ok("fencing", "set", "n2", *SET, "identity_file=/root/.ssh/fence")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("n1", "fence_ipmilan", f"password={SECRET}"), "fence-secret-open"),
        (("n1", "fence_ipmilan", f"passwd={SECRET}"), "fence-secret-open"),
        (("n1", "ipmilan", "ip=x"), "invalid"),
        (("n1", "fence_ipmilan", "IP=x"), "invalid"),
        (("n1", "fence_ipmilan", "action=off"), "fence-option-ours"),
        (("n9", "fence_ipmilan", "ip=x"), "unknown-node"),
        (("n1", "fence_ipmilan", "--password-file", "/nonexistent/x"), "password-file"),
    ],
)
def test_what_is_refused(world: World, words: tuple[str, ...], code: str) -> None:
    assert world.code("fencing", "set", *words) == code
    assert SECRET not in "".join(world.outputs)


def test_wrong_words_are_not_repeated(world: World) -> None:
    result = world.cli("fencing", "set", "n1", "fence_ipmilan", SECRET)
    assert result.exit_code == Exit.USAGE
    assert SECRET not in result.output
    twice = world.cli("fencing", "set", "n1", "fence_ipmilan", "ip=a", "ip=b")
    assert twice.exit_code == Exit.USAGE


def test_failover_follows_from_the_devices(world: World) -> None:
    assert world.json("fencing", "show")["failover"]["reasons"] == [
        f"node {node} has no fence device" for node in ("n1", "n2", "n3")
    ]
    assert world.code("failover", "automatic") == "failover-unfenced"
    fenced(world, "n1", "n2")
    assert "n3 has no fence device" in world.ok("fencing", "show")
    assert "takes over by itself" in world.ok("fencing", "set", "n3", "fence_sbd", "devices=/dev/sda1")
    assert world.json("fencing", "show")["failover"]["automatic"] is True
    manual = world.json("failover", "manual")
    assert (manual["changed"], manual["failover"]["automatic"]) == (True, False)
    assert manual["failover"]["remedy"] == "hactl failover automatic"
    assert world.json("failover", "automatic")["failover"]["automatic"] is True
    assert world.json("failover", "automatic")["changed"] is False


def test_without_fencing_only_in_so_many_words(world: World) -> None:
    words = ("failover", "automatic", "--without-fencing")
    sentence = "promote without fencing in lab\n"
    assert world.code(*words) == "confirmation-needed"
    assert world.code(*words, terminal=True, text="lab\n") == "confirmation-wrong"
    assert world.code("failover", "automatic", "--yes-without-fencing", "other") == "confirmation-wrong"
    result = world.cli(*words, terminal=True, text=sentence)
    assert result.exit_code == Exit.OK, result.output
    assert world.desired.cluster.unfenced_promotion is True
    assert "without fencing" in world.ok("fencing", "show")
    assert world.json("failover", "manual")["failover"]["without_fencing"] is False
    told = world.json("failover", "automatic", "--yes-without-fencing", "lab")
    assert (told["failover"]["automatic"], told["failover"]["without_fencing"]) == (True, True)


def test_a_cluster_without_pacemaker_has_no_failover() -> None:
    world = World()
    assert world.code("failover", "automatic") == "failover-no-pacemaker"
    assert world.code("failover", "automatic", "--yes-without-fencing", "lab") == "failover-no-pacemaker"
    assert "made without Pacemaker" in world.ok("fencing", "show")


def test_what_pacemaker_may_do_with_a_resource(world: World) -> None:
    world.ok("resource", "create", "r0", "--size", "10G", "--no-wait")
    assert world.cli("resource", "set", "r0").exit_code == Exit.USAGE
    assert world.code("resource", "set", "r0", "--preferred", "", "--failback") == "failback-nowhere"
    told = world.json("resource", "set", "r0", "--preferred", "n1", "--failback", "--maintenance")
    assert [told["resource"][key] for key in ("preferred", "failback", "maintenance")] == ["n1", True, True]
    again = world.json("resource", "set", "r0", "--failback")
    assert (again["changed"], again["resource"]["maintenance"]) == (False, True)
    assert "not in maintenance" in world.ok("resource", "set", "r0", "--no-maintenance")
    assert world.desired.cluster.resource("r0").failback is True


def test_trying_a_device_asks_and_says_what_will_happen(tmp_path_factory: pytest.TempPathFactory) -> None:
    agent, socket = FakeAgent(), tmp_path_factory.mktemp("s") / "a.sock"
    agent.active["r0"] = "n2"
    agent.roles["r0"] = "standby"
    with serving(agent, socket):
        world = World(socket=socket)
        refused = world.cli("fencing", "test", "n2", "--json")
        assert refused.exit_code == Exit.REFUSED
        assert "r0" in json.loads(refused.stderr)["error"]["message"]
        wrong = world.cli("fencing", "test", "n2", terminal=True, text="n1\n")
        assert wrong.exit_code == Exit.REFUSED
        assert "pulling its plug" in wrong.output
        assert agent.orders == []
        done = world.cli("fencing", "test", "n2", "--yes-fence", "n2")
        assert done.exit_code == Exit.OK, done.output
        assert "fencing works" in done.stdout
        assert agent.orders == ["fence n2"]


# Status


def test_status_says_who_takes_over(tmp_path_factory: pytest.TempPathFactory) -> None:
    agent, socket = FakeAgent(), tmp_path_factory.mktemp("s") / "a.sock"
    document = fenced(
        World(cluster=CLUSTER.replace("name: lab", "name: lab\npacemaker: true", 1)), "n1"
    ).json("fencing", "show")["failover"]
    with serving(agent, socket):
        world = World(socket=socket)
        assert "takes over" not in world.ok("status")
        agent.failover = document
        text = world.ok("status")
        assert "nobody takes over by itself when a node is lost: node n2 has no fence device; node n3" in text
        assert "hactl fencing set n2" in text
        agent.failover = {**document, "automatic": True, "fencing": {"n1": "fence_sbd", "n2": "fence_sbd"}}
        assert "fencing: n1 fence_sbd, n2 fence_sbd" in world.ok("status")
        assert world.json("status")["cluster"]["failover"] == agent.failover


# Doctor


def well(text: str = "", **changes: Any) -> Facts:
    devices = CLUSTER.replace("    pools:", "    fencing: {agent: fence_sbd}\n    pools:")
    spec = parse(f"pacemaker: true\n{text}{devices}")
    services = {
        **WELL.services,
        **dict.fromkeys(("corosync.service", "pacemaker.service"), Service(True, True)),
    }
    return Facts(**{**vars(WELL), "cluster": spec, "services": services, **changes})


def test_the_doctor_sees_what_failover_lacks() -> None:
    def found(facts: Facts) -> list[tuple[str, Severity]]:
        return [(d.code, d.severity) for d in judge(facts)]

    # n3 has no pools in that file, and so no device.
    assert found(well()) == [("doctor-no-fencing", Severity.ERROR)]
    assert found(well("manual_failover: true\n")) == [("doctor-no-fencing", Severity.WARNING)]
    without = "unfenced_promotion: true\n"
    assert found(well(without)) == [("doctor-unfenced", Severity.WARNING)]
    whole = frozenset({"fence_sbd", "nft", *PACKAGES, *FILES})
    assert set(found(well(without, missing=whole))) == {
        ("doctor-unfenced", Severity.WARNING),
        ("doctor-nftables-missing", Severity.WARNING),
        ("doctor-pacemaker-missing", Severity.ERROR),
        ("doctor-ocf-missing", Severity.ERROR),
        ("doctor-fence-agent-missing", Severity.ERROR),
    }
    assert ("doctor-fence-secrets", Severity.ERROR) in found(well(secrets_missing=("/etc/hactl/fence/n1",)))
    for state, code in ((Service(True, False), "doctor-service-down"), (Service(False, True), "not-enabled")):
        services = {**WELL.services, "corosync.service": state}
        assert [c for c, _ in found(well(without, services=services)) if c.endswith(code)]


class Devices:
    """Fence agents: each answers with a status and a line, or is not installed. ``told``: what they were."""

    def __init__(self, answers: dict[str, tuple[int, str]]) -> None:
        self.answers = answers
        self.told: list[str] = []

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        (agent,) = argv
        if agent not in self.answers:
            raise FileNotFoundError(agent)
        self.told.append(stdin or "")
        status, text = self.answers[agent]
        if status < 0:
            raise CommandTimeout(tuple(argv), timeout)
        return Completed(tuple(argv), status, "", text)


async def test_devices_are_asked_whether_they_answer() -> None:
    state = cluster(4)
    names = ("fence_good", "fence_bad", "fence_slow", "fence_none")
    for number, agent in enumerate(names, 1):
        device = edit.fence_device(agent, {"ip": "x", "pcmk_delay_max": "5s"}, {"password": SECRET})
        state = edit.set_fencing(state, f"n{number}", device)
    devices = Devices(
        {names[0]: (0, ""), names[1]: (1, f"trace\nno login with {SECRET}\n"), names[2]: (-1, "")}
    )
    found = await faults(devices, state.cluster, "n9")
    assert found == {"n2": "no login with (secret)", "n3": "no answer within 20 s"}
    assert devices.told[0] == f"action=monitor\nip=x\npassword={SECRET}\n"
    assert set(await faults(devices, state.cluster, "n2")) == {"n3"}
    assert ("doctor-fence-device", Severity.ERROR) in [
        (d.code, d.severity) for d in judge(well(fence_faults=found))
    ]


def test_apply_says_that_nobody_takes_over_any_more(world: World, tmp_path: Path) -> None:
    fenced(world, "n1", "n2", "n3")
    text = world.ok("dump")
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    assert "takes over" not in world.cli("apply", "-f", str(file)).output
    file.write_text(
        text.replace("  fencing:\n    agent: fence_sbd\n", "", 1).replace(
            "    options: {devices: /dev/sda1}\n", "", 1
        )
    )
    result = world.cli("apply", "-f", str(file))
    assert result.exit_code == Exit.OK, result.output
    assert "nobody takes over by itself any more: node n1 has no fence device" in result.stderr


def test_what_the_doctor_looks_for() -> None:
    spec = well().cluster
    assert spec is not None
    assert {"fence_sbd", "nft", "crm", "curl"} <= set(needed(spec))
    assert needed(parse(CLUSTER)) == ("nft",)
    assert needed(None) == ()
