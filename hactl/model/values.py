"""Specification values from parts, and problems as refusals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hactl.errors import Refused
from hactl.model import explain
from hactl.model.check import Problem

Model = TypeVar("Model", bound=BaseModel)


def make(model: type[Model], what: str, /, **parts: Any) -> Model:
    """A value of ``model``; ``what`` it is, in words, begins the message of the :class:`Refused` that says
    what is wrong with the parts."""
    try:
        return model.model_validate(parts)
    except ValidationError as error:
        raise refusal(explain.problems(error, parts, explain.base(model)), what, parts) from None


def changed(value: Model, what: str, /, **parts: Any) -> Model:
    """``value`` with other ``parts``, checked as :func:`make` does; the very same one if nothing differs."""
    current = {name: getattr(value, name) for name in type(value).model_fields}
    if all(current[name] == part for name, part in parts.items()):
        return value
    return make(type(value), what, **{**current, **parts})


def refusal(problems: Sequence[Problem], what: str, value: object = None) -> Refused:
    """Problems (one at least) as one error with the code and hint of the first. ``value`` gives the list
    items in paths their names."""
    lines = [
        ": ".join(filter(None, (what, explain.words(p.path, value), p.message)))  # type: ignore[arg-type]
        for p in problems
    ]
    first = problems[0]
    return Refused(first.code, "; ".join(lines), first.hint)
