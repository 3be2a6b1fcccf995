"""What hactl asks of Pacemaker on this node, and what it hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Member:
    """A node as Pacemaker sees it (crm_mon(8)). ``clean``: if it is not ``online``, what it ran is known to
    have ended, by its own word or by fencing."""

    name: str
    online: bool
    clean: bool
    standby: bool = False
    maintenance: bool = False
    pending: bool = False


@dataclass(frozen=True)
class Instance:
    """A primitive on a node. ``role``: ``Started``, ``Stopped``, ``Promoted``, ``Unpromoted`` or a transient
    one."""

    primitive: str
    node: str | None
    role: str
    failed: bool = False
    blocked: bool = False
    managed: bool = True


@dataclass(frozen=True)
class Fencing:
    """One action of the fencing history (stonith_admin(8) ``--history``). ``state``: ``success``, ``failed``
    or ``pending``; ``delegate``: the node that did it; ``completed``: seconds since 1970, None while
    pending."""

    target: str
    action: str
    state: str
    delegate: str | None = None
    completed: float | None = None


@dataclass(frozen=True)
class State:
    """Pacemaker's view of the cluster at one moment. ``dc``: the designated controller's node, if there is
    one."""

    dc: str | None
    quorum: bool
    members: tuple[Member, ...] = ()
    instances: tuple[Instance, ...] = ()
    fencing: tuple[Fencing, ...] = ()
    failures: tuple[str, ...] = ()
    maintenance: bool = False
    stonith_enabled: bool = True

    def member(self, name: str) -> Member | None:
        """The node of that name, if Pacemaker knows it."""
        return next((m for m in self.members if m.name == name), None)

    def gone(self, name: str) -> bool:
        """Whether that node certainly runs nothing: fenced, or left in good order. Never without fencing:
        Pacemaker then takes a node that is only lost for one that is off."""
        member = self.member(name)
        if member is None or not self.stonith_enabled:
            return False
        return not member.online and member.clean and not member.pending

    def promoted(self, primitive: str) -> str | None:
        """The node where the primitive is promoted."""
        found = (i.node for i in self.instances if i.primitive == primitive and i.role == "Promoted")
        return next(found, None)


@dataclass(frozen=True)
class Change:
    """A change of the configuration. ``put``: objects as XML with the section (``resources``, …) that they
    belong in; each takes the place of the one with its id, or is added. ``remove``: ids of objects that go.
    """

    put: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.remove)


class Pacemaker(Protocol):
    """Kept by :class:`hactl.pacemaker.tools.Tools` and :class:`hactl.pacemaker.memory.MemoryPacemaker`.

    All raise :class:`hactl.errors.Failed` ``pacemaker-down`` when Pacemaker does not run here,
    ``pacemaker-failed`` when a tool refuses, and ``pacemaker-output`` when it says what hactl does not
    understand; :class:`hactl.errors.Unknown` ``pacemaker-timeout`` when a tool does not end in time.
    """

    async def state(self) -> State:
        """What is now; one program start."""
        ...

    async def configuration(self) -> str:
        """The CIB's ``configuration`` element as XML."""
        ...

    async def commit(self, change: Change) -> None:
        """Carry out a change of the configuration, all of it or nothing, and nothing else: what somebody else
        changes meanwhile stays. :class:`hactl.errors.Failed` ``pacemaker-refused`` if Pacemaker would not
        accept what comes out."""
        ...

    async def refresh(self, clones: Sequence[str]) -> None:
        """Have Pacemaker forget what it knows of these, and look at them anew on every node; returns when it
        has and is at rest (crm_resource(8) ``--refresh``, ``--wait``). To be done before maintenance ends:
        what changed meanwhile is not known to it."""
        ...

    async def move(self, clone: str, node: str) -> None:
        """Prefer ``node`` for the promoted role (crm_resource(8) ``--move --promoted``)."""
        ...

    async def clear(self, clone: str) -> None:
        """Take away what :meth:`move` has set; nothing if there is none."""
        ...

    async def score(self, primitive: str, node: str, score: int) -> None:
        """Set this node's promotion score until its next boot, as its resource agent does (crm_attribute(8)
        ``--lifetime reboot``); that one tells its next score whatever it told last."""
        ...

    async def fence(self, node: str) -> None:
        """Have ``node`` fenced and wait for the outcome (stonith_admin(8) ``--reboot``)."""
        ...
