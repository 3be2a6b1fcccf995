"""``hactl doctor``: facts judged, and gathered from a machine that is a folder and a few answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from hactl.cli.exits import Exit
from hactl.doctor.collect import MODULES, Wanted, collect
from hactl.doctor.facts import Certificate, Facts, Key, Lvm, Module, Port, Service
from hactl.doctor.judge import Diagnosis, Severity, judge, lvm_opens, version
from hactl.runner import CommandFailed, Completed
from tests.unit.cli_world import World

NOW = datetime(2026, 11, 23, tzinfo=UTC)
WELL = Facts(
    node="n1",
    now=NOW,
    kernel="6.12.9+deb13-amd64",
    processors=4,
    modules=dict.fromkeys(MODULES, Module.LOADED),
    drbd=(9, 2, 11),
    drbd_utils=True,
    etcd=(3, 5, 16),
    dbroot="/var/target",
    clock_synchronised=True,
    skews={"n2": 0.4},
    ports=(Port("n2", "10.0.1.2", 7788, "the agent"),),
    certificates=(Certificate("/etc/hactl/tls/node.crt", NOW - timedelta(1), NOW + timedelta(300), ("n1",)),),
    keys=(Key("/etc/hactl/tls/node.key", 0o600), Key("/etc/hactl/tls/ca.key", None)),
    services={
        "hactl-agent.service": Service(True, True),
        "hactl-etcd.service": Service(True, True),
        "hactl-capture.service": Service(False, True),
        "target.service": Service(False, False),
    },
    lvm=Lvm(("r|^/dev/drbd.*|", "a|.*|"), False),
)


def certificate(**changes: object) -> tuple[Certificate, ...]:
    return (replace(WELL.certificates[0], **changes),)  # type: ignore[arg-type]  # any field


def test_a_node_that_is_well_is_only_not_fenced() -> None:
    assert [(d.code, d.severity) for d in judge(WELL)] == [("doctor-no-fencing", Severity.WARNING)]


@pytest.mark.parametrize(
    ("change", "code", "severity"),
    [
        ({"kernel": "6.1.0-25-amd64"}, "doctor-kernel-old", Severity.ERROR),
        ({"processors": 1}, "doctor-one-processor", Severity.WARNING),
        ({"drbd": (8, 3, 16)}, "doctor-drbd-old", Severity.ERROR),
        ({"drbd": (8, 4, 11)}, "doctor-drbd-two-replicas", Severity.NOTE),
        ({"drbd_utils": False}, "doctor-drbd-utils-missing", Severity.ERROR),
        ({"etcd": (3, 3, 25)}, "doctor-etcd-old", Severity.ERROR),
        ({"modules": {"drbd": Module.MISSING}}, "doctor-module-missing", Severity.ERROR),
        ({"modules": {"drbd": Module.AVAILABLE}}, "doctor-module-not-loaded", Severity.NOTE),
        ({"dbroot_missing": ("/var/target/pr",)}, "doctor-dbroot-missing", Severity.WARNING),
        ({"services": {"target.service": Service(True, False)}}, "doctor-service-conflict", Severity.ERROR),
        ({"services": {"tgt.service": Service(False, True)}}, "doctor-service-conflict", Severity.ERROR),
        ({"services": {"drbd.service": Service(True, True)}}, "doctor-drbd-service", Severity.WARNING),
        ({"services": {"hactl-etcd.service": Service(True, False)}}, "doctor-service-down", Severity.ERROR),
        (
            {
                "services": {
                    "hactl-agent.service": Service(True, True),
                    "hactl-capture.service": Service(False, False),
                }
            },
            "doctor-service-down",
            Severity.ERROR,
        ),
        (
            {
                "services": {
                    "hactl-agent.service": Service(False, True),
                    "hactl-capture.service": Service(False, True),
                }
            },
            "doctor-service-not-enabled",
            Severity.WARNING,
        ),
        (
            {"services": {"hactl-agent.service": Service(True, True)}},
            "doctor-capture-missing",
            Severity.ERROR,
        ),
        ({"services": {"multipathd.service": Service(True, True)}}, "doctor-multipath-here", Severity.NOTE),
        ({"certificates": certificate(fault="no PEM")}, "doctor-certificate-unreadable", Severity.ERROR),
        ({"certificates": certificate(not_after=NOW)}, "doctor-certificate-expired", Severity.ERROR),
        (
            {"certificates": certificate(not_after=NOW + timedelta(29))},
            "doctor-certificate-expires",
            Severity.WARNING,
        ),
        (
            {"certificates": certificate(not_before=NOW + timedelta(1))},
            "doctor-certificate-early",
            Severity.ERROR,
        ),
        ({"certificates": certificate(names=("n2",))}, "doctor-certificate-name", Severity.ERROR),
        ({"keys": (Key("/k", 0o640),)}, "doctor-key-readable", Severity.ERROR),
        (
            {"ports": (Port("n2", "10.0.1.2", 7788, "the agent", "refused"),)},
            "doctor-port-closed",
            Severity.ERROR,
        ),
        ({"clock_synchronised": False}, "doctor-clock-unsynchronised", Severity.WARNING),
        ({"skews": {"n2": -3.0}}, "doctor-clock-skew", Severity.WARNING),
        ({"skews": {"n2": 90.0}}, "doctor-clock-skew", Severity.ERROR),
        ({"lvm": Lvm(("a|.*|",), False)}, "doctor-lvm-filter", Severity.WARNING),
        ({"unseen": (("services", "no systemd"),)}, "doctor-unseen", Severity.NOTE),
    ],
)
def test_each_fault_is_found_alone(change: dict[str, object], code: str, severity: Severity) -> None:
    found = judge(replace(WELL, **change))  # type: ignore[arg-type]  # any field
    others = [d for d in found if d.code != "doctor-no-fencing"]
    assert [(d.code, d.severity) for d in others] == [(code, severity)]
    assert all(d.message and d.remedy for d in found)
    assert list(found) == sorted(found, key=lambda d: list(Severity).index(d.severity))


def test_outside_of_a_cluster_etcd_is_not_missed() -> None:
    facts = replace(WELL, in_cluster=False, etcd=None, services={"hactl-etcd.service": Service(True, False)})
    assert [d.code for d in judge(facts)] == ["doctor-no-fencing"]


@pytest.mark.parametrize(
    ("text", "numbers"), [("6.12.9+deb13", (6, 12, 9)), ("3.4.23", (3, 4, 23)), ("rolling", ())]
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    assert version(text) == numbers


@pytest.mark.parametrize(
    ("patterns", "opens"),
    [
        ((), True),
        (("a|.*|",), True),
        (("r|/dev/drbd.*|", "a|.*|"), False),
        (("a|^/dev/sd|", "r|.*|"), False),
        (("a|.*|", "r|/dev/drbd.*|"), True),
        (("r|(|", "r|/dev/drbd|"), False),
        (("", "x", "r/drbd/"), False),
    ],
)
def test_lvms_filters(patterns: tuple[str, ...], opens: bool) -> None:
    assert lvm_opens(Lvm(patterns, False), "/dev/drbd16") is opens


class Answers:
    """Programs with fixed answers; what has none is not installed."""

    def __init__(self, answers: dict[str, str | int]) -> None:
        self.answers = answers

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        key = argv[-1] if argv[0] == "modinfo" else "is-enabled" if "is-enabled" in argv else argv[0]
        if key not in self.answers:
            raise FileNotFoundError(f"no {argv[0]}")
        answer = self.answers[key]
        if isinstance(answer, int):
            raise CommandFailed(Completed(tuple(argv), answer, "", "it failed"))
        return Completed(tuple(argv), 0, answer, "")


GOOD: dict[str, str | int] = {
    "drbd": "drbd\n",
    "target_core_iblock": 1,
    "drbdadm": "DRBDADM_BUILDTAG=x\nDRBDADM_API_VERSION=2\nDRBD_KERNEL_VERSION_CODE=0x08040b\n",
    "etcd": "etcd Version: 3.5.16\nGit SHA: x\n",
    "timedatectl": "yes\n",
    "systemctl": (
        "Id=target.service\nLoadState=loaded\nActiveState=inactive\n\n"
        "Id=drbd.service\nLoadState=not-found\nActiveState=inactive\n"
    ),
    "is-enabled": "enabled\n",
    "lvmconfig": 'global_filter=["a|.*|"]\nuse_devicesfile=0\n',
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("sys/module/dm_mod", "sys/module/target_core_mod", "sys/module/iscsi_target_mod"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sys/kernel/config/target").mkdir(parents=True)
    (tmp_path / "sys/kernel/config/target/dbroot").write_text("/var/target\n")
    (tmp_path / "var/target/alua").mkdir(parents=True)
    tls = tmp_path / "etc/hactl/tls"
    tls.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(own)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("n1")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tls / "node.crt").write_bytes(made.public_bytes(Encoding.PEM))
    (tls / "ca.crt").write_text("nonsense")
    (tls / "node.key").write_text("")
    (tls / "node.key").chmod(0o640)
    return tmp_path


async def test_facts_of_a_machine(root: Path) -> None:
    facts = await collect(Answers(GOOD), Wanted("n1", True), root=root)
    assert facts.modules == {
        "dm_mod": Module.LOADED,
        "target_core_mod": Module.LOADED,
        "iscsi_target_mod": Module.LOADED,
        "drbd": Module.AVAILABLE,
        "target_core_iblock": Module.MISSING,
    }
    assert (facts.drbd, facts.drbd_utils, facts.etcd) == ((8, 4, 11), True, (3, 5, 16))
    assert (facts.dbroot, facts.dbroot_missing) == ("/var/target", ("/var/target/pr",))
    assert facts.clock_synchronised is True
    assert facts.services == {"target.service": Service(True, False)}
    assert facts.lvm == Lvm(("a|.*|",), False)
    broken, good = facts.certificates
    assert broken.fault
    assert (good.names, good.not_after) == (("n1",), NOW + timedelta(365))
    assert facts.keys == (
        Key(str(root / "etc/hactl/tls/node.key"), 0o640),
        Key(str(root / "etc/hactl/tls/ca.key"), None),
    )
    assert facts.unseen == ()


async def test_a_machine_without_anything(tmp_path: Path) -> None:
    facts = await collect(Answers({"timedatectl": "perhaps\n"}), Wanted("n1", True), root=tmp_path)
    assert (facts.drbd_utils, facts.etcd, facts.lvm, facts.dbroot) == (False, None, None, None)
    unseen = dict(facts.unseen)
    assert "timedatectl says 'perhaps'" in unseen["whether the clock is synchronised"]
    assert {"the version of etcd", "services", "the module drbd"} <= set(unseen)


async def test_ports_are_tried(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    number = server.sockets[0].getsockname()[1]
    async with server:
        wanted = Wanted("n1", False, (Port("n2", "127.0.0.1", number, "x"),))
        assert (await collect(Answers({}), wanted, root=tmp_path)).ports == wanted.ports
    closed = (await collect(Answers({}), wanted, root=tmp_path)).ports
    assert closed[0].fault


def test_the_command() -> None:
    result = World().cli("--node-file", "/nonexistent/node.yaml", "doctor", "--json")
    document = json.loads(result.stdout)
    codes = {finding["code"] for finding in document["findings"]}
    assert {"doctor-no-fencing", "doctor-unseen"} <= codes
    assert result.exit_code == (Exit.OK if document["ok"] else Exit.DIFFERENT)
    people = World().cli("--node-file", "/nonexistent/node.yaml", "doctor")
    assert "[doctor-no-fencing]" in people.stdout
    assert people.exit_code == result.exit_code


def test_a_diagnosis_as_a_document() -> None:
    found = Diagnosis("doctor-x", Severity.NOTE, "m", "r")
    assert found.as_dict() == {"code": "doctor-x", "severity": "note", "message": "m", "remedy": "r"}
