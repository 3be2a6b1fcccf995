"""Something wrong with a specification, and where."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Where in a specification: keys and list indexes, such as ``("resources", 0, "volumes", 1, "lun")``."""


@dataclass(frozen=True)
class Problem:
    """Something wrong at ``path``; ``code`` is stable, ``hint`` says what to do."""

    path: Path
    code: str
    message: str
    hint: str = ""


class Unique:
    """Remembers where a value was seen first."""

    def __init__(self) -> None:
        self._first: dict[Hashable, str] = {}

    def taken(self, value: Hashable, owner: str) -> str | None:
        """Whose it is already, or ``None``; then it is ``owner``'s from now on."""
        first = self._first.setdefault(value, owner)
        return None if first == owner else first
