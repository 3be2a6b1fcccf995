"""Orders to the Corosync and Pacemaker that run on this node, as far as it is about who their nodes are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hactl.cluster.corosync import loaded_keys
from hactl.errors import Failed, Unknown
from hactl.runner import CommandFailed, CommandTimeout, Runner


@dataclass(frozen=True)
class Known:
    """A node that Pacemaker knows; ``member``: it is in the cluster at the moment."""

    name: str
    member: bool


@dataclass(frozen=True)
class Link:
    """One of Corosync's links as this node sees it. ``nodes``: states of the other nodes on it by node id, in
    corosync-cfgtool(8)'s words; ``connected`` is well."""

    number: int
    nodes: dict[int, str]


class Ring(Protocol):
    """Kept by :class:`CorosyncRing` and :class:`hactl.cluster.memory_ring.MemoryRing`.

    All raise :class:`hactl.errors.Failed` ``corosync-failed`` or ``pacemaker-failed``, also when the one that
    is asked does not run, and :class:`hactl.errors.Unknown` ``corosync-timeout`` or ``pacemaker-timeout``.
    """

    async def loaded(self) -> dict[str, str]:
        """What the running corosync knows of its nodes, as :func:`hactl.cluster.corosync.wanted_keys`."""
        ...

    async def reload(self) -> None:
        """Have every corosync of the cluster read its own node's settings again."""
        ...

    async def links(self) -> tuple[Link, ...]:
        """Corosync's links."""
        ...

    async def known(self) -> tuple[Known, ...]:
        """The nodes that Pacemaker knows, also those that are gone."""
        ...

    async def forget(self, node: str) -> None:
        """Have Pacemaker forget a node that is gone."""
        ...


class CorosyncRing:
    """Keeps :class:`Ring` with Corosync's and Pacemaker's own tools."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def loaded(self) -> dict[str, str]:
        return loaded_keys(
            await self._run("corosync", ["corosync-cmapctl", "nodelist.", "quorum.two_node"], check=False)
        )

    async def reload(self) -> None:
        await self._run("corosync", ["corosync-cfgtool", "-R"])

    async def links(self) -> tuple[Link, ...]:
        # Its exit status is 1 while a link is down, which is an answer.
        return links(await self._run("corosync", ["corosync-cfgtool", "-s"], check=False))

    async def known(self) -> tuple[Known, ...]:
        return known(await self._run("pacemaker", ["crm_node", "--list"]))

    async def forget(self, node: str) -> None:
        await self._run("pacemaker", ["crm_node", "--force", "--remove", node])

    async def _run(self, whose: str, argv: Sequence[str], *, check: bool = True) -> str:
        try:
            done = await self._runner.run(argv, timeout=30, check=check)
        except FileNotFoundError:
            raise Failed("program-missing", f"{argv[0]} is not installed", f"install {whose}") from None
        except CommandTimeout as error:
            raise Unknown(
                "corosync-timeout" if whose == "corosync" else "pacemaker-timeout",
                str(error),
                f"see: systemctl status {whose}",
            ) from None
        except CommandFailed as error:
            raise _failed(whose, str(error)) from None
        if done.status and not done.stdout.strip():
            raise _failed(whose, str(CommandFailed(done)))
        return done.stdout


def _failed(whose: str, message: str) -> Failed:
    return Failed(
        "corosync-failed" if whose == "corosync" else "pacemaker-failed",
        message,
        f"see: systemctl status {whose}; journalctl -u {whose}",
    )


_LINK = re.compile(r"^LINK ID (\d+)", re.MULTILINE)
_NODE = re.compile(r"^\s+nodeid:?\s+(\d+):\s+(.+?)\s*$", re.MULTILINE)


def links(text: str) -> tuple[Link, ...]:
    """The links in what ``corosync-cfgtool -s`` prints; without the node itself, which is ``localhost``."""
    found = _LINK.split(text)[1:]
    return tuple(
        Link(int(number), {int(n): state for n, state in _NODE.findall(rest) if state != "localhost"})
        for number, rest in zip(found[::2], found[1::2], strict=True)
    )


def known(text: str) -> tuple[Known, ...]:
    """The nodes in what ``crm_node --list`` prints: id, name and state, one on a line; the state may lack."""
    rows = (line.split() for line in text.splitlines())
    return tuple(Known(row[1], row[2:] == ["member"]) for row in rows if len(row) > 1)
