"""Moments in which initiators wait: regular work, which costs processor time, is put off until they are
over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class Calm:
    """Counts such moments of one agent."""

    def __init__(self) -> None:
        self._moments = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextlib.contextmanager
    def moment(self) -> Iterator[None]:
        """One is going on inside the block."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        self._moments += 1
        self._none.clear()

    def end(self) -> None:
        self._moments -= 1
        if not self._moments:
            self._none.set()

    async def returned(self, seconds: float) -> None:
        """Wait until none is going on, but no longer than ``seconds``: one that is stuck must not stop the
        rest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._none.wait()


class Expected:
    """Switchovers to this node that it has said to be ready for, by resource."""

    def __init__(self, calm: Calm) -> None:
        self._calm = calm
        self._found: dict[str, tuple[str, asyncio.TimerHandle]] = {}

    def __contains__(self, resource: str) -> bool:
        return resource in self._found

    def of(self, resource: str) -> str | None:
        """Id of the switchover that is expected, if any."""
        return self._found[resource][0] if resource in self._found else None

    def expect(self, resource: str, handover: str, seconds: float) -> None:
        """Expect it for ``seconds`` from now; takes the place of what was expected before."""
        self.over(resource)
        self._calm.begin()
        timer = asyncio.get_running_loop().call_later(seconds, self.over, resource)
        self._found[resource] = handover, timer

    def over(self, resource: str) -> None:
        """It has happened, or will not; nothing expected is no error."""
        found = self._found.pop(resource, None)
        if found is not None:
            found[1].cancel()
            self._calm.end()
