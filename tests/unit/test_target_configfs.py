"""The adapter on an ordinary folder, its error texts, and the loading of modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hactl.errors import Failed, Refused
from hactl.runner import CommandFailed, Completed
from hactl.target.configfs import MODULES, RealConfigFs, load, refusal
from hactl.target.memory import MemoryConfigFs


class Modprobe:
    """A runner that knows some modules."""

    def __init__(self, *known: str) -> None:
        self.known = known
        self.ran: list[tuple[str, ...]] = []

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        self.ran.append(tuple(argv))
        unknown = [m for m in argv if not m.startswith("-") and m not in ("modprobe", *self.known)]
        if unknown:
            raise CommandFailed(
                Completed(tuple(argv), 1, "", f"modprobe: FATAL: Module {unknown[0]} not found")
            )
        return Completed(tuple(argv), 0, "", "")


@pytest.fixture
def real(tmp_path: Path) -> RealConfigFs:
    """The real adapter on an ordinary folder."""
    return RealConfigFs(tmp_path / "target", tmp_path / "ledger")


def test_a_refusal_names_action_path_value_and_errno() -> None:
    error = refusal("write", "core/iblock_1/x/attrib/block_size", OSError(22, "EINVAL"), "513")
    assert error.code == "configfs-einval"
    assert "core/iblock_1/x/attrib/block_size" in error.message
    assert "'513'" in error.message
    assert "Invalid argument" in error.message


@pytest.mark.parametrize("path", ["iscsi/t/tpgt_1/acls/i/auth/password", "iscsi/discovery_auth/password"])
def test_a_refusal_never_shows_a_secret(path: str, real: RealConfigFs) -> None:
    for fs in (real, MemoryConfigFs()):
        with pytest.raises(Failed) as failed:
            fs.write(path + "-", "horse-battery")
        assert "horse" not in str(failed.value)
        assert path in str(failed.value)


def test_writing_never_makes_an_attribute(real: RealConfigFs, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(Failed) as failed:
        real.write("new", "1")
    assert failed.value.code == "configfs-enoent"
    assert not (tmp_path / "target" / "new").exists()


def test_links_are_relative_to_the_root_however_the_kernel_writes_them(
    real: RealConfigFs, tmp_path: Path
) -> None:
    root = tmp_path / "target"
    (root / "core/iblock_1/x").mkdir(parents=True)
    (root / "iscsi/t").mkdir(parents=True)
    (root / "iscsi/t/relative").symlink_to("../../../target/core/iblock_1/x")
    real.symlink("core/iblock_1/x", "iscsi/t/absolute")
    (root / "iscsi/t/attribute").write_text("1\n")
    found = {"absolute": "core/iblock_1/x", "relative": "core/iblock_1/x"}
    assert real.links("iscsi/t") == found
    assert real.readlink("iscsi/t/absolute") == "core/iblock_1/x"
    assert real.listdir("iscsi/t") == ["absolute", "attribute", "relative"]


def test_values_lose_one_line_end_only(real: RealConfigFs, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").write_text("x \n\n")
    assert real.read("a") == "x \n"


async def test_modules_are_loaded_and_the_fabric_made_once() -> None:
    fs, runner = MemoryConfigFs(fabric=False), Modprobe(*MODULES)
    await load(runner, fs)
    await load(runner, fs)
    assert fs.exists("iscsi/discovery_auth")
    assert runner.ran == [("modprobe", "--all", *MODULES)] * 2
    assert fs.writes == 1


async def test_a_kernel_without_lio_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        await load(Modprobe(), MemoryConfigFs(fabric=False))
    assert refused.value.code == "lio-missing"
    assert MODULES[0] in refused.value.message
