"""What the state of the cluster withstands: nodes and servers of the store that are gone, hands in the
kernel, other addresses, no majority; and who can read what is secret.

The tests follow each other on one lab, in the order of the file; what they make is gone at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial

import pytest

from lab import story
from lab.api import Lab, Machine, Result, in_parallel
from tests.lab import world

FOLDER = "/srv/hactl"
INITIATOR = "iqn.2026-11.io.hactl.lab:other"
PASSWORD, MUTUAL = "state-password-1", "state-password-2"
FOREIGN = "iqn.2003-01.org.example:foreign"
LIO = world.LIO


@pytest.fixture(scope="module")
def pools(cluster: Lab) -> Iterator[Lab]:
    """The cluster with a pool ``files`` on each node, given to it from all nodes at the same time."""

    def add(node: Machine) -> None:
        # Of use after a crash, too.
        node.succeed(f"mkdir -p {FOLDER} && sync")
        node.succeed(f"hactl node pool add {node.name} files --files {FOLDER}")

    in_parallel(*(partial(add, m) for m in cluster.nodes))
    yield cluster
    first = cluster["n1"]
    for name in world.resource_names(first) - {"r0"}:
        first.succeed(f"hactl resource delete {name} --yes-destroy {name}")
    world.wait_until_right(cluster)
    for node in cluster.nodes:
        first.succeed(f"hactl node pool remove {node.name} files")


def configure(node: Machine, command: str) -> Result:
    """A change of the configuration that may meet a store in trouble: done, not done, or not known."""
    tried = node.execute(f"hactl {command}")
    assert tried.status in (0, 4, 5), (tried.status, tried.err)
    return tried


def test_the_configuration_changes_while_a_node_is_down(pools: Lab) -> None:
    away, here = pools["n3"], pools["n1"]
    away.crash()
    here.succeed(f"hactl host add other --initiator {INITIATOR}")
    # One that the missing node is to have a replica of, and one that is active without it.
    here.succeed("hactl resource create s1 --size 16M --pool files --nodes n2,n3 --no-wait")
    pools["n2"].succeed("hactl resource create s2 --size 16M --pool files --nodes n1,n2")
    here.succeed("hactl export s2 other")
    assert "not reached from n1: n3" in " ".join(here.succeed("hactl status").split())
    away.start()
    world.wait_until_right(pools)
    assert {r["name"] for r in story.status(away)["resources"]} == {"s1"}


def test_the_leader_of_the_store_is_killed_meanwhile(pools: Lab) -> None:
    for number, (command, there) in enumerate(
        (
            ("resource create s3 --size 16M --pool files --nodes n1,n3 --no-wait", True),
            ("resource delete s3 --yes-destroy s3", False),
        )
    ):
        told = json.loads(pools["n1"].succeed("hactl cluster status --json"))
        leader = pools[told["store"]["leader"]]
        other = next(m for m in pools.nodes if m is not leader)
        tried, _ = in_parallel(
            partial(configure, other, command),
            # About when the command has read, and then about when it begins.
            partial(leader.succeed, f"sleep {1 - number}; systemctl kill --signal=KILL hactl-etcd"),
        )
        leader.wait_until_succeeds("systemctl is-active hactl-etcd")
        done = ("s3" in world.resource_names(other)) is there
        assert done or tried.status != 0
        if not done:
            other.succeed(f"hactl {command}")
        world.wait_until_right(pools)


@pytest.fixture
def foreign(pools: Lab) -> Iterator[str]:
    """Path of a LUN of a target that is not hactl's, on the active node."""
    node = pools[story.active_node(pools)]
    unit, group = f"{LIO}/core/rd_mcp_77/foreign", f"{LIO}/iscsi/{FOREIGN}/tpgt_1"
    lun = f"{group}/lun/lun_0"
    node.succeed(
        f"mkdir -p {unit} {lun} && echo rd_pages=16 > {unit}/control && echo 1 > {unit}/enable"
        f" && ln -s {unit} {lun}/foreign"
    )
    yield f"{lun}/foreign"
    node.succeed(f"rm {lun}/foreign && rmdir {lun} {group} {LIO}/iscsi/{FOREIGN} {unit} $(dirname {unit})")


