"""``hactl doctor``: what may be wrong with this node, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from hactl.cli.exits import Exit
from hactl.cli.options import SOCKET, Json, Socket
from hactl.cli.reporting import Mode, begin, print_json

if TYPE_CHECKING:
    from pathlib import Path

    from hactl.doctor.collect import Wanted


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(context: typer.Context, socket: Socket = SOCKET, as_json: Json = False) -> None:
    """Look for what may be wrong with this node; every finding comes with its remedy. Changes nothing."""
    import asyncio
    from dataclasses import replace

    from hactl.doctor.collect import collect
    from hactl.doctor.judge import Severity, judge
    from hactl.runner import SubprocessRunner

    mode = begin(context, as_json)
    wanted, unseen = _wanted(context, mode)
    facts = asyncio.run(collect(SubprocessRunner(), wanted))
    facts = replace(facts, unseen=(*unseen, *facts.unseen), storage_cut=_storage_cut(socket))
    found = judge(facts)
    worst = any(d.severity is Severity.ERROR for d in found)
    if as_json:
        print_json(
            {"schema": 1, "node": facts.node, "ok": not worst, "findings": [d.as_dict() for d in found]}
        )
    else:
        for d in found:
            typer.echo(f"{d.severity.value}: {d.message} [{d.code}]")
            typer.echo(f"    {d.remedy}")
        counts = ", ".join(f"{sum(d.severity is s for d in found)} {s.value}s" for s in Severity)
        typer.echo(f"{facts.node}: {counts}")
    if worst:
        raise typer.Exit(Exit.DIFFERENT)


def _storage_cut(socket: Path) -> str | None:
    """What this node's agent says, which has been asking for a while. One that does not run is told of
    elsewhere."""
    from hactl.cli.client import AgentClient
    from hactl.errors import HactlError

    try:
        told = AgentClient(str(socket)).status()
    except HactlError:
        return None
    # An agent of the version before says nothing about it.
    storage = told.get("storage") or {}
    reason = storage.get("reason")
    return None if reason is None else str(reason)


def _wanted(context: typer.Context, mode: Mode) -> tuple[Wanted, tuple[tuple[str, str], ...]]:
    """What to look at, and what cannot be for want of configuration."""
    import os

    from hactl.cli.configuration import read
    from hactl.cluster import node_config
    from hactl.cluster.certificates import Certificates
    from hactl.cluster.layout import AGENT_PORT
    from hactl.doctor.collect import Wanted
    from hactl.doctor.facts import Port
    from hactl.errors import HactlError

    hostname = os.uname().nodename.split(".")[0]
    try:
        place = node_config.load(mode.node_file)
    except HactlError as error:
        return Wanted(hostname, in_cluster=False), (("the cluster", str(error)),)
    ports = [
        Port(str(address), str(address), port, purpose)
        for address, number in map(node_config.host_port, place.etcd)
        for port, purpose in ((number, "etcd"), (node_config.PEER_PORT, "etcd's replication"))
    ]
    cluster = None
    try:
        cluster = read(context).cluster
        context_tls = Certificates().client()
    except HactlError as error:
        return Wanted(place.node, True, tuple(ports), cluster=cluster), (("the other nodes", str(error)),)
    others = [n for n in cluster.nodes if n.name != place.node]
    names = {str(n.addresses.cluster): n.name for n in cluster.nodes}
    ports = [Port(names.get(p.node, p.node), p.address, p.port, p.purpose) for p in ports]
    ports += [Port(n.name, str(n.addresses.cluster), AGENT_PORT, "the agent") for n in others]
    agents = {n.name: f"[{n.addresses.cluster}]:{AGENT_PORT}" for n in others}
    return Wanted(place.node, True, tuple(ports), agents, context_tls, cluster), ()
