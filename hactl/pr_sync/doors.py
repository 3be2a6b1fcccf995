"""Sessions on the nexuses of other nodes' ports: the shadow portal groups, opened while they are needed.

SendTargets shows a portal group that is enabled, so a shadow is enabled for as short a time as possible, and
a little longer, since commands come in groups.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from pydantic import SecretStr

from hactl.errors import HactlError
from hactl.pr_sync.initiator.chap import Credentials
from hactl.pr_sync.initiator.connect import log_in
from hactl.pr_sync.initiator.session import Session
from hactl.target.tree import DOOR_PORT, DOOR_USER, door

LINGER = 0.5
"""Seconds for which a door stays open after it was used."""

_RX = "iscsi_trx"
"""Name of LIO's kernel thread that receives on a connection, and that carries PERSISTENT RESERVE OUT out."""

_FUSE = "fuse"
"""In the names of the functions that a thread is in while it waits for a file system in user space."""

Switch = Callable[[str, int, bool], Awaitable[None]]
"""Enables or disables a portal group: target, tag."""


class Doors:
    """Of all targets of this node. ``secret`` is the CHAP password of the agent's own sessions."""

    def __init__(self, switch: Switch, secret: SecretStr, proc: Path = Path("/proc")) -> None:
        self._switch = switch
        self._secret = secret
        self._proc = proc
        self._users: Counter[tuple[str, int]] = Counter()
        self._open: set[tuple[str, int]] = set()
        self._locks: dict[tuple[str, int], asyncio.Lock] = {}
        self._closing: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._logins = asyncio.Lock()

    @property
    def secret(self) -> SecretStr:
        return self._secret

    @contextlib.asynccontextmanager
    async def opened(self, target: str, tag: int) -> AsyncIterator[None]:
        """A shadow takes logins meanwhile."""
        key = (target, tag)
        self._users[key] += 1
        try:
            async with self._locks.setdefault(key, asyncio.Lock()):
                if key not in self._open:
                    await self._switch(target, tag, True)
                    self._open.add(key)
            yield
        finally:
            self._users[key] -= 1
            if not self._users[key] and key not in self._closing:
                self._closing[key] = asyncio.create_task(self._close(key))

    async def _close(self, key: tuple[str, int]) -> None:
        try:
            await asyncio.sleep(LINGER)
            async with self._locks[key]:
                if not self._users[key] and key in self._open:
                    self._open.discard(key)
                    with contextlib.suppress(HactlError):
                        # If the target is gone, so is the door.
                        await self._switch(*key, False)
        finally:
            del self._closing[key]
            if self._users[key] == 0 and key in self._open:
                self._closing[key] = asyncio.create_task(self._close(key))

    async def log_in(
        self, target: str, tag: int, initiator: str, isid: str, portal: str | None = None
    ) -> tuple[Session, int]:
        """A session, at the door of ``tag`` or at another portal of that group, with this agent's own
        password; and the number of the kernel thread that serves it, 0 if that cannot be told since somebody
        else came in at the same moment.

        While this runs, no other session of this agent begins."""
        chap = Credentials(DOOR_USER, self._secret.get_secret_value())
        where = portal or f"{door(tag)}:{DOOR_PORT}"
        return await self.log_in_as(target, tag, initiator, isid, where, chap)

    async def log_in_as(
        self, target: str, tag: int, initiator: str, isid: str, portal: str, chap: Credentials | None
    ) -> tuple[Session, int]:
        """The same with what the initiator itself proves itself with."""
        async with self._logins:
            before = await asyncio.to_thread(self.threads)
            session = await log_in(
                portal, target, initiator, isid, chap=chap, portal_group=tag, digests=("None",)
            )
            new = await asyncio.to_thread(self.threads) - before
        return session, new.pop() if len(new) == 1 else 0

    def threads(self) -> set[int]:
        """LIO's threads that receive on connections."""
        found = set()
        for entry in self._proc.iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if (entry / "comm").read_text().strip() == _RX:
                        found.add(int(entry.name))
        return found

    def idle(self, thread: int) -> bool:
        """Whether it waits for its connection, or has ended."""
        try:
            state = (self._proc / str(thread) / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state != "R" and not self.held(thread)

    def held(self, thread: int) -> bool:
        """Whether it waits for the capture to take a write, or to answer it (proc_pid_stack(5))."""
        try:
            return _FUSE in (self._proc / str(thread) / "stack").read_text()
        except OSError:
            return False

    async def close(self) -> None:
        """Close all, at once."""
        for task in [*self._closing.values()]:
            task.cancel()
        await asyncio.gather(*self._closing.values(), return_exceptions=True)
        for key in [*self._open]:
            self._open.discard(key)
            with contextlib.suppress(HactlError):
                await self._switch(*key, False)
