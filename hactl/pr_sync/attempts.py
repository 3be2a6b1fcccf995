"""What may have led from one PR state to another: what `derive` tries. Pure but for `Draft` itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from hactl.pr_sync.commands import Access, Command, InitiatorPort, Move
from hactl.pr_sync.model import apply
from hactl.pr_sync.state import Action, Nexus, Registration, State, Type

REGISTERS = (Action.REGISTER, Action.REGISTER_AND_IGNORE_EXISTING_KEY)

_MOST_GUESSES = 4
"""Of nexuses that can have unregistered themselves, so many keys are tried as the preempted one."""


class Dead(Exception):
    """This attempt leads nowhere."""


class Draft:
    """A sequence of commands that is being put together, and the state it leads to. ``heed`` is told of each
    command's nexus and the state after it, and may raise `Dead`."""

    def __init__(
        self,
        state: State,
        access: Access,
        most: int | None = None,
        heed: Callable[[Nexus, State], None] = lambda _nexus, _state: None,
    ) -> None:
        self.state = state
        self.access = access
        self.most = most
        self.commands: list[Command] = []
        self._heed = heed

    def do(
        self,
        nexus: Nexus,
        action: Action,
        *,
        service_action_key: int = 0,
        type_: int = 0,
        all_tg_pt: bool = False,
        spec_i_pt: tuple[InitiatorPort, ...] | None = None,
        move: Move | None = None,
    ) -> None:
        """Send a command with the key that its nexus is registered with."""
        if self.most is not None and len(self.commands) >= self.most:
            raise Dead
        registration = self.state.registrations.get(replace(nexus, copy=0))
        if registration is not None and action in REGISTERS:
            all_tg_pt = registration.all_tg_pt  # LIO insists on it
        command = Command(
            session(self.state, nexus),
            action,
            0 if registration is None else registration.key,
            service_action_key,
            type_,
            all_tg_pt=all_tg_pt,
            spec_i_pt=spec_i_pt,
            move=move,
        )
        outcome, self.state = apply(self.state, command, self.access)
        if not outcome.good:
            raise Dead
        self._heed(nexus, self.state)
        self.commands.append(command)


def session(state: State, nexus: Nexus) -> Nexus:
    """A session that LIO takes for that nexus: one without ISID stands for all of its initiator there."""
    if nexus.isid:
        return replace(nexus, copy=0)
    for number in range(len(state.registrations) + 1):
        one = Nexus(nexus.initiator, f"80{number:010x}", nexus.rtpi)  # RFC 7143 11.12.5: T = 10b, random
        if one not in state.registrations:
            return one
    raise AssertionError("more ISIDs in use than registrations")


@dataclass(frozen=True)
class Attempt:
    """``opening``: what no single nexus can do for itself; ``first``: when the rest of it happens."""

    opening: Callable[[Draft], None] | None = None
    register_first: bool = False
    release_first: bool = False


def anybody(state: State, port: int) -> Iterator[Nexus]:
    """Registered nexuses, the most fit to speak first."""
    return iter(sorted(state.registrations, key=lambda one: (one.rtpi != port, not one.isid, one.copy)))


def goes(nexus: Nexus, registration: Registration, goal: State) -> bool:
    wanted = goal.registrations.get(nexus)
    return wanted is None or wanted.all_tg_pt != registration.all_tg_pt


def unregister(draft: Draft, goal: State, port: int) -> None:
    """Everybody who is to go leaves; at ``port`` first, as ALL_TG_PT takes registrations at others along."""
    for nexus in sorted(draft.state.registrations, key=lambda one: one.rtpi != port):
        have = draft.state.registrations.get(nexus)
        if have is None or not goes(nexus, have, goal):
            continue
        alone = all(
            goes(other, registration, goal)
            for other, registration in draft.state.registrations.items()
            if registration == have and other.initiator == nexus.initiator
        )
        action = Action.REGISTER if alone else Action.REGISTER_AND_IGNORE_EXISTING_KEY
        draft.do(nexus, action)


def change_keys(draft: Draft, goal: State) -> None:
    """Whoever stays takes the key that it is to have."""
    for nexus, wanted in goal.registrations.items():
        have = draft.state.registrations.get(nexus)
        if have is not None and have.key != wanted.key and not goes(nexus, have, goal):
            draft.do(nexus, Action.REGISTER, service_action_key=wanted.key)


