"""For how long what is being done may go on: no longer than the oldest command can wait for its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator


class Deadline:
    """``left`` gives the seconds until the oldest command that waits has to be ended; infinite if none
    waits."""

    def __init__(self, left: Callable[[], float]) -> None:
        self._left = left
        self._limit: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """:class:`TimeoutError` when it has come, also for a command that begins to wait meanwhile."""
        async with asyncio.timeout(None) as self._limit:
            try:
                self.moved()
                yield
            finally:
                self._limit = None

    def moved(self) -> None:
        """Another command waits."""
        limit, left = self._limit, self._left()
        if limit is not None and not limit.expired() and left != float("inf"):
            limit.reschedule(asyncio.get_running_loop().time() + max(left, 0.0))

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """What is begun here is not cut short: half of it would be worse."""
        limit, self._limit = self._limit, None
        if limit is not None and not limit.expired():
            limit.reschedule(None)
        try:
            yield
        finally:
            self._limit = limit
            self.moved()
