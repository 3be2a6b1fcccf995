"""What initiators did at this node's port: read from the kernel's state, the log's, and what waits. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hactl.pr_sync.commands import GENERATIONS, Access, Command
from hactl.pr_sync.derive import Unexplained, counted, explain
from hactl.pr_sync.kernel import Waiting
from hactl.pr_sync.model import apply
from hactl.pr_sync.state import Action, State
from hactl.pr_sync.units import Unit

MOST_COUNTS = 1000
"""By how much PRgeneration is brought up in one step of the log; more than that is no lag."""


@dataclass(frozen=True)
class Done:
    """What initiators did: commands, and ``count`` more of PRgeneration than these explain. A CLEAR of the
    only registrant looks like its unregistration, until it was let go and has counted."""

    commands: tuple[Command, ...]
    count: int = 0
    left: State | None = None
    """Nobody did anything, but hosts lost their access, and their registrations with it: what is left."""


NOTHING = Done(())


@dataclass(frozen=True)
class Counter:
    """By how much the kernel's PRgeneration may differ from the log's. ``owed``: it is ahead by this, for
    commands that were taken back. ``late``: commands were let go a moment ago and may count only now."""

    owed: int = 0
    late: int = 0


def done(
    known: State, state: State, waiting: Sequence[Waiting], unit: Unit, port: int, counter: Counter
) -> Done | None:
    """What initiators did at ``port`` to get from the log's state ``known`` to the kernel's ``state``, while
    these commands wait; None if they cannot have."""
    owed = counter.owed
    state = replace(state, generation=(state.generation - owed) % GENERATIONS)
    found = _done(known, state, waiting, unit, port, counter.late)
    if not owed or found is None or found.left is not None or (waiting and found == NOTHING):
        return found
    return replace(found, count=found.count + owed)


def _done(
    known: State, state: State, commands_waiting: Sequence[Waiting], unit: Unit, port: int, late: int
) -> Done | None:
    waiting = len(commands_waiting)
    if any(w.clears for w in commands_waiting) and not state.registrations:
        cleared = _cleared(known, state, unit, port)
        if cleared is not None:
            return cleared
    if state.same_but_generation(known):
        ahead = (state.generation - known.generation) % GENERATIONS
        if not waiting and 0 < ahead <= MOST_COUNTS:
            return Done((), ahead)
        if not ahead or -ahead % GENERATIONS <= max(waiting, 1):
            # The counter may lag behind what was committed and let go only just now.
            return NOTHING
    left = without_strangers(known, unit.access)
    if not waiting and left != known and state == left:
        return Done((), left=left)
    for count in range(late + 1):
        # What was let go a moment ago may have counted only now.
        less = replace(state, generation=(state.generation - count) % GENERATIONS)
        with contextlib.suppress(Unexplained):
            commands = explain(known, less, unit.access, port, held=waiting > 0, limit=waiting)
            if all(c.nexus.rtpi == port for c in commands):
                return Done(commands, count)
    return None


def _cleared(known: State, state: State, unit: Unit, port: int) -> Done | None:
    """A CLEAR of anybody registered here, if that leads to ``state``. Without knowing that it is one, the
    only registrant's looks like its unregistration, until it has counted."""
    for nexus, registration in known.registrations.items():
        if nexus.rtpi == port and nexus.isid:
            command = Command(replace(nexus, copy=0), Action.CLEAR, registration.key)
            outcome, after = apply(known, command, unit.acting)
            if outcome.good and counted(state, [command]) == after:
                return Done((command,))
    return None


def without_strangers(state: State, access: Access) -> State:
    """What LIO leaves of a state when initiators lose their access: their registrations go, and with the
    holder's its reservation. Nothing is counted and nothing is written to the APTPL file."""
    stay = {n: r for n, r in state.registrations.items() if n.initiator in access.get(n.rtpi, frozenset())}
    if len(stay) == len(state.registrations):
        return state
    held = state.reservation
    if held is not None and (held.holder not in stay if held.holder is not None else not stay):
        held = None
    hidden = state.hidden if state.hidden.anchor in stay else replace(state.hidden, anchor=None)
    return State(state.generation, stay, held, hidden)
