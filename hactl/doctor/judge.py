"""Facts to diagnoses, each with a stable code and a remedy. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

from hactl.doctor import judge_failover
from hactl.doctor.diagnosis import Diagnosis, Severity
from hactl.doctor.facts import Facts, Lvm, Module, Version

__all__ = ["Diagnosis", "Severity", "judge", "lvm_opens", "version"]

KERNEL: Version = (6, 5)
"""The oldest Linux whose LIO has what hactl needs."""

ETCD: Version = (3, 4)
DRBD: Version = (8, 4)
SKEW = 2.0
"""Seconds. Clocks decide on certificates and join tokens and order the logs; leases do not depend on them."""
SKEW_BAD = 60.0
EXPIRY = timedelta(days=30)

FOREIGN = {
    "rtslib-fb-targetctl.service": "it restores its own configuration at boot and clears what is not in it",
    "target.service": "it restores its own configuration at boot and clears what is not in it",
    "targetctl.service": "it restores its own configuration at boot and clears what is not in it",
    "tgt.service": "it serves iSCSI on the same port",
    "scst.service": "it serves iSCSI on the same port",
    "iscsi-scst.service": "it serves iSCSI on the same port",
    "rbd-target-gw.service": "it configures LIO for ceph-iscsi",
    "rbd-target-api.service": "it configures LIO for ceph-iscsi",
}
"""Services that take LIO or its port away from hactl, and how."""

CAPTURE = "hactl-capture.service"
WATCHED = (
    *FOREIGN, "drbd.service", "multipathd.service", "hactl-agent.service", "hactl-etcd.service", CAPTURE,
    *judge_failover.UNITS,
)  # fmt: skip
"""Every unit whose state matters."""


def judge(facts: Facts) -> tuple[Diagnosis, ...]:
    """Everything that is worth telling, the worst first."""
    found = (
        *_versions(facts),
        *_modules(facts),
        *_dbroot(facts),
        *_services(facts),
        *_certificates(facts),
        *_ports(facts),
        *_clocks(facts),
        *_lvm(facts),
        *_multipath(facts),
        *judge_failover.failover(facts),
        *_unseen(facts),
    )
    order = list(Severity)
    return tuple(sorted(found, key=lambda d: order.index(d.severity)))


def version(text: str) -> Version:
    """The leading numbers of a version: ``6.12.9+deb13`` is (6, 12, 9)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _words(numbers: Version) -> str:
    return ".".join(str(n) for n in numbers)


def _versions(facts: Facts) -> Iterator[Diagnosis]:
    if facts.kernel is not None and version(facts.kernel) < KERNEL:
        yield Diagnosis(
            "doctor-kernel-old",
            Severity.ERROR,
            f"the kernel is {facts.kernel}; LIO has what hactl needs since Linux {_words(KERNEL)}",
            "install a newer kernel (on Debian 12: linux-image-amd64 from bookworm-backports) and reboot",
        )
    if facts.processors == 1:
        yield Diagnosis(
            "doctor-one-processor",
            Severity.WARNING,
            "this machine has one processor; if a host preempts another one while a command of that one is "
            "being logged, LIO waits for it in a loop that does not end",
            "give the node two processors or more: hactl keeps one of them free of LIO's threads",
        )
    if facts.drbd is not None and facts.drbd < DRBD:
        yield Diagnosis(
            "doctor-drbd-old",
            Severity.ERROR,
            f"DRBD's module is {_words(facts.drbd)}; hactl needs {_words(DRBD)} or 9",
            "install the kernel's own DRBD 8.4, or DRBD 9",
        )
    elif facts.drbd is not None and facts.drbd < (9,):
        yield Diagnosis(
            "doctor-drbd-two-replicas",
            Severity.NOTE,
            f"DRBD {_words(facts.drbd)} replicates between two nodes, and has no quorum",
            "install DRBD 9 on all nodes if resources shall have three replicas",
        )
    if facts.drbd_utils is False:
        yield Diagnosis(
            "doctor-drbd-utils-missing",
            Severity.ERROR,
            "drbdadm is not installed",
            "apt install drbd-utils",
        )
    if facts.etcd is not None and facts.etcd < ETCD:
        yield Diagnosis(
            "doctor-etcd-old",
            Severity.ERROR,
            f"etcd is {_words(facts.etcd)}; hactl needs {_words(ETCD)} or newer",
            "install a newer etcd-server, on one node after the other",
        )


