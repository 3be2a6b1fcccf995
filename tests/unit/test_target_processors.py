"""A processor that LIO's threads do not get."""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.target.memory import MemoryConfigFs
from hactl.target.processors import ATTRIBUTE, online, parse, spare_one


@pytest.fixture
def fs() -> MemoryConfigFs:
    return MemoryConfigFs()


@pytest.mark.parametrize(
    ("text", "processors"),
    [("0", {0}), ("0-3", {0, 1, 2, 3}), ("0,2-3,8\n", {0, 2, 3, 8}), ("", set()), ("\n", set())],
)
def test_lists_of_processors(text: str, processors: set[int]) -> None:
    assert parse(text) == processors


@pytest.mark.parametrize("text", ["a", "-", "0,,1", "0-x"])
def test_what_is_no_list_of_processors(text: str, tmp_path: Path) -> None:
    (tmp_path / "online").write_text(text)
    with pytest.raises(ValueError, match="invalid literal"):
        parse(text)
    assert online(tmp_path / "online") == set()
    assert online(tmp_path / "none") == set()


def test_the_first_one_is_spared(fs: MemoryConfigFs) -> None:
    fs.write(ATTRIBUTE, "0-3")
    spare_one(fs, {0, 1, 2, 3})
    assert parse(fs.read(ATTRIBUTE)) == {1, 2, 3}


def test_one_that_does_not_run_is_not_the_one(fs: MemoryConfigFs) -> None:
    fs.write(ATTRIBUTE, "0-7")
    spare_one(fs, {2, 4})
    assert parse(fs.read(ATTRIBUTE)) == {4}


@pytest.mark.parametrize("running", [(), (0,)])
def test_the_only_one_is_not(fs: MemoryConfigFs, running: tuple[int, ...]) -> None:
    before = fs.read(ATTRIBUTE)
    spare_one(fs, running)
    assert fs.read(ATTRIBUTE) == before


def test_what_somebody_has_chosen_stays(fs: MemoryConfigFs) -> None:
    fs.write(ATTRIBUTE, "2")
    spare_one(fs, {0, 1, 2, 3})
    assert fs.read(ATTRIBUTE) == "2"
