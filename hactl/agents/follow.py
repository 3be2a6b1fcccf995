"""DRBD's state as its event stream last told it, so that nobody has to start a program to ask.

The kernel sends events in the order of the changes, so whoever waits for the event of his own change has also
seen everything that happened before it. If DRBD, when asked, turns out to be further than its events, what
they tell is not used until they have come that far.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from hactl.replication.protocol import Replication
from hactl.replication.state import ResourceState

States = dict[str, ResourceState]
_LAG = 1.0
"""Seconds to wait for an event; after that DRBD itself is asked."""


Met = Callable[[ResourceState], bool]


@dataclass(frozen=True, eq=False)
class _Ahead:
    """Something DRBD said when it was asked, and whose event has not come yet."""

    name: str
    met: Met


class Follower:
    """Keeps the newest state of all resources of one node while ``follow`` runs; asks DRBD while it does
    not."""

    def __init__(self, drbd: Replication) -> None:
        self._drbd = drbd
        self._states: States | None = None
        self._ahead: list[_Ahead] = []
        self._news = asyncio.Event()

    async def follow(self, changed: Callable[[], None]) -> None:
        """Read the stream until cancelled, and call ``changed`` after each event. Raises what ``watch``
        raises."""
        try:
            async for states in self._drbd.watch():
                self._learn(states)
                changed()
        finally:
            self._learn(None)

    def _learn(self, states: States | None) -> None:
        self._states = states
        # A stream that begins anew begins with everything as it is then.
        self._ahead = [] if states is None else [a for a in self._ahead if not _meets(states, a)]
        self._news.set()
        self._news = asyncio.Event()

    @property
    def states(self) -> States | None:
        """All resources, or None if the stream does not run, was interrupted, or is known to lag behind, so
        that DRBD has to be asked."""
        return None if self._ahead else self._states

    @property
    def runs(self) -> bool:
        """Whether the stream runs, though it may lag behind."""
        return self._states is not None

    async def until(self, name: str, met: Met, *, seconds: float = _LAG) -> ResourceState | None:
        """The state of a resource once it is as ``met`` says; :attr:`states` is not older from then on. If it
        does not become so in time, or the stream does not run, what DRBD says then, whatever it is; None if
        it does not have the resource."""
        wanted = _Ahead(name, met)
        try:
            async with asyncio.timeout(seconds):
                while self._states is not None:
                    if not any(a.name == name for a in self._ahead) and _meets(self._states, wanted):
                        return self._states[name]
                    await self._news.wait()
        except TimeoutError:
            pass
        return await self._ask(wanted)

    async def _ask(self, wanted: _Ahead) -> ResourceState | None:
        if self._states is not None:
            # Before DRBD answers: the event may come while it does.
            self._ahead.append(wanted)
        state: ResourceState | None = None
        try:
            state = (await self._drbd.observe()).get(wanted.name)
        finally:
            if state is None or not wanted.met(state):
                self._ahead = [a for a in self._ahead if a is not wanted]
        return state


def _meets(states: States, wanted: _Ahead) -> bool:
    state = states.get(wanted.name)
    return state is not None and wanted.met(state)
