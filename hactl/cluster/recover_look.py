"""What is looked at before the store is started anew from this node's data; nothing is changed."""

from __future__ import annotations

import asyncio
import re

from hactl.agents.source import read_copy
from hactl.cluster.kit import Kit
from hactl.cluster.layout import AGENT_PORT
from hactl.cluster.members import MEMBERS, Members, own_member
from hactl.cluster.membership import Me, has_data
from hactl.cluster.node_config import CLIENT_PORT, PEER_PORT, NodeConfig, host_port, url
from hactl.cluster.recover_judge import Other, View
from hactl.errors import HactlError, Refused
from hactl.model.spec import ClusterSpec, IpAddress, NodeSpec

ISCSI_PORT = 3260


async def voices(members: Members) -> frozenset[str] | None:
    """Names of the store's members if it can be changed as it is; None if it cannot."""
    try:
        listed = await members.list()
    except HactlError:
        return None
    # etcd 3.4 answers that without a majority, too.
    told = await asyncio.gather(*(members.status(u) for m in listed for u in m.client_urls))
    return frozenset(m.name for m in listed) if any(s is not None and s.leader for s in told) else None


async def look(kit: Kit, config: NodeConfig, me: Me, members: Members) -> View:
    """What this node sees of the others. :class:`Refused` ``etcd-data-missing``, ``not-a-member`` or
    ``desired-copy``, if it cannot be the one to go on from; as :class:`hactl.cluster.etcd_log.EtcdLog`
    raises."""
    if not has_data(kit):
        raise Refused(
            "etcd-data-missing",
            f"there is nothing of the store in {kit.layout.etcd_data}",
            "run it on a node that has it: hactl cluster status tells who the members are",
        )
    copy = await asyncio.to_thread(read_copy, kit.layout.desired_copy, config.cluster)
    if copy is None:
        raise Refused(
            "desired-copy",
            f"there is no {kit.layout.desired_copy}, which tells who the cluster's nodes are",
            "copy it from another node of the cluster, for root only",
        )
    voters, committed = await _members(kit, config, me, members, copy.cluster)
    nodes = [n for n in copy.cluster.nodes if n.name != me.node]
    known = {url(n.addresses.cluster, CLIENT_PORT) for n in nodes}
    seen = _pacemaker(await _online(kit, copy.cluster), nodes)
    others = [_node(kit, members, n, url(n.addresses.cluster, CLIENT_PORT) in voters, seen) for n in nodes]
    # Members that are no nodes of the configuration, as far as this node knows that.
    others += [_stranger(kit, members, u) for u in sorted(voters - known - {me.client_url})]
    return View(me.node, committed, tuple(await asyncio.gather(*others)))


async def _members(
    kit: Kit, config: NodeConfig, me: Me, members: Members, cluster: ClusterSpec
) -> tuple[set[str], int]:
    """Client URLs of the members with a vote, as far as this node knows them, and how far the log here
    is committed. An
    etcd that has been started without a majority answers nobody: then it is as the settings say, which the
    agent keeps up; and the first nodes are members."""
    listed = await members.local_list(me.client_url)
    if listed is None:
        member, voters = me.client_url in config.etcd, set(config.etcd)
        if len(cluster.nodes) <= MEMBERS:
            voters |= {url(n.addresses.cluster, CLIENT_PORT) for n in cluster.nodes}
    else:
        own = own_member(listed, me.peer_url)
        member = own is not None and not own.learner
        peers = {host_port(u)[0] for m in listed if not m.learner for u in m.peer_urls}
        voters = {url(address, CLIENT_PORT) for address in peers}
    if not member:
        raise Refused(
            "not-a-member",
            f"{me.node} has no vote in the store, so it need not have all that was written",
            "run it on one of its members: " + ", ".join(sorted(voters - {me.client_url})),
        )
    status = await members.status(me.client_url)
    return voters, kit.log.read(kit.layout.etcd_data).committed if status is None else status.committed


async def _online(kit: Kit, cluster: ClusterSpec) -> set[str]:
    """The nodes that Corosync and Pacemaker here are together with."""
    if not cluster.pacemaker:
        return set()
    try:
        return {k.name for k in await kit.ring.known() if k.member}
    except HactlError:
        # It does not run, and cannot tell.
        return set()


def _pacemaker(online: set[str], nodes: list[NodeSpec]) -> set[str]:
    return online & {n.name for n in nodes}


async def _node(kit: Kit, members: Members, node: NodeSpec, member: bool, online: set[str]) -> Other:
    a = node.addresses
    asked = {
        "its agent": (a.cluster, AGENT_PORT),
        **{f"its portal {address}": (address, ISCSI_PORT) for address in a.storage},
    }
    answers = await asyncio.gather(*(kit.machine.reaches(*where) for where in asked.values()))
    alive = [what for what, answer in zip(asked, answers, strict=True) if answer]
    if node.name in online:
        alive.append("Pacemaker")
    serves, committed = await _serves(kit, members, a.cluster)
    return Other(node.name, member, serves, committed, tuple(alive))


async def _stranger(kit: Kit, members: Members, client_url: str) -> Other:
    address, _ = host_port(client_url)
    serves, committed = await _serves(kit, members, address)
    # By its address, in a form that can be a name.
    return Other(re.sub("[.:]", "-", str(address)), member=True, serves=serves, committed=committed)


async def _serves(kit: Kit, members: Members, address: IpAddress) -> tuple[bool, int]:
    status = await members.status(url(address, CLIENT_PORT))
    if status is not None:
        return True, status.committed
    return await kit.machine.reaches(address, PEER_PORT), 0
