"""The LIO tree asked about for one resource, or for all: the same answer, at a cost that does not grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from hactl.agents.exports import LioExports
from hactl.agents.states import Change
from hactl.errors import HactlError, Refused
from hactl.model.spec import ClusterSpec
from hactl.target.memory import MemoryConfigFs
from tests.unit.agents_world import cluster

Devices = dict[tuple[str, int], str]


class CountingFs(MemoryConfigFs):
    """Counts every operation."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        super().__init__()

    def read(self, path: str) -> str:
        self.operations["read"] += 1
        return super().read(path)

    def exists(self, path: str) -> bool:
        self.operations["exists"] += 1
        return super().exists(path)

    def listdir(self, path: str) -> list[str]:
        self.operations["list"] += 1
        return super().listdir(path)

    def links(self, path: str) -> dict[str, str]:
        self.operations["links"] += 1
        return super().links(path)

    def write(self, path: str, value: str) -> None:
        self.operations["write"] += 1
        super().write(path, value)

    def mkdir(self, path: str) -> None:
        self.operations["mkdir"] += 1
        super().mkdir(path)

    def symlink(self, source: str, link: str) -> None:
        self.operations["symlink"] += 1
        super().symlink(source, link)


def many(count: int) -> tuple[ClusterSpec, Devices]:
    """A cluster of ``count`` resources, and a gate for each."""
    spec = cluster()
    (r0,) = spec.resources
    resources = tuple(
        r0.model_copy(update={"name": f"r{n}", "id": n + 1, "iqn": f"iqn.2024-01.example:r{n}"})
        for n in range(count)
    )
    return spec.model_copy(update={"resources": resources}), {
        (f"r{n}", 0): f"/dev/dm-{n}" for n in range(count)
    }


async def pending(exports: LioExports, spec: ClusterSpec, devices: Devices) -> dict[str, Any]:
    """Of the whole tree."""
    found, _ = await exports.pending([(spec, r) for r in spec.resources], {}, devices)
    return dict(found)


async def make(exports: LioExports, steps: Sequence[Change]) -> None:
    for step in steps:
        await exports.apply(step)


async def build(exports: LioExports, spec: ClusterSpec, devices: Devices) -> None:
    """Make everything that is pending."""
    for steps in (await pending(exports, spec, devices)).values():
        await make(exports, steps)


async def test_one_resource_is_planned_as_it_is_among_all() -> None:
    spec, devices = many(3)
    exports = LioExports(MemoryConfigFs(), "n1")
    whole = await pending(exports, spec, devices)
    assert set(whole) == {"r0", "r1", "r2"}
    for resource in spec.resources:
        assert await exports.pending_of(spec, resource, devices) == whole[resource.name]
    await make(exports, whole["r1"])
    assert await exports.pending_of(spec, spec.resource("r1"), devices) == ()
    assert set(await pending(exports, spec, devices)) == {"r0", "r2"}
    await build(exports, spec, devices)
    assert await pending(exports, spec, devices) == {}


@pytest.mark.parametrize("attribute", ["enable", "rtpi"])
async def test_a_change_of_one_is_not_a_change_of_another(attribute: str) -> None:
    spec, devices = many(2)
    fs = MemoryConfigFs()
    exports = LioExports(fs, "n1")
    await build(exports, spec, devices)
    fs.write("iscsi/iqn.2024-01.example:r1/tpgt_1/enable", "0")
    if attribute == "rtpi":
        fs.write("iscsi/iqn.2024-01.example:r1/tpgt_1/rtpi", "999")
    assert await exports.pending_of(spec, spec.resource("r0"), devices) == ()
    found = await exports.pending_of(spec, spec.resource("r1"), devices)
    assert found != ()
    assert await pending(exports, spec, devices) == {"r1": found}


async def test_cost_of_one_resource_does_not_depend_on_the_others() -> None:
    costs = []
    for count in (2, 20):
        spec, devices = many(count)
        fs = CountingFs()
        exports = LioExports(fs, "n1")
        await build(exports, spec, devices)
        fs.operations.clear()
        await exports.pending_of(spec, spec.resource("r1"), devices)
        costs.append(fs.operations.total())
        fs.operations.clear()
        await exports.pending_gone("r1", spec.resource("r1").iqn, spec.resource("r1").id)
        costs.append(fs.operations.total())
    assert costs[:2] == costs[2:]
    assert min(costs) > 0


