"""Looks at block devices with lsblk, wipefs (which only lists here) and drbdsetup; changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hactl.errors import Failed, Unknown
from hactl.model.preflight import BlockDevice, Signature
from hactl.runner import CommandFailed, CommandTimeout, Completed, Runner
from hactl.thread import in_thread

COLUMNS = "PATH,TYPE,SIZE,RO,MOUNTPOINTS"

BACKSTORES = Path("/sys/kernel/config/target/core")
"""LIO's backstores, a folder ``PLUGIN_NUMBER/NAME`` for each."""

_OPEN = 30.0
"""Seconds until a disk that cannot be opened is given up."""
_NO_DRBD = re.compile(r"could not connect to 'drbd' generic netlink family", re.IGNORECASE)
_FILE = re.compile(r"\bFile: (\S+)")
_SHOW = {
    "resource": re.compile(r'^resource\s+"?([^"\s{]+)"?\s*\{'),
    "volume": re.compile(r"^\s*volume\s+(\d+)\s*\{"),
    "disk": re.compile(r'^\s*disk\s+"([^"]+)"'),
    "remote": re.compile(r"^\s*(_remote_host|connection|net|_peer_node_id)\b"),
}


class BlockDevices(Protocol):
    """A node's block devices; kept by ``LsblkDevices`` and ``memory_blockdev.MemoryDevices``."""

    async def observe(self, paths: Iterable[str]) -> dict[str, BlockDevice]:
        """Each path as it is now, by path; one that does not exist has ``exists`` False. :class:`Failed` if
        something cannot be looked at, :class:`Unknown` on a time-out."""
        ...


class LsblkDevices:
    """Observes the machine it runs on."""

    def __init__(
        self,
        runner: Runner,
        *,
        real_path: Callable[[str], str] | None = None,
        free: Callable[[str], bool] | None = None,
        backstores: Path = BACKSTORES,
    ) -> None:
        """``real_path`` resolves symbolic links such as those in /dev/disk/by-id, ``free`` says that nothing
        has claimed a path; both given in tests only."""
        self._backstores = backstores
        self._runner = runner
        self._real_path = real_path or (lambda path: str(Path(path).resolve()))
        self._free = free or unclaimed

    async def observe(self, paths: Iterable[str]) -> dict[str, BlockDevice]:
        asked = tuple(dict.fromkeys(paths))
        attached: dict[str, tuple[str, int]] = {}
        # DRBD lists its disks only all at once, and claims what it attaches.
        taken = await self._taken(asked)
        if taken:
            attached = {self._real_path(disk): owner for disk, owner in (await self._attached()).items()}
        # A file's backstore does not claim the device that it is given.
        plugins = ("fileio",) if not taken else ("fileio", "iblock")
        exported = await in_thread(lambda: self._exported(plugins))
        found = {path: await self._one(path, attached) for path in asked}
        return {
            path: replace(
                device,
                exported_by=exported.get(self._real_path(path)),
                claimed=path in taken and device.in_use_by is None,
            )
            if device.is_block
            else device
            for path, device in found.items()
        }

    def _exported(self, plugins: Collection[str]) -> dict[str, str]:
        """Backstores as targetcli calls them, by the real path of what they export."""
        found: dict[str, str] = {}
        for plugin in plugins:
            for backstore in self._backstores.glob(f"{plugin}_*/*"):
                device = _exports(backstore)
                if device is not None:
                    shown = "block" if plugin == "iblock" else plugin
                    found[self._real_path(device)] = f"{shown}/{backstore.name}"
        return found

    async def _taken(self, paths: tuple[str, ...]) -> frozenset[str]:
        """Those that something has claimed, or that cannot be opened."""
        try:
            async with asyncio.timeout(_OPEN):
                return await in_thread(lambda: frozenset(path for path in paths if not self._free(path)))
        except TimeoutError:
            raise Unknown(
                "disk-timeout",
                f"{', '.join(paths)}: not opened within {_OPEN:g} s",
                "a disk that does not answer: see dmesg",
            ) from None

    async def _one(self, path: str, attached: dict[str, tuple[str, int]]) -> BlockDevice:
        listed = await self._run("lsblk", "--json", "--bytes", "--output", COLUMNS, "--", path, ok=(0, 32))
        tops = _json(listed).get("blockdevices", [])
        if not tops:
            return await self._no_block_device(path)
        top = tops[0]
        above = list(_descendants(top))
        mounted = [m for device in (top, *above) for m in device.get("mountpoints") or [] if m]
        return BlockDevice(
            path=path,
            size=int(top["size"]),
            read_only=top["ro"] in (True, "1", 1),
            holders=tuple(dict.fromkeys(f"{d['path']} ({d['type']})" for d in above)),
            mountpoints=tuple(dict.fromkeys(mounted)),
            signatures=await self._signatures(path),
            in_use_by=attached.get(self._real_path(path)),
            kind=str(top.get("type") or ""),
        )

    async def _no_block_device(self, path: str) -> BlockDevice:
        # lsblk says "not a block device" of what does not exist, too.
        found = await self._run("stat", "--dereference", "--format", "%F", "--", path, ok=(0, 1))
        return BlockDevice(path=path, exists=found.status == 0, is_block=False)

    async def _signatures(self, path: str) -> tuple[Signature, ...]:
        """All of them: blkid stops at the first, and names none at all where two contradict each other."""
        listed = await self._run("wipefs", "--json", "--output", "DEVICE,TYPE,USAGE,LABEL", "--", path)
        if not listed.stdout.strip():
            return ()
        found = (
            Signature(s["type"], s.get("usage") or "other", s.get("label") or "")
            for s in _json(listed).get("signatures", [])
        )
        return tuple(dict.fromkeys(found))

    async def _attached(self) -> dict[str, tuple[str, int]]:
        """Disks that DRBD has attached. DRBD leaves no trace of it in /sys/block/*/holders."""
        try:
            shown = await self._run("drbdsetup", "show", ok=(0, 10, 20))
        except Failed as error:
            if error.code == "program-missing":
                return {}
            raise
        if shown.status != 0:
            if _NO_DRBD.search(shown.stderr + shown.stdout):
                return {}
            raise _failed(shown, "drbdsetup show failed")
        return attached(shown.stdout)

    async def _run(self, *argv: str, ok: tuple[int, ...] = (0,)) -> Completed:
        try:
            completed = await self._runner.run(argv, check=False)
        except FileNotFoundError:
            raise Failed("program-missing", f"there is no program {argv[0]}", f"install {argv[0]}") from None
        except CommandTimeout as error:
            raise Unknown("disk-timeout", str(error), "a disk that does not answer: see dmesg") from error
        if completed.status not in ok:
            raise _failed(completed, f"{argv[0]} failed")
        return completed


