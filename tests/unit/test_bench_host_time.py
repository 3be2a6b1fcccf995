"""The measure of the benchmark: processor time of a process and all below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import host_time


def process(proc: Path, pid: int, parent: int, *ticks: int) -> None:
    folder = proc / str(pid)
    folder.mkdir()
    # State, parent, eight numbers, then utime, stime, cutime, cstime, and more.
    rest = f"S {parent} 0 0 0 0 0 0 0 0 0 {' '.join(map(str, ticks))} 20 0"
    (folder / "stat").write_text(f"{pid} (a (strange) name) {rest}\n")


def test_descendants_count_and_others_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_time, "_TICK", 10)
    process(tmp_path, 1, 0, 1000, 1000, 1000, 1000)
    process(tmp_path, 7, 1, 1, 2, 3, 4)
    process(tmp_path, 8, 7, 10, 0, 0, 0)
    process(tmp_path, 9, 8, 0, 0, 0, 30)
    process(tmp_path, 10, 1, 500, 0, 0, 0)
    (tmp_path / "self").mkdir()
    # One that ended between being listed and being read.
    (tmp_path / "11").mkdir()
    assert host_time.used(7, tmp_path) == 5.0
    assert host_time.used(99, tmp_path) == 0.0
