"""Pictures of what a client saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.story import LoadReport, Switchover


def pauses(report: LoadReport, moved: list[Switchover], path: Path) -> Path:
    """Latency of every I/O over time, with the switchovers marked, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.2), layout="constrained")
    begin = min((t for t, _, _ in report.samples), default=0.0)
    for direction, colour, label in ((1, "tab:blue", "write"), (0, "tab:green", "read (verify)")):
        chosen = [(t - begin, latency * 1000) for t, latency, d in report.samples if d == direction]
        axes.plot(
            [t for t, _ in chosen], [latency for _, latency in chosen], ".", ms=3, color=colour, label=label
        )
    for switchover in moved:
        axes.axvspan(switchover.begin - begin, switchover.end - begin, color="tab:red", alpha=0.25, lw=0)
        axes.text(
            switchover.begin - begin,
            1,
            f"{switchover.lost or ''}{'†' if switchover.lost else ''}→{switchover.to}",
            fontsize=7,
            transform=axes.get_xaxis_transform(),
        )
    axes.set(yscale="log", xlabel="s", ylabel="latency, ms")
    axes.legend(loc="upper right", fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
