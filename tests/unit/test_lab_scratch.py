"""Temporary folders that outlive nobody, and mounts that nobody deletes through."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.builder import ALONE, Builder, side_by_side
from lab.errors import BuildError
from lab.scratch import mounts_below, scratch, sweep

MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:5 / /cache/tree/dev rw - devtmpfs udev rw
31 30 0:24 / /cache/tree/dev/pts rw - devpts devpts rw
32 22 0:22 / /cache/tree2/proc rw - proc proc rw
33 22 0:22 / /cache/tree/with\\040space\\134 rw - proc proc rw
"""


def test_mounts_come_from_the_top_and_only_those_below() -> None:
    assert mounts_below(Path("/cache/tree"), MOUNTINFO) == [
        Path("/cache/tree/with space\\"),
        Path("/cache/tree/dev/pts"),
        Path("/cache/tree/dev"),
    ]
    assert mounts_below(Path("/cache/tree2/proc"), MOUNTINFO) == [Path("/cache/tree2/proc")]
    assert mounts_below(Path("/cach"), MOUNTINFO) == []


def test_a_scratch_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with scratch(tmp_path) as folder:
        (folder / "tree").mkdir()
        sweep(tmp_path)
        assert (folder / "tree").is_dir()
    assert not folder.exists()


def test_one_whose_maker_was_killed_is_swept(tmp_path: Path) -> None:
    maker = (
        "import pathlib, sys\nfrom lab.scratch import scratch\n"
        "with scratch(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'tree').mkdir()\n    print(folder, flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", maker, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        sweep(tmp_path)
        assert (folder / "tree").is_dir()
        process.kill()
    assert folder.exists()
    with scratch(tmp_path):
        assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_nothing_is_deleted_through_a_mount(tmp_path: Path) -> None:
    precious, cache = tmp_path / "precious", tmp_path / "cache"
    (precious / "below").mkdir(parents=True)
    (precious / "below" / "file").write_text("still here")
    left = cache / ".scratch-left" / "tree" / "dev"
    left.mkdir(parents=True)
    code = (
        "import pathlib, subprocess, sys\nfrom lab.scratch import sweep\n"
        "subprocess.run(['mount', '--bind', sys.argv[1], sys.argv[2]], check=True)\n"
        "sweep(pathlib.Path(sys.argv[3]))\n"
    )
    inside = [sys.executable, "-c", code, str(precious), str(left), str(cache)]
    subprocess.run(["unshare", "--mount", "--propagation", "private", *inside], check=True)
    assert (precious / "below" / "file").read_text() == "still here"
    assert not (cache / ".scratch-left").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace needs root")
def test_a_build_ends_with_whoever_wanted_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = (
        "import pathlib, sys\nfrom lab.builder import ALONE, Builder\n"
        "Builder(lambda text, done: None).run([*ALONE, 'sh', '-c', sys.argv[1]], pathlib.Path(sys.argv[2]))\n"
    )
    script = f"exec 3> {pipe}; sleep 600 & echo begun >&3; sleep 600"
    command = [sys.executable, "-c", code, script, str(tmp_path / "log")]
    with subprocess.Popen(command) as process, pipe.open() as read:
        assert read.readline() == "begun\n"
        process.kill()
        # The end of the file: no process is left that has the pipe open.
        assert read.read() == ""


def test_the_log_of_a_failed_program_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(BuildError, match=r"sh failed with status 3; see .*/log"):
        Builder(lambda _text, _done: None).run([*ALONE[:3], "sh", "-c", "echo words; exit 3"], log)
    assert "words" in log.read_text()


def test_when_one_build_fails_the_other_ends(tmp_path: Path) -> None:
    def fails(_builder: Builder) -> None:
        raise BuildError("it failed")

    def lasts(builder: Builder) -> None:
        builder.run([*ALONE[:3], "sleep", "600"], tmp_path / "log")

    with pytest.raises(BuildError, match="it failed"):
        side_by_side({"first": fails, "second": lasts}, lambda _text, _done: None)


def test_progress_of_builds_side_by_side_only_grows() -> None:
    seen: list[float] = []

    def job(builder: Builder) -> None:
        for done in (0.1, 0.5, 0.3, 1.0):
            builder.progress("step", done)

    side_by_side({"one": job, "two": job}, lambda _text, done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
