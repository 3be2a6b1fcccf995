"""Taking down what this node still carries of resources that the specification no longer has on it."""

from __future__ import annotations

from collections.abc import Mapping

from hactl.agents.actions import Action
from hactl.agents.execute import execute, perform_role
from hactl.agents.kit import Kit
from hactl.agents.plan import plan_retired
from hactl.agents.states import Aspect, ResourceObserved
from hactl.replication.state import ResourceState
from hactl.target.gates import GateState, Mode


def retired(
    kept: set[str], gates: Mapping[str, GateState], drbd: Mapping[str, ResourceState]
) -> dict[str, ResourceObserved]:
    """By name, each resource that has gates of hactl's here but is not ``kept``. The gates are the proof
    that it was hactl's: DRBD resources without one are somebody else's and never touched."""
    found: dict[str, dict[int, GateState]] = {}
    for name, gate in gates.items():
        parts = name.split(".")
        if len(parts) == 3 and parts[0] == "hactl" and parts[2].isdigit() and parts[1] not in kept:
            found.setdefault(parts[1], {})[int(parts[2])] = gate
    return {
        name: ResourceObserved(gates=numbered, drbd=drbd.get(name))
        for name, numbered in sorted(found.items())
    }


async def retire(kit: Kit, kept: set[str], devices: Mapping[tuple[str, int], str]) -> None:
    """Remove the exports that no wanted resource has, then the gates behind them, then DRBD.

    ``devices`` are the gates' devices of what is kept. Raises at the first thing that cannot be done.
    """
    for left in retired(kept, await kit.gates.observe(), {}).values():
        for gate in left.gates.values():
            if gate.mode in (Mode.HELD, Mode.SUSPENDED):
                # LIO waits for commands when it takes a unit away, and what is held would never end.
                await kit.gates.close(gate.name)
    for change in (await kit.exports.pending(devices)).get("", ()):
        await kit.exports.apply(change)

    async def observed() -> dict[str, ResourceObserved]:
        gates = await kit.gates.observe()
        if all(name.split(".")[1] in kept for name in gates if name.count(".") == 2):
            return {}
        return retired(kept, gates, await kit.drbd.observe())

    async def perform(step: Action) -> None:
        await perform_role(kit, step)

    for name, seen in (await observed()).items():

        async def look(_: frozenset[Aspect], name: str = name) -> ResourceObserved:
            return (await observed()).get(name, ResourceObserved())

        names = tuple(gate.name for _, gate in sorted(seen.gates.items()))
        await execute(plan_retired(name, names, seen), look=look, perform=perform)
        kit.journal.remove(name)
