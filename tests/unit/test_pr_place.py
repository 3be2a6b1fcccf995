"""LIO writes reservations where the capture is, whatever targetcli has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.errors import Failed
from hactl.pr_sync.capture.place import Place
from hactl.target.configfs import RealConfigFs

MOUNT = "40 20 0:30 / {} rw,relatime shared:89 - {} hactl rw,user_id=0\n"


class Machine:
    """Two directories, an attribute of LIO's that says which one it uses, and a table of mounts."""

    def __init__(self, root: Path) -> None:
        self.ours, self.theirs = root / "ours", root / "them"
        for folder in (self.ours, self.theirs):
            (folder / "pr").mkdir(parents=True)
        self.tree, self.mounts = root / "target", root / "mountinfo"
        self.tree.mkdir()
        self.attribute = self.tree / "dbroot"
        self.attribute.write_text(f"{self.ours}\n")
        self.mounted(self.ours / "pr")
        self.place = Place(RealConfigFs(self.tree), self.mounts)

    def mounted(self, *points: Path, kind: str = "fuse.hactl-capture") -> None:
        root = MOUNT.format("/", "ext4")
        self.mounts.write_text(root + "".join(MOUNT.format(point, kind) for point in points))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_touched_where_all_is_well(machine: Machine) -> None:
    machine.place.claim()
    machine.place.check()
    assert machine.attribute.read_text() == f"{machine.ours}\n"


def test_what_targetcli_has_changed_is_changed_back(machine: Machine) -> None:
    machine.attribute.write_text(f"{machine.theirs}\n")
    with pytest.raises(Failed) as error:
        machine.place.check()
    assert error.value.code == "capture-elsewhere"
    assert f"{machine.theirs}/pr" in error.value.message
    assert f"{machine.ours}/pr" in error.value.message
    machine.place.claim()
    machine.place.check()


def test_another_name_of_the_same_directory(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(machine.ours)
    machine.attribute.write_text(f"{tmp_path}/link\n")
    machine.place.check()


def test_without_the_capture_nothing_is_claimed_and_nothing_is_well(machine: Machine) -> None:
    machine.mounted(machine.ours / "pr", kind="tmpfs")
    machine.attribute.write_text(f"{machine.theirs}\n")
    machine.place.claim()
    assert machine.attribute.read_text() == f"{machine.theirs}\n"
    with pytest.raises(Failed, match="not captured"):
        machine.place.check()


def test_what_cannot_be_changed_is_left_to_the_check(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.attribute.write_text(f"{machine.theirs}\n")

    def refuse(_: RealConfigFs, path: str, value: str) -> None:
        raise Failed("configfs-einval", f"{path}: {value}")

    monkeypatch.setattr(RealConfigFs, "write", refuse)
    machine.place.claim()
    with pytest.raises(Failed):
        machine.place.check()


def test_before_lio_is_loaded(machine: Machine) -> None:
    machine.attribute.unlink()
    machine.place.claim()
