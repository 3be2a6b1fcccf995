"""The main story on a running lab: a replicated LUN that changes nodes while a client writes to it.

Used by the demo, by the lab tests and by benchmarks; nothing here asserts anything.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.api import Lab, Machine

INITIATOR = "iqn.2026-11.io.hactl.lab:c1"
CLUSTER = "lab"
TARGET = "iqn.2026-11.io.hactl.lab:r0"
DISK = "/dev/vdb"
"""A node's disk for replicas; the lab gives it this name in every kind of machine."""
PROBLEM_EVIDENCE = {
    "journal": "journalctl --no-pager -o short-precise",
    "drbd": "drbdadm status; cat /proc/drbd; drbdsetup events2 --now --statistics",
    "dm": "dmsetup table; dmsetup info -c; dmsetup status",
    "configfs": "find /sys/kernel/config/target -type f -readable ! -path '*auth*' ! -path '*statistics*'"
    ' -exec sh -c \'for f; do echo "$f: $(head -c 400 $f 2>&1 | tr "\\n" " ")"; done\' _ {} +'
    "; find /sys/kernel/config/target -type l",
    "crm_mon": "crm_mon -1 -rnfA 2>&1",
    "hactl": "hactl status --json 2>&1; hactl plan 2>&1; ls -la /var/lib/hactl /run/hactl",
    "multipath": "multipath -ll 2>&1; iscsiadm -m session -P 3 2>&1",
    "kernel": "dmesg",
    "processes": "ps axfww -o pid,ppid,stat,wchan:20,etime,args",
}
"""What is kept of every machine when something failed: file name → command."""


def _described(lab: Lab, name: str) -> dict[str, Any]:
    """What the lab says of a machine: kind, state, addresses."""
    return next(m for m in lab.status()["machines"] if m["name"] == name)


def addresses(lab: Lab, name: str, network: str) -> list[str]:
    """IPv4 and IPv6 address of a machine on a network."""
    return [str(a).partition("/")[0] for a in _described(lab, name)["addresses"][network]]


def specification(lab: Lab, size: str = "512M") -> str:
    """A cluster of the lab's nodes with one resource, r0, on n1 and n2."""
    nodes = "".join(
        f"  - name: {m.name}\n    id: {number}\n    addresses:\n"
        f"      cluster: {addresses(lab, m.name, 'cluster')[0]}\n"
        f"      replication: {addresses(lab, m.name, 'replication')[0]}\n"
        f"      storage: [{', '.join(repr(a) for a in portals(lab, m.name))}]\n"
        for number, m in enumerate(lab.nodes, 1)
    )
    return (
        f"name: {CLUSTER}\nnodes:\n{nodes}"
        f"hosts:\n  - name: c1\n    initiators: [{INITIATOR}]\n"
        f"resources:\n  - name: r0\n    id: 1\n    iqn: {TARGET}\n    nodes: [n1, n2]\n    hosts: [c1]\n"
        f"    volumes:\n      - number: 0\n        lun: 0\n        size: {size}\n"
        f"        disks: {{n1: {DISK}, n2: {DISK}}}\n"
    )


def portals(lab: Lab, name: str) -> list[str]:
    """IPv4 and IPv6 address of a node on the storage network."""
    return addresses(lab, name, "storage")


BOTH = "drbdadm dstate r0 | grep -x UpToDate/UpToDate"
"""Succeeds on a node where both disks of r0 have everything."""
_STATUS = "curl --silent --show-error --fail --unix-socket /run/hactl/agent.sock http://agent/v1/status"


def status(machine: Machine) -> dict[str, Any]:
    """What a node's agent says of itself and its resources: asked directly, as a Python program takes seconds
    to start there."""
    result: dict[str, Any] = json.loads(machine.succeed(_STATUS))
    return result


def make_cluster(lab: Lab) -> None:
    """One cluster of all nodes of the lab; nothing if there is one already."""
    first, *others = lab.nodes
    if first.execute("test -e /etc/hactl/node.yaml").status == 0:
        return
    told = first.succeed(f"hactl cluster init {CLUSTER} {node_options(lab, first.name)} --json", timeout=300)
    token = json.loads(told)["token"]
    for machine in others:
        machine.succeed(
            f"hactl cluster join - {node_options(lab, machine.name)}", timeout=300, stdin=token.encode()
        )


def node_options(lab: Lab, name: str) -> str:
    """A node's addresses as options of ``hactl cluster init`` and ``join``."""
    cluster, replication = (addresses(lab, name, network)[0] for network in ("cluster", "replication"))
    storage = " ".join(f"--storage-address {a}" for a in portals(lab, name))
    return f"--cluster-address {cluster} --replication-address {replication} {storage}"


def apply(lab: Lab, text: str, *options: str) -> None:
    """Have the whole cluster be as a specification says, from its first node that is up."""
    machine = next(m for m in lab.nodes if m.state == "up")
    machine.write("/root/cluster.yaml", text, 0o600)
    machine.succeed(f"hactl apply -f /root/cluster.yaml {' '.join(options)}", timeout=300)


