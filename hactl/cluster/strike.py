"""Takes a node out of what the store says: of the configuration, and of those who change reservations."""

from __future__ import annotations

from collections.abc import Sequence

from hactl.cluster.node_config import NodeConfig
from hactl.model.desired import Desired
from hactl.model.edit import remove_node
from hactl.pr_sync.log import PrLog
from hactl.store import desired as desired_state
from hactl.store.desired import Origin
from hactl.store.protocol import Store


async def strike(store: Store, config: NodeConfig, node: str, *, lost: bool) -> None:
    """Remove a node from the configuration; one that is not in it is no error. Refused as by
    :func:`hactl.model.edit.remove_node`."""

    def edit(now: Desired) -> Desired:
        if all(n.name != node for n in now.cluster.nodes):
            return now  # done by a run that was interrupted
        return remove_node(now, node, lost=lost)

    what = f"node {node} is lost" if lost else f"node {node} left"
    await desired_state.change(store, config.cluster, edit, what=what, origin=Origin(config.node))


async def expel(store: Store, config: NodeConfig, nodes: Sequence[str]) -> None:
    """Have nobody wait for these nodes who changes a persistent reservation: they are down, as somebody says
    who knows. May be repeated."""
    cluster = (await desired_state.read(store, config.cluster)).cluster
    log = PrLog(store, config.cluster, config.node)
    for serial in sorted({cluster.serial(r, v) for r in cluster.resources for v in r.volumes}):
        for node in sorted((await log.members(serial)) & set(nodes)):
            await log.expel(serial, node)
