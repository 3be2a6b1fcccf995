"""The status documents that a node's agent gives, made from what it observes now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hactl.agents.observe import EVERYTHING, NOTHING, Common
from hactl.agents.plan import plan
from hactl.agents.status import SCHEMA, node_status, resource_plan, resource_status, resource_unseen
from hactl.errors import HactlError
from hactl.pacemaker import charge

if TYPE_CHECKING:
    from hactl.agents.keeper import Keeper
    from hactl.agents.upkeep import Upkeep


async def resource_document(keeper: Keeper, common: Common = NOTHING) -> dict[str, Any]:
    """One resource, as in the node's document; one that cannot be looked at does not hide the others."""
    try:
        observed = await keeper.glance(EVERYTHING, common)
    except HactlError as error:
        return resource_unseen(keeper.spec, keeper.desired(), error, active_node=keeper.active_node)
    desired = keeper.desired()
    return resource_status(
        keeper.spec,
        desired,
        observed,
        active_node=keeper.active_node,
        reason=keeper.reason,
        pending=plan(desired, observed),
    )


async def node_document(agent: Upkeep) -> dict[str, Any]:
    """The status document of the node (schema 1)."""
    common = await agent.look(pools=True)
    # Not in the store's copy of it: that would be written again with every reservation.
    resources = [
        {**await resource_document(keeper, common), "reservations": agent.kit.standing.reached(name)}
        for name, keeper in sorted(agent.keepers.items())
    ]
    return node_status(
        agent.node,
        resources,
        {node: view is not None for node, view in agent.views.items()},
        generation=agent.desired.generation,
        reasons=agent.reasons(),
        storage=agent.storage.document(),
        leaving=[(name, left.reason) for name, left in sorted(agent.leaving.items())],
        leftovers=[(x, agent.leftovers.reasons.get(x.key)) for x in agent.leftovers.pending(agent.desired)],
    )


async def plan_document(agent: Upkeep) -> dict[str, Any]:
    """What the agent would do next, by resource (schema 1)."""
    common = await agent.look(pools=True)
    resources = []
    for name, keeper in sorted(agent.keepers.items()):
        try:
            observed = await keeper.glance(EVERYTHING, common)
        except HactlError as error:
            resources.append({"name": name, "actions": [], "problems": [error.as_dict()]})
            continue
        resources.append(resource_plan(name, plan(keeper.desired(), observed), observed))
    return {"schema": 1, "node": agent.node, "resources": resources}


async def cluster_document(agent: Upkeep) -> dict[str, Any]:
    """All nodes' documents (schema 1): ``nodes`` has ``{"node", "reachable", "status", "error"}`` of each,
    ``failover`` who takes over when one is lost, ``resources`` what is specified, and on which node each is
    active by that node's own word."""

    async def ask(node: str) -> dict[str, Any]:
        found: dict[str, Any] = {"node": node, "reachable": False, "status": None, "error": None}
        try:
            mine = node == agent.node
            found["status"] = await (node_document(agent) if mine else agent.kit.peers.document(node))
            found["reachable"] = True
        except HactlError as error:
            found["error"] = error.as_dict()
        return found

    cluster = agent.desired.cluster
    nodes = await asyncio.gather(*(ask(n.name) for n in cluster.nodes))
    active: dict[str, list[str]] = {}
    for told in nodes:
        for resource in (told["status"] or {}).get("resources", ()):
            if resource["role"] == "active":
                active.setdefault(resource["name"], []).append(told["node"])
    return {
        "schema": SCHEMA,
        "node": agent.node,
        "cluster": cluster.name,
        "failover": charge.document(cluster),
        "generation": agent.desired.generation,
        "nodes": nodes,
        "resources": [
            {
                "name": r.name,
                "iqn": r.iqn,
                "nodes": list(r.nodes),
                "replicas": list(r.replicas),
                "preferred": r.preferred,
                "maintenance": r.maintenance,
                "active": active.get(r.name, []),
            }
            for r in cluster.resources
        ],
        "leftovers": [
            {"node": x.node, "resource": x.resource, "volume": x.volume} for x in agent.desired.leftovers
        ],
    }
