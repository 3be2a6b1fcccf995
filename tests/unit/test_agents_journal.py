"""What of the agent's journal outlives what: the process, and the power."""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from hactl.agents.journal import FileJournal, Handover, Journal, MemoryJournal, Record
from hactl.agents.states import OrderedRole
from hactl.errors import Failed
from hactl.model.spec import ResourceSpec
from tests.unit.agents_world import Machine, World, active

RECORD = Record(OrderedRole.DEMOTED, "boot", 12.5, "n2", Handover("id", "n2", asked=True), frozenset({0, 3}))
MORE = replace(RECORD, fresh=frozenset({0, 3, 5}))


class Rig(Protocol):
    @property
    def journal(self) -> Journal: ...

    def lose_power(self) -> None: ...


class FileRig:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._boots = 0
        self._start()

    def _start(self) -> None:
        self.journal = FileJournal(self._folder / "journal", self._folder / f"run{self._boots}")

    def lose_power(self) -> None:
        self._boots += 1
        self._start()


class MemoryRig:
    def __init__(self) -> None:
        self.journal = MemoryJournal()

    def lose_power(self) -> None:
        self.journal.lose_power()


@pytest.fixture(params=["file", "memory"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return FileRig(tmp_path) if request.param == "file" else MemoryRig()


async def test_what_was_flushed_outlives_a_power_loss_without_what_was_ordered(rig: Rig) -> None:
    rig.journal.write("r0", RECORD)
    await rig.journal.flush("r0")
    await rig.journal.flush("r0")
    assert rig.journal.read() == {"r0": RECORD}
    rig.lose_power()
    assert rig.journal.read() == {"r0": replace(RECORD, boot="", handover=None)}


async def test_what_was_not_flushed_does_not(rig: Rig) -> None:
    rig.journal.write("r0", RECORD)
    await rig.journal.flush("r0")
    rig.journal.write("r0", MORE)
    rig.journal.write("r1", RECORD)
    assert rig.journal.read() == {"r0": MORE, "r1": RECORD}
    rig.lose_power()
    assert {n: r.fresh for n, r in rig.journal.read().items()} == {"r0": RECORD.fresh}


async def test_a_removal(rig: Rig) -> None:
    rig.journal.write("r0", RECORD)
    await rig.journal.flush("r0")
    rig.journal.remove("r0")
    assert rig.journal.read() == {}
    await rig.journal.flush("r0")
    await rig.journal.flush("never")
    rig.lose_power()
    assert rig.journal.read() == {}
    rig.journal.write("r0", RECORD)
    await rig.journal.flush("r0")
    rig.lose_power()
    assert rig.journal.read()["r0"].fresh == RECORD.fresh, "written anew though it is the same as before"


async def test_half_written_file_of_a_kill_is_not_read(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal", tmp_path / "run")
    journal.write("r0", RECORD)
    await journal.flush("r0")
    for folder in ("journal", "run"):
        (tmp_path / folder / ".r0.new").write_text('{"schema"')
    assert journal.read() == {"r0": RECORD}


async def test_only_what_outlives_a_reboot_is_written_to_the_disk(tmp_path: Path) -> None:
    disk = tmp_path / "journal"
    first = FileJournal(disk, tmp_path / "run")
    first.write("r0", RECORD)
    await first.flush("r0")
    (written,) = disk.iterdir()
    before = written.stat().st_ino
    journal = FileJournal(disk, tmp_path / "run")
    assert journal.read() == {"r0": RECORD}
    later = replace(RECORD, role=OrderedRole.ACTIVE, handover=None)
    journal.write("r0", later)
    await journal.flush("r0")
    assert written.stat().st_ino == before
    assert FileJournal(disk, tmp_path / "run").read() == {"r0": later}
    journal.write("r0", replace(later, fresh=frozenset()))
    await journal.flush("r0")
    (record,) = FileJournal(disk, tmp_path / "empty").read().values()
    assert record.fresh == frozenset()


class SlowDisk:
    """``os.fsync`` that waits for the test, and tells who called it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: set[int] = set()
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self._real: Callable[[int], None] = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, file: int) -> None:
        self.threads.add(threading.get_ident())
        self.begun.release()
        self.go.wait()
        self._real(file)


async def test_the_event_loop_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(tmp_path / "journal", tmp_path / "run")
    disk = SlowDisk(monkeypatch)
    journal.write("r0", RECORD)
    assert disk.threads == set()
    flushing = asyncio.create_task(journal.flush("r0"))
    await asyncio.to_thread(disk.begun.acquire)
    assert not flushing.done(), "not durable yet"
    journal.write("r1", RECORD)
    disk.go.set()
    await flushing
    assert threading.get_ident() not in disk.threads


async def test_what_was_written_last_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = FileJournal(tmp_path / "journal", tmp_path / "run")
    disk = SlowDisk(monkeypatch)
    journal.write("r0", RECORD)
    given_up = asyncio.create_task(journal.flush("r0"))
    await asyncio.to_thread(disk.begun.acquire)
    given_up.cancel()
    journal.write("r0", MORE)
    last = asyncio.create_task(journal.flush("r0"))
    await asyncio.sleep(0)
    assert not last.done()
    disk.go.set()
    await last
    assert FileJournal(tmp_path / "journal", tmp_path / "empty").read()["r0"].fresh == MORE.fresh
    journal.remove("r0")
    await journal.flush("r0")
    assert FileJournal(tmp_path / "journal", tmp_path / "empty").read() == {}


async def test_meta_data_is_made_only_when_the_note_of_it_outlives_a_power_loss() -> None:
    world = World()
    notes: list[frozenset[int]] = []
    for machine in world.machines.values():

        async def create(
            resource: ResourceSpec,
            volume: int,
            machine: Machine = machine,
            real: Any = machine.drbd.create_metadata,
        ) -> None:
            after = copy.deepcopy(machine.journal)
            after.lose_power()
            notes.append(after.read()[resource.name].fresh)
            await real(resource, volume)

        machine.drbd.create_metadata = create  # type: ignore[method-assign]  # the twin's own, and a look before it
    await active(world)
    assert notes == [frozenset({0})] * 2


async def test_a_disk_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("not a folder")
    journal = FileJournal(tmp_path / "journal", tmp_path / "run")
    journal.write("r0", RECORD)
    for _ in range(2):
        with pytest.raises(Failed) as caught:
            await journal.flush("r0")
        assert caught.value.code == "journal"
