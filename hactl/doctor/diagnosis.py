"""What a diagnosis is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """hactl does not work here, or will stop to."""
    WARNING = "warning"
    """It works, and may surprise somebody."""
    NOTE = "note"


@dataclass(frozen=True)
class Diagnosis:
    """One finding: a stable ``code``, what is so, and what to do about it."""

    code: str
    severity: Severity
    message: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        """The finding as ``--json`` shows it."""
        return {key: str(value) for key, value in asdict(self).items()}
