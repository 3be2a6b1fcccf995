"""What Pacemaker is told of a resource on one node: pure.

A thing that heals by itself is no failure, since a failover would not heal it sooner: a resync, a lost
connection, reservations that catch up, a port that is shut while they are made anew. Nor is a trouble of a
standby node: to stop and start it mends nothing, it just must not be promoted. What is left is a node that
was made active and does not serve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hactl.agents.actions import both_new
from hactl.agents.ocf_codes import ACTIVE, LAST_RESORT, READY, Answer, Code, Score, weighed
from hactl.agents.reach import WORDS, Verdict
from hactl.agents.states import OrderedRole, ResourceDesired, ResourceObserved, unready
from hactl.replication.state import DiskState
from hactl.target.gates import Mode

_LOST = frozenset({DiskState.DISKLESS, DiskState.FAILED, DiskState.DETACHING})
"""A backing disk that DRBD does not use any more: it does not come back by itself."""


@dataclass(frozen=True)
class Question:
    """``probe``: Pacemaker does not know whether it runs. ``role``: the one it believes it to be in, if it
    says so."""

    probe: bool = False
    role: str | None = None

    @property
    def believes_unpromoted(self) -> bool:
        return self.role in ("Unpromoted", "Slave")


@dataclass(frozen=True)
class Subject:
    """A resource on this node. ``behind``: why its persistent reservations keep it from being active.
    ``storage``: whether hosts can reach the node."""

    desired: ResourceDesired
    observed: ResourceObserved
    withdrawn: bool = False
    behind: str | None = None
    storage: Verdict = Verdict.REACHABLE


def busy(observed: ResourceObserved) -> str | None:
    """What of the resource is active in this node's kernel; None if nothing is, so that it can be active
    elsewhere. A table that is not hactl's writes nothing while DRBD is Secondary."""
    if observed.primary:
        return "DRBD is Primary"
    every = (*observed.gates.values(), *observed.surplus.values())
    found = sorted(g.name for g in every if g.mode in (Mode.OPEN, Mode.SUSPENDED))
    return f"gate {found[0]} is open" if found else None


def lacking(subject: Subject) -> tuple[str, ...]:
    """What a resource still lacks to be there as standby; its disks may be in any state."""
    desired, observed = subject.desired, subject.observed
    found = [problem.message for problem in observed.problems]
    numbers = {v.number for v in desired.volumes}
    if desired.replica and (observed.drbd is None or set(observed.drbd.volumes) != numbers):
        found.append(f"DRBD resource {desired.name} is not up")
    found += [f"gate {v.gate} is missing" for v in desired.volumes if v.number not in observed.gates]
    if observed.export is None:
        found.append(observed.export_error or "the LIO tree is not known")
    elif observed.export:
        found.append(f"the LIO tree is not in order: {observed.export[0].describe()}")
    if subject.behind is not None:
        found.append(subject.behind)
    return tuple(found)


def judge(subject: Subject, question: Question = Question()) -> Answer:
    """The answer to a monitor."""
    answer = _judged(subject, question)
    answer = replace(answer, score=weighed(answer.score, subject.storage))
    if not subject.storage.isolated:
        return answer
    # Not a failure: to start it again here would not bring its hosts back. The score says who is better off.
    reason = "; ".join(filter(None, (WORDS[subject.storage], answer.reason)))
    code = Code.DEGRADED_PROMOTED if answer.code is Code.RUNNING_PROMOTED else answer.code
    return replace(answer, code=code, reason=reason)


def _judged(subject: Subject, question: Question) -> Answer:
    desired, observed = subject.desired, subject.observed
    active = busy(observed)
    if subject.withdrawn and active is None:
        return Answer(Code.NOT_RUNNING, None, f"{desired.name} is stopped on {desired.node}")
    if desired.role is OrderedRole.ACTIVE and observed.primary:
        answer = _promoted(subject)
        # Handed over to, and Pacemaker has not promoted it yet: its next plan has to find that it runs, and
        # the score that makes it promote this one.
        return _as_running(answer) if question.believes_unpromoted else answer
    if active is not None:
        return Answer(
            Code.FAILED_PROMOTED, None, f"{desired.name} was not ordered to be active, and {active}"
        )
    return _standby(subject, question)


def _as_running(answer: Answer) -> Answer:
    return replace(answer, code=Code.SUCCESS if answer.code is Code.RUNNING_PROMOTED else Code.DEGRADED)


def _promoted(subject: Subject) -> Answer:
    desired, observed = subject.desired, subject.observed
    state = observed.drbd
    assert state is not None  # it is Primary
    shut = [
        v.gate
        for v in desired.volumes
        if (gate := observed.gates.get(v.number)) is None or gate.mode is not Mode.OPEN
        # One that has just joined serves as soon as it is decided whether to copy it.
        if not both_new(observed, v.number)
    ]
    if shut:
        return Answer(Code.FAILED_PROMOTED, None, f"{desired.name} is not served: gate {shut[0]} is not open")
    candidates = [p for p in observed.connected_peers() if state.peer_up_to_date(p)]
    bad = {n: v.disk for n, v in sorted(state.volumes.items()) if v.disk is not DiskState.UP_TO_DATE}
    bad = {n: disk for n, disk in bad.items() if not both_new(observed, n)}
    disks = ", ".join(f"volume {n} is {disk}" for n, disk in bad.items())
    if state.suspended == "no" and any(not _elsewhere(observed, n) for n in bad):
        return Answer(Code.FAILED_PROMOTED, None, f"{desired.name} has no data: {disks}, and no peer has it")
    if state.suspended != "no":
        return Answer(Code.DEGRADED_PROMOTED, ACTIVE, f"DRBD has suspended I/O ({state.suspended})")
    if any(disk in _LOST for disk in bad.values()):
        # Nobody else to be active: then it stays.
        return Answer(Code.DEGRADED_PROMOTED, LAST_RESORT if candidates else ACTIVE, disks)
    return Answer(Code.RUNNING_PROMOTED, ACTIVE, subject.behind or disks)


def _elsewhere(observed: ResourceObserved, number: int) -> bool:
    """A connected peer serves a volume's data through this node."""
    assert observed.drbd is not None
    connections = [observed.drbd.connections[peer] for peer in observed.connected_peers()]
    found = [c.volumes[number].disk for c in connections if number in c.volumes]
    return DiskState.UP_TO_DATE in found


def _standby(subject: Subject, question: Question) -> Answer:
    desired, observed = subject.desired, subject.observed
    missing = lacking(subject)
    if question.probe and _absent(desired, observed):
        # It is still coming up: a start waits for that.
        return Answer(Code.NOT_RUNNING, None, missing[0] if missing else "")
    score: Score = READY
    # What is about to change in LIO's tree is done in a moment, or has a reason not to be.
    settled = replace(observed, export=() if observed.export is not None else None)
    reasons = [*unready(desired, settled, giver=None)]
    if subject.behind is not None:
        reasons.append(subject.behind)
    if reasons:
        score = None
    why = "; ".join(dict.fromkeys(reasons))
    disks = observed.drbd.volumes.values() if observed.drbd is not None else ()
    trouble = (
        _absent(desired, observed)
        or bool(observed.problems)
        or any(v.disk in _LOST for v in disks)
        or any(gate.mode is Mode.FOREIGN for gate in observed.gates.values())
    )
    return Answer(Code.DEGRADED if trouble else Code.SUCCESS, score, why)


def _absent(desired: ResourceDesired, observed: ResourceObserved) -> bool:
    return (
        (desired.replica and observed.drbd is None)
        or any(v.number not in observed.gates for v in desired.volumes)
        or observed.export is None
    )
