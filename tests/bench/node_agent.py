"""The agent's work on the node this is started on, with its real adapters, and nobody to talk to:

    python -m tests.bench.node_agent COUNT NODE ADDRESS BEGAN

``BEGAN``: when the process was started, by the machine's monotonic clock. Brings up what is not, does some
passes that find nothing to do, and ends without taking anything down. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import statistics
import sys
import time
from collections import Counter
from typing import Any

import structlog

from hactl.agents import main as agent_main
from hactl.agents.agent import Agent
from hactl.agents.exports import LioExports
from hactl.agents.kit import Timings
from hactl.agents.memory_peers import MemoryNetwork
from hactl.agents.plan import plan
from hactl.model.desired import Desired
from hactl.model.spec import ClusterSpec
from hactl.runner import Completed, SubprocessRunner
from hactl.target import configfs
from tests.bench.memory import resident
from tests.bench.node_spec import spec_of

PASSES = 5
_DOES = frozenset({"create-md", "dstate", "dump-md", "adjust", "events2", "show"})


class CountingRunner(SubprocessRunner):
    """Notes which programs are started, and how long each kind took, those of other resources beside it
    included."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    async def run(self, argv: Any, **more: Any) -> Completed:
        # What drbdmeta does is its last word, or the last but one.
        words = [w for w in argv[1:] if w in _DOES] or argv[1:2]
        what = " ".join((argv[0], *words[:1]))
        self.programs[what] += 1
        began = time.monotonic()
        try:
            return await super().run(argv, **more)
        finally:
            self.seconds[what] += time.monotonic() - began  # type: ignore[assignment]  # a sum of floats


async def main(spec: ClusterSpec, node: str, began: float) -> dict[str, Any]:
    imported = time.monotonic()
    runner, fs = CountingRunner(), configfs.RealConfigFs()
    await agent_main._load_modules(runner)
    await configfs.load(runner, fs)
    exports = LioExports(fs, node)
    kit = agent_main._kit(runner, exports, node, MemoryNetwork().peers(node), None)  # type: ignore[arg-type]
    taken: Counter[str] = Counter()
    agent = Agent(
        Desired(spec), node, kit, timings=Timings(), after_step=lambda _, step: taken.update([step])
    )
    await agent.start()
    heard = asyncio.Event()

    def changed() -> None:
        heard.set()
        agent.noticed()

    following = asyncio.create_task(agent.follower.follow(changed))
    await heard.wait()
    started = time.monotonic()
    await agent.attend()
    # A first copy stays to be decided, together with the node that is absent; all else has been done.
    up = time.monotonic()
    told, spent, used = runner.programs.copy(), runner.seconds.copy(), os.times()
    common, late = await agent.look(), {}
    for name, keeper in agent.keepers.items():
        steps = plan(keeper.desired(), await keeper.observe(common=common))
        if keeper.reason or steps:
            late[name] = (keeper.reason, steps)
    if late:
        raise SystemExit(f"not brought up: {late}")
    before_passes, done = runner.programs.copy(), taken.copy()
    passes = []
    for _ in range(PASSES):
        before = time.monotonic()
        await agent.reconcile()
        passes.append(time.monotonic() - before)
    assert taken == done, "a pass that should have found nothing to do"
    following.cancel()
    await agent.close()
    return {
        "import_s": imported - began,
        "start_s": started - imported,
        "bring_up_s": up - started,
        "whole_s": up - began,
        "cpu_agent_s": used.user + used.system,
        "cpu_programs_s": used.children_user + used.children_system,
        "noop_pass_s": statistics.median(passes),
        "rss_process_bytes": resident(),
        "steps": dict(done),
        "programs": dict(told),
        "program_seconds": {name: round(seconds, 2) for name, seconds in spent.items()},
        "programs_of_noop": (runner.programs - before_passes).total() / PASSES,
    }


if __name__ == "__main__":
    _, count, node, address, began = sys.argv
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(json.dumps(asyncio.run(main(spec_of(int(count), node, address), node, float(began)))))
