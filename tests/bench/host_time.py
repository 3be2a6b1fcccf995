"""Processor time that a whole lab has used on its host. Other load there changes it little, where the clock
on the wall tells what else the host did."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def used(root: int, proc: Path = Path("/proc")) -> float:
    """Seconds used so far by process ``root`` and all below it, those that have ended and were waited for
    included (proc(5): utime, stime, cutime, cstime)."""
    below: dict[int, list[int]] = defaultdict(list)
    ticks: dict[int, int] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except OSError:
            # It has ended meanwhile, and counts with its parent.
            continue
        # The name may hold spaces and brackets.
        fields = text[text.rindex(")") + 2 :].split()
        ticks[int(entry.name)] = sum(map(int, fields[11:15]))
        below[int(fields[1])].append(int(entry.name))
    total, left = 0, [root]
    while left:
        process = left.pop()
        total += ticks.get(process, 0)
        left += below[process]
    return total / _TICK