def wait_until_ready(lab: Lab, timeout: float = 300) -> None:
    """Both replicas UpToDate and nothing pending on any node."""
    end = time.monotonic() + timeout
    while True:
        told = [status(m) for m in lab.nodes]
        resources = [r for node in told for r in node["resources"]]
        if resources and all(
            not r["pending"] and all(v["disk"] in ("UpToDate", None) for v in r["volumes"]) for r in resources
        ):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"not ready after {timeout:g} s: {json.dumps(told)}")
        time.sleep(0.2)


def active_node(lab: Lab) -> str:
    """The one node whose gate is open; more than one, or none, is a failure."""
    # 147 is DRBD's major number (Documentation/admin-guide/devices.txt).
    tables = {n.name: n.succeed("dmsetup table hactl.r0.0") for n in lab.nodes[:2]}
    opened = [name for name, table in tables.items() if " linear " in table and " 147:" in table]
    if len(opened) != 1:
        raise AssertionError(f"open gates: {opened}")
    return opened[0]


def standby_node(lab: Lab) -> str:
    """The replica that is not active."""
    return "n1" if active_node(lab) == "n2" else "n2"


def wait_until_settled(lab: Lab, timeout: float = 300) -> None:
    """Every agent answers, nothing is pending, and exactly one node says it is active."""
    end = time.monotonic() + timeout
    while True:
        told = [m.execute(_STATUS) for m in lab.nodes]
        if all(t.status == 0 for t in told):
            resources = [r for t in told for r in json.loads(t.out)["resources"]]
            if [r["role"] for r in resources].count("active") == 1 and not any(
                r["pending"] or r["role"] == "demoted" for r in resources
            ):
                return
        if time.monotonic() > end:
            raise TimeoutError(f"not settled after {timeout:g} s: {told}")
        time.sleep(0.2)


def attach(lab: Lab, paths: int = 2) -> str:
    """Log the client in to every node's portal; the multipath device's path, once it has all its paths."""
    client = lab["c1"]
    dropin = lab["n1"].succeed("hactl multipath-conf")
    client.write("/etc/multipath/conf.d/hactl.conf", dropin)
    client.write("/etc/multipath.conf", "defaults {\n\tuser_friendly_names yes\n\tfind_multipaths no\n}\n")
    client.write("/etc/iscsi/initiatorname.iscsi", f"InitiatorName={INITIATOR}\n", 0o600)
    client.succeed("systemctl start iscsid.service && systemctl restart multipathd.service", timeout=120)
    # Both nodes tell their IPv6 portals as well; one path a node is what the story is about.
    for portal in (portals(lab, "n1")[0], portals(lab, "n2")[0]):
        client.succeed(f"iscsiadm -m discovery -t sendtargets -p {portal}", timeout=60)
        login = f"iscsiadm -m node -T {TARGET} -p {portal} --login"
        client.succeed(f"iscsiadm -m session | grep -qF ' {portal}:' || {login}", timeout=60)
    client.wait_until_succeeds(
        f'[ "$(multipathd show paths raw format "%d %t %o" | grep -c "active.*running")" -ge {paths} ]'
    )
    name = client.wait_until_succeeds("multipathd show maps raw format %n | head -1 | grep .").strip()
    return f"/dev/mapper/{name}"


@dataclass(frozen=True)
class PathState:
    """One path as multipathd sees it: portal, checker (``ready``, ``ghost``, ``faulty`` …), priority."""

    portal: str
    device: str
    checker: str
    priority: int


_PATHS = "multipathd show paths raw format '%d|%T|%p'"
_PORTALS = """\
for session in /sys/class/iscsi_session/session*; do
    for disk in $session/device/target*/*/block/*; do
        for address in $session/device/connection*/iscsi_connection/*/persistent_address; do
            [ ! -e $address ] || { read -r where <$address && echo ${disk##*/} $where; } || true
        done
    done
done"""
"""Disk and portal of every session, without any program: an emulated machine is slow to start one."""


def paths(client: Machine) -> list[PathState]:
    """All paths of the client. multipathd may say "timeout" while it waits for a path that is gone."""
    text = client.wait_until_succeeds(f"{_PATHS} && echo && {{ {_PORTALS}; }}")
    shown, _, portals_of = text.partition("\n\n")
    addresses_of = dict(line.split() for line in portals_of.splitlines())
    found = []
    for line in shown.splitlines():
        path, checker, priority = (field.strip() for field in line.split("|"))
        # A path whose session has just ended has no portal any more.
        found.append(PathState(addresses_of.get(path, ""), path, checker, int(priority or 0)))
    return found


def wait_until_paths(client: Machine, *, active: str, lab: Lab, timeout: float = 60) -> list[PathState]:
    """Wait until the path to ``active`` is usable and every other one is a ghost (standby)."""
    portal = portals(lab, active)[0]
    end = time.monotonic() + timeout
    while True:
        seen = paths(client)
        good = {p.portal: p.checker for p in seen}
        if good and all(
            checker == ("ready" if where == portal else "ghost") for where, checker in good.items()
        ):
            return seen
        if time.monotonic() > end:
            raise TimeoutError(f"paths of {client.name} after {timeout:g} s with {active} active: {seen}")
        time.sleep(0.1)


