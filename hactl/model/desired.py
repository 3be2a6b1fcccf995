"""What the store says shall be: the specification, and what is still to be removed, at one revision."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hactl.model.spec import ClusterSpec


@dataclass(frozen=True)
class Leftover:
    """A replica that a node has still to take down: written when it leaves the specification, removed by that
    node's agent when nothing is left of it. Until then its ids stay taken.

    ``disk``: as in the specification (a path under /dev, or ``pool:NAME``), None where the node exported
    without a replica; ``device``: the path it stands for. ``destroy``: remove storage that came from a pool,
    and DRBD's meta-data elsewhere; otherwise data and meta-data stay.
    """

    node: str
    resource: str
    volume: int
    resource_id: int
    minor: int
    port: int
    iqn: str
    serial: str
    disk: str | None
    device: str | None
    destroy: bool

    @property
    def key(self) -> tuple[str, str, int]:
        """Node, resource and volume, of which no two leftovers have the same."""
        return self.node, self.resource, self.volume


@dataclass(frozen=True)
class Change:
    """One change of the desired state: ``id`` is random and the change's own, ``at`` is in ISO 8601, ``who``
    is the node it was made from, ``what`` one line without secrets. ``recent`` are the ids of the changes up
    to this one, the newest last."""

    id: str
    at: str
    who: str
    what: str
    recent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Desired:
    """Desired state of the cluster. ``generation`` counts its changes, ``revision`` is the store's when it
    was read (0: it did not come from a store), ``change`` the last one."""

    cluster: ClusterSpec
    leftovers: tuple[Leftover, ...] = ()
    generation: int = 0
    revision: int = 0
    change: Change | None = field(default=None, compare=False)

    def same(self, other: Desired) -> bool:
        """Whether both want the same, whenever they were read."""
        return self.cluster == other.cluster and self.leftovers == other.leftovers

    def ordered(self) -> Desired:
        """The same in the order in which a store gives it back: everything by name, leftovers by key."""
        cluster = self.cluster.model_copy(
            update={
                what: tuple(sorted(getattr(self.cluster, what), key=lambda item: item.name))
                for what in ("nodes", "hosts", "resources")
            }
        )
        return replace(
            self, cluster=cluster, leftovers=tuple(sorted(self.leftovers, key=lambda left: left.key))
        )

    def leftovers_of(self, node: str) -> tuple[Leftover, ...]:
        """What a node has still to remove."""
        return tuple(leftover for leftover in self.leftovers if leftover.node == node)
