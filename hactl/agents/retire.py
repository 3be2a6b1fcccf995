"""Taking down what this node still carries of resources that the specification does not have on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hactl.agents.actions import Action
from hactl.agents.execute import AfterStep, execute, nothing, perform_role
from hactl.agents.keeper import Keeper
from hactl.agents.kit import Kit
from hactl.agents.observe import Gates, by_resource
from hactl.agents.plan import plan_retired
from hactl.agents.states import Aspect, Change, ResourceObserved
from hactl.model.desired import Leftover
from hactl.model.spec import ResourceSpec
from hactl.target.gates import GateState, Mode, gate_name


@dataclass
class Leaving:
    """A resource that this node is to let go of: it was in the specification, or the journal, or a leftover
    of it is. ``iqn`` and ``id`` tell where its part of LIO's tree is; without them the whole tree has to be
    looked at. ``keeper`` kept it until now; ``started``: something may have been taken down already.
    """

    name: str
    iqn: str | None = None
    id: int | None = None
    volumes: frozenset[int] = frozenset()
    keeper: Keeper | None = None
    reason: str | None = None
    started: bool = False

    @property
    def busy(self) -> bool:
        """An order is being carried out on it, which is not cut short."""
        return self.keeper is not None and self.keeper.operation is not None

    @classmethod
    def of(cls, spec: ResourceSpec, keeper: Keeper | None) -> Leaving:
        numbers = frozenset(v.number for v in spec.volumes)
        if keeper is not None:
            numbers |= keeper.dropped
        return cls(spec.name, spec.iqn, spec.id, numbers, keeper)

    @classmethod
    def left(cls, leftover: Leftover) -> Leaving:
        return cls(leftover.resource, leftover.iqn, leftover.resource_id, frozenset({leftover.volume}))


def unknown(gates: Gates, known: Collection[str]) -> tuple[str, ...]:
    """Resources that have gates of hactl's here, and are not ``known``. The gates are the proof that they
    were hactl's: DRBD resources without one are somebody else's."""
    return tuple(sorted(gates.keys() - set(known)))


async def let_go(kit: Kit, gates: Mapping[int, GateState]) -> None:
    """Fail what is held: LIO waits for commands when it takes a unit away, and held ones would never end."""
    for gate in gates.values():
        if gate.mode in (Mode.HELD, Mode.SUSPENDED):
            await kit.gates.close(gate.name)


async def gates_of(kit: Kit, leaving: Leaving) -> Mapping[int, GateState]:
    """The gates a leaving resource still has. Without volumes that are known, all are looked at."""
    names = [gate_name(leaving.name, n) for n in sorted(leaving.volumes)]
    return by_resource(await kit.gates.observe(names)).get(leaving.name, {})


async def unexport(kit: Kit, changes: Collection[Change]) -> None:
    """Carry out what takes resources out of LIO's tree."""
    for change in changes:
        await kit.exports.apply(change)


async def take_down(kit: Kit, leaving: Leaving, after_step: AfterStep = nothing) -> None:
    """Remove DRBD's part and the gates of a resource that LIO does not export any more, then forget it.
    Raises at the first thing that cannot be done; may be repeated."""
    name = leaving.name

    async def observed() -> ResourceObserved:
        gates = await gates_of(kit, leaving)
        # One that has neither a gate nor a file of hactl's is somebody else's of the same name.
        own = bool(gates) or bool(await kit.drbd.placed(name))
        return ResourceObserved(drbd=(await kit.drbd.observe()).get(name) if own else None, gates=gates)

    async def look(_: frozenset[Aspect]) -> ResourceObserved:
        return await observed()

    async def perform(step: Action) -> None:
        await perform_role(kit, step)

    found = await observed()
    names = tuple(gate.name for _, gate in sorted(found.gates.items()))
    await execute(plan_retired(name, names, found), look=look, perform=perform, after_step=after_step)
    kit.journal.remove(name)
    await kit.journal.flush(name)
    after_step(name, "journal:removed")
