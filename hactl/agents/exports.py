"""The LIO tree of one node, asynchronously, and its pending changes told apart by resource."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from hactl.agents.states import Change
from hactl.alua.groups import observe_states, set_states
from hactl.alua.states import AccessState
from hactl.errors import Refused
from hactl.model.spec import ClusterSpec
from hactl.target.apply import apply
from hactl.target.changes import Change as TreeChange
from hactl.target.changes import OfBackstore, OfTarget
from hactl.target.configfs import ConfigFs
from hactl.target.observe import Scope, observe
from hactl.target.plan import plan
from hactl.target.tree import desired


class LioExports:
    """Keeps :class:`hactl.agents.kit.Exports` on a configfs, real or in memory.

    Each call runs in a thread, since configfs writes can block, and one at a time, so that no plan is made
    from a tree that is changing underneath.
    """

    def __init__(self, fs: ConfigFs, cluster: ClusterSpec, node: str) -> None:
        self._fs = fs
        self._cluster = cluster
        self._node = node
        self._one = asyncio.Lock()

    async def pending(
        self, devices: Mapping[tuple[str, int], str], resource: str | None = None
    ) -> dict[str, tuple[Change, ...]]:
        async with self._one:
            return await asyncio.to_thread(self._pending, devices, resource)

    async def apply(self, change: Change) -> None:
        if not isinstance(change, TreeChange):
            raise TypeError(f"not a change of the LIO tree: {change!r}")
        async with self._one:
            await asyncio.to_thread(apply, self._fs, change)

    async def states(self, resource: str) -> dict[int, dict[str, AccessState]]:
        async with self._one:
            return await asyncio.to_thread(self._states, resource)

    async def set_states(self, resource: str, states: Mapping[str, AccessState]) -> None:
        async with self._one:
            await asyncio.to_thread(
                set_states, self._fs, self._cluster, self._cluster.resource(resource), states
            )

    def _pending(
        self, devices: Mapping[tuple[str, int], str], only: str | None
    ) -> dict[str, tuple[Change, ...]]:
        here = [r for r in self._cluster.resources if self._node in r.nodes and only in (None, r.name)]
        complete = [r for r in here if all((r.name, v.number) in devices for v in r.volumes)]
        wanted = self._cluster.model_copy(update={"resources": tuple(complete)})
        scope = None if only is None else Scope(only, self._cluster.resource(only).iqn)
        changes = plan(desired(wanted, self._node, devices), observe(self._fs, scope))
        names = {r.iqn: r.name for r in here} | {f"hactl.{r.name}": r.name for r in here}
        found: dict[str, list[Change]] = {}
        for change in changes:
            found.setdefault(names.get(object_of(change), ""), []).append(change)
        # Without a gate a resource is not in the tree that was planned, which does not mean that it shall go.
        kept = {r.name for r in complete} | {""}
        return {name: tuple(steps) for name, steps in found.items() if name in kept}

    def _states(self, resource: str) -> dict[int, dict[str, AccessState]]:
        spec = self._cluster.resource(resource)
        try:
            return observe_states(self._fs, self._cluster, spec)
        except Refused as error:
            # Nothing is exported before the tree has been made; half-made it has no states worth reporting.
            if error.code == "group-missing":
                return {}
            raise


def object_of(change: TreeChange) -> str:
    """What tells whose a change is: the name of its target, or that of its backstore without the volume."""
    if isinstance(change, OfTarget):
        return change.iqn
    if isinstance(change, OfBackstore):
        return change.backstore.rsplit("/", 1)[-1].rpartition(".")[0]
    return ""
