"""Whether the store may be started anew from one member's data. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from hactl.cluster.members import majority
from hactl.errors import Refused


@dataclass(frozen=True)
class Other:
    """Another node. ``member``: of the store, with a vote; ``serves``: its part of the store answers, or at
    least listens; ``committed``: how far its log is committed, if it tells; ``alive``: what else there shows
    that the machine is on, in words."""

    name: str
    member: bool
    serves: bool = False
    committed: int = 0
    alive: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """What this node sees. ``committed``: how far its own log is."""

    node: str
    committed: int
    others: tuple[Other, ...]
    _by_name: dict[str, Other] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {o.name: o for o in self.others})

    def other(self, name: str) -> Other:
        """The node of that name; :class:`Refused` ``unknown-node``."""
        if name not in self._by_name:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise Refused("unknown-node", f"the cluster has no other node {name}", f"the others are: {known}")
        return self._by_name[name]


def judge(view: View, lost: Collection[str], rejoining: Collection[str]) -> None:
    """Refuse what is not certainly right; nothing is returned.

    ``lost``: nodes that are off and never come back; ``rejoining``: nodes that stay, whose part of the store
    is lost. :class:`Refused` ``node-alive``, ``unknown-node``, ``store-has-majority``, ``lost-unnamed`` or
    ``newer-elsewhere``.
    """
    if view.node in {*lost, *rejoining}:
        raise Refused(
            "node-alive",
            f"{view.node} is this node, from whose data the store is to go on",
            "name the nodes that are lost",
        )
    for name in sorted(lost):
        _refuse_alive(view.other(name))
    for name in sorted(rejoining):
        if view.other(name).serves:
            raise Refused(
                "node-alive",
                f"the part of the store on {name} runs",
                "see why the two do not reach each other; if its data is really to be given up, stop it there"
                " first: systemctl stop hactl-etcd",
            )
    given_up = {*lost, *rejoining}
    # Somebody who names a node as lost knows of it, where what is known here may be old.
    members = [o for o in view.others if o.member or o.name in given_up]
    serving = [o for o in members if o.serves]
    if len(serving) + 1 >= majority(len(members) + 1):
        names = ", ".join(o.name for o in serving)
        raise Refused(
            "store-has-majority",
            f"{view.node} and {names} are a majority of the store's {len(members) + 1} members: they do not"
            " reach each other, or have not found together yet",
            "see systemctl status hactl-etcd on both, their clocks, and the cluster network"
            if serving
            else "start it: systemctl start hactl-etcd",
        )
    unnamed = [o.name for o in members if not o.serves and o.name not in given_up]
    if unnamed:
        raise Refused(
            "lost-unnamed",
            f"the store also has {', '.join(unnamed)}, which does not answer and is not given up by this",
            "bring it back: that is better than any recovery; or, if it is off for good, add: "
            + " ".join(f"--lost {name}" for name in unnamed),
        )
    for other in serving:
        if other.committed > view.committed:
            raise Refused(
                "newer-elsewhere",
                f"{other.name} has more of the store: its log is committed up to entry {other.committed}, the"
                f" one here up to {view.committed}",
                f"run it there, on {other.name}",
            )


def _refuse_alive(other: Other) -> None:
    if other.serves or other.alive:
        what = ", ".join((*(("its part of the store",) if other.serves else ()), *other.alive))
        raise Refused(
            "node-alive",
            f"node {other.name} answers ({what})",
            "bring back its part of the store instead (there: systemctl status hactl-etcd), and nothing has"
            " to be given up; or switch it off; if it stays, and only its part of the store is lost:"
            f" --rejoin {other.name}",
        )
