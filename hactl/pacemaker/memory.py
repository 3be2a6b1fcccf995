"""A Pacemaker in memory: one cluster that all its nodes see; it fences what is lost and promotes by scores.

It decides at once and only about who is a member, what is fenced, and who is promoted; actions of resource
agents are the business of whoever watches :attr:`MemoryCluster.promoted`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import Element

from hactl.errors import Failed
from hactl.pacemaker.difference import edit
from hactl.pacemaker.elements import configuration, element, parse, text
from hactl.pacemaker.protocol import Change, Fencing, Instance, Member, State

_INFINITY = 1_000_000
"""What scores end at."""
_EMPTY = (
    '<configuration><crm_config><cluster_property_set id="cib-bootstrap-options"/></crm_config><nodes/>'
    "<resources/><constraints/></configuration>"
)


@dataclass
class MemoryCluster:
    """``nodes``: their names. ``scores``: promotion scores by primitive and node. ``unreachable``: nodes
    whose fence device does not answer. ``fenced`` is called with a node that was switched off. ``now``:
    seconds since 1970.

    Whoever changes ``scores``, or a member by hand, calls :meth:`settle`.
    """

    nodes: Sequence[str]
    configuration: str = _EMPTY
    dc: str | None = None
    scores: dict[tuple[str, str], int] = field(default_factory=dict)
    unreachable: set[str] = field(default_factory=set)
    fenced: Callable[[str], None] = lambda _: None
    now: Callable[[], float] = lambda: 0.0
    members: dict[str, Member] = field(default_factory=dict)
    promoted: dict[str, str] = field(default_factory=dict)
    fencing: list[Fencing] = field(default_factory=list)
    refreshed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members = {name: Member(name, online=True, clean=True) for name in self.nodes}
        self.settle()

    def on(self, node: str) -> MemoryPacemaker:
        """Pacemaker as that node has it."""
        return MemoryPacemaker(self, node)

    # What happens to nodes

    def lose(self, node: str) -> None:
        """The node is not heard of any more."""
        self._change(replace(self.members[node], online=False, clean=False))

    def leave(self, node: str) -> None:
        """The node ends Pacemaker in good order."""
        self._change(replace(self.members[node], online=False, clean=True))

    def join(self, node: str) -> None:
        """The node is there, again."""
        for primitive in [
            p for p, at in self.promoted.items() if at == node and not self.members[node].online
        ]:
            del self.promoted[primitive]
        self._change(replace(self.members[node], online=True, clean=True))

    def standby(self, node: str, on: bool = True) -> None:
        """The operator's ``crm node standby`` or ``online``."""
        self._change(replace(self.members[node], standby=on))

    def set_score(self, primitive: str, node: str, score: int | None) -> None:
        """A promotion score, or that there is none."""
        if score is None:
            self.scores.pop((primitive, node), None)
        else:
            self.scores[primitive, node] = score
        self.settle()

    # What the cluster is like

    @property
    def quorum(self) -> bool:
        """Whether more than half of the nodes are there."""
        return 2 * sum(m.online for m in self.members.values()) > len(self.members)

    def option(self, name: str, default: str = "") -> str:
        """A cluster property; the operator's set comes first."""
        pairs = configuration(parse(self.configuration, "the twin's CIB")).findall(
            "crm_config/cluster_property_set"
        )
        pairs.sort(key=lambda s: s.get("id") != "cib-bootstrap-options")
        found = (p.get("value", "") for s in pairs for p in s.findall("nvpair") if p.get("name") == name)
        return next(found, default)

    @property
    def stonith_enabled(self) -> bool:
        """Whether what is lost is fenced."""
        return self.option("stonith-enabled", "true") == "true"

    def state(self) -> State:
        """As :meth:`hactl.pacemaker.protocol.Pacemaker.state` of any node."""
        instances = tuple(i for clone in self._clones() for i in self._instances(clone))
        maintenance = self.option("maintenance-mode", "false") == "true"
        return State(
            self.dc,
            self.quorum,
            tuple(self.members.values()),
            instances,
            tuple(self.fencing),
            maintenance=maintenance,
            stonith_enabled=self.stonith_enabled,
        )

    # What it does

    def settle(self) -> None:
        """Do what follows: elect, fence, promote and demote."""
        online = [m.name for m in self.members.values() if m.online]
        if self.dc not in online:
            self.dc = online[0] if online else None
        for member in tuple(self.members.values()):
            if member.online or member.clean:
                continue
            if not self.stonith_enabled:
                self.members[member.name] = replace(member, clean=True)
            elif self.quorum and member.name not in self.unreachable:
                self.fence(member.name)
        for clone in self._clones():
            self._promote(clone)

    def fence(self, node: str) -> bool:
        """Switch a node off; whether that could be done."""
        done = node not in self.unreachable
        state = "success" if done else "failed"
        self.fencing.append(Fencing(node, "reboot", state, self.dc, self.now()))
        if done:
            self.members[node] = replace(self.members[node], online=False, clean=True)
            self.fenced(node)
        return done

    def edit(self, change: Change) -> None:
        """Change the configuration."""
        self.configuration = edit(self.configuration, change)
        self.settle()

    def _change(self, member: Member) -> None:
        self.members[member.name] = member
        self.settle()

    def _clones(self) -> Iterator[Element]:
        for clone in configuration(parse(self.configuration, "the twin's CIB")).findall("resources/clone"):
            if _meta(clone, "promotable") == "true" and clone.find("primitive") is not None:
                yield clone

    def _instances(self, clone: Element) -> Iterator[Instance]:
        primitive, managed = _primitive(clone), _meta(clone, "maintenance") != "true"
        for name, member in self.members.items():
            if member.online and not member.standby and self._location(clone, name, None) > -_INFINITY:
                role = "Promoted" if self.promoted.get(primitive) == name else "Unpromoted"
                yield Instance(primitive, name, role, managed=managed)

    def _promote(self, clone: Element) -> None:
        primitive = _primitive(clone)
        now = self.promoted.get(primitive)
        if _meta(clone, "maintenance") == "true":
            return
        holder = self.members.get(now or "")
        if holder is not None and not holder.online and not holder.clean:
            # What may still be active there keeps everybody else from it.
            return
        best: tuple[int, str] | None = None
        for name, member in self.members.items():
            score = self.scores.get((primitive, name), 0)
            if not member.online or member.standby or score <= 0 or not (self.quorum or name == now):
                continue
            total = score + self._location(clone, name, None) + self._location(clone, name, "Promoted")
            if total >= 0 and (best is None or total > best[0]):
                best = (total, name)
        if best is None:
            self.promoted.pop(primitive, None)
        else:
            self.promoted[primitive] = best[1]

    def _location(self, clone: Element, node: str, role: str | None) -> int:
        config = configuration(parse(self.configuration, "the twin's CIB"))
        about = [c for c in config.findall("constraints/rsc_location") if c.get("rsc") == clone.get("id")]
        scores = [
            _score(c.get("score", "0")) for c in about if c.get("node") == node and c.get("role") == role
        ]
        rules = [rule for c in about for rule in c.findall("rule") if rule.get("role") == role]
        scores += [_score(rule.get("score", "0")) for rule in rules if self._holds(rule, node)]
        return -_INFINITY if -_INFINITY in scores else min(sum(scores), _INFINITY)

    def _holds(self, rule: Element, node: str) -> bool:
        """Whether a rule about names of nodes and promotion scores is true of a node."""
        found = []
        for expression in rule.findall("expression"):
            attribute, operation = expression.attrib["attribute"], expression.attrib["operation"]
            value = expression.get("value", "")
            score = self.scores.get((attribute.removeprefix("master-"), node))
            if attribute == "#uname":
                found.append(operation == "eq" and value == node)
            elif operation == "not_defined":
                found.append(score is None)
            else:
                limit = int(value)
                found.append(score is not None and (score >= limit if operation == "gte" else score <= limit))
        return any(found) if rule.get("boolean-op") == "or" else all(found)


