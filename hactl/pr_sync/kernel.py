"""What PR synchronisation asks of one unit in this node's kernel; kept by ``lio.LioUnit`` and
``memory_kernel.MemoryUnit``."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from hactl.pr_sync.commands import Command
from hactl.pr_sync.state import State

CONFLICTS = "pr-replay-conflict"
"""Code of the failure that says: the kernel answered a replayed command with anything but GOOD."""
OCCUPIED = "pr-replay-occupied"
"""Code of the refusal to remove registrations that may be in use."""


@dataclass(frozen=True)
class Waiting:
    """A PERSISTENT RESERVE OUT of an initiator that the kernel has executed and not answered yet, since its
    write to the APTPL file is held. ``since``: seconds of the agent's clock. ``clears``: it is a CLEAR, which
    LIO writes down in other words than the last registration's end."""

    id: str
    since: float
    clears: bool = False


@dataclass(frozen=True)
class Removal:
    """Registrations of these initiators at this node's port end; the commands ``besides``, which wait, are of
    others.

    LIO waits in a busy loop, with the lock that all I/O to the unit takes, until nobody uses a registration
    that it removes (__core_scsi3_free_registration), and a command that is held uses its sender's."""

    initiators: frozenset[str]
    besides: frozenset[str] = frozenset()


class UnitKernel(Protocol):
    """One unit. What cannot be done raises :class:`hactl.errors.HactlError`."""

    def waiting(self) -> tuple[Waiting, ...]:
        """The commands of initiators that wait for their answer, oldest first; replayed ones are not among
        them."""
        ...

    async def release(self, ids: Collection[str]) -> None:
        """Let the kernel answer these."""
        ...

    async def read(self, known: State) -> State:
        """The state now. PRgeneration is that of the kernel's counter, which goes up for CLEAR, PREEMPT and
        PREEMPT AND ABORT only after the command was let go. ``known`` is what the state was, or is meant to
        be; it tells the port of an ALL_TG_PT registration, which the kernel does not."""
        ...

    async def replay(self, command: Command, removal: Removal | None = None) -> None:
        """Send a command on its nexus; back when it was executed. The nexus is one of another node's port, or
        of this node's while its initiator is cut off.

        ``removal``: it ends registrations at this node's port. Then it is not sent while commands wait that
        may use them; and what begins to wait after it was sent is let go at once, with their initiators cut
        off.

        :class:`hactl.errors.Failed` :data:`CONFLICTS` if the kernel's answer is not GOOD;
        :class:`hactl.errors.Refused` :data:`OCCUPIED`, and nothing was sent, if commands wait.
        """
        ...

    async def count_up(self, times: int) -> None:
        """Raise PRgeneration without any other change that lasts."""
        ...

    def cut(
        self, ids: Collection[str], initiators: frozenset[str] | None
    ) -> AbstractAsyncContextManager[None]:
        """Nothing passes between this node's port and these initiators (None: all of the unit's here) until
        the block ends. Before it begins these commands, which must be theirs, are let go, and what the kernel
        answered is lost."""
        ...

    async def rebuild(self, state: State) -> None:
        """Take the unit away from its initiators, give it this state, PRgeneration included, and offer it
        again. Commands that wait are gone afterwards; no answer to them can have left."""
        ...
