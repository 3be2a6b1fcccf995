"""Whether somebody takes over when a node is lost, and what is missing for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hactl.doctor.diagnosis import Diagnosis, Severity
from hactl.doctor.facts import Facts
from hactl.model.spec import ClusterSpec
from hactl.pacemaker import charge

UNITS = ("corosync.service", "pacemaker.service")

NFT = "nft"
PACKAGES = {
    "corosync": "corosync",
    "pacemakerd": "pacemaker",
    "crm": "crmsh",
    "crm_resource": "pacemaker-cli-utils",
    "curl": "curl",
}
"""Programs that failover needs, and Debian's packages that have them."""

FILES = (
    "/usr/lib/ocf/resource.d/hactl/resource",
    "/usr/lib/ocf/resource.d/hactl/agent",
    "/usr/lib/hactl/fence-peer",
)
"""hactl's own programs for Pacemaker and DRBD."""


def needed(cluster: ClusterSpec | None) -> tuple[str, ...]:
    """Programs and files that a node of this cluster needs; names without a path are looked for in PATH's
    folders."""
    if cluster is None:
        return ()
    if not cluster.pacemaker:
        return (NFT,)
    return (NFT, *PACKAGES, *FILES, *_agents(cluster))


def _agents(cluster: ClusterSpec) -> tuple[str, ...]:
    return tuple(sorted({node.fencing.agent for node in cluster.nodes if node.fencing is not None}))


def failover(facts: Facts) -> Iterator[Diagnosis]:
    """What keeps another node from taking over by itself, or makes that unsafe."""
    cluster = facts.cluster
    yield from _storage(facts)
    if cluster is None:
        yield Diagnosis(
            "doctor-no-fencing",
            Severity.WARNING,
            "nobody fences a node that fails, and nobody takes over by itself, as far as is known here",
            "after the loss of a node make sure that it is off, then: hactl promote RESOURCE on a survivor",
        )
        return
    yield from _charge(cluster)
    yield from _missing(facts, cluster)
    yield from _devices(facts)
    yield from _witnesses(cluster)
    if cluster.pacemaker:
        yield from _units(facts)
    if facts.secrets_missing:
        yield Diagnosis(
            "doctor-fence-secrets",
            Severity.ERROR,
            f"not there, or not as they should be: {', '.join(facts.secrets_missing)}; this node cannot "
            "switch others off",
            "the agent writes them while it runs: systemctl status hactl-agent; hactl status",
        )


def _charge(cluster: ClusterSpec) -> Iterator[Diagnosis]:
    why = charge.reasons(cluster)
    if why:
        # Without Pacemaker, or by hand, is how somebody wants it; what is missing is not.
        chosen = not cluster.pacemaker or cluster.manual_failover
        yield Diagnosis(
            "doctor-no-fencing",
            Severity.WARNING if chosen else Severity.ERROR,
            f"nobody takes over by itself when a node is lost: {'; '.join(why)}",
            charge.remedy(cluster),
        )
    elif not charge.fences(cluster):
        yield Diagnosis(
            "doctor-unfenced",
            Severity.WARNING,
            "Pacemaker takes over without fencing: nobody can switch off "
            f"{', '.join(charge.unfenced(cluster))}, which may go on writing when it is cut off",
            "hactl fencing set NODE AGENT KEY=VALUE...; then: hactl failover automatic",
        )


def _missing(facts: Facts, cluster: ClusterSpec) -> Iterator[Diagnosis]:
    if NFT in facts.missing:
        yield Diagnosis(
            "doctor-nftables-missing",
            Severity.WARNING,
            "nft is not installed: a host whose reservation could not be carried over cannot be cut off, and "
            "waits",
            "apt install nftables",
        )
    programs = [name for name in PACKAGES if name in facts.missing]
    if programs:
        packages = sorted({PACKAGES[name] for name in programs})
        yield Diagnosis(
            "doctor-pacemaker-missing",
            Severity.ERROR,
            f"not installed: {', '.join(programs)}",
            f"apt install {' '.join(packages)}",
        )
    files = [name for name in FILES if name in facts.missing]
    if files:
        yield Diagnosis(
            "doctor-ocf-missing",
            Severity.ERROR,
            f"not there: {', '.join(files)}; without them Pacemaker cannot move anything to this node",
            "install hactl's whole package on this node",
        )
    for agent in _agents(cluster):
        if agent in facts.missing:
            on = ", ".join(n.name for n in cluster.nodes if n.fencing and n.fencing.agent == agent)
            yield Diagnosis(
                "doctor-fence-agent-missing",
                Severity.ERROR,
                f"{agent} is not installed: this node cannot switch off {on}",
                f"find its package with: apt-cache search fence-agents; {agent} is in /usr/sbin then",
            )


def _devices(facts: Facts) -> Iterator[Diagnosis]:
    for node, fault in sorted(facts.fence_faults.items()):
        yield Diagnosis(
            "doctor-fence-device",
            Severity.ERROR,
            f"the fence device of {node} does not answer this node: {fault}",
            "is it reachable from here, and are its options right (hactl fencing show)? While no node can "
            f"switch {node} off, nobody takes over from it",
        )


def _storage(facts: Facts) -> Iterator[Diagnosis]:
    if facts.storage_cut is not None:
        yield Diagnosis(
            "doctor-storage-cut",
            Severity.ERROR,
            facts.storage_cut,
            "ping the other nodes' storage addresses (hactl node list) and the hosts from here; if hosts "
            "reach this node all the same, a firewall drops ICMP echo: let it pass (nft list ruleset)",
        )


def _witnesses(cluster: ClusterSpec) -> Iterator[Diagnosis]:
    if charge.in_charge(cluster) and len(cluster.nodes) == 2 and not cluster.storage_witnesses:
        yield Diagnosis(
            "doctor-no-witness",
            Severity.NOTE,
            "two nodes whose storage network is cut have only hosts to tell which of them is cut off; if "
            "hosts do not answer ping, nothing is moved",
            "name something else that answers ping on that network: hactl witness add ADDRESS",
        )


def _units(facts: Facts) -> Iterator[Diagnosis]:
    for unit in UNITS:
        service = facts.services.get(unit)
        if service is not None and not service.active:
            yield Diagnosis(
                "doctor-service-down",
                Severity.ERROR,
                f"{unit} does not run: this node takes nothing over, and the others may switch it off",
                f"journalctl -u {unit} tells why; then: systemctl restart {unit}",
            )
        elif service is not None and not service.enabled:
            yield Diagnosis(
                "doctor-service-not-enabled",
                Severity.WARNING,
                f"{unit} runs, and will not after a reboot",
                f"systemctl enable {unit}",
            )
