"""pydantic's errors, and paths, in the words of the specification file. Pure; no message holds a secret."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hactl.model.check import Path, Problem
from hactl.model.spec import (
    Addresses,
    ChapSpec,
    ClusterSpec,
    FenceSpec,
    FilesPool,
    HostSpec,
    LvmPool,
    LvmThinPool,
    NodeSpec,
    PoolSpec,
    ResourceSpec,
    VolumeSpec,
)
from hactl.model.tree import Value

_MODELS: dict[tuple[str, ...], type[BaseModel]] = {
    (): ClusterSpec,
    ("nodes",): NodeSpec,
    ("nodes", "addresses"): Addresses,
    ("nodes", "pools"): PoolSpec,
    ("nodes", "pools", "lvm"): LvmPool,
    ("nodes", "pools", "lvm_thin"): LvmThinPool,
    ("nodes", "pools", "files"): FilesPool,
    ("nodes", "fencing"): FenceSpec,
    ("hosts",): HostSpec,
    ("hosts", "chap"): ChapSpec,
    ("resources",): ResourceSpec,
    ("resources", "volumes"): VolumeSpec,
}
"""What a mapping at a path (list indexes left out) is read as."""

_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_SHAPES = {"list": "a list (lines that begin with '- ')", "dict": "a mapping (lines of 'key: value')"}
_KINDS = {
    "int_type": ("must be a whole number", "write a decimal number without quotes, point or leading zeros"),
    "string_type": ("must be text", "put it into quotes"),
    "tuple_type": (f"must be {_SHAPES['list']}", "write one, or remove the key"),
    "dict_type": (f"must be {_SHAPES['dict']}", "write one, or remove the key"),
    "model_type": (f"must be {_SHAPES['dict']}", "write one, or remove the key"),
    "string_unicode": ("has characters that are not text (half of a surrogate pair)", "write it anew"),
}


def validate(value: Value) -> tuple[ClusterSpec | None, tuple[Problem, ...]]:
    """The specification, or what is wrong with its single values; never both."""
    try:
        return ClusterSpec.model_validate(value), ()
    except ValidationError as error:
        return None, problems(error, value)


def problems(error: ValidationError, value: Any, base: tuple[str, ...] = ()) -> tuple[Problem, ...]:
    """What pydantic found in ``value``, which is what a specification has at ``base`` (list indexes left
    out); the problems' paths begin at ``value``."""
    errors = error.errors(include_url=False, include_input=False)
    for step in reversed(base):
        value = {step: value}
    for one in errors:
        one["loc"] = (*base, *one["loc"])
    misspelt = {(*e["loc"][:-1], _meant(e["loc"])) for e in errors if e["type"] == "extra_forbidden"}
    found = (_problem(e, value) for e in errors if not _follows(e, misspelt, value))
    return tuple(replace(problem, path=problem.path[len(base) :]) for problem in found)


def base(model: type[BaseModel]) -> tuple[str, ...]:
    """Where a specification has values of a model (list indexes left out)."""
    return {known: path for path, known in _MODELS.items()}[model]


def words(path: Path, value: Value) -> str:
    """A path for people, with list items called by their ``name``: ``resources.r0.volumes[0].lun``.

    ``value`` is the file's value. A name that two items share does not tell them apart, so the index stays.
    """
    text = ""
    here: Value = value
    for step in path:
        if isinstance(step, int):
            name = _name(here, step)
            text += f".{name}" if name else f"[{step}]"
            here = here[step] if isinstance(here, list) and step < len(here) else None
        else:
            text += f".{_printable(step)}" if text else _printable(step)
            here = here.get(step) if isinstance(here, dict) else None
    return text


def _name(items: Value, index: int) -> str:
    if not isinstance(items, list):
        return ""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    name = names[index] if index < len(names) else None
    plain = isinstance(name, str) and name.replace("-", "").isalnum() and len(name) <= 32
    return str(name) if plain and names.count(name) == 1 else ""


def _printable(step: str) -> str:
    return step if step.isprintable() and len(step) <= 40 else repr(step[:40])


def _follows(error: ErrorDetails, misspelt: set[Path], value: Value) -> bool:
    """Whether an error merely follows from another one that is reported."""
    if error["type"] == "missing":
        return error["loc"] in misspelt
    # pydantic counts valid items only, so that a list of one bad item is "too short" as well.
    given = _at(value, error["loc"])
    return error["type"] == "too_short" and isinstance(given, dict | list) and len(given) > 0


