"""Tells whoever keeps the desired state that disks were taken over with their data, so that it is not said of
them any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog

from hactl.agents.execute import AfterStep, nothing
from hactl.agents.keeper import Keeper
from hactl.errors import HactlError

Volumes = Mapping[str, frozenset[int]]
"""Volumes by resource."""

Done = Callable[[Volumes], Awaitable[None]]
"""Takes the word of these volumes back; may be repeated. Raises :class:`hactl.errors.HactlError`."""

_log = structlog.get_logger("hactl.agent")


async def nobody(_: Volumes) -> None:
    """Where desired state is a file, what it says stays; it has no effect any more."""


class Adoptions:
    """Of one node. ``problem``: why what was carried out cannot be told; it is tried again."""

    def __init__(self, after_step: AfterStep = nothing) -> None:
        self.done: Done = nobody
        self.problem: str | None = None
        self._after_step = after_step

    async def report(self, keepers: Iterable[Keeper]) -> None:
        """One try with all that are taken over and still said to be so."""
        over = {keeper.name: keeper.taken_over for keeper in keepers if keeper.taken_over}
        self.problem = None
        if not over:
            return
        try:
            await self.done(over)
        except HactlError as error:
            self.problem = f"disks were taken over with their data, which cannot be noted: {error}"
            _log.warning("taken over, and not noted", resources=sorted(over), error=str(error))
            return
        for name in sorted(over):
            self._after_step(name, "adoption:done")
