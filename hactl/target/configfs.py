"""Access to LIO's configfs tree, and nothing else: no knowledge of what the tree should hold.

Paths are relative to ``/sys/kernel/config/target``. Beside the tree lies a small ledger of the targets that
hactl has made or taken over; it lives under ``/run``, exactly as long as configfs itself, so that a target
that was half-made when hactl was killed is still known to be hactl's.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from hactl.errors import Failed, Refused
from hactl.runner import CommandFailed, CommandTimeout, Runner

ROOT = Path("/sys/kernel/config/target")
LEDGER = Path("/run/hactl/targets")
MODULES = ("target_core_mod", "iscsi_target_mod", "target_core_iblock", "target_core_file")


class ConfigFs(Protocol):
    """LIO's tree. What the kernel refuses raises :class:`hactl.errors.Failed` with code ``configfs-<errno>``
    (``configfs-einval``, ``configfs-ebusy`` ...); nothing was changed then."""

    def read(self, path: str) -> str:
        """Value of an attribute, without the newline at its end."""
        ...

    def write(self, path: str, value: str) -> None:
        """Give an attribute a value, in one system call. An empty value is refused: it never reaches the
        kernel."""
        ...

    def mkdir(self, path: str) -> None:
        """Make one object; the kernel adds its attributes and default children."""
        ...

    def rmdir(self, path: str) -> None:
        """Remove one object that has no children of its own and that nothing links to."""
        ...

    def symlink(self, source: str, link: str) -> None:
        """Make ``link`` point to the object ``source``."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a link."""
        ...

    def listdir(self, path: str) -> list[str]:
        """Names of attributes, children and links, sorted."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is an attribute, an object or a link of that name."""
        ...

    def readlink(self, path: str) -> str:
        """Path, relative to the root, of the object that a link points to."""
        ...

    def links(self, path: str) -> dict[str, str]:
        """The links in an object, each with the path it points to."""
        ...

    def claims(self) -> frozenset[str]:
        """Names of the targets in the ledger."""
        ...

    def claim(self, iqn: str) -> None:
        """Add a target to the ledger; already there is no error."""
        ...

    def release(self, iqn: str) -> None:
        """Remove a target from the ledger; not there is no error."""
        ...


def shown(path: str, value: str) -> str:
    """A value as error texts and logs may show it: nothing that lies in an ``auth`` folder."""
    return "(hidden)" if any(part in ("auth", "discovery_auth") for part in path.split("/")) else repr(value)


def refusal(action: str, path: str, error: OSError, value: str | None = None) -> Failed:
    """What the kernel answered, as an error: action, path, attempted value and errno."""
    name = errno.errorcode.get(error.errno or 0, "unknown")
    what = f"{action} {path}" if value is None else f"{action} {shown(path, value)} to {path}"
    return Failed(
        f"configfs-{name.lower()}",
        f"{what}: {os.strerror(error.errno or 0)} ({name})",
        "the kernel log (dmesg) usually says why",
    )


class RealConfigFs:
    """The kernel's tree below ``root`` and the ledger in the folder ``ledger``."""

    def __init__(self, root: Path = ROOT, ledger: Path = LEDGER) -> None:
        self._root = root
        self._ledger = ledger

    def read(self, path: str) -> str:
        try:
            return (self._root / path).read_text().removesuffix("\n")
        except OSError as error:
            raise refusal("read", path, error) from None

    def write(self, path: str, value: str) -> None:
        if not value:
            raise Refused("configfs-empty", f"an empty value cannot be written to {path}")
        data = value.encode()
        try:
            # Neither created nor truncated: an attribute that this kernel lacks shall fail, not appear.
            descriptor = os.open(self._root / path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise refusal("write", path, error, value) from None
        if written != len(data):
            raise Failed("configfs-short", f"the kernel took only {written} of {len(data)} bytes of {path}")

    def mkdir(self, path: str) -> None:
        try:
            (self._root / path).mkdir()
        except OSError as error:
            raise refusal("make", path, error) from None

    def rmdir(self, path: str) -> None:
        try:
            (self._root / path).rmdir()
        except OSError as error:
            raise refusal("remove", path, error) from None

    def symlink(self, source: str, link: str) -> None:
        try:
            (self._root / link).symlink_to(self._root / source)
        except OSError as error:
            raise refusal(f"link {source} into", link, error) from None

    def unlink(self, path: str) -> None:
        try:
            (self._root / path).unlink()
        except OSError as error:
            raise refusal("unlink", path, error) from None

    def listdir(self, path: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self._root / path).iterdir())
        except OSError as error:
            raise refusal("list", path, error) from None

    def exists(self, path: str) -> bool:
        return os.path.lexists(self._root / path)

    def readlink(self, path: str) -> str:
        try:
            found = (self._root / path).readlink()
        except OSError as error:
            raise refusal("read link", path, error) from None
        # configfs answers with a path relative to the link ("../../../../target/core/..."), counted from its
        # own mount point, so it is resolved by text.
        whole = os.path.normpath((self._root / path).parent / found)
        return os.path.relpath(whole, self._root)

    def links(self, path: str) -> dict[str, str]:
        try:
            with os.scandir(self._root / path) as entries:
                names = sorted(entry.name for entry in entries if entry.is_symlink())
        except OSError as error:
            raise refusal("list", path, error) from None
        return {name: self.readlink(f"{path}/{name}") for name in names}

    def claims(self) -> frozenset[str]:
        try:
            return frozenset(entry.name for entry in self._ledger.iterdir())
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise refusal("list", str(self._ledger), error) from None

    def claim(self, iqn: str) -> None:
        try:
            self._ledger.mkdir(parents=True, exist_ok=True)
            (self._ledger / iqn).touch()
        except OSError as error:
            raise refusal("make", str(self._ledger / iqn), error) from None

    def release(self, iqn: str) -> None:
        try:
            (self._ledger / iqn).unlink(missing_ok=True)
        except OSError as error:
            raise refusal("remove", str(self._ledger / iqn), error) from None


async def load(runner: Runner, fs: ConfigFs) -> None:
    """Load the kernel modules that hactl uses and make the iSCSI fabric; both there already is no error.

    Raises :class:`Refused` if this kernel has no such modules.
    """
    try:
        await runner.run(["modprobe", "--all", *MODULES], timeout=30)
    except (CommandFailed, CommandTimeout) as error:
        raise Refused(
            "lio-missing",
            f"LIO's modules cannot be loaded: {error}",
            "install a kernel with CONFIG_TARGET_CORE, CONFIG_ISCSI_TARGET and CONFIG_TCM_IBLOCK",
        ) from None
    if not fs.exists("core"):
        raise Refused(
            "lio-missing", "LIO's configfs tree is not there", "mount configfs on /sys/kernel/config"
        )
    if not fs.exists("iscsi"):
        fs.mkdir("iscsi")
