"""What a change costs: operations on the in-memory kernel, counted; they do not grow with what exists."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest

from hactl.agents.agent import Agent
from hactl.agents.exports import LioExports
from hactl.agents.kit import Kit
from hactl.model.desired import Desired
from hactl.model.spec import ClusterSpec, HostSpec, ResourceSpec
from hactl.target.apply import apply
from hactl.target.gates import gate_name
from tests.unit.agents_world import World, at_once, cluster
from tests.unit.test_agents_exports import CountingFs
from tests.unit.test_agents_pause import Counted


def spec_of(count: int, nodes: tuple[str, ...]) -> ClusterSpec:
    """A cluster of ``count`` resources on ``nodes``, replicas on the first two of n1 and n2 that exist."""
    spec = cluster()
    (r0,) = spec.resources
    host = HostSpec(name="h2", initiators=("iqn.2024-01.example:h2",))

    def one(n: int) -> ResourceSpec:
        volume = r0.volumes[0].model_copy(update={"disks": dict.fromkeys(("n1", "n2"), f"/dev/vd{n}")})
        changes = {"id": n + 1, "iqn": f"iqn.2024-01.example:r{n}", "nodes": nodes, "volumes": (volume,)}
        return r0.model_copy(update={"name": f"r{n}", **changes})

    return spec.model_copy(
        update={"hosts": (*spec.hosts, host), "resources": tuple(one(n) for n in range(count))}
    )


def exported(spec: ClusterSpec, name: str) -> ClusterSpec:
    """The same, and one resource is exported to h2 as well."""
    resources = tuple(
        r.model_copy(update={"hosts": ("h1", "h2")}) if r.name == name else r for r in spec.resources
    )
    return spec.model_copy(update={"resources": resources})


async def running(spec: ClusterSpec, node: str) -> tuple[World, Agent, Counter[str], CountingFs]:
    """One agent that has brought everything up, and what is counted of it from now on."""
    world = World(spec)
    world.seconds = 0.0
    world.check = lambda: None  # type: ignore[method-assign]  # looks at every gate after every step
    machine = world.machines[node]
    fs = CountingFs()
    machine.fs, machine.exports = fs, LioExports(fs, node)
    await build(world, node, fs)
    counts: Counter[str] = Counter()

    def wrap(_: str, kit: Kit) -> Kit:
        def counter(kind: str) -> Any:
            return Counted(getattr(kit, kind), lambda name: counts.update([f"{kind}.{name}"]))

        return replace(kit, **{f.name: counter(f.name) for f in fields(kit) if f.name != "clock"})

    world.wrap = wrap
    agent = await world.start(node)
    await agent.attend()
    await agent.attend()
    assert await agent.keepers["r0"].pending() == ()
    counts.clear()
    fs.operations.clear()
    world.steps.clear()
    return world, agent, counts, fs


async def build(world: World, node: str, fs: CountingFs) -> None:
    """Gates and LIO's tree at once, without an agent: a thousand resources are brought up in seconds."""
    machine = world.machines[node]
    for resource in world.spec.resources:
        await machine.gates.create(gate_name(resource.name, 0), resource.volumes[0].size)
    devices = {
        (r.name, 0): at_once(machine.gates.observe([gate_name(r.name, 0)]))[gate_name(r.name, 0)].device
        for r in world.spec.resources
    }
    pending, _ = await machine.exports.pending([(world.spec, r) for r in world.spec.resources], {}, devices)
    for steps in pending.values():
        assert isinstance(steps, tuple)
        for step in steps:
            apply(fs, step)  # type: ignore[arg-type]  # changes of the tree, which made them


async def test_one_export_among_a_thousand_resources_is_work_on_one() -> None:
    spec = spec_of(1000, ("n1", "n2", "n3"))
    world, agent, counts, fs = await running(spec, "n3")
    agent.update(Desired(exported(spec, "r500")))
    await agent.attend()
    assert {name for _, name, _ in world.steps} == {"r500"}
    # An ACL with a mapped LUN in each of three portal groups.
    assert [step for _, _, step in world.steps] == ["ApplyTarget"] * 6
    assert counts["exports.apply"] == 6
    assert sum(fs.operations.values()) < 500
    few = {name: n for name, n in counts.items() if name != "exports.apply"}
    assert sum(few.values()) < 30, few
    assert counts["exports.pending"] == 0
    acl = "iscsi/iqn.2024-01.example:r500/tpgt_3/acls/iqn.2024-01.example:h2"
    assert fs.exists(f"{acl}/lun_0")


@pytest.mark.parametrize("what", ["export", "come", "gone"])
async def test_operations_do_not_depend_on_the_number_of_resources(what: str) -> None:
    found = []
    for count in (4, 40):
        spec = spec_of(count, ("n1", "n2"))
        after = {
            "export": exported(spec, "r2"),
            "come": spec_of(count + 1, ("n1", "n2")),
            "gone": spec.model_copy(update={"resources": spec.resources[:-1]}),
        }[what]
        world, agent, counts, fs = await running(spec, "n1")
        agent.update(Desired(after))
        await agent.attend()
        await agent.attend()
        assert len({name for _, name, _ in world.steps}) == 1
        found.append((counts.copy(), fs.operations.copy()))
    assert found[0] == found[1]
    assert found[0][1].total() > 0


async def test_a_pass_over_everything_that_finds_nothing_to_do_reads_each_thing_once() -> None:
    for count in (4, 40):
        spec = spec_of(count, ("n1", "n2"))
        _, agent, counts, fs = await running(spec, "n1")
        await agent.reconcile()
        assert {name: n for name, n in counts.items() if n == 1 or n % count} == {
            "drbd.observe": 1,
            "gates.observe": 1,
            "exports.pending": 1,
            "peers.status": 2,
        }
        assert not {"write", "mkdir", "symlink"} & fs.operations.keys()
        each = {name: n / count for name, n in counts.items() if n >= count}
        # A file of DRBD's is looked at, and what the journal has to write, which is nothing.
        assert each == {"drbd.placed": 1, "drbd.configured": 1, "drbd.device": 2, "journal.flush": 1}
