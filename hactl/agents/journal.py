"""What an agent must remember through its own death: what it was ordered, and the switchover it is in."""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
    no data yet. ``adopting``: volumes whose disk this node has begun to take over with its data, so that
    meta-data there is its own. ``withdrawn``: Pacemaker has stopped the resource here: its port is shut until
    it is started.
    """

    role: OrderedRole
    boot: str
    since: float
    active_node: str | None = None
    handover: Handover | None = None
    fresh: frozenset[int] = frozenset()
    adopting: frozenset[int] = frozenset()
    withdrawn: bool = False


class Journal(Protocol):
    """Records by resource name. What is written outlives the process at once; ``fresh`` and ``adopting``
    of it outlive a power loss, too, from when ``flush`` has returned. The rest of a record may be lost with
    the power."""

    def read(self) -> dict[str, Record]:
        """All records. One that cannot be understood raises :class:`hactl.errors.Refused`, and is not
        guessed at."""
        ...

    def write(self, name: str, record: Record) -> None: ...

    def remove(self, name: str) -> None:
        """Forget a resource; none is no error."""
        ...

    async def flush(self, name: str) -> None:
        """Wait until what was last written or removed would outlive a power loss. To be awaited before a step
        that relies on it; costs nothing if there is nothing to wait for."""
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
            "adopting": sorted(record.adopting),
            "withdrawn": record.withdrawn,
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
            # These two are not in what an agent without them wrote.
            adopting=frozenset(int(n) for n in value.get("adopting", ())),
            withdrawn=value.get("withdrawn", False) is True,
            handover=None
            if handover is None
            else Handover(id=str(handover["id"]), to=str(handover["to"]), asked=bool(handover["asked"])),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Refused("journal-damaged", f"{where} cannot be understood: {error!r}", hint) from error


class FileJournal:
    """One JSON file per resource in each of two folders, replaced atomically.

    What was ordered means nothing after a reboot, so it only has to outlive the process: it goes to
    ``volatile``, which is in memory, and nobody waits for a disk while I/O is held. Which meta-data is
    brand-new has to outlive a power loss: that alone is what ``folder`` is read for, and it is synced, in one
    thread, so that what is written last stays, and the event loop never waits for a disk.
    """

    def __init__(
        self, folder: Path = Path("/var/lib/hactl/journal"), volatile: Path = Path("/run/hactl/journal")
    ) -> None:
        self._folder = folder
        self._volatile = volatile
        self._lasting: dict[str, tuple[frozenset[int], frozenset[int]]] = {}
        self._unsynced: dict[str, Record | None] = {}
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")

    def read(self) -> dict[str, Record]:
        kept = _read(self._folder)
        self._lasting = {name: _lasting(record) for name, record in kept.items()}
        # Of another boot, or of this one and without what was ordered since: the rest may be out of date.
        old = {name: replace(record, boot="", handover=None) for name, record in kept.items()}
        return dict(sorted({**old, **_read(self._volatile)}.items()))

    def write(self, name: str, record: Record) -> None:
        self._replace(self._volatile, name, record, sync=False)
        if name in self._unsynced or self._lasting.get(name) != _lasting(record):
            self._unsynced[name] = record

    def remove(self, name: str) -> None:
        self._unsynced[name] = None
        self._unlink(self._volatile, name, sync=False)
        # What is on the disk, too, so that a successor of this process does not find it; synced by ``flush``.
        self._unlink(self._folder, name, sync=False)

    async def flush(self, name: str) -> None:
        if name not in self._unsynced:
            return
        record = self._unsynced[name]
        await asyncio.get_running_loop().run_in_executor(self._disk, self._keep, name, record)
        if record is None:
            self._lasting.pop(name, None)
        else:
            self._lasting[name] = _lasting(record)
        if name in self._unsynced and self._unsynced[name] is record:
            del self._unsynced[name]

    def _keep(self, name: str, record: Record | None) -> None:
        if record is None:
            self._unlink(self._folder, name, sync=True)
        else:
            self._replace(self._folder, name, record, sync=True)

    @staticmethod
    def _unlink(folder: Path, name: str, *, sync: bool) -> None:
        try:
            (folder / f"{name}.json").unlink(missing_ok=True)
            if sync and folder.exists():
                _sync(folder)
        except OSError as error:
            raise Failed(
                "journal", f"cannot remove the journal of {name}: {error}", f"make {folder} writable"
            ) from error

    @staticmethod
    def _replace(folder: Path, name: str, record: Record, *, sync: bool) -> None:
        target = folder / f"{name}.json"
        temporary = folder / f".{name}.new"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("w") as file:
                file.write(encode(record))
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            temporary.replace(target)
            if sync:
                _sync(folder)
        except OSError as error:
            raise Failed(
                "journal", f"cannot write {target}: {error}", f"make {folder} writable, with room"
            ) from error


def _lasting(record: Record) -> tuple[frozenset[int], frozenset[int]]:
    """What of a record has to outlive a power loss."""
    return record.fresh, record.adopting


def _read(folder: Path) -> dict[str, Record]:
    try:
        return {f.stem: decode(f.read_text(), str(f)) for f in sorted(folder.glob("*.json"))}
    except OSError as error:
        raise Failed("journal", f"cannot read the journal: {error}", f"make {folder} readable") from error


def _sync(path: Path) -> None:
    # Without it a power loss may bring the old name back, though the new file's blocks are on disk.
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class MemoryJournal:
    """The twin: survives the agent object, as files survive the process."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._kept: dict[str, str] = {}

    def read(self) -> dict[str, Record]:
        return {name: decode(text, name) for name, text in sorted(self._texts.items())}

    def write(self, name: str, record: Record) -> None:
        self._texts[name] = encode(record)

    def remove(self, name: str) -> None:
        self._texts.pop(name, None)

    async def flush(self, name: str) -> None:
        if name in self._texts:
            self._kept[name] = self._texts[name]
        else:
            self._kept.pop(name, None)

    def lose_power(self) -> None:
        """What was not flushed is gone, and with it what was ordered."""
        kept = {name: decode(text, name) for name, text in self._kept.items()}
        self._texts = {n: encode(replace(r, boot="", handover=None)) for n, r in kept.items()}
