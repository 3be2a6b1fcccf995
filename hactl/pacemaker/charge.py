"""Whether Pacemaker decides who is active, and why not. Pure; all who need to know ask this."""

from __future__ import annotations

from typing import Any

from hactl.model.spec import ClusterSpec


def in_charge(cluster: ClusterSpec) -> bool:
    """Whether Pacemaker promotes by itself: made with it, and what is lost is fenced, or need not be.

    A single resource may be in maintenance all the same (``ResourceSpec.maintenance``): see :func:`rules`.
    """
    return not reasons(cluster)


def rules(cluster: ClusterSpec, resource: str) -> bool:
    """Whether Pacemaker decides where that resource is active; :class:`KeyError` if there is none."""
    return in_charge(cluster) and not cluster.resource(resource).maintenance


def fences(cluster: ClusterSpec) -> bool:
    """Whether Pacemaker is in charge, and has every node switched off before another one takes over."""
    return in_charge(cluster) and not unfenced(cluster)


def unfenced(cluster: ClusterSpec) -> tuple[str, ...]:
    """The nodes that the others cannot switch off, in the cluster's order."""
    return tuple(node.name for node in cluster.nodes if node.fencing is None)


def reasons(cluster: ClusterSpec) -> tuple[str, ...]:
    """Why Pacemaker does not promote by itself, in words that can follow "because"; none if it does."""
    if not cluster.pacemaker:
        return (f"cluster {cluster.name} was made without Pacemaker",)
    chosen = ("failover is set to manual",) if cluster.manual_failover else ()
    if cluster.unfenced_promotion:
        return chosen
    return (*chosen, *(f"node {node} has no fence device" for node in unfenced(cluster)))


def remedy(cluster: ClusterSpec) -> str:
    """What to do so that it does; empty if it does."""
    if not reasons(cluster):
        return ""
    if not cluster.pacemaker:
        return (
            "after the loss of a node make sure that it is off, then: hactl promote RESOURCE on a survivor; "
            "for failover without an operator make the cluster with Pacemaker: hactl cluster init"
        )
    missing = () if cluster.unfenced_promotion else unfenced(cluster)
    steps = [f"hactl fencing set {node} AGENT KEY=VALUE..." for node in missing]
    if cluster.manual_failover:
        steps.append("hactl failover automatic")
    return "; ".join(steps)


def document(cluster: ClusterSpec) -> dict[str, Any]:
    """All of it for status documents: ``pacemaker``: made with it; ``automatic``: in charge; ``reasons`` why
    not, and the ``remedy``; ``without_fencing``: by the operator's wish; each node's fence agent."""
    return {
        "pacemaker": cluster.pacemaker,
        "automatic": in_charge(cluster),
        "without_fencing": cluster.unfenced_promotion,
        "reasons": list(reasons(cluster)),
        "remedy": remedy(cluster) or None,
        "fencing": {n.name: n.fencing.agent if n.fencing is not None else None for n in cluster.nodes},
    }
