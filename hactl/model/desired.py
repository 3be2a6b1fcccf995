"""What the store says shall be: the specification, and what is still to be removed, at one revision."""

from __future__ import annotations

from dataclasses import dataclass

from hactl.model.spec import ClusterSpec


@dataclass(frozen=True, order=True)
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


@dataclass(frozen=True)
class Desired:
    """Desired state of the cluster. ``generation`` counts its changes, ``revision`` is the store's when it
    was read (0: it did not come from a store)."""

    cluster: ClusterSpec
    leftovers: tuple[Leftover, ...] = ()
    generation: int = 0
    revision: int = 0

    def leftovers_of(self, node: str) -> tuple[Leftover, ...]:
        """What a node has still to remove."""
        return tuple(leftover for leftover in self.leftovers if leftover.node == node)