def attempts_for(before: State, after: State, port: int, *, abort: bool) -> Iterator[Attempt]:
    """What may have happened. Of two that cost the same the first is taken."""
    openings = [
        *_moves(before, after, port),
        *_preemptions(before, after, port, abort=abort, takes_over=True),
        None,
        *_preemptions(before, after, port, abort=abort, takes_over=False),
        *_clears(before, after, port),
    ]
    news = any(before.registrations.get(nexus) != wanted for nexus, wanted in after.registrations.items())
    for opening in openings:
        yield Attempt(opening)
        if opening is not None and news:
            yield Attempt(opening, register_first=True)
    if before.reservation is not None and before.reservation != after.reservation:
        yield Attempt(release_first=True)


def _holder(state: State) -> Nexus | None:
    reservation = state.reservation
    if reservation is None:
        return None
    if reservation.holder is not None:
        return reservation.holder
    return state.hidden.anchor or next(iter(state.registrations), None)


def _moves(before: State, after: State, port: int) -> Iterator[Callable[[Draft], None]]:
    old, new = before.reservation, after.reservation
    if old is None or new is None or old.type != new.type or old.holder is None or new.holder is None:
        return
    source, target = old.holder, new.holder
    if source == target or source.rtpi != port:
        return
    unregister = source not in after.registrations
    key = after.registrations[target].key

    def opening(draft: Draft) -> None:
        to = Move(InitiatorPort(target.initiator, target.isid), target.rtpi, unregister)
        draft.do(source, Action.REGISTER_AND_MOVE, service_action_key=key, move=to)

    yield opening


def _preemptions(
    before: State, after: State, port: int, *, abort: bool, takes_over: bool
) -> Iterator[Callable[[Draft], None]]:
    gone = [nexus for nexus, have in before.registrations.items() if goes(nexus, have, after)]
    old, new = before.reservation, after.reservation
    far = _keys(before, (nexus for nexus in gone if nexus.rtpi != port))
    near = [key for key in _keys(before, gone) if key not in far]
    near.sort(key=lambda key: -sum(before.registrations[nexus].key == key for nexus in gone))
    near = near[:_MOST_GUESSES]
    survivors = [
        nexus
        for nexus in anybody(after, port)
        if nexus.rtpi == port and not (nexus in before.registrations and nexus in gone)
    ]
    action = Action.PREEMPT_AND_ABORT if abort else Action.PREEMPT

    def opening(actor: Nexus, keys: Sequence[int], type_: Type) -> Callable[[Draft], None]:
        def run(draft: Draft) -> None:
            if actor not in draft.state.registrations:
                raise Dead
            for key in keys:
                draft.do(actor, action, service_action_key=key, type_=type_)

        return run

    if takes_over:
        taken = _taken(before, after)
        if new is None or not taken:
            return
        actors = [one for one in (new.holder, after.hidden.anchor) if one is not None] or survivors[:2]
        for actor in actors:
            if actor.rtpi != port:
                continue
            for keys in {tuple(_last(far, key)): None for key in taken}:
                yield opening(actor, keys, new.type)
        return
    type_ = old.type if old is not None else Type.WRITE_EXCLUSIVE
    removers = [*survivors[:1], *[nexus for nexus in gone if nexus.rtpi == port and nexus.isid][:1]]
    choices = {keys: None for keys in (tuple(far), *((*far, key) for key in near), (*far, *near)) if keys}
    for actor in removers:
        for keys in choices:
            have = before.registrations.get(actor)
            # Whoever preempts its own key is gone with that, so it comes last.
            own = [key for key in keys if have is not None and key == have.key]
            yield opening(actor, [*(key for key in keys if key not in own), *own], type_)


def _taken(before: State, after: State) -> list[int]:
    """Keys whose preemption may have taken the reservation over; zero: everybody's."""
    old, holder = before.reservation, _holder(before)
    if old is None or holder is None or (old == after.reservation and not _anchor_moved(before, after)):
        return []
    keys = [before.registrations[holder].key]
    return [*keys, 0] if old.type.all_registrants else keys


def _anchor_moved(before: State, after: State) -> bool:
    return after.hidden.anchor is not None and after.hidden.anchor != _holder(before)


def _last(keys: Sequence[int], key: int) -> list[int]:
    """The reservation is taken over at the end. Whoever preempts everybody need not preempt anybody else."""
    return [*(other for other in keys if other != key), key] if key else [0]


def _keys(state: State, nexuses: Iterable[Nexus]) -> list[int]:
    return list({state.registrations[nexus].key: None for nexus in nexuses})


def _clears(before: State, after: State, port: int) -> Iterator[Callable[[Draft], None]]:
    kept = sum(nexus in after.registrations for nexus in before.registrations)
    if not before.registrations or kept > 2:
        return
    for actor in [nexus for nexus in anybody(before, port) if nexus.rtpi == port][:2]:

        def opening(draft: Draft, actor: Nexus = actor) -> None:
            draft.do(actor, Action.CLEAR)

        yield opening
