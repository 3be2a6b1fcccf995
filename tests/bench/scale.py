"""``make bench-scale``: what hactl costs with 10, 100 and 1,000 resources, and beside ``targetctl restore``.

Prints tables, and writes them and the numbers to ``out/bench-scale.txt`` and ``out/bench-scale.json``.
What is compared with what: ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lab import product
from lab.api import Lab, Machine
from tests.bench.host_time import used

SIZES = (10, 100, 1000)
LUNS = 100
OUT = Path("out")
LAB = "bench"

TWIN_ROWS = (
    ("agent start-up: state read and checked, taken over", "start_s", "ms"),
    ("first pass after it", "first_pass_s", "ms"),
    ("no-op pass over everything", "noop_pass_s", "ms"),
    ("one export: change in the store, until the agent is told", "export_store_s", "ms"),
    ("one export: on the node", "export_node_s", "ms"),
    ("one export: operations on the node", "export_operations", ""),
    ("memory of the agent's state", "rss_agent_bytes", "MiB"),
    ("memory of the process, in-memory kernel included", "rss_process_bytes", "MiB"),
)
TREE_ROWS = (
    ("bring up, from an empty tree", "up"),
    ("once more, with everything there", "again"),
)


def shown(value: float, unit: str) -> str:
    if unit == "ms":
        return f"{value * 1000:.1f} ms"
    if unit == "MiB":
        return f"{value / (1 << 20):.1f} MiB"
    return f"{value:g}"


def on_twins() -> list[dict[str, Any]]:
    """Each size in a process of its own, for its memory."""
    found = []
    for size in SIZES:
        run = subprocess.run(
            [sys.executable, "-m", "tests.bench.twins", str(size)], capture_output=True, text=True, check=True
        )
        found.append(json.loads(run.stdout))
    return found


def metered(lab: Lab, machine: Machine, command: str, spent: list[tuple[str, float]]) -> str:
    """Run a part of the comparison for its output; to ``spent`` come its programs in turn, each with the
    processor time that the whole machine has used for it on the host."""
    root = lab.supervisor
    before, out, err = used(root), b"", b""
    for kind, data in machine.stream(["bash", "-c", command], 3600):
        if kind == "out" and isinstance(data, bytes):
            out += data
        elif isinstance(data, bytes):
            err += data
            while b"\n" in err:
                line, _, err = err.partition(b"\n")
                if b" s  " in line:
                    now = used(root)
                    spent.append((line.decode().partition(" s  ")[2].strip(), now - before))
                    before = now
        elif data != 0:
            raise SystemExit(f"{command}: status {data}: {spent}: {err.decode()}")
    return out.decode()


def host_time(found: dict[str, Any], who: str, key: str) -> float:
    """Of a row of ``TREE_ROWS``, the median of rounds of the processor time on the host."""
    what = {"hactl_up": "node_tree up", "hactl_again": "node_tree look"}.get(f"{who}_{key}", "restore")
    times: list[float] = [seconds for program, seconds in found["host_s"] if what in program]
    if what == "restore":
        # Twice in each round.
        times = times[key == "again" :: 2]
    return statistics.median(times)


def on_kernel(count: int, rounds: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """The comparison, and then the agent as a whole, on a fresh node. ``keep`` is called after each: what was
    measured is not lost if the next does not end."""
    with Lab.up(LAB, nodes=1, client=False, fresh=True) as lab:
        product.install(lab)
        (machine,) = lab.nodes
        address = next(a for m in lab.status()["machines"] for a in m["addresses"]["storage"])
        told: dict[str, Any] = {
            "count": count,
            "kind": lab.status()["machines"][0]["kind"],
            "kernel": machine.succeed("uname -r").strip(),
        }
        for part, third in (("tree", str(rounds)), ("agent", "/dev/vdb")):
            command = (
                "cd /opt/hactl/src && /opt/hactl/venv/bin/python -m tests.bench.node_compare"
                f" {part} {count} {third} {machine.name} {address.partition('/')[0]}"
            )
            told |= json.loads(metered(lab, machine, command, told.setdefault("host_s", [])))
            told["drbd"] = machine.succeed("head -1 /proc/drbd").strip()
            keep(told)


def twin_table(found: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "in-memory kernel",
        title="hactl's agent by number of resources (processor time)",
        title_justify="left",
    )
    for entry in found:
        table.add_column(f"{entry['resources']:,}", justify="right")
    table.add_column(f"{found[-1]['resources']:,} : {found[0]['resources']:,}", justify="right")
    for label, key, unit in TWIN_ROWS:
        values = [entry[key] for entry in found]
        table.add_row(label, *(shown(v, unit) for v in values), f"{values[-1] / values[0]:.1f}")
    return table


def tree_table(found: dict[str, Any]) -> Table:
    rounds = found["rounds"]
    table = Table(
        f"LIO only, {found['count']} LUNs",
        "hactl",
        "targetctl restore",
        "hactl : targetctl",
        title="The same tree on the real LIO, made by each (median of rounds; whole programs)",
        title_justify="left",
    )
    for label, key in TREE_ROWS:
        ours, theirs = (
            statistics.median(r[f"{who}_{key}"] for r in rounds) for who in ("hactl", "targetctl")
        )
        table.add_row(label, f"{ours:.2f} s", f"{theirs:.2f} s", f"{ours / theirs:.2f}")
        ours, theirs = (host_time(found, who, key) for who in ("hactl", "targetctl"))
        table.add_row(
            "… processor time on the host", f"{ours:.2f} s", f"{theirs:.2f} s", f"{ours / theirs:.2f}"
        )
    return table


def agent_table(found: dict[str, Any]) -> Table:
    table = Table(
        f"agent, {found['count']} resources with DRBD, gate and LIO",
        "from nothing",
        "restarted",
        title="The agent as a whole on the real node; targetctl has no counterpart",
        title_justify="left",
    )
    both = found["agent_up"], found["agent_again"]
    for label, key in (
        ("imports", "import_s"),
        ("start-up", "start_s"),
        ("first pass", "bring_up_s"),
        ("no-op pass", "noop_pass_s"),
    ):
        table.add_row(label, *(f"{b[key]:.2f} s" for b in both))
    times = [seconds for program, seconds in found["host_s"] if "node_agent" in program]
    table.add_row("all of it, processor time on the host", *(f"{seconds:.1f} s" for seconds in times))
    table.add_row("steps", *(str(sum(b["steps"].values())) for b in both))
    table.add_row("programs started", *(str(sum(b["programs"].values())) for b in both))
    table.add_row("memory of the process", *(shown(b["rss_process_bytes"], "MiB") for b in both))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Scale benchmark")
    parser.add_argument("--luns", type=int, default=LUNS, help="units on the real node")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison on the real node")
    parser.add_argument("--no-lab", action="store_true", help="only the in-memory kernel")
    parser.add_argument("--no-twins", action="store_true", help="only the real node")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Any] = {
        "host": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "load_before": os.getloadavg(),
        "twins": [] if asked.no_twins else on_twins(),
    }

    def keep(kernel: dict[str, Any]) -> None:
        numbers["kernel"] = kernel
        write()

    def write() -> None:
        numbers["load_after"] = os.getloadavg()
        (asked.out / "bench-scale.json").write_text(json.dumps(numbers, indent=1) + "\n")

    write()
    if not asked.no_lab:
        on_kernel(asked.luns, asked.rounds, keep)
    write()
    with (asked.out / "bench-scale.txt").open("w") as file:
        for console in (Console(), Console(file=file, width=110)):
            console.print(
                f"host: {os.cpu_count()} CPUs, load before and after:"
                f" {numbers['load_before'][0]:.1f}, {numbers['load_after'][0]:.1f}"
            )
            if not asked.no_twins:
                console.print(twin_table(numbers["twins"]))
            if not asked.no_lab:
                kernel = numbers["kernel"]
                console.print(f"node: {kernel['kind']}, Linux {kernel['kernel']}, {kernel['drbd']}")
                console.print(tree_table(kernel))
                console.print(agent_table(kernel))


if __name__ == "__main__":
    main()
