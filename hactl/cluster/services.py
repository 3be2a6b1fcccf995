"""systemd's units, as far as hactl starts and stops its own."""

from __future__ import annotations

import sys
from enum import Enum
from importlib.resources import files
from typing import Protocol

from hactl.cluster.etcd_alone import EtcdAlone
from hactl.cluster.layout import CAPTURE_UNIT, ETCD_UNIT, Layout, write
from hactl.errors import Failed, Unknown
from hactl.runner import CommandFailed, CommandTimeout, Completed, Runner

_ACTIVE = ("active", "activating", "reloading")
SECONDS = 120.0
"""For systemd to start or stop a unit."""
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

    async def stop(self, unit: str, *, seconds: float = SECONDS) -> None:
        """Stop it, now and for good, within so many seconds; one that is not there is no error."""
        ...

    async def end_capture(self) -> str:
        """Stop ``hactl-capture.service`` for good, and take its file system off LIO's directory, on which
        every write would wait otherwise. Why it could not be taken off; empty if it was, or was not there."""
        ...

    async def standing(self, *units: str) -> dict[str, Standing]:
        """How each of several units is, by name."""
        ...

    async def revive(self, unit: str) -> None:
        """Start it, without waiting, and leave alone whether it is enabled."""
        ...

    async def start_alone(self) -> None:
        """Start etcd apart from its unit, which does not run, as a cluster of this node alone; return at
        once. It ends with this process. :mod:`hactl.cluster.etcd_alone`."""
        ...

    async def stop_alone(self) -> None:
        """End that one; none there is no error."""
        ...

    async def install(self) -> None:
        """See that systemd knows ``hactl-etcd.service`` as this hactl wants it."""
        ...


_PROPERTIES = ("ActiveState", "ActiveEnterTimestampMonotonic")


class Standing(Enum):
    """How a unit is."""

    ACTIVE = "active"
    """It runs, or is about to."""
    FALLEN = "fallen"
    """It should run and does not: it is enabled, and has failed or was not started since the machine was."""
    STOPPED = "stopped"
    """It does not run, as somebody wants it, or as it is not enabled."""


def _pairs(properties: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in properties.splitlines() if "=" in line)


def standing(properties: str) -> Standing:
    """How a unit that is enabled is by its properties, one ``NAME=VALUE`` on a line."""
    state = _pairs(properties)
    active = state.get("ActiveState")
    if active in _ACTIVE:
        return Standing.ACTIVE
    # Stopped by somebody, it was active before; what a crash or a boot left has failed, or never was.
    began = state.get("ActiveEnterTimestampMonotonic", "0") != "0"
    fallen = active == "failed" or (active == "inactive" and not began)
    return Standing.FALLEN if fallen else Standing.STOPPED


class Systemd:
    """Keeps :class:`Services` with systemctl(1)."""

    def __init__(self, runner: Runner, layout: Layout) -> None:
        self._runner = runner
        self._layout = layout
        self._alone = EtcdAlone(layout)

    async def known(self, unit: str) -> bool:
        told = await self._ctl("show", "--property=LoadState", "--value", unit)
        return told.stdout.strip() == "loaded"

    async def active(self, unit: str) -> bool:
        told = await self._ctl("show", "--property=ActiveState", "--value", unit)
        return told.stdout.strip() in _ACTIVE

    async def start(self, unit: str, *, wait: bool = True) -> None:
        await self._enable(unit)
        await self._ctl("reset-failed", unit, check=False)
        await self._ctl("start", *(() if wait else ("--no-block",)), unit)

    async def restart(self, unit: str) -> None:
        await self._enable(unit)
        await self._ctl("restart", "--no-block", unit)

    async def _enable(self, unit: str) -> None:
        if await self._file_state(unit) != "enabled":
            # Only the next boot has to know, and to reload all units takes longer than starting one.
            await self._ctl("enable", "--no-reload", unit)

    async def _file_state(self, unit: str) -> str:
        # Not the property UnitFileState: that is remembered from the last reload.
        return (await self._ctl("is-enabled", unit, check=False)).stdout.strip()

    async def stop(self, unit: str, *, seconds: float = SECONDS) -> None:
        state = _pairs((await self._ctl("show", "--property=LoadState,ActiveState", unit)).stdout)
        if state["LoadState"] != "loaded":
            return
        rests = state["ActiveState"] in ("inactive", "failed")
        if not rests or await self._file_state(unit) != "disabled":
            await self._ctl("disable", "--now", unit, seconds=seconds)

    async def standing(self, *units: str) -> dict[str, Standing]:
        told = await self._ctl("show", f"--property={','.join(_PROPERTIES)}", *units)
        found = {}
        for unit, block in zip(units, told.stdout.strip().split("\n\n"), strict=True):
            found[unit] = standing(block)
            if found[unit] is Standing.FALLEN and await self._file_state(unit) != "enabled":
                found[unit] = Standing.STOPPED
        return found

    async def revive(self, unit: str) -> None:
        # Not "enable": it changes files, which the agent may not.
        await self._ctl("reset-failed", unit, check=False)
        await self._ctl("start", "--no-block", unit)

    async def end_capture(self) -> str:
        if not await self.known(CAPTURE_UNIT):
            return ""
        await self.stop(CAPTURE_UNIT)
        try:
            await self._runner.run(DETACH, timeout=20)
        except (CommandFailed, CommandTimeout, OSError) as error:
            return str(error)
        return ""

    async def start_alone(self) -> None:
        await self._alone.start()

    async def stop_alone(self) -> None:
        await self._alone.stop()

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

    async def _ctl(self, *words: str, check: bool = True, seconds: float = SECONDS) -> Completed:
        try:
            return await self._runner.run(["systemctl", *words], timeout=seconds, check=check)
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
