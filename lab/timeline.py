"""Where the time of a failover goes: the journals of all machines, joined by one clock."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lab import story
from lab.api import Lab, Machine


@dataclass(frozen=True)
class Stage:
    """Something that a line of a journal tells: of ``source`` (its syslog identifier), matching ``text``.
    ``last``: of several lines, on several machines too, the last one counts, not the first."""

    label: str
    source: str
    text: str
    last: bool = False


STAGES = (
    Stage("Corosync misses the node", "corosync", r"Token has not been received|processor failed"),
    Stage("the others are a cluster without it", "corosync", r"A new membership .*Members left", last=True),
    Stage("fencing is ordered", "pacemaker-controld", r"Requesting (peer )?fencing \("),
    Stage("it is fenced", "pacemaker-controld", r"Peer \S+ was terminated .*: OK"),
    Stage("promotion begins", "pacemaker-controld", r"Requesting local execution of promote operation"),
    Stage("it is promoted", "pacemaker-controld", r"Result of promote operation .*: (OK|ok)"),
)


@dataclass(frozen=True)
class Moment:
    """When a stage was reached, in seconds since 1970 of the client's clock, and on which machine."""

    label: str
    machine: str
    at: float


@dataclass(frozen=True)
class Line:
    """Of a journal, with the machine's own time."""

    at: float
    source: str
    text: str


def lines(told: str) -> tuple[Line, ...]:
    """What ``journalctl -o json`` told."""
    found = []
    for entry in map(json.loads, told.splitlines()):
        text = entry.get("MESSAGE")
        # A message that is not text is a list of bytes (systemd.journal-fields(7)).
        if isinstance(text, str):
            found.append(
                Line(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, entry.get("SYSLOG_IDENTIFIER", ""), text)
            )
    return tuple(found)


def moments(journals: Mapping[str, Iterable[Line]], ahead: Mapping[str, float]) -> tuple[Moment, ...]:
    """The stages that the journals tell of, in the order of time. ``ahead``: by how many seconds a machine's
    clock is ahead of the client's."""
    found = []
    for stage in STAGES:
        seen = [
            Moment(stage.label, machine, line.at - ahead[machine])
            for machine, told in journals.items()
            for line in told
            if line.source == stage.source and re.search(stage.text, line.text)
        ]
        if seen:
            found.append((max if stage.last else min)(seen, key=lambda moment: moment.at))
    return tuple(sorted(found, key=lambda moment: moment.at))


def table(begin: float, found: Iterable[Moment], end: float) -> str:
    """Seconds since ``begin``, when power was lost, and how long each stage took; ``end``: the client's first
    write that is completed."""
    rows = ["   at s   took s", f"{0.0:7.2f}            power is lost"]
    before = begin
    for moment in (*found, Moment("first write that is completed", "c1", end)):
        rows.append(
            f"{moment.at - begin:7.2f}  {moment.at - before:7.2f}   {moment.label} ({moment.machine})"
        )
        before = moment.at
    return "\n".join(rows) + "\n"


def of(lab: Lab, moved: story.Switchover, report: story.LoadReport) -> str:
    """The table of a failover that is over."""
    client = lab["c1"]
    offsets = {machine.name: _offset(machine) for machine in (*lab.nodes, client)}
    journals, ahead = {}, {}
    for node in lab.nodes:
        if node.name == moved.lost:
            continue
        ahead[node.name] = offsets[node.name] - offsets[client.name]
        since = moved.begin + ahead[node.name]
        until = moved.end + ahead[node.name]
        told = node.succeed(
            f"journalctl --since=@{since:.3f} --until=@{until:.3f} --output=json "
            "--output-fields=MESSAGE,SYSLOG_IDENTIFIER -t corosync -t pacemaker-controld"
        )
        journals[node.name] = lines(told)
    return table(moved.begin, moments(journals, ahead), report.gap(moved.begin, moved.end)[1])


def _offset(machine: Machine) -> float:
    """By how many seconds its clock is ahead of this computer's, from the quickest of some questions."""
    found = []
    for _ in range(5):
        before = time.time()
        told = story.clock(machine)
        after = time.time()
        found.append((after - before, told - (before + after) / 2))
    return min(found)[1]
