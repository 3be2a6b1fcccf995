"""Which kind of machine works here, found out by trying."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from pathlib import Path

from lab.errors import LabError
from lab.images import CACHE, Image
from lab.layout import Kind


def kvm_works(image: Image) -> bool:
    """Whether QEMU boots a real kernel under KVM.

    A /dev/kvm that opens is no proof, nor is firmware that runs: some hosts offer a KVM that gives up inside
    the kernel. So a kernel without a root file system is booted until it panics. The answer is kept until the
    host boots.
    """
    if not Path("/dev/kvm").exists() or platform.machine() != "x86_64":
        return False
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    known = CACHE / f"kvm-{boot}-{image.folder.name}"
    with contextlib.suppress(OSError):
        return known.read_text() == "works"
    command = [
        "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-display", "none",
        "-no-reboot", "-serial", "stdio", "-kernel", str(image.kernel), "-append", "console=ttyS0 panic=-1",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=15, check=False)
        works = b"Kernel panic" in done.stdout
    except (OSError, subprocess.TimeoutExpired):
        works = False
    known.write_text("works" if works else "fails")
    return works


def choose(wanted: str, image: Image) -> dict[str, Kind]:
    """Kind of machine for each image. ``wanted`` is ``auto`` or ``qemu``."""
    if wanted not in ("auto", "qemu"):
        raise LabError(f"unknown kind of machines {wanted!r}: auto or qemu")
    if kvm_works(image):
        return {"node": Kind.KVM, "client": Kind.KVM}
    # User-mode Linux has no scsi_dh_alua, which the client's multipath needs.
    return {"node": Kind.UML if wanted == "auto" else Kind.TCG, "client": Kind.TCG}
