"""LIO's tree of the benchmark on the node this is started on, as the agent's part for it makes it:

    python -m tests.bench.node_tree gates|up|look|down COUNT NODE ADDRESS

``gates`` and ``down`` make and remove the gates that the tree is made on. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from hactl.agents.exports import LioExports
from hactl.agents.kit import OTHERS
from hactl.model.spec import ClusterSpec
from hactl.runner import SubprocessRunner
from hactl.target import dm_ioctl
from hactl.target.configfs import RealConfigFs, load
from hactl.target.device_mapper import Dmsetup
from hactl.target.dm_ioctl import DmIoctl
from hactl.target.gate import DmGates
from hactl.target.gates import gate_name
from tests.bench.node_spec import VOLUME, spec_of

STARTED = time.monotonic()


async def main(what: str, spec: ClusterSpec, node: str) -> dict[str, Any]:
    runner, fs = SubprocessRunner(), RealConfigFs()
    gates = DmGates(DmIoctl(Dmsetup(runner), dm_ioctl.kernel()))
    names = [gate_name(r.name, 0) for r in spec.resources]
    if what == "gates":
        await load(runner, fs)
        for name in names:
            await gates.create(name, VOLUME)
        return {"seconds": time.monotonic() - STARTED}
    found = await gates.observe()
    exports = LioExports(fs, node)
    devices = {(r.name, 0): found[gate_name(r.name, 0)].device for r in spec.resources}
    wanted = [] if what == "down" else [(spec, r) for r in spec.resources]
    looked = time.monotonic()
    pending, _ = await exports.pending(wanted, {}, devices)
    planned = time.monotonic()
    steps = 0
    for changes in pending.values():
        assert isinstance(changes, tuple), changes
        for change in changes:
            await exports.apply(change)
            steps += 1
    if what == "down":
        assert pending.keys() <= {OTHERS}
        for name in names:
            await gates.remove(name)
    return {"steps": steps, "plan_s": planned - looked, "apply_s": time.monotonic() - planned}


if __name__ == "__main__":
    _, what, count, node, address = sys.argv
    assert what in ("gates", "up", "look", "down")
    told = asyncio.run(main(what, spec_of(int(count), node, address), node))
    if what == "look":
        assert told["steps"] == 0, told
    print(json.dumps(told))
