"""What is looked at before a machine makes or joins a cluster; nothing is changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from hactl.cluster import stack
from hactl.cluster.draft import Draft
from hactl.cluster.invite import JOIN_PORT
from hactl.cluster.kit import Kit
from hactl.cluster.layout import AGENT_PORT, AGENT_UNIT
from hactl.cluster.machine import ETCD, Machine
from hactl.cluster.node_config import CLIENT_PORT, PEER_PORT
from hactl.errors import Refused

_PORTS = {
    CLIENT_PORT: "the store",
    PEER_PORT: "the store's members",
    AGENT_PORT: "the agents",
    JOIN_PORT: "nodes that join",
}


@dataclass(frozen=True)
class Obstacle:
    """One of several things in the way."""

    code: str
    message: str
    hint: str

    def __str__(self) -> str:
        return self.message

    def as_dict(self) -> dict[str, str]:
        """The obstacle as ``--json`` shows it."""
        return dict(vars(self))


class ChecksFailed(Refused):
    """Several things are in the way; ``findings`` has each."""

    def __init__(self, found: Sequence[Refused]) -> None:
        findings = tuple(Obstacle(f.code, f.message, f.hint) for f in found)
        self.findings = findings
        super().__init__(
            "node-not-ready",
            f"this machine is not ready: {len(findings)} things are in the way; nothing was changed",
            "put them right and run it again",
        )

    def __str__(self) -> str:
        return "\n".join((self.message, *(str(f) for f in self.findings)))


def refuse_unless_root(machine: Machine) -> None:
    """:class:`Refused` ``not-root``."""
    if not machine.is_root():
        raise Refused("not-root", "this changes the machine", "run it as root, or with sudo")


async def check(draft: Draft, kit: Kit, *, resumed: bool, pacemaker: bool = False) -> None:
    """Raise what is in the way: one :class:`Refused`, or :class:`ChecksFailed` if there are several.

    ``resumed``: this was begun before, so that its own services may hold its ports. ``pacemaker``: the
    cluster is to have it.
    """
    found = [f async for f in _findings(draft, kit, resumed)]
    if pacemaker:
        found += [f async for f in stack.obstacles(draft, kit, resumed=resumed)]
    _raise(found)


async def check_pacemaker(draft: Draft, kit: Kit, *, resumed: bool) -> None:
    """Raise what is in the way of Corosync and Pacemaker alone, as :func:`check`."""
    _raise([f async for f in stack.obstacles(draft, kit, resumed=resumed)])


def _raise(found: Sequence[Refused]) -> None:
    if len(found) == 1:
        raise found[0]
    if found:
        raise ChecksFailed(found)


async def _findings(draft: Draft, kit: Kit, resumed: bool) -> AsyncIterator[Refused]:
    machine, services, now = kit.machine, kit.services, kit.now()
    here = await machine.addresses()
    a = draft.addresses
    for address in dict.fromkeys((a.cluster, a.replication, *a.storage)):
        if address not in here:
            shown = ", ".join(str(h) for h in here) or "none"
            yield Refused(
                "address-not-here",
                f"{address} is not an address of this machine",
                f"its addresses are: {shown}; see: ip address",
            )
    if not resumed and await services.active(AGENT_UNIT):
        yield Refused(
            "agent-running",
            "an agent is already running here, with a specification file of its own",
            f"systemctl disable --now {AGENT_UNIT}; what it exports goes on until it is removed",
        )
    elif not resumed and a.cluster in here:
        for port, whose in _PORTS.items():
            if machine.in_use(a.cluster, port):
                yield Refused(
                    "port-in-use",
                    f"something listens on {a.cluster} port {port}, which is for {whose}",
                    f"see what it is and stop it: ss -ltnp sport = :{port}",
                )
    if not machine.has_etcd():
        yield Refused("etcd-missing", f"there is no {ETCD}", "install etcd-server")
    if not await services.known(AGENT_UNIT):
        yield Refused(
            "unit-missing", f"systemd knows no {AGENT_UNIT}", "install hactl's package, or its unit file"
        )
    if now < machine.installed():
        yield Refused(
            "clock-wrong",
            f"the clock says {now:%Y-%m-%d %H:%M} UTC, which is before hactl was installed here",
            "set it, and let it be kept: systemctl enable --now systemd-timesyncd (or chrony)",
        )
    for pool in draft.pools:
        if fault := await machine.pool_fault(pool):
            yield Refused(
                "pool-missing", f"pool {pool.name}: {fault}", "make it first, or leave --pool out for now"
            )
