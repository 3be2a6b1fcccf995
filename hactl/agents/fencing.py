"""A node switched off and on by an operator's order, to see that fencing works."""

from __future__ import annotations

from hactl.agents.orders import Orders
from hactl.errors import Refused
from hactl.pacemaker import charge


async def fence(agent: Orders, node: str) -> None:
    """Have Pacemaker switch ``node`` off and on again; returns when it says that it was done.

    :class:`Refused` ``unknown-node``, ``failover-no-pacemaker``, ``fence-none``, ``fence-off`` or
    ``fence-self``; else as :meth:`hactl.pacemaker.protocol.Pacemaker.fence`.
    """
    agent.refuse_unknown_node(node)
    pacemaker, cluster = agent.kit.pacemaker, agent.desired.cluster
    if pacemaker is None or not cluster.pacemaker:
        raise Refused(
            "failover-no-pacemaker",
            f"cluster {cluster.name} was made without Pacemaker, which does the fencing",
            "switch the node off by hand",
        )
    if cluster.node(node).fencing is None:
        raise Refused(
            "fence-none",
            f"node {node} has no fence device",
            f"hactl fencing set {node} AGENT KEY=VALUE...",
        )
    if not charge.fences(cluster):
        # Its fencer does not even know the devices while stonith-enabled is false.
        why = "; ".join(charge.reasons(cluster)) or "the operator wants failover without fencing"
        raise Refused(
            "fence-off",
            f"Pacemaker switches no node off now: {why}",
            charge.remedy(cluster) or "hactl failover automatic",
        )
    if node == agent.node:
        raise Refused(
            "fence-self",
            f"{node} is this node, which could not tell what came of it",
            "order it on another node",
        )
    await pacemaker.fence(node)
