"""One size of the benchmark on the in-memory twins, in a process of its own::

    python -m tests.bench.twins N

Prints one JSON object: seconds of processor time, bytes, counts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import structlog

from hactl.model.edit_hosts import export, unexport
from tests.bench.memory import resident
from tests.bench.scale_world import Scaled, scaled

T = TypeVar("T")
PASSES = 5
"""Of what is done several times, the median is told."""


async def timed(work: Callable[[], Awaitable[T]]) -> tuple[float, T]:
    """How many seconds of processor time it took, and what it gave. All of it is in this process, and the
    clock on the wall would tell what else the machine does."""
    began = time.process_time()
    result = await work()
    return time.process_time() - began, result


async def measure(count: int) -> dict[str, Any]:
    """All numbers of one size."""
    before = resident()
    with tempfile.TemporaryDirectory() as folder:
        async with scaled(count, Path(folder)) as node:
            placed = resident()
            start, _ = await timed(node.start)
            first, _ = await timed(node.settle)
            up = resident()
            passes = [(await timed(node.agent.reconcile))[0] for _ in range(PASSES)]
            node.agent.wake.clear()
            exports = await _exports(node)
    return {
        "resources": count,
        "start_s": start,
        "first_pass_s": first,
        "noop_pass_s": statistics.median(passes),
        "rss_twins_bytes": placed - before,
        "rss_agent_bytes": up - placed,
        "rss_process_bytes": up,
        **exports,
    }


async def _exports(node: Scaled) -> dict[str, Any]:
    """An export and its end, again and again; the first is not counted in, as it warms up."""
    edits, follows, operations = [], [], []
    for n in range(PASSES + 1):
        for edit in (export, unexport):
            node.clear()
            seconds, desired = await timed(lambda edit=edit: node.edit(lambda now: edit(now, "r7", "h2")))  # type: ignore[misc]
            edits.append(seconds)
            seconds, _ = await timed(lambda desired=desired: node.follow(desired))  # type: ignore[misc]
            follows.append(seconds)
            if edit is export:
                operations.append(node.spent())
                assert {name for _, name, _ in node.world.steps} == {"r7"}
        if n == 0:
            edits.clear()
            follows.clear()
            operations.clear()
    spent: Counter[str] = operations[0]
    assert all(counted == spent for counted in operations)
    return {
        "export_store_s": statistics.median(edits[::2]),
        "export_node_s": statistics.median(follows[::2]),
        "export_operations": spent.total(),
        "export_configfs_operations": sum(n for name, n in spent.items() if name.startswith("configfs.")),
    }


def main() -> None:
    # A line for each of a thousand resources would be what is measured.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    print(json.dumps(asyncio.run(measure(int(sys.argv[1])))))


if __name__ == "__main__":
    main()
