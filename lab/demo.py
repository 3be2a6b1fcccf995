"""``make demo``: a cluster boots, a client writes to a replicated LUN and holds a reservation on it; the LUN
changes nodes, and then its active node loses power."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lab import failover, newcomer, plot, product, reservations, story, timeline
from lab.api import Lab

console = Console()


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is being done and how long it took."""
    begun = time.monotonic()
    console.print(f"• {text} …")
    yield
    console.print(f"  done in {time.monotonic() - begun:.1f} s")


def start(machines: str) -> Lab:
    """The lab, with a bar while images are built."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("lab", total=1.0)

        def show(text: str, done: float) -> None:
            bar.update(task, description=text[:60], completed=done)

        return Lab.up("demo", fresh=True, kinds=machines, progress=show)


def run(lab: Lab, count: int, out: Path) -> None:
    """The story, told as it happens."""
    client = lab["c1"]
    with step("installing hactl from the working tree"):
        product.install(lab)
    newcomer.prepare(lab)
    typist = newcomer.Typist(lab)
    for line in newcomer.steps():
        with step(f"{line.machine}# {line.command}"):
            typist.type(line)
    story.wait_until_ready(lab)
    with step("hactl fencing set …: each node's BMC, so that Pacemaker takes over by itself"):
        failover.fence_devices(lab)
        failover.wait_until_in_charge(lab)
    console.print(lab.nodes[0].succeed("hactl status"), markup=False, highlight=False)
    device = story.attach(lab)
    console.print(client.succeed("multipath -ll"), markup=False, highlight=False)
    with step("the client registers a key through each path, and reserves the unit"):
        failover.Stranger.admit(lab)
        reservations.reserve(lab)
    console.print(lab.nodes[0].succeed("hactl pr show r0"), markup=False, highlight=False)
    load = story.Load(client, device, rate=100)
    measured: list[story.Switchover] = []
    load.start()
    load.wait_for_progress(200)
    with step(f"{count} switchovers under fio --verify"):
        for number in range(1, count + 1):
            source, destination = ("n1", "n2") if number % 2 else ("n2", "n1")
            measured.append(story.switchover(lab, number, source, destination))
            failover.wait_until_in_charge(lab)
            story.wait_until_paths(client, active=destination, lab=lab)
            load.wait_for_progress(100)
    lost = story.active_node(lab)
    heir = story.standby_node(lab)
    stranger = failover.Stranger(lab, heir)
    stranger.start()
    with step(f"{lost}, the active node, loses power; {heir} takes over"):
        measured.append(failover.power_loss(lab, load, count + 1))
    tried = stranger.stop()
    with step(f"{lost} boots again, and copies what it has missed"):
        failover.wait_until_up(lab[lost], 2)
        failover.wait_until_in_charge(lab)
        story.wait_until_ready(lab)
        story.wait_until_paths(client, active=heir, lab=lab)
    report = load.stop()
    console.print(story.table(report, measured), markup=False, highlight=False)
    console.print(timeline.of(lab, measured[-1], report), markup=False, highlight=False)
    console.print(
        f"another host, which is not registered, tried to write through {heir} all the time: "
        f"{tried.written} writes let through, {tried.refused} refused with RESERVATION CONFLICT, "
        f"{tried.failed} failed while {heir} was standby"
    )
    console.print(lab[heir].succeed("hactl pr show r0; hactl status"), markup=False, highlight=False)
    picture = plot.pauses(report, measured, out / "switchovers.png")
    console.print(f"plot: {picture}")
    if report.error:
        raise SystemExit("the client saw an I/O error")
    if tried.written or not tried.refused:
        raise SystemExit("the reservation was not enforced")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", choices=("auto", "qemu"), default="auto")
    parser.add_argument("--switchovers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    with step(
        "booting three storage nodes and a client (the first time, their images are built: some minutes)"
    ):
        lab = start(options.machines)
    try:
        run(lab, options.switchovers, options.out)
    except BaseException:
        folder = story.keep_evidence(lab, options.out / "evidence" / "demo")
        console.print(f"what all machines looked like is in {folder.resolve()}", style="red")
        raise
    finally:
        lab.down(remove=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
