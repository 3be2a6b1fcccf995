"""What can go wrong in the lab, told in one line with the remedy."""

from __future__ import annotations


class LabError(Exception):
    """Something the lab could not do."""


class CommandError(LabError):
    """A command in a machine ended otherwise than expected."""


class BuildError(LabError):
    """An image could not be built; the message names the log."""
