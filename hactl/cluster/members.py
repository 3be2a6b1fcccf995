"""etcd's members: what they are, what one can ask of them, and which step comes next. Pure, but for
protocols.

The first :data:`MEMBERS` nodes are members; later ones only use the store. A node becomes one as a learner,
which has no vote while it copies, and is then promoted (etcd's "runtime reconfiguration"). Every step is
chosen from what is there now, so an interrupted run is simply run again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

MEMBERS = 3

NOT_YET = "etcd-not-yet"
"""Code of the refusal that says: etcd refuses now and may not in a moment (a member that has just started, a
learner that is still copying)."""
UNREACHABLE = "etcd-unreachable"
"""Code of the refusal that says: no member answered, or none that has a majority behind it."""
UNKNOWN = "etcd-unknown"
"""Code of :class:`hactl.errors.Unknown`: asked for a change, not answered."""


@dataclass(frozen=True)
class Member:
    """A member as the cluster lists it; ``name`` is empty until it has started for the first time."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    learner: bool


@dataclass(frozen=True)
class MemberStatus:
    """What a member says of itself. ``leader``: its leader's id, 0 if it knows none; ``db_size``: bytes;
    ``committed``: index of the last entry of its log that it knows to be committed."""

    id: int
    leader: int
    version: str
    db_size: int
    learner: bool
    problems: tuple[str, ...] = ()
    committed: int = 0


class Members(Protocol):
    """The cluster of etcd; kept by ``etcd_members.GrpcMembers`` and ``memory_members.MemoryMembers``.

    Changes raise :class:`hactl.errors.Refused` (:data:`NOT_YET`, :data:`UNREACHABLE`, ``etcd-refused``) if
    nothing was changed, :class:`hactl.errors.Unknown` (:data:`UNKNOWN`) if that is not certain: list again.
    """

    async def list(self) -> tuple[Member, ...]:
        """All members, as a majority knows them."""
        ...

    async def add_learner(self, peer_url: str) -> None:
        """Add a member without a vote; it has to be started after that."""
        ...

    async def promote(self, member: int) -> None:
        """Give a learner a vote."""
        ...

    async def remove(self, member: int) -> None:
        """Remove a member; one that is not there is no error."""
        ...

    async def move_leader(self, leader: Member, to: int) -> None:
        """Let another voter lead, without an election."""
        ...

    async def status(self, client_url: str) -> MemberStatus | None:
        """What the member at that URL says, None if it does not answer."""
        ...

    async def local_list(self, client_url: str) -> tuple[Member, ...] | None:
        """All members as one of them knows them, majority or not; None if it does not answer."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class Step(StrEnum):
    """What brings a node nearer to being a member."""

    USE = "use"
    """There are enough members: only use them."""
    WIPE = "wipe"
    """Remove data of an earlier membership: etcd would not start on it."""
    ADD = "add"
    REMOVE = "remove"
    """Remove the member that this node was: its data are gone, and a member that forgot its votes is a danger
    to all."""
    START = "start"
    PROMOTE = "promote"
    READY = "ready"


def next_step(
    members: Sequence[Member], peer_url: str, *, data: bool, running: bool, wanted: int = MEMBERS
) -> Step:
    """The next step of the node with that peer URL. ``data``: it has an etcd data folder; ``running``: its
    etcd answers."""
    own = own_member(members, peer_url)
    if own is None:
        if data:
            return Step.WIPE
        return Step.USE if len(members) >= wanted else Step.ADD
    if not data and own.name:
        return Step.REMOVE
    if not running:
        return Step.START
    return Step.PROMOTE if own.learner else Step.READY


def own_member(members: Sequence[Member], peer_url: str) -> Member | None:
    """The member with that peer URL; None if there is none."""
    return next((m for m in members if peer_url in m.peer_urls), None)


def removal_fault(members: Sequence[Member], answering: Collection[int], leaving: int) -> str:
    """Why a member must not be removed now; empty if it may. ``answering``: ids of members that answer.

    What remains must have a majority that answers, before and after; etcd itself checks less than that.
    """
    voters = [m for m in members if not m.learner]
    rest = [m for m in voters if m.id != leaving]
    if len(rest) == len(voters):
        return ""
    if not rest:
        return "it is the only member of the store: the cluster would be gone"
    alive = [m for m in rest if m.id in answering]
    silent = ", ".join(sorted(m.name or "one that never started" for m in rest if m.id not in answering))
    if len(alive) < majority(len(rest)):
        return (
            f"of the {len(rest)} members that would remain, {len(alive)} answer and {majority(len(rest))}"
            f" are needed; no answer from {silent}"
        )
    all_alive = sum(m.id in answering for m in voters)
    if all_alive < majority(len(voters)):
        return f"only {all_alive} of {len(voters)} members answer, which is no majority; silent: {silent}"
    return ""


def majority(voters: int) -> int:
    """How many of so many make a majority."""
    return voters // 2 + 1


def client_urls(members: Sequence[Member]) -> tuple[str, ...]:
    """Where the store answers: the client URLs of members with a vote, in a stable order."""
    return tuple(sorted({u for m in members if not m.learner for u in m.client_urls}))
