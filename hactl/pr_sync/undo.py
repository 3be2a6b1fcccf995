"""Which commands take back what initiators did at this node's port and nobody committed. Pure.

A command that could not be committed has changed the kernel's state already. Whatever is sent to take that
back passes through states that are neither the one before nor the one after; other hosts' reads and writes
go on meanwhile. So a sequence counts only if, at every step, each session that can send something at this
node's port is let through as it was before the first command, or as it will be after the last. Nothing that
the log's state refuses is let through unless it was all the time, and nothing is refused that both allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from hactl.pr_sync.attempts import Dead, Draft, anybody, change_keys, session, unregister
from hactl.pr_sync.commands import Access, Command
from hactl.pr_sync.model import conflicts
from hactl.pr_sync.rules import KernelUndefined
from hactl.pr_sync.state import Action, Nexus, State


@dataclass(frozen=True)
class Place:
    """Where a unit is. ``access``: its initiators, per RTPI. ``port``: RTPI of this node; at the others'
    ports no initiator of theirs can be here. ``cut``: initiators of which nothing reaches this node now, so
    that commands can be sent in their names at its own port."""

    access: Access
    port: int
    cut: frozenset[str] = frozenset()


def undo(before: State, after: State, place: Place) -> tuple[Command, ...] | None:
    """Commands that the model takes from ``before`` to ``after``, to what is hidden in it too, but for
    PRgeneration and the order of registrations; None if there are none that nobody could suffer from.

    Commands at ``place.port`` are of initiators in ``place.cut``.
    """
    best: tuple[Command, ...] | None = None
    guard = _Guard(before, after, place)
    for steps in _ways(before, after, place.port, guard.may_speak):
        draft = Draft(before, place.access, None if best is None else len(best) - 1, guard.heed)
        try:
            for step in steps:
                step(draft)
        except (Dead, KernelUndefined):
            continue
        reached = draft.state
        if reached.same_but_generation(after) and reached.hidden == after.hidden:
            best = tuple(draft.commands)
            if not best:
                break
    return best


def robbed(before: State, after: State, port: int) -> frozenset[str]:
    """Initiators whose own doing it takes at ``port`` to get from one state to the other, as only they can
    register themselves or hold a reservation."""
    differ = {
        nexus.initiator
        for nexus in before.registrations.keys() | after.registrations.keys()
        if nexus.rtpi == port and before.registrations.get(nexus) != after.registrations.get(nexus)
    }
    if before.reservation != after.reservation or before.hidden.anchor != after.hidden.anchor:
        for holder in (_holder(before), _holder(after)):
            if holder is not None and holder.rtpi == port:
                differ.add(holder.initiator)
    return frozenset(differ)


class _Guard:
    """Knows who may not suffer: sessions at the own port of initiators that are not cut off."""

    def __init__(self, before: State, after: State, place: Place) -> None:
        self.place = place
        self._access = place.access
        self._alive = place.access.get(place.port, frozenset()) - place.cut
        listed = before.registrations.keys() | after.registrations.keys()
        sessions = {n for n in listed if n.rtpi == place.port and n.initiator in self._alive and n.isid}
        # And one of each that is registered in neither.
        both = State(0, {**before.registrations, **after.registrations})
        sessions |= {session(both, Nexus(name, "", place.port)) for name in self._alive}
        self._sessions = sorted(sessions)
        self._seen = [self._view(before), self._view(after)]
        self._allowed = [self._through(before), self._through(after)]

    def heed(self, nexus: Nexus, state: State) -> None:
        """`Dead` if the nexus cannot speak, or somebody would suffer from the state it brings about."""
        if not self.may_speak(nexus):
            raise Dead
        if self._view(state) in self._seen:
            return
        through = self._through(state)
        for now, *ends in zip(through, *self._allowed, strict=True):
            if now not in ends:
                raise Dead
        self._seen.append(self._view(state))

    def may_speak(self, nexus: Nexus) -> bool:
        """Whether a command can be sent in its name."""
        return nexus.rtpi != self.place.port or nexus.initiator in self.place.cut

    def _view(self, state: State) -> object:
        """All that it depends on who is let through."""
        registered = frozenset(
            n for n in state.registrations if n.rtpi == self.place.port and n.initiator in self._alive
        )
        return state.reservation, state.hidden.anchor, state.hidden.ignored, registered

    def _through(self, state: State) -> list[tuple[bool, bool]]:
        if state.reservation is None:
            return [(True, True)] * len(self._sessions)
        return [
            (
                not conflicts(state, one, write=False, access=self._access),
                not conflicts(state, one, write=True, access=self._access),
            )
            for one in self._sessions
        ]


_Step = Callable[[Draft], None]


def _holder(state: State) -> Nexus | None:
    held = state.reservation
    if held is None:
        return None
    return held.holder or state.hidden.anchor or next(iter(state.registrations))


def _ways(
    before: State, after: State, port: int, may_speak: Callable[[Nexus], bool]
) -> Iterator[Sequence[_Step]]:
    """Orders in which it may be done."""
    leave = partial(unregister, goal=after, port=port)
    keys = partial(change_keys, goal=after)
    come = partial(_register, goal=after)
    if before.reservation == after.reservation and before.hidden.anchor == after.hidden.anchor:
        yield leave, keys, come
        yield keys, come, leave
        return
    end = partial(_release, port=port, may_speak=may_speak)
    hold = partial(_reserve, goal=after, port=port)
    take = partial(_take_over, goal=after)
    yield end, leave, keys, come, hold
    yield leave, keys, come, end, hold
    yield keys, come, end, hold, leave
    yield keys, come, end, leave, hold
    if after.reservation is not None:
        yield keys, come, take, come, leave
        yield leave, keys, come, take, come
        yield keys, come, take, end, hold, come, leave


def _register(draft: Draft, goal: State) -> None:
    """Who is missing registers; those without ISID come with theirs, by ALL_TG_PT."""
    for nexus, wanted in goal.registrations.items():
        if nexus.isid and not nexus.copy and nexus not in draft.state.registrations:
            draft.do(nexus, Action.REGISTER, service_action_key=wanted.key, all_tg_pt=wanted.all_tg_pt)


def _release(draft: Draft, port: int, may_speak: Callable[[Nexus], bool]) -> None:
    held = draft.state.reservation
    if held is None:
        return
    holder = held.holder or next((n for n in anybody(draft.state, port) if may_speak(n)), None)
    if holder is None:
        raise Dead
    draft.do(holder, Action.RELEASE, type_=held.type)


def _reserve(draft: Draft, goal: State, port: int) -> None:
    wanted = goal.reservation
    if wanted is None or draft.state.reservation == wanted:
        return
    holder = wanted.holder or goal.hidden.anchor or next(anybody(goal, port))
    if holder not in draft.state.registrations:
        raise Dead
    draft.do(holder, Action.RESERVE, type_=wanted.type)


def _take_over(draft: Draft, goal: State) -> None:
    """Whoever is to hold the reservation takes it, without a moment in which nobody has it (SPC-4
    5.13.11.2.4)."""
    holder, has = _holder(goal), _holder(draft.state)
    if goal.reservation is None or holder is None or has is None or holder not in draft.state.registrations:
        raise Dead
    key = draft.state.registrations[has].key
    draft.do(holder, Action.PREEMPT, service_action_key=key, type_=goal.reservation.type)
