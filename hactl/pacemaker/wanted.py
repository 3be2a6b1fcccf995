"""What Pacemaker's configuration shall be: the objects that follow from a cluster's specification. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.etree.ElementTree import Element

from hactl.errors import Refused
from hactl.model.spec import ClusterSpec, NodeSpec, ResourceSpec
from hactl.pacemaker.charge import fences, in_charge, rules
from hactl.pacemaker.elements import PREFIX, element, ids, nvset
from hactl.pacemaker.secrets import parameters

AGENT = f"{PREFIX}agent"
AGENT_CLONE = f"{AGENT}-clone"
OPTIONS = f"{PREFIX}options"

PREFERRED = 100
"""Score of the preferred node for the role Promoted: decides where both nodes are equal to their agents."""
FAILBACK = 50000
"""The same with automatic failback: more than the 20000 that an agent gives to what is active."""
FIT = 10000
"""The promotion score that a node has to have for that: of one that is standby and lacks nothing."""

WATCHDOG = "fence_watchdog"
"""Fencing by a node's own watchdog (SBD without a disk): Pacemaker has the device by itself."""

_DRAW = "3s"
"""How long the first of two nodes is spared: both see the other as lost when the network between them is cut,
and would switch each other off at the same moment. Longer than a BMC takes to switch off."""

Wanted = Mapping[str, tuple[str, Element]]
"""Objects by id: the section of the configuration they belong in, and the object."""


def primitive_of(resource: str) -> str:
    """Id of the primitive of a resource."""
    return f"{PREFIX}{resource}"


def clone_of(resource: str) -> str:
    """Id of the promotable clone of a resource."""
    return f"{PREFIX}{resource}-clone"


def device_of(node: str) -> str:
    """Id of a node's fence device."""
    return f"{PREFIX}fence-{node}"


def wanted(cluster: ClusterSpec) -> Wanted:
    """The objects that shall be in the configuration; none for a cluster without Pacemaker.

    :class:`Refused` ``pacemaker-id-taken`` if the names of two things make the same id.
    """
    if not cluster.pacemaker:
        return {}
    made: dict[str, tuple[str, Element]] = {}
    taken: set[str] = set()
    for section, node in _objects(cluster):
        if clash := taken & ids(node):
            raise Refused(
                "pacemaker-id-taken",
                f"two things of cluster {cluster.name} would both be {min(clash)} to Pacemaker",
                "rename a resource: hactl-agent, hactl-options, hactl-fence-NODE and hactl-NAME-clone are "
                "hactl's own",
            )
        taken |= ids(node)
        made[node.attrib["id"]] = (section, node)
    return made


def _objects(cluster: ClusterSpec) -> Iterator[tuple[str, Element]]:
    yield "crm_config", _options(cluster)
    yield "resources", _agent()
    for node in cluster.nodes:
        if node.fencing is not None and node.fencing.agent != WATCHDOG:
            yield "resources", _device(cluster, node)
            yield "constraints", _never(device_of(node.name), node.name)
    for resource in cluster.resources:
        yield "resources", _resource(cluster, resource)
        yield from (("constraints", c) for c in _constraints(cluster, resource))