def test_what_hands_change_under_it_is_put_right(
    pools: Lab, device: str, load: story.Load, foreign: str
) -> None:
    active, standby = pools[story.active_node(pools)], pools[story.standby_node(pools)]
    tags = {"n1": 1, "n2": 2}
    iqns = {r["name"]: r["iqn"] for r in world.dump(active)["cluster"]["resources"]}
    unit = f"{LIO}/iscsi/{story.TARGET}/tpgt_{tags[standby.name]}"
    # A LUN that a client has a session with, on the standby node.
    standby.succeed(
        f"cd {unit}/acls/{story.INITIATOR}/lun_0 && find -type l -delete && rmdir {unit}/acls/*/lun_0"
        f" && cd {unit}/lun/lun_0 && find -maxdepth 1 -type l -delete && rmdir {unit}/lun/lun_0"
    )
    # An ACL and an attribute.
    acl = f"{LIO}/iscsi/{iqns['s2']}/tpgt_{tags[active.name]}/acls/{INITIATOR}"
    active.succeed(f"find {acl}/lun_0 -type l -delete && rmdir {acl}/lun_0 {acl}")
    attribute = f"$(echo {LIO}/core/*/hactl.r0.0)/attrib/emulate_3pc"
    active.succeed(f"echo 1 > {attribute} && grep -x 1 {attribute}")
    # DRBD, its file on the other node, and a gate that holds I/O.
    pools["n2"].succeed("rm /etc/drbd.d/hactl-s1.res")
    other = pools["n3"]
    other.succeed(
        "drbdadm down s1"
        " && dmsetup --noudevsync suspend hactl.s1.0 && dmsetup info -c --noheadings -o suspended hactl.s1.0"
    )
    # What could be on purpose, or lose somebody's data, is told of only.
    standby.succeed("drbdadm disconnect r0")
    standby.wait_until_succeeds("hactl status | grep StandAlone")
    standby.succeed("drbdadm connect r0")

    active.wait_until_succeeds(f"grep -x 0 {attribute}")
    world.wait_until_right(pools, strangers={FOREIGN})
    active.succeed(f"test -L {foreign}")
    assert " L--w " in other.succeed("dmsetup info -c hactl.s1.0")
    assert " error" in other.succeed("dmsetup table hactl.s1.0")
    story.wait_until_paths(pools["c1"], active=active.name, lab=pools)
    load.wait_for_progress()


def wait_for_checkers(client: Machine, expected: dict[str, str], timeout: float = 60) -> None:
    """Wait until the client's paths are these: portal → multipath's word."""
    end = time.monotonic() + timeout
    while (seen := {p.portal: p.checker for p in story.paths(client)}) != expected:
        if time.monotonic() > end:
            raise TimeoutError(f"paths after {timeout:g} s: {seen}, not {expected}")
        time.sleep(0.1)


def test_a_portal_gets_another_address_under_load(pools: Lab, device: str, load: story.Load) -> None:
    active, moved, client = story.active_node(pools), story.standby_node(pools), pools["c1"]
    node, (old, second) = pools[moved], story.portals(pools, moved)
    stays = story.portals(pools, active)[0]
    new = f"{old.rpartition('.')[0]}.2{moved[1:]}"
    link = node.succeed(f"ip -brief address show to {old}").split()[0]
    portals = f"{LIO}/iscsi/{story.TARGET}/tpgt_*/np"

    def move(before: str, after: str) -> None:
        pools["n3"].succeed(f"hactl node set-address {moved} --storage {after} --storage {second}")
        node.wait_until_succeeds(f"ls -d {portals}/{after}:3260 && ! ls -d {portals}/{before}:3260")
        record = f"iscsiadm -m node -T {story.TARGET} -p"
        client.succeed(f"{record} {after} -o new && {record} {after} --login && {record} {before} --logout")

    node.succeed(f"ip address add {new}/24 dev {link}")
    move(old, new)
    wait_for_checkers(client, {stays: "ready", new: "ghost"})
    pools[active].succeed(f"hactl switchover r0 --to {moved}")
    wait_for_checkers(client, {stays: "ghost", new: "ready"})
    load.wait_for_progress()
    # And back, while it is the active one: a session outlives its portal.
    move(new, old)
    wait_for_checkers(client, {stays: "ghost", old: "ready"})
    node.succeed(f"ip address del {new}/24 dev {link}")
    load.wait_for_progress()


@pytest.fixture
def stopped(pools: Lab) -> Iterator[list[Machine]]:
    """The nodes that r0 is not active on; their servers of the store do not run."""
    nodes = [m for m in pools.nodes if m.name != story.active_node(pools)]
    in_parallel(*(partial(m.succeed, "systemctl stop hactl-etcd") for m in nodes))
    yield nodes
    in_parallel(*(partial(m.succeed, "systemctl start hactl-etcd") for m in nodes))


