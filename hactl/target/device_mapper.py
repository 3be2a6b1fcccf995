"""The kernel's device-mapper as the gates use it, and the way to it through dmsetup(8)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from hactl.runner import CommandFailed, CommandTimeout, Runner
from hactl.target import dmsetup
from hactl.target.dmsetup import Device


class DmRefusedError(Exception):
    """The kernel, or dmsetup, said no; nothing was changed."""


class DmTimeoutError(Exception):
    """No answer in time. A change that was waiting has been called off, but may have been done just
    before."""


class DeviceMapper(Protocol):
    """Kept by :class:`Dmsetup` and by ``dm_ioctl.DmIoctl``. Raises :class:`DmRefusedError` and
    :class:`DmTimeoutError`."""

    async def devices(self, names: Iterable[str] = ()) -> dict[str, Device]:
        """The named devices that exist, or all, by name."""
        ...

    async def create(self, name: str, uuid: str, table: str) -> None: ...

    async def remove(self, name: str) -> None: ...

    async def load(self, name: str, table: str) -> None:
        """Put a table into the inactive slot."""
        ...

    async def clear(self, name: str) -> None:
        """Empty the inactive slot."""
        ...

    async def suspend(self, name: str, seconds: float, *, waits: bool) -> None:
        """Wait for I/O in flight, at most ``seconds``, and queue what comes after. ``waits`` False: the
        caller knows that none is in flight on any device that could be slow."""
        ...

    async def resume(self, name: str, seconds: float, *, waits: bool) -> None:
        """Make the inactive table the live one, if there is one, which waits as ``suspend`` does; then let
        I/O run."""
        ...


class Dmsetup:
    """Every call is a program, which can be killed: the kernel then undoes a wait for I/O in flight."""

    def __init__(self, runner: Runner, *, seconds: float = 10.0) -> None:
        """``seconds`` bounds every call that does not wait for I/O."""
        self._runner = runner
        self._seconds = seconds

    async def devices(self, names: Iterable[str] = ()) -> dict[str, Device]:
        names = tuple(names)
        try:
            return await self._list(names)
        except DmRefusedError:
            if not names:
                raise
            # One of them does not exist, and dmsetup does not say which.
            found = await self._list(())
            return {name: found[name] for name in names if name in found}

    async def _list(self, names: tuple[str, ...]) -> dict[str, Device]:
        table, info = await asyncio.gather(
            self._run(dmsetup.table_argv(names), self._seconds),
            self._run(dmsetup.info_argv(names), self._seconds),
        )
        return dmsetup.parse(table, info)

    async def create(self, name: str, uuid: str, table: str) -> None:
        await self._run(dmsetup.create_argv(name, uuid, table), self._seconds)

    async def remove(self, name: str) -> None:
        await self._run(dmsetup.remove_argv(name), self._seconds)

    async def load(self, name: str, table: str) -> None:
        await self._run(dmsetup.load_argv(name, table), self._seconds)

    async def clear(self, name: str) -> None:
        await self._run(dmsetup.clear_argv(name), self._seconds)

    async def suspend(self, name: str, seconds: float, *, waits: bool) -> None:  # noqa: ARG002 - can always wait
        await self._run(dmsetup.suspend_argv(name), seconds)

    async def resume(self, name: str, seconds: float, *, waits: bool) -> None:  # noqa: ARG002 - can always wait
        await self._run(dmsetup.resume_argv(name), seconds)

    async def _run(self, argv: list[str], seconds: float) -> str:
        try:
            return (await self._runner.run(argv, timeout=seconds)).stdout
        except CommandFailed as error:
            raise DmRefusedError(str(error)) from None
        except CommandTimeout as error:
            raise DmTimeoutError(str(error)) from None
