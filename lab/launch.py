"""Starts a lab's supervisor, with what it is to run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import images, machinery, wire
from lab.builder import Builder, Progress
from lab.errors import LabError
from lab.layout import Kind, machines

HOME = Path(os.environ.get("HACTL_LAB_HOME", "/var/tmp/hactl-lab"))  # noqa: S108 (folders are made 0700)
TREE = Path(__file__).parent.parent
TOOLS = (
    "mmdebstrap", "mkfs.ext4", "debugfs", "qemu-system-x86_64", "qemu-img", "ip", "unshare", "setpriv",
    "ipmi_sim",
)  # fmt: skip
START_SECONDS = 30.0


@dataclass(frozen=True)
class Wanted:
    """What somebody asks of a lab; None where anything will do, which for a new one is the default."""

    nodes: int | None = None
    client: bool | None = None
    kinds: str | None = None

    def differs(self, running: dict[str, Any]) -> list[str]:
        """In which settings a running lab is not what is wanted, in words."""
        told = []
        if self.nodes is not None and self.nodes != running["nodes"]:
            told.append(f"{running['nodes']} node(s), not {self.nodes}")
        if self.client is not None and self.client != running["client"]:
            told.append("a client" if running["client"] else "no client")
        if self.kinds is not None and self.kinds != running["wanted"]:
            told.append(f"machines {running['wanted']}, not {self.kinds}")
        return told


@dataclass(frozen=True)
class Started:
    """A supervisor that was started: its process, and the pipe that ends it when it is closed."""

    process: subprocess.Popen[bytes]
    owner: int


def folder_of(name: str) -> Path:
    """A lab's folder; LabError for a name that cannot be one."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", name):
        raise LabError(f"{name!r} is no name for a lab: letters, digits, - and _ only, 40 at most")
    folder = HOME / name
    if len(str(folder / "lab.sock")) > 100:  # unix(7): 108 bytes with room for a machine's own sockets
        raise LabError(f"the path {folder} is too long for a socket: set HACTL_LAB_HOME to a shorter one")
    return folder


@contextmanager
def alone(folder: Path, progress: Progress) -> Iterator[None]:
    """One ``up`` of a lab at a time; the second finds what the first has started."""
    check_host()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another `lab up` of this lab", 0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_host() -> None:
    """LabError when the host lacks what every lab needs."""
    if os.geteuid() != 0:
        raise LabError("the lab needs root, for its network namespace and mounts: run it with sudo")
    path = os.environ.get("PATH", "/usr/bin:/bin")
    if "/usr/sbin" not in path.split(":"):  # after su(1) without "-"
        os.environ["PATH"] = f"{path}:/usr/sbin:/sbin"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        raise LabError(f"{', '.join(lacking)} not found: lab/bootstrap.sh installs what is needed")


def start(folder: Path, wanted: Wanted, fresh: bool, progress: Progress) -> Started:
    """Start a supervisor, with images built where they are missing. It ends with the calling process.

    Disks of an earlier run are kept, except with ``fresh``, and except those of machines that are made of
    something else now: disks are layers over an image, and over another one they would be garbage.
    """
    count, client = wanted.nodes or 3, wanted.client is not False
    built = images.ensure_all(progress)
    kinds = machinery.choose(wanted.kinds or "auto", built["node"])
    uml = Kind.UML in kinds.values()
    settings = {
        "nodes": count,
        "client": client,
        "wanted": wanted.kinds or "auto",
        "kinds": {image: kind.value for image, kind in kinds.items()},
        "images": {name: str(image.folder) for name, image in built.items()},
        "runtime": str(images.runtime(Builder(progress))) if uml else None,
    }
    _wait_for_end(folder)
    keep = {m.name: f"{kinds[m.image]} {built[m.image].identity}\n" for m in machines(9)}
    for name, made in keep.items():
        note = folder / name / "made-of"
        if fresh or not note.exists() or note.read_text() != made:
            shutil.rmtree(folder / name, ignore_errors=True)
    for machine in machines(count, client):
        (folder / machine.name).mkdir(exist_ok=True)
        (folder / machine.name / "made-of").write_text(keep[machine.name])
    (folder / "settings.json").write_text(json.dumps(settings))
    return _spawn(folder)


def _wait_for_end(folder: Path) -> None:
    """Wait for a supervisor that is on its way out, its owner being gone."""
    limit = time.monotonic() + wire.DOWN_SECONDS
    with (folder / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise LabError(
                        f"a supervisor of lab {folder.name!r} runs and does not answer:"
                        f" kill the process `lab.supervisor --folder {folder}`"
                    ) from None
            time.sleep(0.05)  # flock(2) waits for ever or not at all


def _spawn(folder: Path) -> Started:
    watched, held = os.pipe()
    ready, written = os.pipe()
    command = [
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation",
        "private", sys.executable, "-m", "lab.supervisor", "--folder", str(folder),
        "--owner-fd", str(watched), "--ready-fd", str(written),
    ]  # fmt: skip
    log = folder / "supervisor.log"
    try:
        with log.open("wb") as sink:
            # All other descriptors are closed: only this process holds the pipe's end whose closing ends the
            # lab.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, pass_fds=[watched, written],
                start_new_session=True, cwd=TREE,
            )  # fmt: skip
    except BaseException:
        os.close(held)
        os.close(ready)
        raise
    finally:
        os.close(watched)
        os.close(written)
    started = Started(process, held)
    try:
        # A byte when it serves, the end of the file when it ended.
        if not select.select([ready], [], [], START_SECONDS)[0] or not os.read(ready, 1):
            text = log.read_text(errors="replace").strip().splitlines()
            raise LabError(f"the supervisor did not start: {text[-1] if text else 'no word'}; see {log}")
    except BaseException:
        abandon(started)
        raise
    finally:
        os.close(ready)
    return started


def abandon(started: Started) -> None:
    """End a lab by letting go of it, and wait for that."""
    with contextlib.suppress(OSError):
        os.close(started.owner)
    try:
        started.process.wait(wire.DOWN_SECONDS)
    except subprocess.TimeoutExpired:
        started.process.kill()
        started.process.wait()
