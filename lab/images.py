"""Builds the machines' images with mmdebstrap and keeps them in a cache outside the repository."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.recipe import GUEST, REQUIREMENTS, Recipe

CACHE = Path(os.environ.get("HACTL_LAB_CACHE", "/var/cache/hactl-lab"))
NODE_PYTHON = "3.13"
"""Python of Debian 13, for which wheels are fetched."""

Progress = Callable[[str, float], None]
"""Told what is going on and how much of it is done, 0 to 1."""


class BuildError(Exception):
    """An image could not be built; the message names the log."""


@dataclass(frozen=True)
class Image:
    """A root file system with the kernel and initial RAM disk that QEMU boots it with."""

    folder: Path

    @property
    def root(self) -> Path:
        """Raw ext4 file system, never written to."""
        return self.folder / "root.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One builder at a time; others wait and then find the result."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mmdebstrap(arguments: list[str], log: Path, progress: Progress, upto: float) -> None:
    """Run mmdebstrap, its output in ``log``; its ``I:`` lines tell how far it is."""
    steps = {"apt-get update": 0.05, "downloading": 0.15, "extracting": 0.3, "essential": 0.4,
             "remaining": 0.5, "cleaning": 0.9, "success": 1.0}  # fmt: skip
    command = ["mmdebstrap", "--mode=root", "--skip=check/empty", *arguments]
    with log.open("a") as sink, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sink.write(line)
            for word, done in steps.items():
                if line.startswith("I:") and word in line:
                    progress(line[3:].strip(), done * upto)
    if process.returncode:
        raise BuildError(f"mmdebstrap failed with status {process.returncode}; see {log}")


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as sink:
        sink.write(f"$ {' '.join(command)}\n")
        sink.flush()
        if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink).returncode:
            raise BuildError(f"{command[0]} failed; see {log}")


def _log(name: str) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    log = CACHE / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def runtime(progress: Progress) -> Path:
    """A tree with user-mode Linux and the C library it wants, to be run by chroot.

    Debian's newest first: from 7.2 on its ``seccomp=on`` makes system calls several times faster. The release's own
    is the fall-back.
    """
    with _locked("runtime"):
        for suite in ("sid", "trixie"):
            for folder in CACHE.glob(f"runtime-{suite}-*"):
                return folder
        failure: BuildError | None = None
        for suite in ("sid", "trixie"):
            log = _log(f"runtime-{suite}")
            with tempfile.TemporaryDirectory(dir=CACHE, ignore_cleanup_errors=True) as scratch:
                tree = Path(scratch) / "tree"
                try:
                    progress(f"user-mode Linux of Debian {suite}", 0)
                    # A mirror that is not of today has an expired sid; its signature is good all the same.
                    _mmdebstrap(
                        ["--variant=extract", "--include=user-mode-linux",
                         '--aptopt=Acquire::Check-Valid-Until "false"', suite, str(tree)], log, progress, 1,
                    )  # fmt: skip
                except BuildError as error:
                    failure = error
                    continue
                for extra in ("dev", "proc", "tmp", "lab", "cache"):
                    (tree / extra).mkdir(exist_ok=True)
                for link in ("bin", "lib", "lib64"):
                    if not (tree / link).exists():
                        (tree / link).symlink_to(f"usr/{link}")
                kernel = next((tree / "usr/lib/uml/modules").iterdir()).name
                return tree.rename(CACHE / f"runtime-{suite}-{kernel}")
        assert failure is not None
        raise failure


def wheels(progress: Progress, log: Path, folder: Path) -> None:
    """Fetch what hactl needs on the nodes, for their Python, with this machine's own pip and its settings."""
    progress("Python packages for the nodes", 0.6)
    _run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps", "--only-binary=:all:",
         "--python-version", NODE_PYTHON, "--implementation", "cp", "--abi", f"cp{NODE_PYTHON.replace('.', '')}",
         "--abi", "abi3", "--abi", "none", "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64",
         "--dest", str(folder), "--requirement", str(REQUIREMENTS)],
        log,
    )  # fmt: skip