def test_without_a_majority_of_the_store(
    pools: Lab, device: str, load: story.Load, stopped: list[Machine]
) -> None:
    active, standby = story.active_node(pools), story.standby_node(pools)
    here = pools[active]
    # Reading and changing the configuration is refused, and told apart from what goes on.
    late = "hactl host add late --initiator iqn.2026-11.io.hactl.lab:late"
    changed, read, told = in_parallel(
        partial(here.execute, f"{late} --json"),
        partial(stopped[0].execute, "hactl node list --json"),
        partial(stopped[1].execute, "hactl cluster status --json"),
    )
    for refused in (changed, read):
        assert refused.status == 4
        error = json.loads(refused.err)["error"]
        assert error["code"] == "store-unreachable"
        assert "still work through the agents" in error["hint"]
    assert json.loads(told.out)["store"]["majority"] is False
    for node in pools.nodes:
        node.wait_until_succeeds("hactl status --here | tr -s ' \\n' ' ' | grep 'no member of the store'")
    load.wait_for_progress()
    here.succeed(f"hactl switchover r0 --to {standby}")
    # An agent that starts goes by the last configuration it has seen.
    here.succeed("systemctl restart hactl-agent")
    here.wait_until_succeeds("hactl status --here")
    here.succeed(f"hactl switchover r0 --to {active}")
    load.wait_for_progress()
    # All by itself again.
    in_parallel(*(partial(m.succeed, "systemctl start hactl-etcd") for m in stopped))
    here.wait_until_succeeds(late)
    world.wait_until_right(pools)
    whole = json.loads(here.succeed("hactl cluster status --json"))
    assert whole["problems"] == []
    assert [n["name"] for n in whole["nodes"] if n["agent"]] == ["n1", "n2", "n3"]
    here.succeed("hactl host remove late")
    load.wait_for_progress()


READABLE = (
    "setpriv --reuid=65534 --regid=65534 --clear-groups grep -rlsF {} /etc /run /srv /var /tmp /root /dev/shm"
    " /sys/kernel/config"
)
"""Names of files with a text in them that nobody (nobody's user id) can read."""


def test_what_is_secret_is_nowhere_to_be_read(pools: Lab) -> None:
    here = pools["n1"]
    here.write("/root/mutual", f"{MUTUAL}\n", 0o600)
    here.succeed(
        "hactl host set other --chap-user user --chap-password-file - --mutual-user target"
        " --mutual-password-file /root/mutual && rm /root/mutual",
        stdin=f"{PASSWORD}\n".encode(),
    )
    world.wait_until_right(pools)
    everywhere = ("dump", "dump --json", "status", "status --json")
    more = ("host list", "host show other", "resource show s2", "cluster status --json", "plan", "doctor")

    def look(node: Machine) -> None:
        node.write("/tmp/marked", PASSWORD)
        asked = "; ".join(f"hactl {q}" for q in (*everywhere, *(more if node is here else ())))
        shown = node.succeed(f"{asked}; journalctl --no-pager; dmesg; ps axwwe; true")
        assert "agent started" in shown
        assert INITIATOR in shown
        for secret in (PASSWORD, MUTUAL):
            assert secret not in shown
            # The search finds what there is.
            marked = "/tmp/marked\n" if secret == PASSWORD else ""
            assert node.execute(READABLE.format(secret)).out == marked
        node.succeed("rm /tmp/marked")

    in_parallel(*(partial(look, m) for m in pools.nodes))
    assert PASSWORD in here.succeed("hactl dump --show-secrets")
    # In use where they are needed, and in one place of the store.
    assert MUTUAL in here.succeed(f"cat {LIO}/iscsi/*/tpgt_1/acls/{INITIATOR}/auth/password_mutual")


def test_the_store_answers_to_certificates_of_the_cluster_only(pools: Lab) -> None:
    asked, own = pools["n1"], story.addresses(pools, "n2", "cluster")[0]
    tls = "/etc/hactl/tls"
    ask = f"ETCDCTL_API=3 etcdctl --endpoints https://{own}:2379 --cacert {tls}/ca.crt --command-timeout=3s"
    shown = asked.succeed(f"{ask} --cert {tls}/node.crt --key {tls}/node.key get --prefix /hactl/lab")
    holders = [
        key for key, value in zip(shown.splitlines()[::2], shown.splitlines()[1::2], strict=True)
        if PASSWORD in value
    ]  # fmt: skip
    assert holders == ["/hactl/lab/secrets/hosts/other"]
    asked.fail(f"{ask} get --prefix /hactl/lab")
    # Nor to a certificate that somebody made for himself.
    asked.succeed(
        "cd /tmp && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=n1"
        " -keyout own.key -out own.crt"
    )
    asked.fail(f"{ask} --cert /tmp/own.crt --key /tmp/own.key get --prefix /hactl/lab")
    asked.succeed("rm /tmp/own.*")
    for node in pools.nodes:
        address = story.addresses(pools, node.name, "cluster")[0]
        listens = node.succeed("ss --no-header -ltn 'sport = :2379 or sport = :2380' | awk '{print $4}'")
        assert sorted(listens.split()) == [f"{address}:2379", f"{address}:2380"]
