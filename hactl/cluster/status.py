"""The cluster as its store and certificates show it: members, leader, nodes, agents' leases."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hactl.cluster import node_config, pki, stack, unfinished
from hactl.cluster.corosync import Whose, whose
from hactl.cluster.kit import Kit
from hactl.cluster.members import MEMBERS, Member, Members, MemberStatus, majority
from hactl.cluster.node_config import PEER_PORT, NodeConfig, url
from hactl.errors import HactlError
from hactl.model.desired import Desired
from hactl.store import desired as desired_state
from hactl.store.protocol import Store

SCHEMA = 1


async def status(kit: Kit) -> dict[str, Any]:
    """The document of ``hactl cluster status``, schema 1. It also comes about while the store has no
    majority: what then is not known is null, and ``problems`` tells why.

    ``{schema, cluster, node, certificate: {until}, store: {majority, leader, members: [{name, id, url, voter,
    answers, leader, version, db_size, problems}]}, nodes: [{name, id, address, member, agent}], corosync,
    problems}``; ``agent``: ``{version, since}`` while the node's agent holds its lease, else null;
    ``db_size``: bytes; ``corosync``: ``{links: [{number, nodes}]}`` with each other node's state on the
    link by its name, null where the cluster has none.
    """
    config = node_config.load(kit.layout.node_file)
    problems: list[str] = []
    members = kit.members(config.etcd)
    store = kit.store(config)
    try:
        listed, has_majority = await _members(members, config, problems)
        asked = [m.client_urls[0] if m.client_urls else None for m in listed]
        told = await asyncio.gather(*(_status(members, u) for u in asked))
        desired, leases = await _store(store, config, problems) if has_majority else (None, {})
    finally:
        await members.close()
        await store.close()
    shown = [_member(m, s) for m, s in zip(listed, told, strict=True)]
    leader = next((m["name"] for m in shown if m["leader"]), None)
    problems += [f"{m['name']}: {text}" for m in shown for text in m["problems"]]
    if not has_majority:
        problems.append("bring its other members back; only if they are lost for good: hactl cluster recover")
    problems += _lacks(listed, told, desired, kit)
    corosync = await _corosync(kit, desired, problems)
    return {
        "schema": SCHEMA,
        "cluster": config.cluster,
        "node": config.node,
        "certificate": {"until": _until(kit).isoformat(timespec="seconds")},
        "store": {"majority": has_majority, "leader": leader, "members": shown},
        "nodes": None if desired is None else [_node(n, listed, leases) for n in desired.cluster.nodes],
        "corosync": corosync,
        "problems": problems,
    }


async def _corosync(kit: Kit, desired: Desired | None, problems: list[str]) -> dict[str, Any] | None:
    if whose(stack.read(kit.layout)) is not Whose.HACTL:
        return None
    try:
        links = await kit.ring.links()
    except HactlError as error:
        problems.append(str(error))
        return None
    names = {} if desired is None else {n.id: n.name for n in desired.cluster.nodes}
    shown: list[dict[str, Any]] = []
    for link in links:
        nodes = {names.get(number, str(number)): state for number, state in link.nodes.items()}
        shown.append({"number": link.number, "nodes": nodes})
        if broken := [f"{name} is {state}" for name, state in nodes.items() if state != "connected"]:
            problems.append(f"Corosync's link {link.number}: {', '.join(broken)}")
    return {"links": shown}


def _until(kit: Kit) -> Any:
    return pki.valid_until(kit.layout.certificates.certificate.read_bytes())


async def _members(
    members: Members, config: NodeConfig, problems: list[str]
) -> tuple[tuple[Member, ...], bool]:
    try:
        return await members.list(), True
    except HactlError as error:
        problems.append(str(error))
    for endpoint in config.etcd:
        if (found := await members.local_list(endpoint)) is not None:
            return found, False
    return (), False


async def _status(members: Members, client_url: str | None) -> MemberStatus | None:
    return None if client_url is None else await members.status(client_url)


async def _store(
    store: Store, config: NodeConfig, problems: list[str]
) -> tuple[Desired | None, dict[str, Any]]:
    prefix = f"/hactl/{config.cluster}/members/"
    try:
        found = await store.read(prefix)
        leases = {k.removeprefix(prefix): json.loads(item.value) for k, item in found.items.items()}
        return await desired_state.read(store, config.cluster), leases
    except HactlError as error:
        problems.append(str(error))
        return None, {}


def _lacks(
    listed: tuple[Member, ...], told: list[MemberStatus | None], desired: Desired | None, kit: Kit
) -> list[str]:
    found = []
    voters = [(m, s) for m, s in zip(listed, told, strict=True) if not m.learner]
    silent = [m.name or "one that never started" for m, s in voters if s is None]
    if silent and len(voters) - len(silent) >= majority(len(voters)):
        more = len(voters) - len(silent) - majority(len(voters))
        found.append(f"no answer from {', '.join(silent)}; the store goes on and can lose {more} more")
    if desired is not None and len(listed) < min(MEMBERS, len(desired.cluster.nodes)):
        peers = {u for m in listed for u in m.peer_urls}
        others = [n.name for n in desired.cluster.nodes if url(n.addresses.cluster, PEER_PORT) not in peers]
        found.append(
            f"the store has {len(listed)} members and could have {MEMBERS};"
            f" run on {' or '.join(others)}: hactl cluster join"
        )
    for m in listed:
        if m.learner:
            found.append(f"{m.name or 'a new member'} has no vote yet; run on it: hactl cluster join")
    if pki.renewal_due(kit.layout.certificates.certificate.read_bytes(), kit.now()):
        found.append("this node's certificate is due: hactl cluster renew-certificates")
    if (begun := unfinished.load(kit.layout)) is not None:
        found.append(f"hactl cluster {begun.what} is not finished here: run it again as it was")
    return found


def _member(member: Member, told: MemberStatus | None) -> dict[str, Any]:
    return {
        "name": member.name or None,
        "id": f"{member.id:x}",
        "url": member.client_urls[0] if member.client_urls else None,
        "voter": not member.learner,
        "answers": told is not None,
        "leader": told is not None and told.leader == member.id,
        "version": None if told is None else told.version,
        "db_size": None if told is None else told.db_size,
        "problems": [] if told is None else list(told.problems),
    }


def _node(node: Any, listed: tuple[Member, ...], leases: dict[str, Any]) -> dict[str, Any]:
    peer = url(node.addresses.cluster, PEER_PORT)
    lease = leases.get(node.name)
    return {
        "name": node.name,
        "id": node.id,
        "address": str(node.addresses.cluster),
        "member": any(peer in m.peer_urls for m in listed),
        "agent": None if lease is None else {"version": lease.get("version"), "since": lease.get("since")},
    }