def _options(cluster: ClusterSpec) -> Element:
    """Cluster properties, in a set of hactl's own: what the operator has set in Pacemaker's default set
    comes before it.

    ``stonith-enabled``: only while Pacemaker is in charge. Where roles are ordered by hand, a node that is
    cut off from the others may be the one that serves, and switching it off would end I/O without anybody to
    take over.

    ``no-quorum-policy``: a node without quorum may not promote in either case. With fencing, ``freeze``: what
    is active there goes on until the others, who have quorum, have switched it off, before which they promote
    nothing, and DRBD acknowledges no write that they lack. If nobody has quorum (the cluster network is down
    as a whole), I/O goes on where it is; ``stop`` would end it everywhere. Without fencing the others do not
    wait, so a node without quorum has to end by itself what is active: ``stop``. Where roles are ordered by
    hand nobody takes over, so ``freeze``.

    ``node-action-limit``: an action is one small process that waits for the agent; the default of two for
    each core makes twenty resources take turns. ``load-threshold``: after a loss the survivors are busy with
    exactly what makes I/O go on; Pacemaker must not throttle itself because of that.

    Left at its default on purpose: ``dc-deadtime``, 20 s, which is waited only where no node of the cluster
    runs Pacemaker yet; shorter, machines that boot slowly after a loss of all power were fenced for it.
    """
    values = {
        "stonith-enabled": "true" if fences(cluster) else "false",
        "no-quorum-policy": "stop" if in_charge(cluster) and not fences(cluster) else "freeze",
        "concurrent-fencing": "true",
        "node-action-limit": "32",
        "load-threshold": "400%",
    }
    if any(n.fencing is not None and n.fencing.agent == WATCHDOG for n in cluster.nodes):
        # Twice what sbd(8) has set for the watchdog, which Pacemaker reads for itself.
        values["stonith-watchdog-timeout"] = "-1"
    pairs = (
        element("nvpair", id=f"{OPTIONS}-{name}", name=name, value=value) for name, value in values.items()
    )
    return element("cluster_property_set", *pairs, id=OPTIONS)


def _agent() -> Element:
    """The node agent on every node, also while roles are ordered by hand. Its failing monitor is shown and
    no more: systemd starts it again, and whether a resource suffers from it is for that resource's own
    monitor to say."""
    operations = _operations(
        AGENT,
        {"name": "start", "interval": "0s", "timeout": "90s"},
        {"name": "stop", "interval": "0s", "timeout": "60s"},
        {"name": "monitor", "interval": "30s", "timeout": "60s", "on-fail": "ignore"},
    )
    primitive = element("primitive", operations, id=AGENT, class_="ocf", provider="hactl", type="agent")
    meta = {"interleave": "true"}
    return element("clone", nvset("meta_attributes", AGENT_CLONE, meta), primitive, id=AGENT_CLONE)


def _resource(cluster: ClusterSpec, resource: ResourceSpec) -> Element:
    """The promotable clone of a resource.

    ``migration-threshold``, ``failure-timeout``: a failure is repaired where it is, unless it comes three
    times within a minute; then the node is left alone for a minute. Which node is fit for what is told by
    promotion scores, not by failures. A failed stop is not among them: the node is fenced.

    Monitors of one primitive must differ in their intervals. The one of Promoted is the more frequent one;
    the other also brings a new promotion score to Pacemaker. Time-outs of monitors are such that an agent may
    be started again within them; those of demote and promote such that a hand-over ends one way or the other
    (15 s), or I/O that is held is let go (20 s).
    """
    name, clone = primitive_of(resource.name), clone_of(resource.name)
    operations = _operations(
        name,
        {"name": "start", "interval": "0s", "timeout": "120s"},
        {"name": "stop", "interval": "0s", "timeout": "60s"},
        {"name": "promote", "interval": "0s", "timeout": "60s"},
        {"name": "demote", "interval": "0s", "timeout": "60s"},
        {"name": "notify", "interval": "0s", "timeout": "30s"},
        {"name": "monitor", "interval": "10s", "timeout": "30s", "role": "Promoted"},
        {"name": "monitor", "interval": "15s", "timeout": "30s", "role": "Unpromoted"},
    )
    primitive = element(
        "primitive",
        nvset("instance_attributes", name, {"name": resource.name}),
        nvset("meta_attributes", name, {"migration-threshold": "3", "failure-timeout": "60s"}),
        operations,
        id=name,
        class_="ocf",
        provider="hactl",
        type="resource",
    )
    meta = {
        "promotable": "true",
        "promoted-max": "1",
        "promoted-node-max": "1",
        "clone-max": str(len(resource.nodes)),
        "clone-node-max": "1",
        "notify": "true",
        "interleave": "true",
        **({} if rules(cluster, resource.name) else {"maintenance": "true"}),
    }
    return element("clone", nvset("meta_attributes", clone, meta), primitive, id=clone)