class Load:
    """fio on the client, writing and verifying what it wrote, with every write's latency in a log."""

    LOG = "/root/load"

    def __init__(self, client: Machine, device: str, rate: int = 50) -> None:
        self.client = client
        self.device = device
        self.rate = rate
        self.running = False
        self.log = f"{self.LOG}_clat.1.log"

    def start(self, seconds: int = 3600) -> None:
        """Write and verify until ``stop``."""
        self.client.succeed(f"rm -f {self.LOG}*")
        job = (
            f"fio --name=load --filename={self.device} --rw=randwrite --bs=4k --size=64M --direct=1"
            f" --ioengine=libaio --iodepth=4 --rate_iops={self.rate},{self.rate} --time_based"
            f" --runtime={seconds} --verify=crc32c --verify_fatal=1 --verify_backlog=64 --randrepeat=0"
            f" --write_lat_log={self.LOG} --log_unix_epoch=1 --output-format=json --output={self.LOG}.json"
        )
        self.client.succeed(f"systemd-run --unit=load --collect --service-type=exec {job}")
        self.client.wait_until_succeeds("pgrep -x fio", timeout=60)
        self.running = True

    def completed(self) -> int:
        """I/Os that the multipath device has completed since it exists (Documentation/block/stat.rst)."""
        fields = self.client.succeed(f"cat /sys/block/$(basename $(readlink -f {self.device}))/stat").split()
        return int(fields[0]) + int(fields[4])

    def wait_for_progress(self, ios: int = 20, timeout: float = 90) -> None:
        """Wait until so many more I/Os have completed."""
        goal = self.completed() + ios
        end = time.monotonic() + timeout
        while self.completed() < goal:
            if time.monotonic() > end:
                raise TimeoutError(f"fio on {self.client.name} did not get on for {timeout:g} s")
            time.sleep(0.1)

    def stop(self) -> LoadReport:
        """End it as by Ctrl-C and tell how it went."""
        self.running = False
        self.client.succeed("systemctl kill --signal=INT load.service")
        self.client.wait_until_succeeds("! pgrep -x fio", timeout=120)
        text = self.client.succeed(f"cat {self.LOG}.json")
        job = json.loads(text[text.index("{") :])["jobs"][0]
        log = self.client.succeed(f"cat {self.log}")
        samples = []
        for line in log.splitlines():
            fields = re.split(r",\s*", line)
            samples.append((int(fields[0]) / 1000, int(fields[1]) / 1e9, int(fields[2])))
        return LoadReport(job["error"], job["write"]["total_ios"], job["read"]["total_ios"], tuple(samples))


@dataclass(frozen=True)
class LoadReport:
    """What fio saw: error number, counts, and per I/O: time and latency in s, 0 read or 1 write."""

    error: int
    writes: int
    reads: int
    samples: tuple[tuple[float, float, int], ...]

    def pause(self, begin: float, end: float) -> float:
        """The longest time without a completed I/O that touches the span, in seconds."""
        began, over = self.gap(begin, end)
        return over - began

    def gap(self, begin: float, end: float) -> tuple[float, float]:
        """When that time began, and when it was over."""
        times = sorted(t for t, _, _ in self.samples)
        gaps = [(a, b) for a, b in itertools.pairwise(times) if b >= begin and a <= end]
        return max(gaps, key=lambda gap: gap[1] - gap[0], default=(float("nan"), float("nan")))


@dataclass(frozen=True)
class Switchover:
    """One change of the active node as measured: where to, when by the client's clock, how long the command
    took; if a node was ``lost``, how long it took until the other one was promoted."""

    number: int
    to: str
    begin: float
    end: float
    command: float
    lost: str | None = None


def table(report: LoadReport, moved: list[Switchover]) -> str:
    """What the client saw of each switchover, as text."""
    lines = [f"{'#':>3}  to  {'command':>9}  {'pause at the client':>20}"]
    for m in moved:
        pause = report.pause(m.begin, m.end)
        lines.append(
            f"{m.number:>3}  {m.to}  {m.command * 1000:>6.0f} ms  {pause * 1000:>17.0f} ms"
            + (f"  {m.lost} lost power" if m.lost else "")
        )
    lines.append(
        f"fio: {report.writes} writes, {report.reads} blocks read back and verified, error {report.error}"
    )
    return "\n".join(lines) + "\n"


def clock(machine: Machine) -> float:
    """The machine's clock, seconds since 1970."""
    return float(machine.succeed("date +%s.%N"))


def switchover(lab: Lab, number: int, via: str, to: str) -> Switchover:
    """Order a switchover at node ``via``."""
    begin = clock(lab["c1"])
    started = time.monotonic()
    lab[via].succeed(f"hactl switchover r0 --to {to}", timeout=60)
    seconds = time.monotonic() - started
    return Switchover(number, to, begin, clock(lab["c1"]), seconds)


def keep_evidence(lab: Lab, folder: Path) -> Path:
    """Everything one wants to see after a failure, of every machine, in one folder."""
    return lab.collect(folder, PROBLEM_EVIDENCE)
