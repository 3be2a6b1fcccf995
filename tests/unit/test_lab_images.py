"""The images' cache, without building one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lab import images


def test_only_what_nobody_used_for_long_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "CACHE", tmp_path)
    old = time.time() - (images.KEEP_DAYS + 1) * 24 * 3600
    for name in ("base-node-1", "node-1", "client-1", "snapshot-n1-1", "archives", "runtime-sid-1", "node-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
        if name != "node-2":
            os.utime(tmp_path / name, (old, old))
    (tmp_path / "node-1.log").write_text("x")
    os.utime(tmp_path / "node-1.log", (old, old))
    images._forget_unused()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archives", "node-2", "runtime-sid-1"]


def test_another_build_of_the_same_recipe_has_another_identity(tmp_path: Path) -> None:
    image = images.Image(tmp_path / "node-1")
    image.folder.mkdir()
    image.root.write_text("one")
    os.utime(image.root, ns=(0, 1))
    first = image.identity
    os.utime(image.root, ns=(0, 2))
    assert image.identity != first
