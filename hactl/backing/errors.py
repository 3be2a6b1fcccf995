"""What can be wrong with a pool or a disk in it, in words; the same for every implementation."""

from __future__ import annotations

from hactl.backing.protocol import BackingDisk
from hactl.errors import Failed, HactlError, Refused
from hactl.model.spec import PoolSpec
from hactl.runner import Completed


def missing(pool: PoolSpec, reason: str, hint: str) -> Refused:
    """The pool is not there."""
    return Refused("pool-missing", f"pool {pool.name}: {reason}", hint)


def unfit(pool: PoolSpec, reason: str, hint: str) -> Refused:
    """The pool is there, and nothing can be created in it."""
    return Refused("pool-unfit", f"pool {pool.name}: {reason}", hint)


def full(disk: BackingDisk, free: int) -> Refused:
    """There is not enough space for a new or a larger disk; ``free``: bytes there are."""
    return Refused(
        "pool-full",
        f"{describe(disk)} needs {disk.size} bytes, and pool {disk.pool.name} has {free} bytes free",
        "enlarge the pool, or use another one",
    )


def absent(disk: BackingDisk) -> Refused:
    """It does not exist, and is not to be created."""
    return Refused(
        "backing-missing",
        f"{describe(disk)} does not exist in pool {disk.pool.name} any more",
        "bring its storage back; if it is lost, replace the replica",
    )


def foreign(disk: BackingDisk, where: str) -> Refused:
    """Something of that name exists, and hactl did not make it, or not in this pool."""
    return Refused(
        "backing-foreign",
        f"{describe(disk)}: {where} exists, and hactl did not make it in pool {disk.pool.name}",
        "if nothing needs it, remove or rename it",
    )


def in_use(disk: BackingDisk, device: str) -> Refused:
    """Something has the device open."""
    return Refused(
        "backing-in-use", f"{describe(disk)}: {device} is in use", "take down what uses it, then try again"
    )


def failed(disk: BackingDisk, completed: Completed) -> Failed:
    """A program did not do what it was asked for."""
    text = " ".join((completed.stderr.strip() or completed.stdout.strip()).split())
    return Failed(
        "backing-failed",
        f"{describe(disk)}: {completed.argv[0]} ended with status {completed.status}: {text}",
        "try the command by hand",
    )


def not_extended(device: str, missing: int, completed: Completed, *, full: bool = False) -> HactlError:
    """A logical volume could not be made larger by ``missing`` bytes; ``full``: its volume group has not as
    many."""
    text = " ".join((completed.stderr.strip() or completed.stdout.strip()).split())
    if full:
        return Refused(
            "extend-no-room",
            f"{device} has to become {missing} bytes larger, and its volume group has not as many: {text}",
            "add a disk to the volume group (vgextend), or remove what is not needed there (lvs)",
        )
    return Failed(
        "backing-failed",
        f"{device}: {completed.argv[0]} ended with status {completed.status}: {text}",
        "try the command by hand",
    )


def describe(disk: BackingDisk) -> str:
    """The disk as messages call it."""
    return f"disk of {disk.resource}, volume {disk.volume}"
