"""Messages of those parts that the command line uses as well as the agent.

structlog brings rich with it and takes as long to import as a whole command: so it is imported with the first
message, which most commands never have. Messages go to standard error, as standard output is for what was
asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_muted: ContextVar[bool] = ContextVar("muted", default=False)


@contextmanager
def muted() -> Iterator[None]:
    """Meanwhile nothing is said: for a command, whose one error tells all that matters, and may be JSON."""
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)


class Log:
    """Writes messages: an event in one word, and values by name."""

    def info(self, event: str, **values: object) -> None:
        self._say("info", event, values)

    def warning(self, event: str, **values: object) -> None:
        self._say("warning", event, values)

    def error(self, event: str, **values: object) -> None:
        self._say("error", event, values)

    def _say(self, level: str, event: str, values: dict[str, Any]) -> None:
        if _muted.get():
            return
        import structlog

        getattr(structlog.wrap_logger(structlog.PrintLogger(sys.stderr)), level)(event, **values)
