"""DRBD's state as its event stream last told it, so that nobody has to start a program to ask.

The kernel sends events in the order of the changes, so whoever waits for the event of his own change has also
seen everything that happened before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hactl.replication.protocol import Replication
from hactl.replication.state import ResourceState

States = dict[str, ResourceState]
_LAG = 1.0
"""Seconds to wait for an event; after that DRBD itself is asked."""


class Follower:
    """Keeps the newest state of all resources of one node while ``follow`` runs; asks DRBD while it does
    not."""

    def __init__(self, drbd: Replication) -> None:
        self._drbd = drbd
        self._states: States | None = None
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
        self._news.set()
        self._news = asyncio.Event()

    @property
    def states(self) -> States | None:
        """All resources, or None if the stream does not run, or was interrupted, so that DRBD has to be
        asked."""
        return self._states

    async def until(
        self, name: str, met: Callable[[ResourceState], bool], *, seconds: float = _LAG
    ) -> ResourceState | None:
        """The state of a resource once it is as ``met`` says. If it does not become so in time, or the stream
        does not run, what DRBD says then, whatever it is; None if it does not have the resource."""
        try:
            async with asyncio.timeout(seconds):
                while self._states is not None:
                    state = self._states.get(name)
                    if state is not None and met(state):
                        return state
                    await self._news.wait()
        except TimeoutError:
            pass
        return (await self._drbd.observe()).get(name)
