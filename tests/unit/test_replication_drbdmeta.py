"""Meta-data on a disk: how often drbdmeta is asked, and that nothing is written without its word."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from hactl.errors import Refused
from hactl.replication.drbdmeta import DrbdMeta, _new_generation, tail_is_blank
from hactl.replication.metadata_text import good_data
from hactl.runner import Completed
from tests.unit.test_replication_drbd import V9, V84, FakeUtils

MINOR = 16
SIZE = 8 << 20


class Node:
    """One disk: a file, since that can be read as a disk is; what drbdmeta says of it is the fake's."""

    def __init__(self, folder: Path, version: tuple[int, int, int] = V84) -> None:
        self.disk = folder / "disk"
        with self.disk.open("wb") as file:
            file.truncate(SIZE)
        self.lib = folder / "lib"
        self.lib.mkdir()
        self.utils = FakeUtils(version)
        self.meta = DrbdMeta(
            self._run, self._version, self._attached, lib_dir=self.lib, generation=lambda: 0xA1B2C3D4E5F60718
        )
        self.in_use = False

    async def _run(self, argv: list[str], name: str, *, check: bool = True) -> Completed:
        return await self.utils.run(argv, check=check)

    async def _version(self) -> tuple[int, int, int]:
        return self.utils.version

    async def _attached(self, minor: int) -> bool:
        return self.in_use and minor == MINOR

    def stamp(self) -> None:
        """Something where the super block is: DRBD 8.4's magic number, behind 60 bytes."""
        with self.disk.open("r+b") as file:
            file.seek(SIZE - 4096 + 60)
            file.write(struct.pack(">I", 0x8374026D))

    async def exists(self) -> bool:
        return await self.meta.exists("r0", MINOR, str(self.disk))

    async def create(self) -> None:
        await self.meta.create("r0", MINOR, str(self.disk), 4 << 20, 7)

    def asked(self) -> list[str]:
        """What drbdmeta was asked since the last time."""
        words = {"dstate", "dump-md", "create-md", "wipe-md"}
        found = [next(w for w in argv if w in words) for argv in self.utils.argvs if argv[0] == "drbdmeta"]
        self.utils.argvs.clear()
        return found


async def test_a_blank_disk_is_not_asked_about(tmp_path: Path) -> None:
    node = Node(tmp_path)
    assert not await node.exists()
    assert node.asked() == []


