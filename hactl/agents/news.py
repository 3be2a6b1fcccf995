"""Which resources somebody has to look at again."""

from __future__ import annotations

import asyncio


class News:
    """Names, and an event that is set while there are any."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self.event = asyncio.Event()

    def add(self, *names: str) -> None:
        """Something about these resources may be different from before."""
        self._names.update(names)
        if self._names:
            self.event.set()

    def take(self) -> frozenset[str]:
        """All names since the last time."""
        names, self._names = frozenset(self._names), set()
        self.event.clear()
        return names
