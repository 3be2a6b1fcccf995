"""Edits of what nodes ask, beside each other, whether their storage network works. Pure; each refuses with
the reason, or gives the new state."""

from __future__ import annotations

from dataclasses import replace

from hactl.errors import Refused
from hactl.model.desired import Desired
from hactl.model.spec import ClusterSpec
from hactl.model.values import changed


def add_witness(desired: Desired, address: str) -> Desired:
    """With one more address to ask. There already: unchanged."""
    cluster = desired.cluster
    new = changed(cluster, "", storage_witnesses=(*cluster.storage_witnesses, address))
    witness = new.storage_witnesses[-1]
    if witness in cluster.storage_witnesses:
        return desired
    owner = next((n.name for n in cluster.nodes if witness in _addresses(cluster, n.name)), None)
    if owner is not None:
        raise Refused(
            "witness-node",
            f"{witness} is an address of node {owner}, which the other nodes ask anyway",
            "name something that is none of the nodes: the gateway, or a switch, of the hosts' network",
        )
    if all(witness.version != a.version for n in cluster.nodes for a in n.addresses.storage):
        raise Refused(
            "witness-family",
            f"no node has a portal that could ask {witness}: none is of IPv{witness.version}",
            "name an address of the same kind as the portals: hactl node list",
        )
    return replace(desired, cluster=new)


def remove_witness(desired: Desired, address: str) -> Desired:
    """Without an address. Not there: unchanged."""
    cluster = desired.cluster
    gone = changed(cluster, "", storage_witnesses=(address,)).storage_witnesses
    kept = tuple(a for a in cluster.storage_witnesses if a not in gone)
    new = changed(cluster, "", storage_witnesses=kept)
    return desired if new is cluster else replace(desired, cluster=new)


def _addresses(cluster: ClusterSpec, node: str) -> frozenset[object]:
    where = cluster.node(node).addresses
    return frozenset({where.cluster, where.replication, *where.storage})
