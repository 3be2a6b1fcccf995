"""Takes this node, or one that is lost, out of its cluster. Interrupted anywhere, it is run again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Collection, Sequence

from hactl.cluster import checks, node_config, pki, stack, unfinished
from hactl.cluster.kit import Kit, Tell
from hactl.cluster.layout import AGENT_UNIT, remove
from hactl.cluster.members import (
    Member,
    Members,
    client_urls,
    own_member,
    removal_fault,
)
from hactl.cluster.membership import remove_from_etcd, remove_member_files, save_endpoints
from hactl.cluster.node_config import CLIENT_PORT, PEER_PORT, NodeConfig, url
from hactl.cluster.services import DETACH
from hactl.cluster.strike import expel, strike
from hactl.cluster.unfinished import Unfinished
from hactl.errors import HactlError, Refused
from hactl.model import leave as leftovers
from hactl.model.desired import Desired
from hactl.model.edit import remove_node
from hactl.model.spec import IpAddress
from hactl.store import desired as desired_state


async def leave(kit: Kit, tell: Tell, *, end_cluster: str | None = None) -> str:
    """Take this node out: refused while resources are on it or were not taken down yet, and where the rest of
    the cluster could not go on. The name of the cluster.

    ``end_cluster``: the cluster's name, to say that its last node is meant, and that the cluster ends with
    it.
    """
    checks.refuse_unless_root(kit.machine)
    begun = unfinished.load(kit.layout)
    if begun is not None and begun.told and begun.cluster is not None:
        await only_here(kit, tell)
        return begun.cluster
    config = node_config.load(kit.layout.node_file)
    if begun is not None and begun.what in ("init", "recover"):
        raise Refused(
            "unfinished",
            f"hactl cluster {begun.what} of {config.cluster} was begun and is not finished here",
            "run it again as it was; or undo it: hactl cluster leave --only-here",
        )
    await _tell_cluster(config, kit, tell, end_cluster)
    await only_here(kit, tell)
    return config.cluster


async def only_here(kit: Kit, tell: Tell) -> None:
    """Stop what runs here and remove this node's settings, certificates and part of the store, and tell
    nobody: for a machine whose cluster is gone, or has removed it already."""
    checks.refuse_unless_root(kit.machine)
    # Before the agent, without which Pacemaker cannot stop what it runs here.
    await stack.stop_pacemaker(kit, tell)
    tell(f"stopping {AGENT_UNIT}")
    await kit.services.stop(AGENT_UNIT)
    fault = await kit.services.end_capture()
    if fault:
        # Where LIO is not loaded there is nothing to take off either.
        tell(
            f"LIO's directory may still have hactl's file system on it: {fault}; by hand: {' '.join(DETACH)}"
        )
    await stack.take_down(kit, tell)
    tell("removing this node's part of the store, its certificates and settings")
    await remove_member_files(kit)
    shutil.rmtree(kit.layout.tls, ignore_errors=True)
    remove(kit.layout.desired_copy)
    remove(kit.layout.node_file)
    unfinished.done(kit.layout)


async def remove_lost(node: str, kit: Kit, tell: Tell) -> tuple[str, ...]:
    """Remove a node that will never come back; the names of the resources that lost a replica.

    Refused if it answers, is this one, or the rest of the store's members are too few.
    """
    checks.refuse_unless_root(kit.machine)
    config = node_config.load(kit.layout.node_file)
    if node == config.node:
        raise Refused("node-alive", f"{node} is this node", "to take it out: hactl cluster leave")
    store = kit.store(config)
    members = kit.members(config.etcd)
    try:
        before = await desired_state.read(store, config.cluster)
        spec = next((n for n in before.cluster.nodes if n.name == node), None)
        listed = await members.list()
        member = next((m for m in listed if m.name == node), None)
        if spec is not None:
            member = member or own_member(listed, url(spec.addresses.cluster, PEER_PORT))
        if spec is None and member is None:
            known = ", ".join(n.name for n in before.cluster.nodes)
            raise Refused("unknown-node", f"the cluster has no node {node}", f"its nodes are: {known}")
        answering = await _answering(members, listed)
        if await store.get(_lease_key(config.cluster, node)) or (member and member.id in answering):
            raise Refused(
                "node-alive",
                f"node {node} answers",
                "to take it out, run there: hactl cluster leave; to forget it, switch it off first",
            )
        if member is not None:
            _refuse_fault(removal_fault(listed, answering, member.id), node)
        lost = tuple(r.name for r in before.cluster.resources if node in r.replicas)
        if spec is not None:
            tell(f"removing node {node} from the configuration")
            remove_node(before, node, lost=True)  # refused before anything is changed
            # Whoever changes a reservation waits for it until it is a member no more.
            await expel(store, config, [node])
            await strike(store, config, node, lost=True)
        if member is not None:
            tell(f"removing {node} from etcd")
            await remove_from_etcd(kit, members, member.id)
        save_endpoints(kit, config, client_urls(await members.list()))
        return lost
    finally:
        await members.close()
        await store.close()


async def _tell_cluster(config: NodeConfig, kit: Kit, tell: Tell, end_cluster: str | None) -> None:
    _, address = pki.names(kit.layout.certificates.certificate.read_bytes())
    own_client = url(address, CLIENT_PORT)
    # Others first: this node's member will not answer for long.
    members = kit.members(sorted(config.etcd, key=lambda e: e == own_client))
    store = kit.store(config)
    try:
        before = await desired_state.read(store, config.cluster)
        listed = await members.list()
        own = own_member(listed, url(address, PEER_PORT))
        refuse_in_use(before, config.node)
        last = {n.name for n in before.cluster.nodes} <= {config.node}
        if last:
            _refuse_end(config, end_cluster)
        elif end_cluster is not None:
            others = ", ".join(n.name for n in before.cluster.nodes if n.name != config.node)
            raise Refused(
                "last-node",
                f"{config.node} is not the last node: there are {others} too",
                "let them leave first; or let only this one leave: hactl cluster leave",
            )
        elif own is not None:
            _refuse_fault(removal_fault(listed, await _answering(members, listed), own.id), config.node)
        unfinished.save(kit.layout, Unfinished(what="leave", cluster=config.cluster))
        # While this node has a vote, and before the others drop it: one that they lose they would fence.
        await stack.stop_pacemaker(kit, tell)
        if not last:
            tell(f"removing node {config.node} from the configuration")
            await strike(store, config, config.node, lost=False)
            if own is not None:
                tell("leaving etcd")
                await _leave_etcd(kit, members, listed, own)
    finally:
        await members.close()
        await store.close()
    unfinished.save(kit.layout, Unfinished(what="leave", cluster=config.cluster, told=True))


def refuse_in_use(desired: Desired, node: str) -> None:
    """:class:`Refused` ``node-in-use`` or ``leftover-pending`` while something of the cluster is on a
    node."""
    on = [r.name for r in desired.cluster.resources if node in r.nodes]
    if on:
        raise Refused(
            "node-in-use",
            f"node {node} exports {', '.join(on)}",
            "move or remove its replicas first, see hactl resource; then leave",
        )
    leftovers.refuse_pending(leftovers.pending(desired, node=node), f"node {node} cannot leave yet")


def _refuse_end(config: NodeConfig, end_cluster: str | None) -> None:
    if end_cluster is None:
        raise Refused(
            "last-node",
            f"{config.node} is the last node: the cluster {config.cluster} would end",
            f"if that is meant: hactl cluster leave --end-cluster {config.cluster}",
        )
    if end_cluster != config.cluster:
        raise Refused(
            "last-node",
            f"this node's cluster is {config.cluster}, not {end_cluster}",
            f"if it is to end: hactl cluster leave --end-cluster {config.cluster}",
        )


def _refuse_fault(fault: str, node: str) -> None:
    if fault:
        raise Refused(
            "store-majority",
            f"{node} must not leave the store now: {fault}",
            "bring the other members back first, or add one; see: hactl cluster status",
        )


async def _leave_etcd(kit: Kit, members: Members, listed: Sequence[Member], own: Member) -> None:
    statuses = {m.id: await members.status(m.client_urls[0]) for m in listed if m.client_urls}
    mine = statuses.get(own.id)
    heirs = [m.id for m in listed if m.id != own.id and not m.learner and statuses.get(m.id) is not None]
    if mine is not None and mine.leader == own.id and heirs:
        # Without it, removing the leader costs the others an election; that is all it is for.
        with contextlib.suppress(HactlError):
            await members.move_leader(own, heirs[0])
    await remove_from_etcd(kit, members, own.id)


async def _answering(members: Members, listed: Sequence[Member]) -> Collection[int]:
    """Ids of members that answer and know a leader."""
    asked = [m for m in listed if m.client_urls]
    told = await asyncio.gather(*(members.status(m.client_urls[0]) for m in asked))
    return {m.id for m, s in zip(asked, told, strict=True) if s is not None and s.leader}


def _lease_key(cluster: str, node: str) -> str:
    return f"/hactl/{cluster}/members/{node}"


def address_of(kit: Kit) -> IpAddress:
    """This node's cluster address, from its certificate."""
    return pki.names(kit.layout.certificates.certificate.read_bytes())[1]