class MemoryPacemaker:
    """Keeps :class:`hactl.pacemaker.protocol.Pacemaker` on one node of a :class:`MemoryCluster`. ``down``: it
    does not run there."""

    def __init__(self, cluster: MemoryCluster, node: str) -> None:
        self.cluster = cluster
        self.node = node
        self.down = False
        self.commits: list[Change] = []

    async def state(self) -> State:
        return self._up().state()

    async def configuration(self) -> str:
        return self._up().configuration

    async def commit(self, change: Change) -> None:
        self._up().edit(change)
        self.commits.append(change)

    async def refresh(self, clones: Sequence[str]) -> None:
        self._up().refreshed.extend(clones)

    async def move(self, clone: str, node: str) -> None:
        cluster = self._up()
        if node not in cluster.members:
            raise Failed("pacemaker-failed", f"there is no node {node}", "see crm_mon --one-shot")
        self._prefer(clone, node)

    async def clear(self, clone: str) -> None:
        self._up()
        self._prefer(clone, None)

    async def score(self, primitive: str, node: str, score: int) -> None:
        self._up().set_score(primitive, node, score)

    async def fence(self, node: str) -> None:
        cluster = self._up()
        if node not in cluster.members or not cluster.fence(node):
            raise Failed("pacemaker-failed", f"node {node} was not fenced", "see crm_mon --one-shot")
        cluster.settle()

    def _up(self) -> MemoryCluster:
        if self.down:
            raise Failed(
                "pacemaker-down",
                "Pacemaker does not run on this node",
                "see: systemctl status pacemaker corosync; start it",
            )
        return self.cluster

    def _prefer(self, clone: str, node: str | None) -> None:
        root = parse(self.cluster.configuration, "the twin's CIB")
        constraints = configuration(root).find("constraints")
        if constraints is None:
            raise AssertionError("a CIB without constraints")
        name = f"cli-prefer-{clone}"
        for old in [c for c in constraints if c.get("id") == name]:
            constraints.remove(old)
        if node is not None:
            constraints.append(
                element("rsc_location", id=name, rsc=clone, role="Promoted", node=node, score="INFINITY")
            )
        self.cluster.configuration = text(root)
        self.cluster.settle()


def _primitive(clone: Element) -> str:
    primitive = clone.find("primitive")
    return "" if primitive is None else primitive.attrib["id"]


def _meta(clone: Element, name: str) -> str | None:
    pairs = clone.findall("meta_attributes/nvpair")
    return next((p.get("value") for p in pairs if p.get("name") == name), None)


def _score(written: str) -> int:
    if written.endswith("INFINITY"):
        return -_INFINITY if written.startswith("-") else _INFINITY
    return int(written)
