"""The LIO tree of one node, asynchronously, and its pending changes told apart by resource."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hactl.agents.kit import OTHERS, Devices, Pending, View
from hactl.agents.states import Change
from hactl.alua.groups import observe_states, set_states
from hactl.alua.states import AccessState
from hactl.errors import HactlError, Refused
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.target.apply import apply
from hactl.target.changes import Change as TreeChange
from hactl.target.configfs import ConfigFs
from hactl.target.observe import Scope, in_slots, observe
from hactl.target.plan import plan
from hactl.target.tree import PREFIX, Backstore, PrTree, Target, Tree, desired

Wanted = Sequence[tuple[ClusterSpec, ResourceSpec]]


class LioExports:
    """Keeps :class:`hactl.agents.kit.Exports` on a configfs, real or in memory.

    Each call runs in a thread, since configfs writes can block, and one at a time, so that no plan is made
    from a tree that is changing underneath.
    """

    def __init__(self, fs: ConfigFs, node: str) -> None:
        self._fs = fs
        self._node = node
        self._one = asyncio.Lock()
        self.reservations: Callable[[ResourceSpec], PrTree | None] = lambda _: None
        """What keeping its reservations in step needs of a resource's tree; :class:`Refused` while that is
        not known."""
        self._astray: frozenset[str] | None = None
        """HBAs of backstores that lie elsewhere than a resource's id says; None until all were looked at."""

    async def pending(
        self, wanted: Wanted, leaving: Mapping[str, str], devices: Devices
    ) -> tuple[Pending, Mapping[str, View]]:
        async with self._one:
            return await asyncio.to_thread(self._pending, wanted, leaving, devices)

    async def pending_of(
        self, cluster: ClusterSpec, resource: ResourceSpec, devices: Devices
    ) -> tuple[Change, ...]:
        async with self._one:
            return await asyncio.to_thread(self._pending_of, cluster, resource, devices)

    async def pending_gone(self, resource: str, iqn: str, id: int) -> tuple[Change, ...]:  # noqa: A002 - its name
        async with self._one:
            return await asyncio.to_thread(self._pending_gone, resource, iqn, id)

    async def apply(self, change: Change) -> None:
        if not isinstance(change, TreeChange):
            raise TypeError(f"not a change of the LIO tree: {change!r}")
        async with self._one:
            await asyncio.to_thread(apply, self._fs, change)

    async def states(self, cluster: ClusterSpec, resource: ResourceSpec) -> View:
        async with self._one:
            return await asyncio.to_thread(self._states, cluster, resource)

    async def set_states(
        self, cluster: ClusterSpec, resource: ResourceSpec, states: Mapping[str, AccessState]
    ) -> None:
        async with self._one:
            await asyncio.to_thread(set_states, self._fs, cluster, resource, states)

    # In a thread

    def _pending(
        self, wanted: Wanted, leaving: Mapping[str, str], devices: Devices
    ) -> tuple[Pending, Mapping[str, View]]:
        tree = observe(self._fs)
        ids = {spec.name: spec.id for _, spec in wanted}
        self._astray = frozenset(
            b.hba for b in tree.backstores if not in_slots(b.hba, ids.get(_resource_of(b.name), -1))
        )
        iqns = {spec.name: spec.iqn for _, spec in wanted} | dict(leaving)
        parts = _Parts(tree, iqns)
        found: dict[str, tuple[Change, ...] | HactlError] = {}
        views: dict[str, View] = {}
        for cluster, spec in wanted:
            if not _complete(spec, devices):
                continue
            try:
                found[spec.name] = plan(self._desired(cluster, spec, devices), parts.of(spec.name))
            except HactlError as error:
                found[spec.name] = error
            with contextlib.suppress(HactlError, OSError):
                # What cannot be read is read again when the resource's turn comes, and told of there.
                views[spec.name] = self._states(cluster, spec)
        for name in (*leaving, OTHERS):
            found[name] = plan(Tree(), parts.of(name))
        return {name: steps for name, steps in found.items() if steps != ()}, views

    def _pending_of(
        self, cluster: ClusterSpec, spec: ResourceSpec, devices: Devices
    ) -> tuple[TreeChange, ...]:
        if not _complete(spec, devices):
            # Without a gate it cannot be planned, which does not mean that it shall go.
            return ()
        return plan(self._desired(cluster, spec, devices), self._observe(spec.name, spec.iqn, spec.id))

    def _pending_gone(self, name: str, iqn: str, number: int) -> tuple[TreeChange, ...]:
        found = self._observe(name, iqn, number)
        if any(_linked(target) - {name} for target in found.targets):
            # Another resource has got the target's name.
            found = replace(found, targets=(), claims=frozenset())
        return plan(Tree(), found)

    def _observe(self, name: str, iqn: str, number: int) -> Tree:
        if self._astray is None:
            return observe(self._fs, Scope(name, iqn))
        return observe(self._fs, Scope(name, iqn, number, self._astray))

    def _desired(self, cluster: ClusterSpec, spec: ResourceSpec, devices: Devices) -> Tree:
        alone = cluster.model_copy(update={"resources": (spec,)})
        reservations = self.reservations(spec)
        return desired(alone, self._node, devices, {} if reservations is None else {spec.name: reservations})

    def _states(self, cluster: ClusterSpec, spec: ResourceSpec) -> View:
        if not self._fs.exists(f"iscsi/{spec.iqn}"):
            return {}
        try:
            return observe_states(self._fs, cluster, spec)
        except Refused as error:
            # Nothing is exported before the tree has been made; half-made it has no states worth reporting.
            if error.code == "group-missing":
                return {}
            raise


