"""Makes a cluster of one node, to which others are then invited. Interrupted anywhere, it is run again."""

from __future__ import annotations

from datetime import timedelta

from hactl.cluster import checks, invite, node_config, pki, stack, unfinished
from hactl.cluster.draft import Draft
from hactl.cluster.invite import Token
from hactl.cluster.kit import Kit, Tell
from hactl.cluster.layout import AGENT_UNIT, remove
from hactl.cluster.members import MEMBERS
from hactl.cluster.membership import Me, first_member
from hactl.cluster.node_config import CLIENT_PORT, NodeConfig, url
from hactl.cluster.unfinished import Unfinished
from hactl.errors import Refused
from hactl.model.check import check
from hactl.model.spec import ClusterSpec
from hactl.model.values import make, refusal
from hactl.store import desired as desired_state
from hactl.store.desired import Origin
from hactl.store.protocol import Store

LIFE = timedelta(hours=1)
"""Of an invitation, unless another time is asked for."""


async def init(
    cluster: str,
    draft: Draft,
    kit: Kit,
    tell: Tell,
    *,
    iqn_prefix: str | None = None,
    pacemaker: bool = False,
) -> Token:
    """Make the cluster; the token with which two more nodes can join. ``pacemaker``: with Corosync and
    Pacemaker.

    Everything is looked at before anything is changed: see :func:`hactl.cluster.checks.check`;
    ``already-in-cluster`` too.
    """
    spec = make(
        ClusterSpec,
        f"cluster {cluster}",
        name=cluster,
        iqn_prefix=iqn_prefix,
        pacemaker=pacemaker,
        nodes=(draft.node(1),),
    )
    if problems := check(spec):
        raise refusal(problems, "", spec.model_dump(mode="json"))
    work = Unfinished(what="init", cluster=cluster, draft=draft, pacemaker=pacemaker)
    checks.refuse_unless_root(kit.machine)
    again = unfinished.resumed(kit.layout, work)
    if not again:
        refuse_in_cluster(kit)
    await checks.check(draft, kit, resumed=again, pacemaker=pacemaker)
    if not again:
        set_aside_certificates(kit, tell)
        # Another cluster's, or an earlier life of this one, whose generations were higher.
        remove(kit.layout.desired_copy)
        stack.forget_earlier(kit.layout)
        unfinished.save(kit.layout, work)
    address = draft.addresses.cluster
    tell("making the cluster's certificate authority, and this node's certificate")
    authority = pki.ensure_authority(kit.layout, cluster, kit.now())
    pki.ensure_certificate(kit.layout, authority, draft.name, address, kit.now())
    await first_member(kit, Me(cluster, draft.name, address), tell)
    config = NodeConfig(cluster=cluster, node=draft.name, etcd=(url(address, CLIENT_PORT),))
    node_config.save(config, kit.layout.node_file)
    store = kit.store(config)
    try:
        tell("writing the first state of the cluster")
        await _first_state(store, spec)
        if pacemaker:
            stack.make_key(kit)
            await stack.set_up(kit, spec, tell)
        tell(f"starting {AGENT_UNIT}")
        await kit.services.start(AGENT_UNIT)
        if pacemaker:
            # After the agent, which Pacemaker asks about everything.
            await stack.start_pacemaker(kit, tell)
        token = await invite.create(
            store,
            cluster,
            by=draft.name,
            address=address,
            fingerprint=own_fingerprint(kit),
            life=LIFE,
            uses=MEMBERS - 1,
            now=kit.now(),
            random=kit.random,
        )
    finally:
        await store.close()
    unfinished.done(kit.layout)
    return token


async def _first_state(store: Store, spec: ClusterSpec) -> None:
    """Written once: a run that was interrupted after it finds it there."""
    try:
        await desired_state.create(store, spec, Origin(spec.nodes[0].name))
    except Refused as error:
        if error.code != "cluster-exists":
            raise
        found = await desired_state.read(store, spec.name)
        if spec.nodes[0] not in found.cluster.nodes:
            raise


def refuse_in_cluster(kit: Kit) -> None:
    """:class:`Refused` ``already-in-cluster`` if this machine is in one."""
    if kit.layout.node_file.exists():
        config = node_config.load(kit.layout.node_file)
        raise Refused(
            "already-in-cluster",
            f"this machine is node {config.node} of the cluster {config.cluster}",
            "see: hactl cluster status; to take it out: hactl cluster leave",
        )


def set_aside_certificates(kit: Kit, tell: Tell) -> None:
    """Keep certificates that were made for an agent with a file of its own out of the way, under another
    name."""
    # A key alone is of a try to join that was refused, and serves for the next one.
    if not kit.layout.tls.exists() or {f.name for f in kit.layout.tls.iterdir()} <= {"node.key"}:
        return
    number = 1
    while (aside := kit.layout.tls.with_name(f"tls.before-{number}")).exists():
        number += 1
    kit.layout.tls.rename(aside)
    tell(f"certificates from before this cluster are now in {aside}")


def own_fingerprint(kit: Kit) -> str:
    """Fingerprint of the authority that this node has."""
    return pki.fingerprint(kit.layout.certificates.ca.read_bytes())
