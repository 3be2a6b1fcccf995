"""Whether hosts can reach a node, judged by what answers on its storage network: pure.

The question is about the node: every resource is offered on all of its portals.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from hactl.model.spec import ClusterSpec, IpAddress

_JITTER = 0.5
"""Seconds by which two answers to "when did it last send" may differ although nothing was sent."""


class Verdict(StrEnum):
    """What is known about the network between a node's portals and its hosts."""

    REACHABLE = "reachable"
    """Somebody answers there."""
    UNKNOWN = "unknown"
    """Nobody answers, but a host goes on sending; or there is nobody to ask, or not enough time has passed.
    Not good enough to be preferred to another node, nor bad enough to be left for one."""
    SILENT = "silent"
    """Nobody answers, and no host sends anything."""
    DOWN = "down"
    """For certain: no portal's address is on an interface that has a link."""

    @property
    def isolated(self) -> bool:
        """Hosts do not reach the node, as far as it can tell."""
        return self in (Verdict.SILENT, Verdict.DOWN)


WORDS = {
    Verdict.SILENT: "nobody answers on the storage network",
    Verdict.DOWN: "the storage network is down",
}
"""What an isolated node says, for a status line."""


@dataclass(frozen=True)
class Patience:
    """Seconds, and numbers of rounds. A round begins ``period`` after the one before it, and whoever is
    asked has ``answer`` for it. A node is isolated when nothing was heard for ``hold`` and in ``rounds``
    rounds one after the other: an agent that did not get the processor for so long has not asked anybody;
    and longer than the 5 s after which hosts with hactl's settings say something on an idle session.
    It is well again when something was heard all the time for ``well``. A verdict without a round for
    ``stale`` is none. ``others``: an active node is not left for another one before that one, cut off by the
    same fault, has had the time to find out and say so, and the same when they are well again: rounds of two
    nodes are up to ``period`` and an answer apart."""

    period: float = 2.0
    answer: float = 1.0
    hold: float = 6.0
    rounds: int = 2
    well: float = 10.0
    stale: float = 20.0
    others: float = 4.0


@dataclass(frozen=True)
class Network:
    """Whom a node can ask: ``portals`` are its own addresses, ``others`` the portals of the other nodes,
    ``witnesses`` what the operator has named."""

    portals: tuple[IpAddress, ...]
    others: tuple[IpAddress, ...]
    witnesses: tuple[IpAddress, ...] = ()

    @property
    def asked(self) -> tuple[IpAddress, ...]:
        return (*self.others, *self.witnesses)


@dataclass(frozen=True)
class Round:
    """What one round found, which ended ``at`` (seconds of the agent's clock). ``asked``: how many addresses
    had the chance to answer; ``answered``: own portals that got an answer; ``heard``: when a host last
    sent something; ``faults``: why portals are certainly not reached, by portal; ``portals``: how many there
    are."""

    at: float
    portals: int
    asked: int = 0
    answered: frozenset[IpAddress] = frozenset()
    heard: float | None = None
    faults: tuple[tuple[IpAddress, str], ...] = ()

    @property
    def down(self) -> bool:
        """No portal can be reached."""
        return len(self.faults) == self.portals


@dataclass(frozen=True)
class Reach:
    """What all rounds so far amount to. ``since`` when the ``verdict`` holds, ``began`` when the first round
    was. ``answered``: when somebody last did; ``heard``: the same, or when a host last sent something;
    ``silent``: rounds since then. ``well``: since when an isolated node hears somebody again."""

    began: float
    since: float
    verdict: Verdict = Verdict.UNKNOWN
    answered: float | None = None
    heard: float | None = None
    silent: int = 0
    well: float | None = None
    last: Round | None = None


def fresh(now: float) -> Reach:
    """Before the first round."""
    return Reach(now, now)


def after(reach: Reach, found: Round, patience: Patience = Patience()) -> Reach:
    """With one more round."""
    now = found.at
    new = bool(found.answered) or (
        found.heard is not None and (reach.heard is None or found.heard > reach.heard + _JITTER)
    )
    answered = now if found.answered else reach.answered
    heard = max((t for t in (answered, found.heard, reach.heard) if t is not None), default=None)
    silent = 0 if new else reach.silent + 1
    fact = _fact(replace(reach, answered=answered, heard=heard, silent=silent), found, patience)
    well = None
    if reach.verdict.isolated and not fact.isolated:
        well = now if reach.well is None else reach.well
        if not new or now - well < patience.well:
            fact = reach.verdict
    since = reach.since if fact is reach.verdict else now
    return Reach(reach.began, since, fact, answered, heard, silent, well, found)


def _fact(reach: Reach, found: Round, patience: Patience) -> Verdict:
    """The verdict if a node were isolated, and well again, at once."""

    def recent(moment: float | None) -> bool:
        return moment is not None and found.at - moment < patience.hold

    if recent(reach.answered):
        return Verdict.REACHABLE
    if recent(reach.heard):
        return Verdict.UNKNOWN
    begin = reach.began if reach.heard is None else reach.heard
    if reach.silent < patience.rounds or found.at - begin < patience.hold:
        return reach.verdict
    if found.down:
        return Verdict.DOWN
    return Verdict.SILENT if found.asked else Verdict.UNKNOWN


def network(cluster: ClusterSpec, node: str) -> Network | None:
    """Whom ``node`` can ask; None if it exports nothing, so that no host needs to reach it."""
    if not any(node in r.nodes for r in cluster.resources):
        return None
    portals = cluster.node(node).addresses.storage
    others = tuple(a for n in cluster.nodes if n.name != node for a in n.addresses.storage)
    witnesses = tuple(a for a in cluster.storage_witnesses if a not in portals)
    return Network(portals, others, witnesses)


def trouble(reach: Reach, asked: Network, *, moves: bool) -> str | None:
    """What an isolated node tells its operator, None if it is not. ``moves``: Pacemaker is in charge."""
    if not reach.verdict.isolated or reach.last is None:
        return None
    if reach.verdict is Verdict.DOWN:
        cause = "; ".join(f"portal {address} {why}" for address, why in reach.last.faults)
        cause = f"{WORDS[Verdict.DOWN]}: {cause}"
    else:
        cause = f"{WORDS[Verdict.SILENT]}, asked from {_list(asked.portals)}: {_list(asked.asked)}"
    then = (
        "what is active here moves to a replica that is answered, and stays while there is none"
        if moves
        else "move what is active here: hactl switchover RESOURCE --to NODE"
    )
    more = (
        ""
        if asked.witnesses
        else "; if nothing moves because no node is answered by another one, name something else that always "
        "answers there, a gateway for example: hactl witness add ADDRESS"
    )
    return f"hosts cannot reach this node: {cause}; look at its cables, switch and firewall; {then}{more}"


def _list(addresses: Collection[IpAddress]) -> str:
    return ", ".join(map(str, addresses)) or "nobody"
