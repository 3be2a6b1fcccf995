"""systemd's units, as far as hactl starts and stops its own."""

from __future__ import annotations

import sys
from importlib.resources import files
from typing import Protocol

from hactl.cluster.layout import CAPTURE_UNIT, ETCD_UNIT, Layout, write
from hactl.errors import Failed, Unknown
from hactl.runner import CommandFailed, CommandTimeout, Completed, Runner

DETACH = (sys.executable, "-m", "hactl.pr_sync.capture", "detach")


class Services(Protocol):
    """Kept by ``Systemd`` and ``memory_services.MemoryServices``. :class:`hactl.errors.Failed`
    ``unit-failed`` and :class:`hactl.errors.Unknown` ``unit-timeout``."""

    async def known(self, unit: str) -> bool:
        """Whether systemd has such a unit."""
        ...

    async def active(self, unit: str) -> bool:
        """Whether it runs, or is about to."""
        ...

    async def start(self, unit: str, *, wait: bool = True) -> None:
        """Start it, now and at each boot; with ``wait`` until it is ready."""
        ...

    async def restart(self, unit: str) -> None:
        """Stop it if it runs, and start it, without waiting until it is ready."""
        ...

    async def stop(self, unit: str) -> None:
        """Stop it, now and for good; one that is not there is no error."""
        ...

    async def end_capture(self) -> str:
        """Stop ``hactl-capture.service`` for good, and take its file system off LIO's directory, on which
        every write would wait otherwise. Why it could not be taken off; empty if it was, or was not there."""
        ...

    async def install(self) -> None:
        """See that systemd knows ``hactl-etcd.service`` as this hactl wants it."""
        ...


class Systemd:
    """Keeps :class:`Services` with systemctl(1)."""

    def __init__(self, runner: Runner, layout: Layout) -> None:
        self._runner = runner
        self._layout = layout

    async def known(self, unit: str) -> bool:
        told = await self._ctl("show", "--property=LoadState", "--value", unit)
        return told.stdout.strip() == "loaded"

    async def active(self, unit: str) -> bool:
        told = await self._ctl("show", "--property=ActiveState", "--value", unit)
        return told.stdout.strip() in ("active", "activating", "reloading")

    async def start(self, unit: str, *, wait: bool = True) -> None:
        await self._ctl("enable", unit)
        await self._ctl("reset-failed", unit, check=False)
        await self._ctl("start", *(() if wait else ("--no-block",)), unit)

    async def restart(self, unit: str) -> None:
        await self._ctl("enable", unit)
        await self._ctl("restart", "--no-block", unit)

    async def stop(self, unit: str) -> None:
        if await self.known(unit):
            await self._ctl("disable", "--now", unit)

    async def end_capture(self) -> str:
        if not await self.known(CAPTURE_UNIT):
            return ""
        await self.stop(CAPTURE_UNIT)
        try:
            await self._runner.run(DETACH, timeout=20)
        except (CommandFailed, CommandTimeout, OSError) as error:
            return str(error)
        return ""

    async def install(self) -> None:
        text = files("hactl.cluster").joinpath(ETCD_UNIT).read_text(encoding="utf-8")
        own = self._layout.units / ETCD_UNIT
        if own.exists():
            if own.read_text(encoding="utf-8") == text:
                return
        elif await self.known(ETCD_UNIT):
            return  # a package brought it
        write(own, text, 0o644)
        await self._ctl("daemon-reload")

    async def _ctl(self, *words: str, check: bool = True) -> Completed:
        try:
            return await self._runner.run(["systemctl", *words], timeout=120, check=check)
        except FileNotFoundError:
            raise Failed("program-missing", "systemctl is not installed", "hactl needs systemd") from None
        except CommandTimeout as error:
            raise Unknown("unit-timeout", str(error), f"see: systemctl status {words[-1]}") from None
        except CommandFailed as error:
            raise Failed(
                "unit-failed",
                f"systemd did not {words[0]} {words[-1]}: {error.completed.stderr.strip()}",
                f"see: systemctl status {words[-1]}; journalctl -u {words[-1]}",
            ) from None
