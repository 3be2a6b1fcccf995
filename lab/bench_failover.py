"""``make bench-failover``: how long a host's writes pause when a unit changes nodes, with hactl and with the
stock set-up (:mod:`lab.stock`), on the same machines one after the other."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from lab import failover, newcomer, product, stock, story
from lab.api import Lab
from lab.demo import step

console = Console()
KINDS = ("planned", "power loss")
BACK = 600
"""Seconds for a set-up to be well again."""


@dataclass(frozen=True)
class Pause:
    """Of one change of nodes; ``seconds``: the longest time without a completed write."""

    setup: str
    kind: str
    seconds: float


class Setup(Protocol):
    """One way to serve a unit from one of two nodes, with fencing."""

    name: str

    def build(self, lab: Lab) -> str:
        """From nodes with nothing configured; the client's device."""
        ...

    def move(self, lab: Lab, to: str) -> None:
        """As an operator would; returns when it is over."""
        ...

    def well(self, lab: Lab) -> str:
        """Wait until nothing is left to do and both disks have everything; the active node."""
        ...


class Hactl:
    """hactl, set up by the commands of README.md; two paths."""

    name = "hactl"

    def build(self, lab: Lab) -> str:
        product.install(lab)
        newcomer.prepare(lab)
        typist = newcomer.Typist(lab)
        for line in newcomer.steps():
            typist.type(line)
        failover.fence_devices(lab)
        self.well(lab)
        return story.attach(lab)

    def move(self, lab: Lab, to: str) -> None:
        lab[to].succeed(f"hactl switchover r0 --to {to}", timeout=60)

    def well(self, lab: Lab) -> str:
        active = failover.wait_until_well(lab, BACK)
        story.wait_until_paths(lab["c1"], active=active, lab=lab, timeout=BACK)
        return active


class Stock:
    """DRBD, LIO and a floating address with the stock resource agents; one path."""

    name = "stock"

    def build(self, lab: Lab) -> str:
        newcomer.prepare(lab)
        stock.build(lab)
        return stock.attach(lab)

    def move(self, lab: Lab, to: str) -> None:
        lab[to].succeed(f"crm resource move {stock.GROUP} {to}", timeout=60)
        stock.wait_until_on(lab, to)
        lab[to].succeed(f"crm resource clear {stock.GROUP}", timeout=60)

    def well(self, lab: Lab) -> str:
        return stock.wait_until_well(lab, BACK)


def measure(lab: Lab, setup: Setup, count: int) -> list[Pause]:
    """Build it, and have its unit change nodes so many times of each kind while the client writes."""
    client = lab["c1"]
    with step(f"{setup.name}: from nothing to a unit in use"):
        load = story.Load(client, setup.build(lab), rate=100)
    load.start()
    load.wait_for_progress(200)
    spans: list[tuple[str, float, float]] = []
    for kind in KINDS:
        for number in range(1, count + 1):
            source = setup.well(lab)
            heir = "n1" if source == "n2" else "n2"
            load.wait_for_progress(100)
            begin = story.clock(client)
            with step(f"{setup.name}: {kind} {number}, {source} to {heir}"):
                if kind == "planned":
                    setup.move(lab, heir)
                else:
                    lab[source].crash()
                load.wait_for_progress(timeout=BACK)
            spans.append((kind, begin, story.clock(client)))
    setup.well(lab)
    report = load.stop()
    if report.error:
        raise SystemExit(f"{setup.name}: the client saw an I/O error: {report.error}")
    return [Pause(setup.name, kind, report.pause(begin, end)) for kind, begin, end in spans]


def table(pauses: Iterable[Pause]) -> str:
    """Medians and spread in seconds, and how many times as long the stock set-up's pause is."""
    found: dict[tuple[str, str], list[float]] = {}
    for one in pauses:
        found.setdefault((one.kind, one.setup), []).append(one.seconds)
    rows = [f"{'':<12}{'hactl':>28}{'stock':>28}{'stock / hactl':>16}"]
    for kind in KINDS:
        cells, medians = [], []
        for setup in (Hactl.name, Stock.name):
            seconds = found[kind, setup]
            medians.append(statistics.median(seconds))
            cells.append(f"{medians[-1]:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")
        rows.append(f"{kind:<12}{cells[0]:>28}{cells[1]:>28}{medians[1] / medians[0]:>15.1f}×")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5, help="changes of each kind")
    parser.add_argument("--machines", choices=("auto", "qemu"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    pauses: list[Pause] = []
    for setup in (Hactl(), Stock()):
        lab = Lab.up("bench-failover", fresh=True, kinds=options.machines)
        try:
            pauses += measure(lab, setup, options.count)
        except BaseException:
            folder = story.keep_evidence(lab, options.out / "evidence" / f"bench-{setup.name}")
            console.print(f"what all machines looked like is in {folder.resolve()}", style="red")
            raise
        finally:
            lab.down(remove=True)
    (options.out / "failover.json").write_text(json.dumps([asdict(one) for one in pauses], indent=1))
    text = table(pauses)
    (options.out / "failover.txt").write_text(text)
    console.print(text, markup=False, highlight=False)


if __name__ == "__main__":
    main()
