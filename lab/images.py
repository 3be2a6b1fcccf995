"""Builds the machines' images with mmdebstrap and keeps them in a cache outside the repository.

An image is made in two layers. The base holds the packages and takes minutes; the image is a copy of it with
the lab's own files written in, and takes seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lab.builder import WITH_ITS_PARENT, Builder, Progress, side_by_side
from lab.errors import BuildError
from lab.recipe import GUEST_FILES, RECIPES, REQUIREMENTS, Recipe
from lab.scratch import remove, scratch

__all__ = ["CACHE", "BuildError", "Image", "Progress", "ensure", "ensure_all", "runtime"]

CACHE = Path(os.environ.get("HACTL_LAB_CACHE", "/var/cache/hactl-lab"))
ARCHIVES = CACHE / "archives"
"""Debian packages that were downloaded."""
KEEP_DAYS = 14
DISPOSABLE = ("base-", *(f"{name}-" for name in RECIPES), "snapshot-", "kvm-")
NODE_PYTHON = "3.13"
"""Python of Debian 13, for which wheels are fetched."""


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

    @property
    def identity(self) -> str:
        """What tells this build from another one by the same recipe, over which no overlay of this one
        fits."""
        return f"{self.folder.name}@{self.root.stat().st_mtime_ns}"


def _log(name: str) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    log = CACHE / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def runtime(builder: Builder) -> Path:
    """A tree with user-mode Linux and the C library it wants, to be run by chroot.

    Debian's newest first: from 7.2 on its ``seccomp=on`` makes system calls several times faster. The
    release's own is the fall-back.
    """
    with builder.locked(CACHE / "runtime.lock"):
        for suite in ("sid", "trixie"):
            for folder in CACHE.glob(f"runtime-{suite}-*"):
                if folder.is_dir():
                    return folder
        failure: BuildError | None = None
        for suite in ("sid", "trixie"):
            log = _log(f"runtime-{suite}")
            with scratch(CACHE) as place:
                tree = place / "tree"
                try:
                    builder.progress(f"user-mode Linux of Debian {suite}", 0)
                    # A mirror that is not of today has an expired sid; its signature is good all the same.
                    builder.mmdebstrap(
                        ["--variant=extract", "--include=user-mode-linux",
                         '--aptopt=Acquire::Check-Valid-Until "false"', suite, str(tree)],
                        log, ARCHIVES / suite, 0.1,
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


def ensure_all(progress: Progress) -> dict[str, Image]:
    """The images of all recipes, from the cache or built now, side by side."""
    jobs = {name: lambda builder, recipe=recipe: ensure(recipe, builder) for name, recipe in RECIPES.items()}
    return side_by_side(jobs, progress)


def ensure(recipe: Recipe, builder: Builder) -> Image:
    """The image of a recipe, from the cache or built now."""
    extra = runtime(builder).name if recipe.user_mode else ""
    base = CACHE / f"base-{recipe.name}-{recipe.base_digest(extra)}"
    folder = CACHE / f"{recipe.name}-{recipe.digest(extra)}"
    with builder.locked(CACHE / f"{recipe.name}.lock"):
        if folder.exists():
            for used in (folder, base):
                if used.exists():
                    os.utime(used)
            return Image(folder)
        log = _log(folder.name)
        if not base.exists():
            with scratch(CACHE) as place:
                (place / "image").mkdir()
                _build_base(recipe, place / "tree", place / "image", log, builder)
                (place / "image").rename(base)
        with scratch(CACHE) as place:
            (place / "image").mkdir()
            _add_guest_files(base, place / "image", log, builder)
            (place / "image").rename(folder)
        _forget_unused()
    builder.progress("done", 1)
    return Image(folder)


def _forget_unused() -> None:
    """Remove images and snapshots that no lab has been started from for a long time, to make room for new
    ones."""
    limit = time.time() - KEEP_DAYS * 24 * 3600
    for entry in CACHE.iterdir():
        if entry.name.startswith(DISPOSABLE) and entry.stat().st_mtime < limit:
            if entry.is_dir():
                remove(entry)
            else:
                entry.unlink()


def _add_guest_files(base: Path, out: Path, log: Path, builder: Builder) -> None:
    builder.progress("writing the lab's own files", 0.95)
    for name in ("vmlinuz", "initrd"):
        (out / name).hardlink_to(base / name)
    root = out / "root.raw"
    builder.run(
        [*WITH_ITS_PARENT, "cp", "--sparse=always", "--reflink=auto", str(base / root.name), str(root)], log
    )
    script = out / "debugfs"
    commands = []
    for local, inside in GUEST_FILES.items():
        commands += [f"write {local} {inside}"]
        commands += [f"set_inode_field {inside} {field}" for field in ("mode 0100644", "uid 0", "gid 0")]
    script.write_text("\n".join(commands) + "\n")
    builder.run([*WITH_ITS_PARENT, "debugfs", "-w", "-f", str(script), str(root)], log)
    script.unlink()
    for local, inside in GUEST_FILES.items():
        # debugfs ends with status 0 whatever happened.
        shown = subprocess.run(
            ["debugfs", "-R", f"cat {inside}", str(root)], capture_output=True, check=False
        )
        if shown.stdout != local.read_bytes():
            raise BuildError(f"debugfs did not write {inside}; see {log}")


def _build_base(recipe: Recipe, tree: Path, out: Path, log: Path, builder: Builder) -> None:
    # Left out by dpkg itself from the second stage on: mmdebstrap's own filter, which the option of that name
    # turns on, costs a start of Python for every package of the first.
    excluded = " ".join(f"/usr/share/{d}" for d in ("doc", "man", "locale", "info"))
    configure = f'for d in {excluded}; do echo "path-exclude=$d/*"; done > "$1/etc/dpkg/dpkg.cfg.d/lab"'
    clear = f'cd "$1" && for d in {excluded}; do rm -rf ".$d"/*; done'
    options = [
        "--variant=minbase", '--aptopt=Apt::Install-Recommends "false"', "--dpkgopt=force-unsafe-io",
        f"--essential-hook={configure}", f"--customize-hook={clear}",
    ]  # fmt: skip
    include = f"--include={','.join(recipe.packages)}"
    builder.mmdebstrap([*options, include, recipe.suite, str(tree)], log, ARCHIVES / recipe.suite, 0.8)
    if recipe.python:
        _virtual_environment(tree, log, builder)
    builder.progress("settling the file system", 0.85)
    modules = tree / "usr/lib/modules"
    for kernel in modules.iterdir():
        for unwanted in recipe.no_modules:
            shutil.rmtree(kernel / "kernel" / unwanted, ignore_errors=True)
    if recipe.user_mode:
        for kernel in (runtime(builder) / "usr/lib/uml/modules").iterdir():
            shutil.copytree(kernel, modules / kernel.name, symlinks=True)
    _services(recipe, tree)
    boot = tree / "boot"
    shutil.copy(next(boot.glob("vmlinuz-*")), out / "vmlinuz")
    shutil.copy(next(boot.glob("initrd.img-*")), out / "initrd")
    for file in boot.iterdir():
        file.unlink()
    builder.progress("writing the image", 0.9)
    root = out / "root.raw"
    with root.open("w") as sparse:
        sparse.truncate(recipe.size)
    builder.run(
        [*WITH_ITS_PARENT, "mkfs.ext4", "-q", "-F", "-d", str(tree), "-J", "size=16",
         "-E", "lazy_itable_init=1", "-m", "0", str(root)],
        log,
    )  # fmt: skip


def _virtual_environment(tree: Path, log: Path, builder: Builder) -> None:
    """hactl's environment without hactl, of wheels fetched with this machine's own pip and its settings."""
    builder.progress("Python packages for the nodes", 0.8)
    store = tree / "root/wheels"
    store.mkdir()
    builder.run(
        [*WITH_ITS_PARENT, sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes",
         "--no-deps", "--only-binary=:all:", "--python-version", NODE_PYTHON, "--implementation", "cp",
         "--abi", f"cp{NODE_PYTHON.replace('.', '')}", "--abi", "abi3", "--abi", "none",
         "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64",
         "--dest", str(store), "--requirement", str(REQUIREMENTS)],
        log,
    )  # fmt: skip
    chroot = [*WITH_ITS_PARENT, "chroot", str(tree)]
    builder.run([*chroot, "python3", "-m", "venv", "--system-site-packages", "/opt/hactl/venv"], log)
    pip = "/opt/hactl/venv/bin/pip install --quiet --no-index --no-deps /root/wheels/*.whl"
    builder.run([*chroot, "sh", "-c", pip], log)
    shutil.rmtree(store)
    script = tree / "opt/hactl/venv/bin/hactl"
    script.write_text(
        "#!/opt/hactl/venv/bin/python\nimport sys\n\nfrom hactl.cli.main import main\n\nsys.exit(main())\n"
    )
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
    for inside in GUEST_FILES.values():
        (tree / inside).parent.mkdir(parents=True, exist_ok=True)
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "lab-control.service").symlink_to("../lab-control.service")
    # Empty: systemd makes one at boot, so that no two machines share it, without the questions of a first
    # boot.
    (tree / "etc/machine-id").write_text("")
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