def _complete(spec: ResourceSpec, devices: Devices) -> bool:
    return all((spec.name, v.number) in devices for v in spec.volumes)


def _resource_of(backstore: str) -> str:
    """Resource of one of hactl's backstores, by its name."""
    return backstore.removeprefix(PREFIX).rpartition(".")[0]


def _linked(target: Target) -> frozenset[str]:
    """Resources whose backstores a target exports."""
    stores = {lun.backstore for tpg in target.tpgs for lun in tpg.luns}
    return frozenset(_resource_of(s) for s in stores if s is not None and s.startswith(PREFIX))


class _Parts:
    """An observed tree, taken apart: each part is what a look at that resource alone would have found.

    ``iqns`` are those of the resources, by name; what belongs to none of them is :data:`OTHERS`'.
    """

    def __init__(self, tree: Tree, iqns: Mapping[str, str]) -> None:
        self._tree = tree
        self._iqns = iqns
        self._there = frozenset(target.iqn for target in tree.targets)
        self._used = frozenset(b.hba for b in tree.backstores)
        self._stores: dict[str, list[Backstore]] = {}
        self._targets: dict[str, list[Target]] = {}
        # A resource that is wanted comes before one that is leaving.
        names = {iqn: name for name, iqn in reversed([*iqns.items()])}
        for backstore in tree.backstores:
            owner = _resource_of(backstore.name)
            self._stores.setdefault(owner if owner in iqns else OTHERS, []).append(backstore)
        for target in tree.targets:
            owner = names.get(target.iqn, OTHERS)
            linked = _linked(target)
            if linked and owner not in linked:
                # One that was renamed, or whose name another resource has got.
                owner = min(linked) if len(linked) == 1 and linked <= iqns.keys() else OTHERS
            self._targets.setdefault(owner, []).append(target)

    def of(self, name: str) -> Tree:
        """The part of one resource, or of :data:`OTHERS`."""
        tree, stores = self._tree, tuple(self._stores.get(name, ()))
        targets = tuple(self._targets.get(name, ()))
        if name == OTHERS:
            claims = tree.claims - frozenset(self._iqns.values())
        else:
            claims = tree.claims & {self._iqns[name]}
        # What is said of a target goes with it.
        claims = claims - self._there | tree.claims & {target.iqn for target in targets}
        return Tree(
            stores,
            targets,
            tree.empty_hbas if name == OTHERS else frozenset(),
            tree.taken_hbas | (self._used - {b.hba for b in stores}),
            claims,
            tree.foreign,
        )
