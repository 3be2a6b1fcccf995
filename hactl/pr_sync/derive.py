"""Which commands lead from one PR state to another, and whether two sequences of commands commute. Pure.

The kernel does not say which PERSISTENT RESERVE OUT it executed; it shows the state before and after. What is
found here is not always what was sent, but it has the same effect on every node that executes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from hactl.pr_sync.attempts import (
    Attempt,
    Dead,
    Draft,
    anybody,
    attempts_for,
    change_keys,
    session,
    unregister,
)
from hactl.pr_sync.commands import GENERATIONS, Access, Command, InitiatorPort
from hactl.pr_sync.model import NotGood, replay
from hactl.pr_sync.rules import KernelUndefined
from hactl.pr_sync.state import Action, Nexus, State

MOST_COUNTED = 2000
"""A PRgeneration that has gone further than this in one step is not believed."""

_SPARE_KEY = 0x6861_6374_6C00_0001
_COUNTED_LATE = (Action.CLEAR, Action.PREEMPT, Action.PREEMPT_AND_ABORT)


class Unexplained(Exception):
    """No commands were found that lead from one state to the other: the other nodes need the state itself."""


def counted(after: State, commands: Iterable[Command]) -> State:
    """``after`` as it will be when LIO has counted the CLEAR and PREEMPT commands it still holds."""
    late = sum(command.action in _COUNTED_LATE for command in commands)
    return replace(after, generation=(after.generation + late) % GENERATIONS)


def explain(
    before: State,
    after: State,
    access: Access,
    port: int,
    *,
    abort: bool = True,
    held: bool = False,
    limit: int | None = None,
) -> tuple[Command, ...]:
    """Commands that the model takes from ``before`` to ``after``, PRgeneration included.

    ``port``: RTPI of the node on which it happened; all commands are of nexuses there if that is possible.
    ``abort``: call a preemption PREEMPT AND ABORT, which also stops what the victim has queued elsewhere.
    ``held``: ``after`` was read while the writes of these commands were held. LIO counts CLEAR and PREEMPT
    only after their write, so the commands then lead to `counted` of ``after``. In that case a removal may be
    a preemption or the nexus' own doing; if both fit, the reading that counts less is taken, since a count
    that is missing in the log shows afterwards, and is then explained by a registration that changes nothing.

    ``limit``: no more commands than these; as many as wait for their answer.

    ``after.hidden.anchor``, where known, is respected; the rest of ``hidden`` cannot be read from a kernel.
    Raises `Unexplained`.
    """
    best: tuple[tuple[int, int, int], tuple[Command, ...]] | None = None
    if (after.generation - before.generation) % GENERATIONS <= MOST_COUNTED:
        attempts = [*enumerate(attempts_for(before, after, port, abort=abort))]
        # The last of those with an opening are the shortest if they fit, and bound what is worth trying.
        for rank, attempt in sorted(attempts, key=lambda one: (one[1].opening is None, -one[0])):
            most = None if best is None or best[0][0] else best[0][1]
            try:
                commands = _complete(before, after, access, port, attempt, held=held, most=most)
            except (Dead, KernelUndefined, NotGood):
                continue
            if limit is not None and len(commands) > limit:
                continue
            late = sum(command.action in _COUNTED_LATE for command in commands) if held else 0
            foreign = sum(command.nexus.rtpi != port for command in commands)
            cost = (foreign, len(commands) + late, rank)
            if best is None or cost < best[0]:
                best = cost, commands
    if best is not None:
        return best[1]
    raise Unexplained(
        f"no commands through port {port} lead from PRgeneration {before.generation} with "
        f"{len(before.registrations)} registrations to {after.generation} with {len(after.registrations)}"
    )


def commutes(base: State, theirs: Sequence[Command], mine: Sequence[Command], access: Access) -> State | None:
    """The state that both orders lead to, if all is GOOD in both and nobody can tell the orders apart.

    But for the order in which registrations are listed, that is.
    """
    try:
        one = replay(base, [*theirs, *mine], access)
        other = replay(base, [*mine, *theirs], access)
    except (NotGood, KernelUndefined):
        return None
    return one if one == other and one.hidden == other.hidden else None


def _complete(
    before: State,
    after: State,
    access: Access,
    port: int,
    attempt: Attempt,
    *,
    held: bool,
    most: int | None,
) -> tuple[Command, ...]:
    """The attempt carried to its end, with at most ``most`` commands; `Dead` if it misses the goal."""
    draft = Draft(before, access, most)
    if attempt.release_first:
        _release(draft, port)
    if attempt.register_first:
        change_keys(draft, after)
        _register(draft, after, port)
    if attempt.opening is not None:
        attempt.opening(draft)
    unregister(draft, after, port)
    change_keys(draft, after)
    _register(draft, after, port)
    _reserve(draft, after, port)
    goal = counted(after, draft.commands) if held else after
    missing = (goal.generation - draft.state.generation) % GENERATIONS
    if missing > MOST_COUNTED:
        raise Dead
    if missing:
        draft = _pad(before, draft, port, missing)
    anchor = goal.hidden.anchor
    if draft.state != goal or (anchor is not None and anchor != draft.state.hidden.anchor):
        raise Dead
    return tuple(draft.commands)


def _register(draft: Draft, goal: State, port: int) -> None:
    """New registrations; those at other ports come with one here, by ALL_TG_PT or SPEC_I_PT, if they can.

    Only SPEC_I_PT registers a nexus with an ISID twice.
    """
    twice = {
        replace(nexus, copy=0)
        for nexus in goal.registrations
        if nexus.copy and nexus.isid and nexus not in draft.state.registrations
    }
    for here in (True, False):
        for nexus, wanted in goal.registrations.items():
            if nexus in draft.state.registrations or (nexus.rtpi == port) is not here:
                continue
            if not nexus.isid or nexus.copy:
                continue
            named = tuple(
                InitiatorPort(other.initiator, other.isid)
                for other, registration in goal.registrations.items()
                if here and other.isid and registration == wanted
                if other.rtpi != port or replace(other, copy=0) in twice
                if other != nexus and other not in draft.state.registrations
            )
            draft.do(
                nexus,
                Action.REGISTER,
                service_action_key=wanted.key,
                all_tg_pt=wanted.all_tg_pt,
                spec_i_pt=named or None,
            )


def _release(draft: Draft, port: int) -> None:
    reservation = draft.state.reservation
    if reservation is None:
        return
    holder = reservation.holder or next(anybody(draft.state, port))
    draft.do(holder, Action.RELEASE, type_=reservation.type)


def _reserve(draft: Draft, goal: State, port: int) -> None:
    wanted, anchor = goal.reservation, goal.hidden.anchor
    moved = (
        anchor is not None and draft.state.hidden.anchor is not None and anchor != draft.state.hidden.anchor
    )
    if draft.state.reservation == wanted and not moved:
        return
    _release(draft, port)
    if wanted is not None:
        holder = wanted.holder or anchor or next(anybody(draft.state, port))
        if holder not in draft.state.registrations:
            raise Dead
        draft.do(holder, Action.RESERVE, type_=wanted.type)


def _pad(before: State, draft: Draft, port: int, missing: int) -> Draft:
    """Registrations that change nothing but PRgeneration, where they disturb least."""
    there = next(anybody(draft.state, port), None)
    earlier = next(anybody(before, port), None)
    if there is not None and (there.rtpi == port or earlier is None or earlier.rtpi != port):
        _repeat(draft, there, missing)
        return draft
    first = Draft(before, draft.access, draft.most)
    if earlier is not None:
        _repeat(first, earlier, missing)
    else:
        # Nobody is there before or after: somebody came and went.
        initiators = sorted(draft.access.get(port, ()))
        if not initiators:
            raise Dead
        guest = session(before, Nexus(initiators[0], "", port))
        first.do(guest, Action.REGISTER, service_action_key=_SPARE_KEY)
        _repeat(first, guest, missing - 1)
        first.do(guest, Action.REGISTER)
    first.state = replay(first.state, draft.commands, draft.access)
    first.commands += draft.commands
    return first


def _repeat(draft: Draft, nexus: Nexus, times: int) -> None:
    if not times:
        return
    key = draft.state.registrations[replace(nexus, copy=0)].key
    draft.do(nexus, Action.REGISTER, service_action_key=key)
    # Each of the others counts one more and does nothing else: no need to work it out every time.
    draft.commands += draft.commands[-1:] * (times - 1)
    draft.state = replace(draft.state, generation=(draft.state.generation + times - 1) % GENERATIONS)
