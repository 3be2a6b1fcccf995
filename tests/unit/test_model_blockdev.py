"""Looking at block devices: a machine whose lsblk, wipefs, stat and drbdsetup answer as the real ones do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hactl.errors import Failed, Unknown
from hactl.model.preflight import BlockDevice, Signature
from hactl.replication.blockdev import LsblkDevices, attached, unclaimed
from hactl.runner import CommandTimeout, Completed, SubprocessRunner

NO_DRBD = "Could not connect to 'drbd' generic netlink family\n"

SHOW_9 = """\
resource "r1" {
    options {
        quorum          \tmajority;
    }
    _this_host {
        node-id\t\t\t1;
        volume 0 {
            device\t\t\tminor 16;
            disk\t\t\t"/dev/vg/r1v0";
            meta-disk\t\t\tinternal;
            disk {
                on-io-error     \tdetach;
            }
        }
        volume 1 {
            device\t\t\tminor 17;
            disk\t\t\tnone;
        }
    }
    connection {
        _peer_node_id 2;
        path {
            _this_host ipv4 10.0.2.1:7001;
            _remote_host ipv4 10.0.2.2:7001;
        }
        volume 0 {
            disk {
                c-plan-ahead    \t20s;
            }
        }
    }
}

resource "r2" {
    _this_host {
        volume 0 {
            device\t\t\tminor 32;
            disk\t\t\t"/dev/vg/r2v0";
        }
    }
}
"""

SHOW_84 = """\
resource r1 {
    _remote_host {
        address\t\t\tipv4 10.0.2.2:7001;
    }
    _this_host {
        address\t\t\tipv4 10.0.2.1:7001;
        volume 0 {
            device\t\t\tminor 16;
            disk\t\t\t"/dev/vg/r1v0";
            meta-disk\t\t\tinternal;
        }
    }
}
"""


NOWHERE = Path("/nonexistent")
"""No LIO on this machine."""


@dataclass
class Machine:
    """A runner; ``disks`` by path is lsblk's own record, ``signatures`` what wipefs finds."""

    disks: dict[str, dict[str, Any]] = field(default_factory=dict)
    signatures: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    drbd: str | None = ""
    hangs: str = ""
    garbled: bool = False
    argvs: list[tuple[str, ...]] = field(default_factory=list)

    async def run(
        self, argv: Sequence[str], *, timeout: float = 30.0, check: bool = True, stdin: str | None = None
    ) -> Completed:
        program, path = argv[0], argv[-1]
        self.argvs.append(tuple(argv))
        if program == self.hangs:
            raise CommandTimeout(tuple(argv), timeout)
        status, out, err = getattr(self, f"_{program}")(path)
        return Completed(tuple(argv), status, "???" if self.garbled else out, err)

    def _lsblk(self, path: str) -> tuple[int, str, str]:
        found = [self.disks[path]] if path in self.disks else []
        status, err = (0, "") if found else (32, f"lsblk: {path}: not a block device\n")
        return status, json.dumps({"blockdevices": found}), err

    def _wipefs(self, path: str) -> tuple[int, str, str]:
        if path not in self.disks:
            return 1, "", f"wipefs: error: {path}: probing initialization failed: No such file or directory\n"
        return 0, json.dumps({"signatures": self.signatures.get(path, [])}), ""

    def _stat(self, path: str) -> tuple[int, str, str]:
        return (0, "regular file\n", "") if path in self.files else (1, "", "stat: cannot statx\n")

    def _drbdsetup(self, path: str) -> tuple[int, str, str]:
        return (20, "", NO_DRBD) if self.drbd is None else (0, self.drbd, "")


def disk(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "type": "disk", "size": 1 << 30, "ro": False, "mountpoints": [None], **more}


async def one(machine: Machine, path: str = "/dev/sdb") -> BlockDevice:
    devices = LsblkDevices(machine, real_path=lambda p: p, free=lambda _: False, backstores=NOWHERE)
    return (await devices.observe([path]))[path]


async def test_an_empty_disk() -> None:
    devices = LsblkDevices(
        Machine({"/dev/sdb": disk("/dev/sdb")}),
        real_path=lambda p: p,
        free=lambda _: True,
        backstores=NOWHERE,
    )
    found = (await devices.observe(["/dev/sdb"]))["/dev/sdb"]
    assert found == BlockDevice(path="/dev/sdb", size=1 << 30, kind="disk")


def backstore(folder: Path, where: str, *, udev_path: str = "", info: str = "") -> None:
    (folder / where).mkdir(parents=True)
    (folder / where / "udev_path").write_text(f"{udev_path}\n" if udev_path else "")
    (folder / where / "info").write_text(info)


async def test_what_lio_exports_is_told(tmp_path: Path) -> None:
    """A backstore of a file's kind claims nothing, so it is looked for always; and by the real path."""
    (tmp_path / "alua").mkdir()
    backstore(tmp_path, "iblock_0/one", udev_path="/dev/vg/one")
    backstore(tmp_path, "fileio_1/two", udev_path="/dev/vg/two")
    three = "Status: ACTIVATED\n        File: /dev/vg/three  Size: 1073741824  Mode: O_DSYNC Async: 0\n"
    backstore(tmp_path, "fileio_2/three", info=three)
    backstore(tmp_path, "fileio_3/new")
    paths = ["/dev/dm-1", "/dev/dm-2", "/dev/dm-3", "/dev/dm-4"]
    real = dict(zip(["/dev/vg/one", "/dev/vg/two", "/dev/vg/three"], paths, strict=False))
    devices = LsblkDevices(
        Machine({p: disk(p) for p in paths}),
        real_path=lambda p: real.get(p, p),
        free=lambda p: p != "/dev/dm-1",
        backstores=tmp_path,
    )
    found = await devices.observe(paths)
    assert [(found[p].exported_by, found[p].claimed) for p in paths] == [
        ("block/one", True),
        ("fileio/two", False),
        ("fileio/three", False),
        (None, False),
    ]