def ensure(recipe: Recipe, progress: Progress) -> Image:
    """The image of a recipe, from the cache or built now."""
    extra = runtime(progress).name if recipe.user_mode else ""
    name = f"{recipe.name}-{recipe.digest(extra)}"
    with _locked(recipe.name):
        folder = CACHE / name
        if folder.exists():
            return Image(folder)
        log = _log(name)
        with tempfile.TemporaryDirectory(dir=CACHE, ignore_cleanup_errors=True) as scratch:
            out = Path(scratch) / "image"
            out.mkdir()
            _build(recipe, Path(scratch) / "tree", out, log, progress)
            out.rename(folder)
        return Image(folder)


def _build(recipe: Recipe, tree: Path, out: Path, log: Path, progress: Progress) -> None:
    options = ["--variant=minbase", "--aptopt=Apt::Install-Recommends \"false\""]
    options += [f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in ("doc", "man", "locale", "info")]
    _mmdebstrap([*options, f"--include={','.join(recipe.packages)}", recipe.suite, str(tree)], log, progress, 0.6)
    if recipe.python:
        _virtual_environment(tree, log, progress)
    progress("settling the file system", 0.75)
    modules = tree / "usr/lib/modules"
    for kernel in modules.iterdir():
        for unwanted in recipe.no_modules:
            shutil.rmtree(kernel / "kernel" / unwanted, ignore_errors=True)
    if recipe.user_mode:
        for kernel in (runtime(progress) / "usr/lib/uml/modules").iterdir():
            shutil.copytree(kernel, modules / kernel.name, symlinks=True)
    _services(recipe, tree)
    boot = tree / "boot"
    shutil.copy(next(boot.glob("vmlinuz-*")), out / "vmlinuz")
    shutil.copy(next(boot.glob("initrd.img-*")), out / "initrd")
    for file in boot.iterdir():
        file.unlink()
    progress("writing the image", 0.85)
    root = out / "root.raw"
    with root.open("w") as file:
        file.truncate(recipe.size)
    _run(["mkfs.ext4", "-q", "-F", "-d", str(tree), "-J", "size=16", "-E", "lazy_itable_init=1", "-m", "0", str(root)],
         log)  # fmt: skip
    progress("done", 1)


def _virtual_environment(tree: Path, log: Path, progress: Progress) -> None:
    store = tree / "root/wheels"
    store.mkdir()
    wheels(progress, log, store)
    progress("virtual environment", 0.65)
    chroot = ["chroot", str(tree)]
    _run([*chroot, "python3", "-m", "venv", "--system-site-packages", "/opt/hactl/venv"], log)
    _run([*chroot, "sh", "-c", "/opt/hactl/venv/bin/pip install --quiet --no-index --no-deps /root/wheels/*.whl"], log)
    shutil.rmtree(store)
    script = tree / "opt/hactl/venv/bin/hactl"
    script.write_text("#!/opt/hactl/venv/bin/python\nimport sys\n\nfrom hactl.cli.main import main\n\nsys.exit(main())\n")
    script.chmod(0o755)


def _services(recipe: Recipe, tree: Path) -> None:
    units = tree / "etc/systemd/system"
    for unit in recipe.masked:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    for wants in units.glob("*.*/"):
        for link in wants.iterdir():
            if link.name in recipe.disabled:
                link.unlink()
    generators = tree / "etc/systemd/system-generators"
    generators.mkdir(exist_ok=True)
    for generator in recipe.generators:
        (generators / generator).symlink_to("/dev/null")
    control = tree / "usr/local/lib/lab/control.py"
    control.parent.mkdir(parents=True)
    shutil.copy(GUEST / "control.py", control)
    shutil.copy(GUEST / "lab-control.service", units / "lab-control.service")
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "lab-control.service").symlink_to("../lab-control.service")
    # Empty: systemd makes one at boot, so that no two machines share it, without the questions of a first boot.
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
