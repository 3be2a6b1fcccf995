"""The table of ``make bench-failover``."""

from __future__ import annotations

from lab.bench_failover import Pause, table


def test_medians_spread_and_ratio() -> None:
    planned = [Pause("hactl", "planned", s) for s in (0.5, 0.1, 0.4)]
    planned += [Pause("stock", "planned", s) for s in (8.0, 4.0, 20.0)]
    lost = [Pause("hactl", "power loss", 10.0), Pause("stock", "power loss", 25.0)]
    lines = [" ".join(line.split()) for line in table([*lost, *planned]).splitlines()]
    assert lines[0] == "hactl stock stock / hactl"
    assert lines[1] == "planned 0.40 s (0.10 to 0.50) 8.00 s (4.00 to 20.00) 20.0×"
    assert lines[2] == "power loss 10.00 s (10.00 to 10.00) 25.00 s (25.00 to 25.00) 2.5×"