async def test_a_logical_volume_is_told_from_a_disk() -> None:
    path = "/dev/mapper/vg-data"
    assert (await one(Machine({path: {**disk(path), "type": "lvm"}}), path)).kind == "lvm"


async def test_a_disk_in_use() -> None:
    volume = {**disk("/dev/mapper/vg-home"), "type": "lvm", "mountpoints": ["/home"]}
    part = {**disk("/dev/sdb1"), "type": "part", "children": [volume]}
    swap = {**disk("/dev/sdb2"), "type": "part", "mountpoints": ["[SWAP]"]}
    found = await one(Machine({"/dev/sdb": disk("/dev/sdb", ro=True, children=[part, swap])}))
    assert found.read_only
    assert found.holders == ("/dev/sdb1 (part)", "/dev/mapper/vg-home (lvm)", "/dev/sdb2 (part)")
    assert found.mountpoints == ("/home", "[SWAP]")


async def test_all_signatures_are_listed() -> None:
    machine = Machine({"/dev/sdb": disk("/dev/sdb")})
    machine.signatures["/dev/sdb"] = [
        {"device": "sdb", "type": "ext4", "usage": "filesystem", "label": "home"},
        {"device": "sdb", "type": "drbd", "usage": "raid", "label": None},
    ]
    found = await one(machine)
    assert found.signatures == (Signature("ext4", "filesystem", "home"), Signature("drbd", "raid"))
    assert found.has_drbd


async def test_what_is_no_block_device() -> None:
    machine = Machine(files={"/dev/sdb"})
    assert await one(machine) == BlockDevice(path="/dev/sdb", exists=True, is_block=False)
    machine.files.clear()
    assert await one(machine) == BlockDevice(path="/dev/sdb", exists=False, is_block=False)


@pytest.mark.parametrize("shown", [SHOW_9, SHOW_84])
async def test_drbds_disks(shown: str) -> None:
    path = "/dev/vg/r1v0"
    machine = Machine({path: disk(path), "/dev/sdb": disk("/dev/sdb")}, drbd=shown)
    assert (await one(machine, path)).in_use_by == ("r1", 0)
    assert (await one(machine)).in_use_by is None


async def test_a_disk_is_the_same_by_any_name() -> None:
    by_id = "/dev/disk/by-id/wwn-1"
    machine = Machine({by_id: disk("/dev/sdb")}, drbd=SHOW_84.replace("/dev/vg/r1v0", "/dev/sdb"))
    real = {by_id: "/dev/sdb"}
    devices = LsblkDevices(machine, real_path=lambda p: real.get(p, p), free=lambda _: False)
    assert (await devices.observe([by_id]))[by_id].in_use_by == ("r1", 0)


async def test_drbd_is_asked_for_its_disks_only_if_something_has_claimed_one() -> None:
    attached = "/dev/vg/r1v0"
    machine = Machine({attached: disk(attached), "/dev/sdb": disk("/dev/sdb")}, drbd=SHOW_84)
    devices = LsblkDevices(machine, real_path=lambda p: p, free=lambda path: path != attached)
    assert (await devices.observe(["/dev/sdb"]))["/dev/sdb"].in_use_by is None
    assert {argv[0] for argv in machine.argvs} == {"lsblk", "wipefs"}
    found = await devices.observe(["/dev/sdb", attached])
    assert {path: device.in_use_by for path, device in found.items()} == {
        "/dev/sdb": None,
        attached: ("r1", 0),
    }
    assert [argv[0] for argv in machine.argvs].count("drbdsetup") == 1


def test_what_cannot_be_opened_is_not_known_to_be_free(tmp_path: Path) -> None:
    assert not unclaimed(str(tmp_path / "none"))
    assert unclaimed("/dev/null")


async def test_without_drbd_nothing_is_attached() -> None:
    assert (await one(Machine({"/dev/sdb": disk("/dev/sdb")}, drbd=None))).in_use_by is None


def test_show_of_two_resources() -> None:
    assert attached(SHOW_9) == {"/dev/vg/r1v0": ("r1", 0), "/dev/vg/r2v0": ("r2", 0)}
    assert attached("") == {}


@pytest.mark.parametrize("program", ["lsblk", "wipefs", "drbdsetup"])
async def test_a_disk_that_does_not_answer_is_unknown(program: str) -> None:
    with pytest.raises(Unknown):
        await one(Machine({"/dev/sdb": disk("/dev/sdb")}, hangs=program))


async def test_a_real_machine(tmp_path: Path) -> None:
    """What is no block device is found out by this machine's own lsblk and stat."""
    file = tmp_path / "file"
    file.touch()
    paths = [str(file), str(tmp_path / "none"), "/dev/null"]
    observed = await LsblkDevices(SubprocessRunner()).observe(paths)
    assert {p: (d.exists, d.is_block) for p, d in observed.items()} == {
        paths[0]: (True, False),
        paths[1]: (False, False),
        paths[2]: (True, False),
    }


async def test_a_missing_program() -> None:
    class Bare(Machine):
        def _lsblk(self, path: str) -> tuple[int, str, str]:
            raise FileNotFoundError

        def _drbdsetup(self, path: str) -> tuple[int, str, str]:
            raise FileNotFoundError

    with pytest.raises(Failed, match="install lsblk"):
        await one(Bare())


async def test_what_cannot_be_understood_fails() -> None:
    with pytest.raises(Failed):
        await one(Machine({"/dev/sdb": disk("/dev/sdb")}, garbled=True))
