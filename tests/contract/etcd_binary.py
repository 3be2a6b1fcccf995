"""Debian's etcd server for tests: the one that is installed, or its package unpacked into a cache folder,
which starts no service."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("HACTL_TEST_CACHE", "/var/cache/hactl-tests"))
PACKAGE = "etcd-server"


def etcd_binary() -> Path:
    """Path of ``etcd``, fetched if need be."""
    installed = shutil.which("etcd")
    if installed:
        return Path(installed)
    CACHE.mkdir(parents=True, exist_ok=True)
    place = CACHE / PACKAGE
    binary = place / "usr/bin/etcd"
    with (CACHE / f"{PACKAGE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _unpack(place)
    return binary


def _unpack(place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        download = ["apt-get", "download", "-q", PACKAGE]
        if subprocess.run(download, cwd=scratch, capture_output=True, check=False).returncode:
            # A machine that has never asked for the list of packages.
            _run(["apt-get", "update", "-q"], scratch)
            _run(download, scratch)
        (package,) = Path(scratch).glob("*.deb")
        _run(["dpkg-deb", "-x", str(package), f"{scratch}/tree"], scratch)
        shutil.rmtree(place, ignore_errors=True)
        (Path(scratch) / "tree").rename(place)


def _run(argv: list[str], folder: str) -> None:
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip()}")
