"""What an agent must remember through its own death: what it was ordered, and the switchover it is in."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hactl.agents.states import OrderedRole
from hactl.errors import Failed, Refused

SCHEMA = 1


@dataclass(frozen=True)
class Handover:
    """A switchover in progress, kept by the node that hands over. ``asked``: the successor may have been
    asked."""

    id: str
    to: str
    asked: bool = False


@dataclass(frozen=True)
class Record:
    """One resource on one node.

    ``since`` is when the role was ordered, in seconds of the boot ``boot`` (see ``clock``). ``active_node``
    is the last node known to be active. ``fresh``: volumes whose meta-data this node created and that hold
    no data yet.
    """

    role: OrderedRole
    boot: str
    since: float
    active_node: str | None = None
    handover: Handover | None = None
    fresh: frozenset[int] = frozenset()


class Journal(Protocol):
    """Records by resource name; a write is on stable storage before it returns."""

    def read(self) -> dict[str, Record]:
        """All records. One that cannot be understood raises :class:`hactl.errors.Refused`, and is not
        guessed at."""
        ...

    def write(self, name: str, record: Record) -> None: ...

    def remove(self, name: str) -> None:
        """Forget a resource; none is no error."""
        ...


def encode(record: Record) -> str:
    """The record as JSON, with its schema version."""
    handover = record.handover
    return json.dumps(
        {
            "schema": SCHEMA,
            "role": record.role.value,
            "boot": record.boot,
            "since": record.since,
            "active_node": record.active_node,
            "fresh": sorted(record.fresh),
            "switchover": None
            if handover is None
            else {"op": "switchover", "id": handover.id, "to": handover.to, "asked": handover.asked},
        }
    )


def decode(text: str, where: str) -> Record:
    """The record of a JSON text; :class:`Refused` for anything that ``encode`` of a known schema did not
    write."""
    hint = f"if nothing of the resource is in use on this node, remove {where} and start the agent again"
    try:
        value: Any = json.loads(text)
        schema = value["schema"]
        if schema != SCHEMA:
            raise Refused(
                "journal-schema",
                f"{where} has schema {schema!r}, this hactl knows {SCHEMA}",
                "install the newer hactl again",
            )
        handover = value["switchover"]
        if handover is not None and handover["op"] != "switchover":
            raise ValueError(f"unknown operation {handover['op']!r}")
        return Record(
            role=OrderedRole(value["role"]),
            boot=str(value["boot"]),
            since=float(value["since"]),
            active_node=value["active_node"],
            fresh=frozenset(int(n) for n in value["fresh"]),
            handover=None
            if handover is None
            else Handover(id=str(handover["id"]), to=str(handover["to"]), asked=bool(handover["asked"])),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Refused("journal-damaged", f"{where} cannot be understood: {error!r}", hint) from error


class FileJournal:
    """One JSON file per resource; replaced atomically, file and folder synced."""

    def __init__(self, folder: Path = Path("/var/lib/hactl/journal")) -> None:
        self._folder = folder

    def read(self) -> dict[str, Record]:
        try:
            files = sorted(self._folder.glob("*.json"))
            return {f.stem: decode(f.read_text(), str(f)) for f in files}
        except OSError as error:
            raise Failed(
                "journal", f"cannot read the journal: {error}", f"make {self._folder} readable"
            ) from error

    def write(self, name: str, record: Record) -> None:
        target = self._folder / f"{name}.json"
        temporary = self._folder / f".{name}.new"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("w") as file:
                file.write(encode(record))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            self._sync_folder()
        except OSError as error:
            raise Failed(
                "journal", f"cannot write {target}: {error}", f"make {self._folder} writable, with room"
            ) from error

    def remove(self, name: str) -> None:
        try:
            (self._folder / f"{name}.json").unlink(missing_ok=True)
            if self._folder.exists():
                self._sync_folder()
        except OSError as error:
            raise Failed(
                "journal", f"cannot remove the journal of {name}: {error}", f"make {self._folder} writable"
            ) from error

    def _sync_folder(self) -> None:
        # Without it a power loss may bring the old name back, though the new file's blocks are on disk.
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class MemoryJournal:
    """The twin: survives the agent object, as files survive the process."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def read(self) -> dict[str, Record]:
        return {name: decode(text, name) for name, text in sorted(self._texts.items())}

    def write(self, name: str, record: Record) -> None:
        self._texts[name] = encode(record)

    def remove(self, name: str) -> None:
        self._texts.pop(name, None)
