"""How two specifications differ, object by object and in words; secrets only as changed or not. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, SecretStr

from hactl.model.size import format_size
from hactl.model.spec import ClusterSpec, PoolSpec, ResourceSpec, VolumeSpec


class Kind(StrEnum):
    """What becomes of an object."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True)
class Difference:
    """``what`` is an object in words (``resource r1, volume 0``), ``detail`` what is in it or changes."""

    kind: Kind
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.what}: {self.kind}" + (f", {self.detail}" if self.detail else "")

    def as_dict(self) -> dict[str, str]:
        """The difference as ``--json`` shows it."""
        return {"kind": str(self.kind), "what": self.what, "detail": self.detail}


def diff(current: ClusterSpec, wanted: ClusterSpec) -> tuple[Difference, ...]:
    """What is different in ``wanted``: first what goes, then what changes, then what is new; in each, nodes
    before hosts before resources, by name."""
    found = [*_object("cluster", current, wanted, {"nodes", "hosts", "resources"})]
    for word, what in (("node", "nodes"), ("host", "hosts"), ("resource", "resources")):
        old = {item.name: item for item in getattr(current, what)}
        new = {item.name: item for item in getattr(wanted, what)}
        found += _objects(word, old, new)
    rank = {Kind.REMOVED: 0, Kind.CHANGED: 1, Kind.ADDED: 2}
    return tuple(sorted(found, key=lambda d: rank[d.kind]))


def _objects(word: str, old: Mapping[Any, BaseModel], new: Mapping[Any, BaseModel]) -> Iterator[Difference]:
    for name in sorted(old.keys() | new.keys()):
        what = f"{word} {name}"
        before, after = old.get(name), new.get(name)
        if after is None and before is not None:
            yield Difference(Kind.REMOVED, what, _summary(before))
        elif before is None and after is not None:
            yield Difference(Kind.ADDED, what, _summary(after))
        elif before is not None and after is not None and before is not after:
            yield from _object(what, before, after, {"name", "volumes"})
            if isinstance(before, ResourceSpec) and isinstance(after, ResourceSpec):
                volumes = {v.number: v for v in before.volumes}, {v.number: v for v in after.volumes}
                yield from _objects(f"{what}, volume", *volumes)


def _object(what: str, old: BaseModel, new: BaseModel, without: set[str]) -> Iterator[Difference]:
    details: list[str] = []
    for name in type(old).model_fields:
        if name not in without:
            details += _value(name, getattr(old, name), getattr(new, name))
    if details:
        yield Difference(Kind.CHANGED, what, "; ".join(details))


def _value(name: str, old: Any, new: Any) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, BaseModel) and isinstance(new, BaseModel) and not isinstance(old, PoolSpec):
        for part in type(old).model_fields:
            yield from _value(f"{name}.{part}", getattr(old, part), getattr(new, part))
    elif isinstance(old, SecretStr) or isinstance(new, SecretStr):
        yield f"{name} {'removed' if new is None else 'set' if old is None else 'changed'}"
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _value(f"{name}.{key}", old.get(key), new.get(key))
    elif isinstance(old, tuple) and isinstance(new, tuple):
        yield from _list(name, old, new)
    else:
        yield f"{name} {_text(name, old)} → {_text(name, new)}"


def _list(name: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> Iterator[str]:
    signs = [f"- {_text(name, item)}" for item in old if item not in new]
    signs += [f"+ {_text(name, item)}" for item in new if item not in old]
    yield f"{name} {', '.join(signs)}" if signs else f"{name} in another order"


def _text(name: str, value: Any) -> str:
    """A value in words; never a secret."""
    if value is None:
        return "none"
    if isinstance(value, SecretStr):
        return "(secret)"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "size" and isinstance(value, int):
        return format_size(value)
    if isinstance(value, PoolSpec):
        kinds = {"lvm": value.lvm, "lvm_thin": value.lvm_thin, "files": value.files}
        kind, made = next((k, m) for k, m in kinds.items() if m is not None)
        return f"{value.name} ({kind} {'/'.join(str(part) for part in dict(made).values())})"
    if isinstance(value, BaseModel):
        return "(" + ", ".join(f"{k} {_text(k, v)}" for k, v in value if v not in (None, (), {})) + ")"
    if isinstance(value, tuple):
        return ", ".join(_text("", item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text('', v)}" for k, v in value.items())
    return str(value)


def _summary(value: BaseModel) -> str:
    if isinstance(value, ResourceSpec):
        sizes = ", ".join(format_size(v.size) for v in value.volumes)
        return f"{sizes} on {', '.join(value.nodes)}"
    if isinstance(value, VolumeSpec):
        return f"{format_size(value.size)}, LUN {value.lun}"
    keys = ("addresses", "initiators")
    return "; ".join(_text(key, getattr(value, key)) for key in keys if hasattr(value, key))