async def test_one_that_cannot_be_planned_does_not_keep_the_others_from_it() -> None:
    spec, devices = many(3)
    fs = MemoryConfigFs()
    exports = LioExports(fs, "n1")
    fs.mkdir("iscsi/iqn.2024-01.example:r1")
    found = await pending(exports, spec, devices)
    assert isinstance(found["r1"], Refused)
    assert found["r1"].code == "target-foreign"
    await make(exports, found["r0"])
    assert set(await pending(exports, spec, devices)) == {"r1", "r2"}


async def test_what_is_not_wanted_is_told_by_resource_if_it_is_known() -> None:
    spec, devices = many(3)
    fs = MemoryConfigFs()
    exports = LioExports(fs, "n1")
    await build(exports, spec, devices)
    only = spec.model_copy(update={"resources": spec.resources[:1]})
    wanted = [(only, only.resources[0])]
    found, views = await exports.pending(wanted, {"r1": spec.resource("r1").iqn}, devices)
    assert set(found) == {"r1", ""}
    assert set(views) == {"r0"}
    assert found["r1"] == await exports.pending_gone("r1", spec.resource("r1").iqn, 2)
    for steps in found.values():
        assert not isinstance(steps, HactlError)
        await make(exports, steps)
    assert await pending(exports, only, devices) == {}
    assert [n for n in fs.listdir("iscsi") if n.startswith("iqn.")] == [spec.resource("r0").iqn]
    assert [n for n in fs.listdir("core") if n.startswith("iblock_")] == ["iblock_1048592"]


async def test_a_backstore_that_lies_elsewhere_is_found() -> None:
    """As after a resource got another id, which moves the HBA that its backstores are put into."""
    spec, devices = many(2)
    fs = MemoryConfigFs()
    await build(LioExports(fs, "n1"), spec, devices)
    fs.write(f"iscsi/{spec.resource('r1').iqn}/tpgt_1/enable", "0")
    fresh = LioExports(fs, "n1")
    moved = spec.resource("r1").model_copy(update={"id": 9})
    before = await fresh.pending_of(spec, moved, devices)
    assert "CreateBackstore" not in [type(c).__name__ for c in before]
    await pending(fresh, spec.model_copy(update={"resources": (spec.resources[0], moved)}), devices)
    assert await fresh.pending_of(spec, moved, devices) == before


async def test_a_target_whose_name_another_resource_has_got_is_left_to_that() -> None:
    spec, devices = many(2)
    fs = MemoryConfigFs()
    exports = LioExports(fs, "n1")
    r0, r1 = spec.resources
    await build(exports, spec.model_copy(update={"resources": (r1,)}), devices)
    # r0, long gone, had the target that r1 has now.
    assert await exports.pending_gone("r0", r1.iqn, r0.id) == ()
    found, _ = await exports.pending([(spec, r1)], {"r0": r1.iqn}, devices)
    assert found == {}
    # And while r1 has it not yet, it is r0's to be taken down, and nobody else's.
    named = r0.model_copy(update={"iqn": r1.iqn})
    fs = MemoryConfigFs()
    exports = LioExports(fs, "n1")
    await build(exports, spec.model_copy(update={"resources": (named,)}), devices)
    found, _ = await exports.pending([(spec, r1)], {"r0": r1.iqn}, devices)
    names = {
        name: [type(step).__name__ for step in steps]
        for name, steps in found.items()
        if not isinstance(steps, HactlError)
    }
    assert "RemoveTarget" in names["r0"]
    assert "CreateTarget" in names["r1"]
    await make(exports, await exports.pending_gone("r0", r1.iqn, r0.id))
    await make(exports, await exports.pending_of(spec, r1, devices))
    assert await pending(exports, spec.model_copy(update={"resources": (r1,)}), devices) == {}