def _constraints(cluster: ClusterSpec, resource: ResourceSpec) -> Iterator[Element]:
    name, clone = primitive_of(resource.name), clone_of(resource.name)
    yield element(
        "rsc_order",
        id=f"{name}-after-agent",
        # Not Mandatory: the start of an agent's instance would then demote what is active already.
        kind="Optional",
        first=AGENT_CLONE,
        then=clone,
    )
    yield _only_scored(name, clone)
    for node in cluster.nodes:
        if node.name not in resource.nodes:
            yield _never(clone, node.name, base=name)
    if resource.preferred is not None and resource.failback:
        yield _taken_back(name, clone, resource.preferred)
    elif resource.preferred is not None:
        yield element(
            "rsc_location",
            id=f"{name}-prefers-{resource.preferred}",
            rsc=clone,
            role="Promoted",
            node=resource.preferred,
            score=str(PREFERRED),
        )


def _taken_back(name: str, clone: str, node: str) -> Element:
    """Automatic failback, only while the node is fit for it by its own agent's word: the preference weighs
    more than all promotion scores, and a node with a failed disk, or one that hosts cannot reach, would keep
    the role, or take it from one that is well."""
    base = f"{name}-prefers-{node}"
    rule = element(
        "rule",
        element("expression", id=f"{base}-node", attribute="#uname", operation="eq", value=node),
        element(
            "expression",
            id=f"{base}-fit",
            attribute=f"master-{name}",
            operation="gte",
            value=str(FIT),
            type="number",
        ),
        id=f"{base}-rule",
        score=str(FAILBACK),
        role="Promoted",
    )
    rule.set("boolean-op", "and")
    return element("rsc_location", rule, id=base, rsc=clone)


def _only_scored(name: str, clone: str) -> Element:
    """Keeps the role Promoted off nodes whose agent has given no positive promotion score.

    To Pacemaker no score counts as -1, to which the scores of location constraints are added: the preferred
    node, or the one of ``crm resource move``, would be promoted without its agent having been asked.
    """
    base, score = f"{name}-only-scored", f"master-{name}"
    rule = element(
        "rule",
        element("expression", id=f"{base}-none", attribute=score, operation="not_defined"),
        element("expression", id=f"{base}-low", attribute=score, operation="lte", value="0", type="number"),
        id=f"{base}-rule",
        score="-INFINITY",
        role="Promoted",
    )
    rule.set("boolean-op", "or")
    return element("rsc_location", rule, id=base, rsc=clone)


def _device(cluster: ClusterSpec, node: NodeSpec) -> Element:
    """A node's fence device. Its monitor tells a BMC that is out of reach before it is needed; a failure is
    forgotten after two minutes, and tried anew."""
    name = device_of(node.name)
    values = {"pcmk_host_list": node.name, "pcmk_host_check": "static-list"}
    if len(cluster.nodes) == 2 and node.id == min(n.id for n in cluster.nodes):
        values["pcmk_delay_base"] = _DRAW
    if node.fencing is None:
        raise AssertionError(f"node {node.name} has no fence device")
    operations = _operations(
        name,
        {"name": "start", "interval": "0s", "timeout": "60s"},
        {"name": "monitor", "interval": "120s", "timeout": "60s"},
    )
    return element(
        "primitive",
        nvset("instance_attributes", name, {**values, **parameters(node)}),
        nvset("meta_attributes", name, {"failure-timeout": "120s"}),
        operations,
        id=name,
        class_="stonith",
        type=node.fencing.agent,
    )


def _never(rsc: str, node: str, base: str | None = None) -> Element:
    return element("rsc_location", id=f"{base or rsc}-not-on-{node}", rsc=rsc, node=node, score="-INFINITY")


def _operations(owner: str, *operations: Mapping[str, str]) -> Element:
    made = element("operations")
    for values in operations:
        op = element("op", id=f"{owner}-{values['name']}-{values['interval']}")
        op.attrib.update(values)
        made.append(op)
    return made