def _modules(facts: Facts) -> Iterator[Diagnosis]:
    for name, state in sorted(facts.modules.items()):
        if state is Module.MISSING:
            yield Diagnosis(
                "doctor-module-missing",
                Severity.ERROR,
                f"the kernel has no module {name}",
                "install the full kernel image (not one for clouds), or drbd-dkms for DRBD, and reboot",
            )
        elif state is Module.AVAILABLE:
            yield Diagnosis(
                "doctor-module-not-loaded",
                Severity.NOTE,
                f"the module {name} is not loaded; the agent loads it when it starts",
                "systemctl status hactl-agent",
            )


def _dbroot(facts: Facts) -> Iterator[Diagnosis]:
    if facts.dbroot is not None and facts.dbroot_missing:
        missing = " ".join(facts.dbroot_missing)
        yield Diagnosis(
            "doctor-dbroot-missing",
            Severity.WARNING,
            f"LIO writes persistent reservations and ALUA states below {facts.dbroot}, where folders are "
            "missing; a host's reservation that shall survive a power loss is answered with an error",
            f"mkdir -p {missing}",
        )


def _services(facts: Facts) -> Iterator[Diagnosis]:
    for unit, how in FOREIGN.items():
        service = facts.services.get(unit)
        if service is not None and (service.enabled or service.active):
            yield Diagnosis(
                "doctor-service-conflict",
                Severity.ERROR,
                f"{unit} is {_state(service.enabled, service.active)}; {how}",
                f"move what it serves elsewhere first, then: systemctl disable --now {unit}; "
                f"systemctl mask {unit}",
            )
    drbd = facts.services.get("drbd.service")
    if drbd is not None and (drbd.enabled or drbd.active):
        yield Diagnosis(
            "doctor-drbd-service",
            Severity.WARNING,
            f"drbd.service is {_state(drbd.enabled, drbd.active)}; it starts and stops resources behind the "
            "agent's back",
            # disable alone: stopping it takes down resources that are in use.
            "systemctl disable drbd.service (without --now, which would stop resources)",
        )
    for unit in ("hactl-agent.service", *(("hactl-etcd.service",) if facts.in_cluster else ())):
        own = facts.services.get(unit)
        if own is not None and own.enabled and not own.active:
            yield Diagnosis(
                "doctor-service-down",
                Severity.ERROR,
                f"{unit} is enabled and does not run",
                f"journalctl -u {unit} tells why; then: systemctl restart {unit}",
            )
        elif own is not None and own.active and not own.enabled:
            yield Diagnosis(
                "doctor-service-not-enabled",
                Severity.WARNING,
                f"{unit} runs, and will not after a reboot",
                f"systemctl enable {unit}",
            )
    agent, capture = facts.services.get("hactl-agent.service"), facts.services.get(CAPTURE)
    # The agent's unit starts it, so whether it is enabled says nothing.
    wanted = facts.in_cluster and agent is not None and (agent.enabled or agent.active)
    if wanted and capture is None:
        yield Diagnosis(
            "doctor-capture-missing",
            Severity.ERROR,
            f"{CAPTURE} is not installed: persistent reservations are not carried over to other nodes",
            f"put hactl's {CAPTURE} into /etc/systemd/system, then: systemctl daemon-reload; "
            "systemctl restart hactl-agent",
        )
    elif wanted and capture is not None and not capture.active:
        yield Diagnosis(
            "doctor-service-down",
            Severity.ERROR,
            f"{CAPTURE} does not run: changes of persistent reservations wait, and their hosts with them",
            f"journalctl -u {CAPTURE} tells why; then: systemctl restart {CAPTURE}",
        )


def _state(enabled: bool, active: bool) -> str:
    return "running" if active and not enabled else "enabled and running" if active else "enabled"


