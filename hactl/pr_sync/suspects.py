"""Who may have sent the commands that wait for their answer. Neither the write that is held nor the kernel
tells; what a command did narrows it down, and who cannot have sent it need not be cut off with the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hactl.pr_sync.state import State

Names = frozenset[str] | None
"""Initiators; None: anybody."""


class Suspects:
    """Of one unit, as long as its commands wait."""

    def __init__(self) -> None:
        self._known: dict[str, Names] = {}

    def note(self, ids: Sequence[str], before: State, after: State, port: int) -> None:
        """Commands at ``port``, of which those not noted before led from one state to the other. What is
        told by the states is told of a single command only."""
        new = [one for one in ids if one not in self._known]
        found = senders(before, after, port) if len(new) == 1 else None
        self._known.update(dict.fromkeys(new, found))

    def of(self, ids: Iterable[str]) -> Names:
        """All that may have sent any of these."""
        names: set[str] = set()
        for one in ids:
            found = self._known.get(one)
            if found is None:
                return None
            names |= found
        return frozenset(names)

    def forget(self, ids: Iterable[str]) -> None:
        """These do not wait any more."""
        for one in ids:
            self._known.pop(one, None)


def senders(before: State, after: State, port: int) -> frozenset[str] | None:
    """Initiators one of which has sent the one command that led from ``before`` to ``after`` at ``port``;
    None if it may have been anybody.

    Only who is registered, or registers with it, is answered GOOD (SPC-4 5.13.7). Who is told more closely
    where no other service action has this effect: a registration that comes or changes without the
    reservation being touched is its own, or was named by another one that comes at the same moment
    (SPEC_I_PT); one that is established by RESERVE or ended by RELEASE is the holder's.
    """
    came = {n for n, have in after.registrations.items() if before.registrations.get(n) != have}
    went = before.registrations.keys() - after.registrations.keys()
    old, new = before.reservation, after.reservation
    found: set[str] = set()
    if came and not went and old == new:
        found = {n.initiator for n in came if n.rtpi == port}
    elif not came and not went and (old is None) != (new is None):
        holder = (old or new).holder  # type: ignore[union-attr]  # one of them is not None
        found = {holder.initiator} if holder is not None and holder.rtpi == port else set()
    if not found and (came or went or old != new):
        every = before.registrations.keys() | after.registrations.keys()
        found = {n.initiator for n in every if n.rtpi == port}
    return frozenset(found) or None