async def test_what_is_at_the_end_is_drbdmetas_to_judge(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.stamp()
    assert not await node.exists()
    assert node.asked() == ["dstate", "dump-md"]
    node.utils.metadata = True
    assert await node.exists()
    assert node.asked() == ["dump-md"], "it had none a moment ago"
    assert await node.exists()
    assert node.asked() == ["dstate"]


@pytest.mark.parametrize("what", ["enlarged", "no-folder", "no-disk"])
async def test_a_blank_end_alone_says_nothing(tmp_path: Path, what: str) -> None:
    node = Node(tmp_path)
    match what:
        case "enlarged":
            # The meta-data is where the end of the disk was before.
            (node.lib / f"drbd-minor-{MINOR}.lkbd").touch()
        case "no-folder":
            node.lib.rmdir()
        case _:
            node.disk.unlink()
    node.utils.metadata = True
    assert await node.exists()
    assert node.asked() == ["dstate"]


@pytest.mark.parametrize("version", [V84, V9])
async def test_nothing_is_written_without_drbdmetas_word(
    tmp_path: Path, version: tuple[int, int, int]
) -> None:
    node = Node(tmp_path, version)
    assert not await node.exists()
    node.utils.metadata = True
    with pytest.raises(Refused) as caught:
        await node.create()
    assert caught.value.code == "drbd-metadata-exists"
    assert "create-md" not in node.asked()
    node.utils.metadata = False
    await node.create()
    assert node.asked()[-2:] == ["dump-md", "create-md"]


async def test_creating_on_a_blank_disk_takes_two(tmp_path: Path) -> None:
    node = Node(tmp_path)
    assert not await node.exists()
    await node.create()
    assert node.asked() == ["dump-md", "create-md"]
    node.stamp()
    assert await node.exists()
    assert node.asked() == ["dstate"]


async def test_wiping_asks_drbdmeta_whatever_the_end_of_the_disk_looks_like(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.utils.metadata = True
    await node.meta.wipe("r0", MINOR, str(node.disk))
    assert node.asked() == ["dstate", "wipe-md", "dstate", "dump-md"]


def test_the_end_of_a_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    for size, where, blank in ((SIZE, 0, True), (SIZE, SIZE - 8192, False), (SIZE, SIZE - 1, False)):
        disk.write_bytes(bytes(where) + b"x" + bytes(size - where - 1))
        assert tail_is_blank(str(disk)) is blank, where
    disk.write_bytes(bytes(4096))
    assert not tail_is_blank(str(disk)), "too small to tell"
    assert not tail_is_blank(str(tmp_path / "none"))


async def adopt(node: Node, size: int = 32 << 20) -> None:
    await node.meta.adopt("r0", MINOR, str(node.disk), size, 1 if node.utils.version == V84 else 7)


@pytest.mark.parametrize(("version", "start"), [(V84, 67067904), (V9, 67055616)])
async def test_adopting_writes_behind_the_data_only(
    tmp_path: Path, version: tuple[int, int, int], start: int
) -> None:
    """The places are those that drbdmeta itself names for a disk of 64 MiB (bm_offset)."""
    node = Node(tmp_path, version)
    node.utils.signature = "ext4"
    await adopt(node)
    assert node.utils.metadata
    zeroed = next(argv for argv in node.utils.argvs if argv[0] == "blkdiscard")
    assert zeroed[2:6] == ("--offset", str(start), "--length", str((64 << 20) - start))
    written = next(argv for argv in node.utils.argvs if "restore-md" in argv)
    assert written[:2] == ("drbdmeta", "--force")
    assert not await asyncio.to_thread(os.path.lexists, written[-1]), "the text is not left behind"
    assert "--ignore-sanity-checks" in written, "swap space, and physical volumes of hosts"
    assert "wipefs" not in {argv[0] for argv in node.utils.argvs}, "what is on it stays"


async def test_adopted_meta_data_says_that_the_data_are_good(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await adopt(node)
    # Consistent, was up to date, activity log clean (enum mdf_flag of the kernel's drbd.h).
    assert "0xA1B2C3D4E5F60718;" in node.utils.restored
    assert "flags 0x00000091;" in node.utils.restored
    assert f"la-size-sect {(32 << 20) // 512};" in node.utils.restored


async def test_meta_data_that_is_there_is_never_adopted_over(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.utils.metadata = True
    with pytest.raises(Refused) as caught:
        await adopt(node)
    assert caught.value.code == "drbd-metadata-exists"
    assert not {argv[0] for argv in node.utils.argvs} & {"blkdiscard", "blockdev"}


@pytest.mark.parametrize(
    ("size", "code"), [(64 << 20, "drbd-disk-too-small"), (32 << 20, "drbd-data-too-large")]
)
async def test_data_that_reach_into_the_meta_data(tmp_path: Path, size: int, code: str) -> None:
    node = Node(tmp_path)
    node.utils.too_large = code == "drbd-data-too-large"
    with pytest.raises(Refused) as caught:
        await adopt(node, size)
    assert caught.value.code == code
    assert not node.utils.metadata
    assert ("Found ext3 filesystem" in caught.value.message) is (code == "drbd-data-too-large")


@pytest.mark.parametrize("generation", [0, 4, 5, 1 << 64])
def test_what_is_no_generation_of_data(generation: int) -> None:
    with pytest.raises(ValueError, match="no generation"):
        good_data(V84, generation=generation, size=1 << 20, peers=1)


def test_generations_are_new_and_even() -> None:
    found = {_new_generation() for _ in range(64)}
    assert len(found) == 64
    assert all(g % 2 == 0 and g > 4 for g in found)
