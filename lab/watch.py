"""Where r0's gate is open, looked at all the time: never on two nodes at once, and in what order it was."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from lab.api import Lab, LabError, Machine

EVERY = 0.5
"""Seconds between two looks at a node."""
ASK = "dmsetup table hactl.r0.0"


@dataclass(frozen=True)
class Look:
    """At one node's gate. It was open, or not, at some moment between ``begin`` and ``end`` (seconds of the
    host's monotonic clock); ``open`` is None if the node did not answer."""

    node: str
    begin: float
    end: float
    open: bool | None


@dataclass(frozen=True)
class Span:
    """A gate was open at least from ``begin``, when the first look of several had ended, to ``end``, when the
    last one began. Of a single look ``end`` is before ``begin``: it was open at some moment in between."""

    node: str
    begin: float
    end: float


def spans(looks: list[Look]) -> list[Span]:
    """The times at which one node's gate was open, from the looks at it in their order. Two successive looks
    at an open gate count as one span: nothing shuts and opens one again within one interval."""
    found: list[Span] = []
    before: Look | None = None
    for look in looks:
        if look.open:
            if before is not None and before.open:
                found[-1] = Span(look.node, found[-1].begin, look.begin)
            else:
                found.append(Span(look.node, look.end, look.begin))
        before = look
    return found


def overlaps(found: list[Span]) -> list[tuple[Span, Span]]:
    """Pairs of spans of two nodes that certainly have a moment in common."""
    ordered = sorted(found, key=lambda s: s.begin)
    return [
        (a, b)
        for i, a in enumerate(ordered)
        for b in ordered[i + 1 :]
        if a.node != b.node and b.begin < a.end and a.begin < b.end
    ]


class Watch:
    """Looks at the nodes that may be active, each from a thread of its own, until it is stopped."""

    def __init__(self, lab: Lab) -> None:
        machines = lab.nodes[:2]
        self._looks: dict[str, list[Look]] = {m.name: [] for m in machines}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(m,), daemon=True) for m in machines]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def _run(self, machine: Machine) -> None:
        while not self._over.is_set():
            self._looks[machine.name].append(_look(machine))
            self._over.wait(EVERY)

    def open_at(self, node: str) -> bool:
        """Whether one of the looks until now found the gate of a node open."""
        return any(look.open for look in list(self._looks[node]))

    def stop(self) -> list[str]:
        """End it: the nodes that were active, in their order. AssertionError if two ever were at once."""
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=180)
        every = [span for looks in self._looks.values() for span in spans(list(looks))]
        both = overlaps(every)
        if both:
            raise AssertionError(f"two gates were open at the same time: {both}")
        order: list[str] = []
        for span in sorted(every, key=lambda s: s.begin):
            if not order or order[-1] != span.node:
                order.append(span.node)
        return order


def _look(machine: Machine) -> Look:
    begin = time.monotonic()
    seen: bool | None
    try:
        # Of one that is off nothing can be asked, and of one that is frozen no answer comes.
        result = machine.execute(ASK, timeout=20)
    except (LabError, OSError):
        seen = None
    else:
        # 147 is DRBD's major number. Without the device there is no open gate.
        seen = result.status == 0 and " linear " in result.out and " 147:" in result.out
    return Look(machine.name, begin, time.monotonic(), seen)
