"""The LIO tree asked about for one resource, or for all: the same answer, at a cost that does not grow."""

from __future__ import annotations

import pytest

from hactl.agents.exports import LioExports
from hactl.agents.states import Change
from hactl.model.spec import ClusterSpec
from hactl.target.memory import MemoryConfigFs
from tests.unit.agents_world import cluster

Devices = dict[tuple[str, int], str]


class CountingFs(MemoryConfigFs):
    """Counts what is read of files; names are cheap."""

    reads = 0

    def read(self, path: str) -> str:
        self.reads += 1
        return super().read(path)


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


async def build(exports: LioExports, devices: Devices, only: str | None = None) -> list[Change]:
    """Make everything that is pending, and say what it was."""
    made = []
    for steps in (await exports.pending(devices, only)).values():
        for step in steps:
            await exports.apply(step)
            made.append(step)
    return made


async def test_one_resource_is_planned_as_it_is_among_all() -> None:
    spec, devices = many(3)
    exports = LioExports(MemoryConfigFs(), spec, "n1")
    whole = await exports.pending(devices)
    for name in ("r0", "r1", "r2"):
        assert await exports.pending(devices, name) == {name: whole[name]}
    await build(exports, devices, "r1")
    assert await exports.pending(devices, "r1") == {}
    assert set(await exports.pending(devices)) == {"r0", "r2"}
    await build(exports, devices)
    assert await exports.pending(devices) == {}


@pytest.mark.parametrize("attribute", ["enable", "rtpi"])
async def test_a_change_of_one_is_not_a_change_of_another(attribute: str) -> None:
    spec, devices = many(2)
    fs = MemoryConfigFs()
    exports = LioExports(fs, spec, "n1")
    await build(exports, devices)
    fs.write("iscsi/iqn.2024-01.example:r1/tpgt_1/enable", "0")
    if attribute == "rtpi":
        fs.write("iscsi/iqn.2024-01.example:r1/tpgt_1/rtpi", "999")
    assert await exports.pending(devices, "r0") == {}
    assert set(await exports.pending(devices, "r1")) == {"r1"} == set(await exports.pending(devices))


async def test_cost_of_one_resource_does_not_depend_on_the_others() -> None:
    costs = []
    for count in (2, 20):
        spec, devices = many(count)
        fs = CountingFs()
        exports = LioExports(fs, spec, "n1")
        await build(exports, devices)
        fs.reads = 0
        await exports.pending(devices, "r1")
        costs.append(fs.reads)
    assert costs[0] == costs[1] > 0
