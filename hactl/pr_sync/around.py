"""What keeping the reservations of one resource works with: its units, LIO's tree of it, and the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from hactl.agents.clock import Clock
from hactl.pr_sync.capture.protocol import Held
from hactl.pr_sync.kept import Kept
from hactl.pr_sync.kernel import UnitKernel
from hactl.pr_sync.log import PrLog
from hactl.pr_sync.sync import UnitSync
from hactl.pr_sync.units import Unit

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Kernel(UnitKernel, Protocol):
    """A unit as the service has it."""

    unit: Unit
    opened: bool

    def arrived(self, held: Held) -> None: ...

    async def count_up(self, times: int) -> None: ...

    async def shut(self) -> None: ...


class Node(Protocol):
    """What the service asks of the agent."""

    async def attend_to(self, resource: str) -> None:
        """Bring the resource's part of LIO's tree to what :attr:`ResourceKeeping.tree` says now."""
        ...

    async def claim_directory(self) -> None:
        """Before anything is exported: :meth:`hactl.pr_sync.capture.place.Place.claim`."""
        ...

    async def check_directory(self) -> None:
        """Once something is exported: :meth:`hactl.pr_sync.capture.place.Place.check`."""
        ...

    def exported(self, resource: str) -> bool:
        """Whether LIO's tree has the resource's target."""
        ...

    async def shut_port(self, resource: str) -> None:
        """Disable this node's own portal group, at once: it takes no logins, and has no sessions."""
        ...

    def serving(self, resource: str) -> bool:
        """Whether this node's own portal group of it takes logins."""
        ...

    def withdrawn(self, resource: str) -> bool:
        """Whether it is stopped here: its port stays shut, and nobody waits for this node."""
        ...

    async def close_doors(self, resource: str) -> None:
        """Disable the other nodes' portal groups, which an agent that was killed may have left enabled."""
        ...


@dataclass
class Tree:
    """What LIO's tree of a resource shall be; see :class:`hactl.target.tree.PrTree`. ``absent``: it is taken
    down, to be made anew."""

    open: bool = False
    absent: bool = False
    imports: dict[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class KeptUnit:
    """A unit, its kernel's side, and what keeps it in step."""

    unit: Unit
    kernel: Kernel
    sync: UnitSync
    task: asyncio.Task[None] | None = None

    def change(self, unit: Unit) -> None:
        """Its ports or hosts have changed."""
        self.unit = self.sync.unit = self.kernel.unit = unit
        self.sync.poke()


@dataclass(frozen=True)
class Around:
    """What the resources of a node share. ``spawn`` starts a task that ends with the service."""

    node: str
    log: PrLog
    agent: Node
    kept: Kept
    clock: Clock
    spawn: Spawn