def _certificates(facts: Facts) -> Iterator[Diagnosis]:
    for c in facts.certificates:
        if c.fault or c.not_after is None or c.not_before is None:
            yield Diagnosis(
                "doctor-certificate-unreadable",
                Severity.ERROR,
                f"{c.path} cannot be used: {c.fault or 'it has no period of validity'}",
                "issue the node's certificate again, or join the cluster anew",
            )
            continue
        if c.not_after <= facts.now:
            yield Diagnosis(
                "doctor-certificate-expired",
                Severity.ERROR,
                f"{c.path} expired on {c.not_after:%Y-%m-%d}; other nodes and etcd refuse this one",
                "issue it again from the cluster's CA, then: systemctl restart hactl-etcd hactl-agent",
            )
        elif c.not_after - facts.now < EXPIRY:
            days = (c.not_after - facts.now).days
            yield Diagnosis(
                "doctor-certificate-expires",
                Severity.WARNING,
                f"{c.path} expires on {c.not_after:%Y-%m-%d}, in {days} days",
                "issue it again from the cluster's CA before that, then restart hactl-etcd and hactl-agent",
            )
        if c.not_before > facts.now:
            yield Diagnosis(
                "doctor-certificate-early",
                Severity.ERROR,
                f"{c.path} is valid from {c.not_before:%Y-%m-%d %H:%M} UTC on; it is earlier here",
                "set the clocks of the nodes: apt install chrony; chronyc waitsync",
            )
        if c.path.endswith("node.crt") and facts.node not in c.names:
            names = ", ".join(c.names) or "none"
            yield Diagnosis(
                "doctor-certificate-name",
                Severity.ERROR,
                f"{c.path} is for {names}, not for {facts.node}; other nodes refuse it",
                f"issue one whose subject alternative name is DNS:{facts.node}",
            )
    for key in facts.keys:
        if key.mode is not None and key.mode & 0o077:
            yield Diagnosis(
                "doctor-key-readable",
                Severity.ERROR,
                f"{key.path} has mode {key.mode:04o}: others than root can access the private key",
                f"chmod 600 {key.path}; if somebody may have read it, issue it again",
            )


def _ports(facts: Facts) -> Iterator[Diagnosis]:
    for p in facts.ports:
        if p.fault:
            yield Diagnosis(
                "doctor-port-closed",
                Severity.ERROR,
                f"{p.purpose} of {p.node} at {p.address} port {p.port} cannot be reached: {p.fault}",
                f"does {p.node} run, and the service there (systemctl status)? Does a firewall on either "
                f"node drop TCP {p.port} (nft list ruleset)?",
            )


def _clocks(facts: Facts) -> Iterator[Diagnosis]:
    if facts.clock_synchronised is False:
        yield Diagnosis(
            "doctor-clock-unsynchronised",
            Severity.WARNING,
            "this node's clock is not synchronised with anything",
            "apt install chrony, and give all nodes the same time servers",
        )
    for node, seconds in sorted(facts.skews.items()):
        if abs(seconds) > SKEW:
            where = "ahead of" if seconds > 0 else "behind"
            yield Diagnosis(
                "doctor-clock-skew",
                Severity.ERROR if abs(seconds) > SKEW_BAD else Severity.WARNING,
                f"the clock of {node} is {abs(seconds):.0f} s {where} this one's",
                "chronyc tracking on both nodes tells which is wrong; logs and certificates depend on clocks",
            )


def _lvm(facts: Facts) -> Iterator[Diagnosis]:
    if facts.lvm is not None and not facts.lvm.devices_file and lvm_opens(facts.lvm, "/dev/drbd16"):
        yield Diagnosis(
            "doctor-lvm-filter",
            Severity.WARNING,
            "LVM looks into /dev/drbd*, and would activate volume groups that hosts keep there; "
            "that blocks switchovers",
            'in /etc/lvm/lvm.conf, devices section: global_filter = [ "r|^/dev/drbd.*|", '
            '"r|^/dev/mapper/hactl.*|" ]',
        )


def lvm_opens(lvm: Lvm, device: str) -> bool:
    """Whether LVM would look into a device: the first pattern that matches decides (lvm.conf(5))."""
    for pattern in lvm.global_filter:
        if len(pattern) < 3 or pattern[0] not in "ar":
            continue
        try:
            matches = re.search(pattern[2:-1], device) is not None
        except re.error:
            # Not a pattern of Python's: LVM knows better what it means.
            continue
        if matches:
            return pattern[0] == "a"
    return True


def _multipath(facts: Facts) -> Iterator[Diagnosis]:
    service = facts.services.get("multipathd.service")
    if service is not None and (service.active or service.enabled):
        yield Diagnosis(
            "doctor-multipath-here",
            Severity.NOTE,
            "multipathd runs on this storage node, and may take a disk before DRBD does",
            "keep it only if disks of this node have several paths, and name those maps in the resources; "
            "multipath is for hosts: hactl multipath-conf",
        )


def _unseen(facts: Facts) -> Iterator[Diagnosis]:
    for what, why in facts.unseen:
        yield Diagnosis(
            "doctor-unseen",
            Severity.NOTE,
            f"{what} could not be looked at: {why}",
            "run it as root on a storage node; what is not installed needs no attention",
        )
