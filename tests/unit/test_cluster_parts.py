"""Pieces of making a cluster, each alone: certificates, options, checks, members, files."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.cluster import etcd_config, node_config, pki, unfinished
from hactl.cluster.checks import ChecksFailed, check
from hactl.cluster.draft import Draft, NodeOptions, draft, pool
from hactl.cluster.etcd_config import MemberSettings, variables
from hactl.cluster.kit import Kit
from hactl.cluster.layout import AGENT_UNIT, CAPTURE_UNIT, Layout, write
from hactl.cluster.members import Member, Step, majority, next_step, removal_fault
from hactl.cluster.memory_machine import MemoryMachine
from hactl.cluster.memory_members import MemoryEtcd, MemoryMembers, MemoryServices
from hactl.cluster.memory_ring import MemoryRing
from hactl.cluster.node_config import NodeConfig
from hactl.cluster.services import DETACH, Standing, Systemd
from hactl.cluster.unfinished import Unfinished
from hactl.errors import Refused
from hactl.model.spec import Addresses
from hactl.runner import CommandFailed, Completed
from hactl.store.memory import MemoryStore

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
HERE = ip_address("10.0.0.1")


# Certificates


def test_a_node_shows_its_certificate_to_another_and_is_believed(tmp_path: Path) -> None:
    now = pki.utc_now()
    one, two = Layout(tmp_path / "1"), Layout(tmp_path / "2")
    authority = pki.ensure_authority(one, "lab", now)
    pki.ensure_certificate(one, authority, "n1", HERE, now)
    key = pki.ensure_key(two)
    public = pki.requested_key(pki.request(key, "n2"))
    write(two.certificates.ca, one.certificates.ca.read_bytes(), 0o644)
    write(two.certificates.certificate, authority.issue(public, "n2", IPv4Address("10.0.0.2"), now), 0o644)

    for name in ("n2", "10.0.0.2"):
        assert _handshake(two.certificates.server(), one.certificates.client(), name)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(two.certificates.server(), one.certificates.client(), "n1")


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bool:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    a = client.wrap_bio(to_client, to_server, server_hostname=name)
    b = server.wrap_bio(to_server, to_client, server_side=True)
    done = set[ssl.SSLObject]()
    while done != {a, b}:
        for side in (a, b):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    return bool(b.getpeercert())


def test_keys_are_for_root_alone_and_in_no_representation(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    authority = pki.ensure_authority(layout, "lab", NOW)
    pki.ensure_certificate(layout, authority, "n1", HERE, NOW)
    modes = {p.name: p.stat().st_mode & 0o777 for p in layout.tls.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "node.crt": 0o644, "node.key": 0o600}
    assert "PRIVATE" not in repr(authority)
    assert "EllipticCurvePrivateKey" not in repr(authority)


def test_the_authority_and_the_certificate_are_made_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first = pki.ensure_authority(layout, "lab", NOW)
    again = pki.ensure_authority(layout, "lab", NOW + timedelta(days=1))
    assert first.certificate == again.certificate
    assert pki.ensure_certificate(layout, first, "n1", HERE, NOW)
    assert not pki.ensure_certificate(layout, first, "n1", HERE, NOW)
    assert pki.ensure_certificate(layout, first, "n1", ip_address("fd00::1"), NOW)


@pytest.mark.parametrize(("days", "renewed"), [(0, False), (240, False), (244, True), (400, True)])
def test_a_certificate_is_renewed_when_a_third_is_left(tmp_path: Path, days: int, renewed: bool) -> None:
    layout = Layout(tmp_path)
    pki.ensure_certificate(layout, pki.ensure_authority(layout, "lab", NOW), "n1", HERE, NOW)
    key = layout.certificates.key.read_bytes()
    later = NOW + timedelta(days=days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert pki.renew(layout, later, (context,)) is renewed
    certificate = layout.certificates.certificate.read_bytes()
    assert pki.valid_until(certificate) == (later if renewed else NOW) + pki.NODE_LIFE
    assert pki.names(certificate) == ("n1", HERE)
    assert layout.certificates.key.read_bytes() == key


def test_without_the_authoritys_key_nothing_is_issued(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    pki.ensure_certificate(layout, pki.ensure_authority(layout, "lab", NOW), "n1", HERE, NOW)
    layout.authority_key.unlink()
    with pytest.raises(Refused) as refused:
        pki.renew(layout, NOW + timedelta(days=300))
    assert refused.value.code == "no-authority"
    write(layout.authority_key, pki.key_pem(pki.new_key()))
    with pytest.raises(Refused, match="do not belong together"):
        pki.load_authority(layout)


def test_a_damaged_key_is_not_quoted(tmp_path: Path) -> None:
    write(tmp_path / "key", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    with pytest.raises(Refused) as refused:
        pki.load_key(tmp_path / "key")
    assert "c2VjcmV0" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "nothing", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END"])
def test_what_is_no_request_gets_no_certificate(text: str) -> None:
    with pytest.raises(ValueError, match="not a certificate signing request"):
        pki.requested_key(text.encode())


# Options


def test_one_address_is_used_for_everything() -> None:
    made = draft(NodeOptions(), "n1.example.org", [HERE, ip_address("fd00::1")])
    assert made.name == "n1"
    assert made.addresses == Addresses(cluster=HERE, replication=HERE, storage=(HERE,))
    six = draft(NodeOptions(), "n1", [ip_address("fd00::1")])
    assert str(six.addresses.cluster) == "fd00::1"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (NodeOptions(), "address-ambiguous", "--cluster-address"),
        (NodeOptions(cluster_address="10.0.0.1"), "address-ambiguous", "--replication-address"),
        (
            NodeOptions(cluster_address="10.0.0.1", replication_address="10.0.1.1"),
            "address-ambiguous",
            "--storage-address",
        ),
        (NodeOptions(cluster_address="n1.example"), "address-unusable", "--cluster-address"),
        (NodeOptions(node="N1"), "node-name", "--node"),
        (NodeOptions(failure_domain="Rack 1"), "failure-domain", "name"),
        (NodeOptions(pools=("p=lvm:vg", "p=files:/srv")), "pool-option", "twice"),
    ],
)
def test_what_is_ambiguous_or_wrong_names_its_option(options: NodeOptions, code: str, words: str) -> None:
    with pytest.raises(Refused) as refused:
        draft(options, "n1", [HERE, ip_address("10.0.1.1")])
    assert refused.value.code == code
    assert words in str(refused.value)


def test_pools() -> None:
    assert pool("p=lvm:vg0").device("r", 1) == "/dev/vg0/hactl.r.1"
    assert pool("p=lvm-thin:vg0/thin").device("r", 1) == "/dev/vg0/hactl.r.1"
    files = pool("p=files:/srv/hactl").files
    assert files is not None
    assert files.path == "/srv/hactl"


@given(
    st.text(max_size=30) | st.from_regex(r"[a-z]{1,3}=(lvm|lvm-thin|files|zfs):[^\n]{0,9}", fullmatch=True)
)
def test_a_pool_is_one_or_refused(text: str) -> None:
    try:
        made = pool(text).name
    except Refused as error:
        made = error.code
    assert made == "pool-option" or text.startswith(f"{made}=")


# Checks


@pytest.fixture
def services(tmp_path: Path) -> MemoryServices:
    async def nothing() -> None:
        pass

    return MemoryServices(Layout(tmp_path), MemoryEtcd(), nothing, nothing)


def _kit(services: MemoryServices, machine: MemoryMachine) -> Kit:
    etcd, state = services.etcd, MemoryStore()
    return Kit(
        layout=services.layout,
        machine=machine,
        services=services,
        ring=MemoryRing(services.corosync, "n1"),
        members=lambda endpoints: MemoryMembers(etcd, endpoints),
        store=lambda _: state.client(),
        now=lambda: NOW,
    )


def _draft(*pools: str) -> Draft:
    return draft(NodeOptions(pools=pools), "n1", [HERE])


async def test_a_ready_machine_has_nothing_in_its_way(services: MemoryServices) -> None:
    machine = MemoryMachine("n1", [HERE])
    machine.pools = {"p"}
    await check(_draft("p=lvm:vg"), _kit(services, machine), resumed=False)


async def test_everything_in_the_way_is_told_at_once(services: MemoryServices) -> None:
    machine = MemoryMachine("n1", [HERE])
    machine.etcd = False
    machine.since = NOW + timedelta(days=1)
    machine.ports = {(HERE, 2379), (HERE, 7789)}
    services.units.clear()
    with pytest.raises(ChecksFailed) as failed:
        await check(_draft("p=lvm:vg"), _kit(services, machine), resumed=False)
    assert [f.code for f in failed.value.findings] == [
        "port-in-use", "port-in-use", "etcd-missing", "unit-missing", "clock-wrong", "pool-missing",
    ]  # fmt: skip
    assert all(f.hint for f in failed.value.findings)


async def test_one_thing_in_the_way_is_the_error_itself(services: MemoryServices) -> None:
    machine = MemoryMachine("n1", [ip_address("10.0.0.9")])
    with pytest.raises(Refused) as refused:
        await check(_draft(), _kit(services, machine), resumed=False)
    assert refused.value.code == "address-not-here"
    services.up.add(AGENT_UNIT)
    with pytest.raises(Refused) as running:
        await check(_draft(), _kit(services, MemoryMachine("n1", [HERE])), resumed=False)
    assert running.value.code == "agent-running"
    # Begun before, the agent and the ports are its own.
    machine = MemoryMachine("n1", [HERE])
    machine.ports = {(HERE, 2379)}
    await check(_draft(), _kit(services, machine), resumed=True)


# Members


def _member(number: int, *, learner: bool = False, started: bool = True) -> Member:
    name = f"n{number}" if started else ""
    clients = (f"https://10.0.0.{number}:2379",) if started else ()
    return Member(number, name, (f"https://10.0.0.{number}:2380",), clients, learner)


PEER = "https://10.0.0.3:2380"
TWO = (_member(1), _member(2))


@pytest.mark.parametrize(
    ("members", "data", "running", "step"),
    [
        (TWO, False, False, Step.ADD),
        (TWO, True, False, Step.WIPE),
        ((*TWO, _member(4)), False, False, Step.USE),
        ((*TWO, _member(4)), True, True, Step.WIPE),
        ((*TWO, _member(4, learner=True)), False, False, Step.USE),
        ((*TWO, _member(3, learner=True, started=False)), False, False, Step.START),
        ((*TWO, _member(3, learner=True, started=False)), True, False, Step.START),
        ((*TWO, _member(3, learner=True)), True, True, Step.PROMOTE),
        ((*TWO, _member(3, learner=True)), False, False, Step.REMOVE),
        ((*TWO, _member(3)), True, True, Step.READY),
        ((*TWO, _member(3)), True, False, Step.START),
        ((*TWO, _member(3)), False, False, Step.REMOVE),
    ],
)
def test_the_next_step_to_membership(
    members: tuple[Member, ...], data: bool, running: bool, step: Step
) -> None:
    assert next_step(members, PEER, data=data, running=running) is step


@given(st.integers(1, 7), st.data())
def test_a_removal_leaves_a_majority_that_answers_before_and_after(voters: int, data: st.DataObject) -> None:
    members = [_member(n) for n in range(1, voters + 1)]
    answering = data.draw(st.sets(st.integers(1, voters)))
    leaving = data.draw(st.integers(1, voters))
    if not removal_fault(members, answering, leaving):
        assert voters > 1
        assert len(answering - {leaving}) >= majority(voters - 1)
        assert len(answering) >= majority(voters)


def test_removals_that_are_refused_say_why() -> None:
    three = [_member(1), _member(2), _member(3)]
    assert removal_fault(three, {1, 2, 3}, 3) == ""
    assert removal_fault(three, {1, 2}, 3) == ""
    assert "no answer from n2" in removal_fault(three, {1, 3}, 3)
    assert "only member" in removal_fault([_member(1)], {1}, 1)
    assert "no majority" in removal_fault([_member(1), _member(2)], {1}, 2)
    assert removal_fault([_member(1), _member(2, learner=True)], {1}, 2) == ""


# Files


def test_the_settings_of_etcd(tmp_path: Path) -> None:
    settings = MemberSettings("lab", "n1", ip_address("fd00::1"), {"n1": "https://[fd00::1]:2380"}, new=True)
    text = etcd_config.render(settings, Layout(tmp_path))
    found = variables(text)
    assert found["ETCD_LISTEN_CLIENT_URLS"] == found["ETCD_ADVERTISE_CLIENT_URLS"] == "https://[fd00::1]:2379"
    assert found["ETCD_LISTEN_PEER_URLS"] == "https://[fd00::1]:2380"
    assert found["ETCD_INITIAL_CLUSTER"] == "n1=https://[fd00::1]:2380"
    assert found["ETCD_INITIAL_CLUSTER_STATE"] == "new"
    assert found["ETCD_CLIENT_CERT_AUTH"] == found["ETCD_PEER_CLIENT_CERT_AUTH"] == "true"
    assert found["ETCD_MAX_TXN_OPS"] == "10240"
    assert all(line.startswith(("#", "ETCD_")) for line in text.splitlines() if line)


def test_node_yaml_comes_back_and_is_for_root_alone(tmp_path: Path) -> None:
    path = tmp_path / "etc/node.yaml"
    config = NodeConfig(cluster="lab", node="n1", etcd=("https://10.0.0.1:2379", "https://[fd00::2]:2379"))
    node_config.save(config, path)
    assert node_config.load(path) == config
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["node.yaml"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("schema: 2\ncluster: lab\n", "schema-newer"),
        ("schema: 1\ncluster: lab\nnode: n1\netcd: []\n", "node-file"),
        ("schema: 1\ncluster: lab\nnode: n1\netcd: ['http://10.0.0.1:2379']\n", "node-file"),
        ("schema: 1\ncluster: lab\nnode: n1\netcd: ['https://10.0.0.1:2379']\nmore: 1\n", "node-file"),
        ("cluster: lab\n", "node-file"),
        ("{", "node-file"),
        ("", "node-file"),
    ],
)
def test_node_yaml_that_is_not_understood_is_refused(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "node.yaml").write_text(text)
    with pytest.raises(Refused) as refused:
        node_config.load(tmp_path / "node.yaml")
    assert refused.value.code == code


def test_a_machine_in_no_cluster_says_so(tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        node_config.load(tmp_path / "node.yaml")
    assert refused.value.code == "not-in-cluster"


def test_only_the_same_work_is_resumed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    work = Unfinished(what="init", cluster="lab", draft=_draft())
    assert not unfinished.resumed(layout, work)
    unfinished.save(layout, work)
    assert unfinished.resumed(layout, work)
    for other in (
        work.model_copy(update={"cluster": "other"}),
        work.model_copy(update={"what": "join"}),
        work.model_copy(update={"draft": _draft("p=lvm:vg")}),
    ):
        with pytest.raises(Refused) as refused:
            unfinished.resumed(layout, other)
        assert refused.value.code == "unfinished"
    layout.unfinished.write_text("{}")
    with pytest.raises(Refused) as damaged:
        unfinished.load(layout)
    assert damaged.value.code == "unfinished-file"


class Recording:
    """A :class:`hactl.runner.Runner` with one unit, on which one program fails, if any."""

    def __init__(self, loaded: str, failing: str = "", active: str = "active", file: str = "enabled") -> None:
        self.state = {"LoadState": loaded, "ActiveState": active}
        self.file = file
        self.failing = failing
        self.ran: list[str] = []

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 30.0,
        check: bool = True,
        stdin: str | None = None,
    ) -> Completed:
        self.ran.append(" ".join(argv))
        told = "".join(
            f"{value}\n" if "--value" in argv else f"{name}={value}\n"
            for name, value in self.state.items()
            if any(a.startswith("--property=") and name in a for a in argv)
        )
        if "is-enabled" in argv:
            return Completed(tuple(argv), int(self.file != "enabled"), f"{self.file}\n", "")
        done = Completed(tuple(argv), int(argv[-1] == self.failing), told, "no LIO")
        if done.status and check:
            raise CommandFailed(done)
        return done


async def test_the_capture_is_stopped_for_good_and_its_file_system_taken_off(tmp_path: Path) -> None:
    runner = Recording("loaded")
    assert await Systemd(runner, Layout(tmp_path)).end_capture() == ""
    assert runner.ran[-2:] == [f"systemctl disable --now {CAPTURE_UNIT}", " ".join(DETACH)]
    assert "no LIO" in await Systemd(Recording("loaded", "detach"), Layout(tmp_path)).end_capture()
    absent = Recording("not-found")
    assert await Systemd(absent, Layout(tmp_path)).end_capture() == ""
    assert all("show" in line for line in absent.ran)


@pytest.mark.parametrize(
    ("active", "file", "done"),
    [
        ("inactive", "disabled", False),
        ("failed", "disabled", False),
        ("active", "disabled", True),
        ("activating", "disabled", True),
        ("inactive", "enabled", True),
    ],
)
async def test_a_unit_that_is_stopped_for_good_is_left_alone(
    tmp_path: Path, active: str, file: str, done: bool
) -> None:
    runner = Recording("loaded", active=active, file=file)
    await Systemd(runner, Layout(tmp_path)).stop("x.service")
    assert ("systemctl disable --now x.service" in runner.ran) is done


@pytest.mark.parametrize(("file", "done"), [("enabled", False), ("disabled", True)])
async def test_a_unit_is_enabled_if_it_is_not(tmp_path: Path, file: str, done: bool) -> None:
    runner = Recording("loaded", file=file)
    await Systemd(runner, Layout(tmp_path)).start("x.service")
    assert ("systemctl enable --no-reload x.service" in runner.ran) is done
    assert runner.ran[-1] == "systemctl start x.service"


@pytest.mark.parametrize(
    ("active", "file", "found"),
    [
        ("active", "disabled", Standing.ACTIVE),
        ("failed", "enabled", Standing.FALLEN),
        ("failed", "disabled", Standing.STOPPED),
        ("inactive", "disabled", Standing.STOPPED),
    ],
)
async def test_a_unit_has_fallen_only_if_it_is_enabled(
    tmp_path: Path, active: str, file: str, found: Standing
) -> None:
    runner = Recording("loaded", active=active, file=file)
    assert await Systemd(runner, Layout(tmp_path)).standing("x.service") == {"x.service": found}