def _meant(path: Path) -> str:
    """The known key that an unknown one is closest to; empty if none is close."""
    name = str(path[-1]).lower().replace("-", "_")
    return next(iter(difflib.get_close_matches(name, _known(path), 1)), "")


def _known(path: Path) -> list[str]:
    """Keys that the mapping around a path may have."""
    model = _MODELS.get(tuple(step for step in path[:-1] if isinstance(step, str)))
    return sorted(model.model_fields) if model else []


def _problem(error: ErrorDetails, value: Value) -> Problem:
    kind, path = error["type"], error["loc"]
    context: Mapping[str, Any] = error.get("ctx", {})
    if path and path[-1] == "[key]":
        path = path[:-1]
    if kind == "missing":
        return Problem(path, "missing", "is missing", f"add {_printable(str(path[-1]))}")
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if not path and value is None:
        return Problem(path, "empty", "the file is empty", "write a specification into it")
    given = _at(value, path)
    if given is None and kind != "value_error":
        return Problem(path, "empty", "has no value", "give it one, or remove the key")
    shown = _shown(given, path)
    if kind in _KINDS:
        message, hint = _KINDS[kind]
        return Problem(path, "wrong-type", f"{shown}{message}", hint)
    if kind == "value_error":
        return Problem(path, "invalid", str(context["error"]), "correct the value")
    if kind in _BOUNDS:
        key, phrase = _BOUNDS[kind]
        return Problem(
            path, "out-of-range", f"{shown}must be {phrase} {context[key]}", "choose another number"
        )
    if kind in ("too_short", "string_too_short"):
        text = kind == "string_too_short" or path[-1:] in (("password",), ("mutual_password",))
        what = "character" if text else "item"
        least = context["min_length"]
        return Problem(
            path, "too-short", f"needs {least} {what}{'s' * (least != 1)} at least", "add what is missing"
        )
    if kind in ("too_long", "string_too_long"):
        what = "character" if kind == "string_too_long" else "item"
        return Problem(path, "too-long", f"has more than {context['max_length']} {what}s", "shorten it")
    if kind == "bool_type":
        return Problem(path, "wrong-type", f"{shown}must be true or false", "write one, without quotes")
    if kind == "string_pattern_mismatch":
        rule = _patterns(path) or f"must match {context['pattern']}"
        return Problem(path, "invalid", f"{shown}{rule}", "correct the value")
    return Problem(path, "invalid", error["msg"], "correct the value")


_OPTION = "must be the name of an option: lower-case letters, digits and _, beginning with a letter"
_PATTERNS = {
    "agent": "must be the name of a fence agent, such as fence_ipmilan",
    "serial": "must be 32 hexadecimal digits in lower case",
    "vg": "must be the name of a volume group: letters, digits and _ . + -, not beginning with -",
    "thin_pool": "must be the name of a thin pool: letters, digits and _ . + -, not beginning with -",
    "path": "must be a path that begins with /, of letters, digits and _ . : + @ = , - only",
}


def _patterns(path: Path) -> str:
    if path[-2:-1] in (("options",), ("secrets",)):
        return _OPTION
    return _PATTERNS.get(str(path[-1]), "") if path else ""


def _unknown_key(path: Path) -> Problem:
    meant = _meant(path)
    hint = f"did you mean {meant}?" if meant else f"known keys here: {', '.join(_known(path))}"
    return Problem(path, "unknown-key", "this key is not known", hint)


def _at(value: Value, path: Path) -> Value:
    """The value at a path; an empty text if there is nothing at it, ``None`` if there is a null."""
    for step in path:
        match value, step:
            case dict(), str() if step in value:
                value = value[step]
            case list(), int() if step < len(value):
                value = value[step]
            case _:
                return ""
    return value


_HIDDEN = frozenset({"chap", "password", "mutual_password", "options", "secrets"})
"""Where a secret is, or may have been put by mistake."""


def _shown(value: Value, path: Path) -> str:
    """The value for a message that goes on with "must ..."; nothing where it is long, or may be a secret."""
    if any(step in _HIDDEN for step in path) or isinstance(value, dict | list):
        return ""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{text} " if 0 < len(text) <= 60 else ""