def _exports(backstore: Path) -> str | None:
    """Path of what a backstore exports, by what whoever made it has noted (``udev_path``), or else by the
    kernel's word; None where there is neither, as for what is gone meanwhile."""
    with contextlib.suppress(OSError):
        if noted := (backstore / "udev_path").read_text().strip():
            return noted
        if told := _FILE.search((backstore / "info").read_text()):
            return told[1]
    return None


def unclaimed(path: str) -> bool:
    """Whether a block device could be opened exclusively (open(2), ``O_EXCL``), so that no file system, DRBD
    or device above has it; False if it could not be opened at all, for whatever reason."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def attached(shown: str) -> dict[str, tuple[str, int]]:
    """Backing disks in the output of ``drbdsetup show``: resource and volume by disk (drbdsetup(8))."""
    found: dict[str, tuple[str, int]] = {}
    resource, volume = "", -1
    for line in shown.splitlines():
        if match := _SHOW["resource"].match(line):
            resource, volume = match[1], -1
        elif _SHOW["remote"].match(line):
            volume = -1
        elif match := _SHOW["volume"].match(line):
            volume = int(match[1])
        elif (match := _SHOW["disk"].match(line)) and resource and volume >= 0:
            found[match[1]] = (resource, volume)
    return found


def _descendants(device: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for child in device.get("children", []):
        yield child
        yield from _descendants(child)


def _json(completed: Completed) -> dict[str, Any]:
    try:
        value = json.loads(completed.stdout)
    except ValueError:
        raise _failed(completed, f"{completed.argv[0]} did not answer in JSON") from None
    if not isinstance(value, dict):
        raise _failed(completed, f"{completed.argv[0]} answered with something else than an object")
    return value


def _failed(completed: Completed, what: str) -> Failed:
    return Failed(
        "disk-unreadable", f"{what}: {CommandFailed(completed)}", "see dmesg, and try the command by hand"
    )
