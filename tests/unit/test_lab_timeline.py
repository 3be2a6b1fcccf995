"""Journals of the survivors of a power loss, joined by the client's clock. The lines are what Corosync 3.1
and Pacemaker 3.0 wrote."""

from __future__ import annotations

import json

from lab.story import LoadReport
from lab.timeline import Line, lines, moments, table

CRASH = 1000.0


def journal(*told: tuple[float, str, str]) -> tuple[Line, ...]:
    return lines(
        "".join(
            json.dumps(
                {"__REALTIME_TIMESTAMP": str(int(at * 1e6)), "SYSLOG_IDENTIFIER": source, "MESSAGE": text}
            )
            + "\n"
            for at, source, text in told
        )
    )


N2 = journal(
    (1001.5, "corosync", "  [TOTEM ] Token has not been received in 1500 ms "),
    (
        1002.0,
        "corosync",
        "  [TOTEM ] A processor failed, forming new configuration: token timed out (2000ms)",
    ),
    (1004.4, "corosync", "  [TOTEM ] A new membership (2.1a) was formed. Members left: 1"),
    (
        1008.3,
        "pacemaker-controld",
        " notice: Peer n1 was terminated (reboot) by n3 on behalf of pacemaker-controld.1127@n3: OK",
    ),
    (
        1009.9,
        "pacemaker-controld",
        " notice: Requesting local execution of promote operation for hactl-r0 on n2",
    ),
    (1011.4, "pacemaker-controld", " notice: Result of promote operation for hactl-r0 on n2: OK"),
    (1013.7, "corosync", "  [TOTEM ] A new membership (1.1f) was formed. Members joined: 1"),
)
N3 = journal(
    # Its clock is two seconds ahead.
    (1003.3, "corosync", "  [TOTEM ] Token has not been received in 1500 ms "),
    (1006.7, "corosync", "  [TOTEM ] A new membership (2.1a) was formed. Members left: 1"),
    (1007.5, "pacemaker-controld", " notice: Requesting fencing (reboot) targeting node n1"),
    (1010.5, "pacemaker-controld", " notice: Peer n1 was terminated (reboot) by n3 on behalf of x: OK"),
)


def test_stages_come_from_whichever_machine_tells_of_them() -> None:
    found = moments({"n2": N2, "n3": N3}, {"n2": 0.0, "n3": 2.0})
    assert [(round(m.at - CRASH, 1), m.machine, m.label) for m in found] == [
        (1.3, "n3", "Corosync misses the node"),
        (4.7, "n3", "the others are a cluster without it"),
        (5.5, "n3", "fencing is ordered"),
        (8.3, "n2", "it is fenced"),
        (9.9, "n2", "promotion begins"),
        (11.4, "n2", "it is promoted"),
    ]


def test_the_table_ends_with_the_first_write() -> None:
    found = moments({"n2": N2, "n3": N3}, {"n2": 0.0, "n3": 2.0})
    shown = table(CRASH, found, 1013.0).splitlines()
    assert shown[0].split() == ["at", "s", "took", "s"]
    assert shown[-1].split()[:2] == ["13.00", "1.60"]
    assert shown[-1].endswith("first write that is completed (c1)")
    assert len(shown) == 2 + len(found) + 1


def test_the_gap_is_the_one_that_touches_the_span() -> None:
    times = (990.0, 995.0, 999.9, 1013.0, 1013.1, 1030.0)
    report = LoadReport(0, 6, 0, tuple((at, 0.001, 1) for at in times))
    assert report.gap(CRASH, 1014.0) == (1013.1, 1030.0)
    assert report.gap(CRASH, 1005.0) == (999.9, 1013.0)


def test_what_is_no_text_is_passed_over() -> None:
    told = json.dumps({"__REALTIME_TIMESTAMP": "1", "MESSAGE": [72, 105]})
    assert lines(told) == ()
