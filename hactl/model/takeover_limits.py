"""What of targetcli's targets cannot be taken over. Pure."""

from __future__ import annotations

from hactl.model.check import MAX_VOLUMES
from hactl.model.saveconfig import Store, Target


class SkipError(Exception):
    """A target is left out; ``remark`` is code, message and hint."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        self.remark = code, message, hint


def refuse_target(target: Target) -> None:
    """:class:`SkipError` if it is of a kind that hactl has no equal of."""
    if not target.luns:
        raise SkipError("target-empty", "it has no LUN", "nothing is lost by leaving it out")
    if len(target.luns) > MAX_VOLUMES:
        raise SkipError(
            "too-many-volumes",
            f"it has {len(target.luns)} LUNs; {MAX_VOLUMES} are the most for a resource",
            "spread them over several targets first, or leave it where it is",
        )
    if not target.enabled:
        raise SkipError(
            "target-disabled",
            "it is disabled, and taken over it would be reachable",
            "enable it in targetcli first if it shall be, or remove it",
        )
    if target.demo:
        raise SkipError(
            "target-open",
            "initiators without an ACL may log in (generate_node_acls=1), and hactl serves only hosts "
            "that it knows",
            "create an ACL for each initiator in targetcli, set generate_node_acls=0, and save again",
        )


def refuse_store(what: str, store: Store) -> None:
    """:class:`SkipError` if a storage object cannot become a disk; ``what`` it is, in words."""
    if store.plugin == "fileio" and not store.device.startswith("/dev/"):
        raise SkipError(
            "backstore-unsupported",
            f"{what} is a file in a file system",
            "copy it to a block device with room for DRBD's meta-data besides, and let targetcli use that",
        )
    if store.plugin not in ("block", "fileio"):
        raise SkipError(
            "backstore-unsupported",
            f"{what} is neither a block device nor a file",
            "leave it where it is, or copy its data to a new volume on a host",
        )
    if store.read_only:
        raise SkipError(
            "write-protected",
            f"{what} is read-only, which hactl does not offer",
            "let it be written to, or leave the target where it is",
        )
    if store.block_size != 512:
        raise SkipError(
            "block-size",
            f"{what} has blocks of {store.block_size} bytes, and hactl's units have 512; hosts could not "
            "read what they have written",
            "copy its data to a new volume on a host",
        )
