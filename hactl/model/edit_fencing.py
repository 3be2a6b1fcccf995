"""Edits of fence devices, and of who takes over after the loss of a node. Pure; each refuses with the reason,
or gives the new state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hactl.errors import Refused
from hactl.model import find
from hactl.model.desired import Desired
from hactl.model.put import put_node
from hactl.model.spec import FenceSpec
from hactl.model.values import changed, make
from hactl.pacemaker import charge


def fence_device(agent: str, options: Mapping[str, str], secrets: Mapping[str, str]) -> FenceSpec:
    """A fence device."""
    return make(FenceSpec, "fencing", agent=agent, options=dict(options), secrets=dict(secrets))


def set_fencing(desired: Desired, node: str, device: FenceSpec) -> Desired:
    """How the other nodes switch a node off, instead of what there was."""
    spec = find.node(desired, node)
    new = changed(spec, f"node {node}", fencing=device)
    return desired if new is spec else put_node(desired, new)


def remove_fencing(desired: Desired, node: str) -> Desired:
    """Without a node's fence device. None there: unchanged."""
    spec = find.node(desired, node)
    new = changed(spec, f"node {node}", fencing=None)
    return desired if new is spec else put_node(desired, new)


def set_failover(desired: Desired, *, automatic: bool, without_fencing: bool = False) -> Desired:
    """Whether Pacemaker promotes by itself after the loss of a node; ``without_fencing``: even if that node
    cannot be switched off."""
    cluster = desired.cluster
    if not cluster.pacemaker:
        raise Refused("failover-no-pacemaker", "; ".join(charge.reasons(cluster)), charge.remedy(cluster))
    missing = charge.unfenced(cluster)
    if automatic and missing and not without_fencing:
        raise Refused(
            "failover-unfenced",
            f"no fence device: {', '.join(missing)}; a node that was lost may still write, and another one "
            "must not take over before it is off",
            f"hactl fencing set {missing[0]} AGENT KEY=VALUE...; or accept the risk: "
            "hactl failover automatic --without-fencing",
        )
    new = changed(
        cluster,
        "",
        manual_failover=not automatic,
        unfenced_promotion=automatic and without_fencing,
    )
    return desired if new is cluster else replace(desired, cluster=new)
