"""Waits until the agents have brought up a new resource, then orders its promotion; where Pacemaker is in
charge, waits for that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hactl.cli.cluster_view import Progress, active_node, progress, views
from hactl.cli.exits import AgentUnreachable
from hactl.errors import MOMENTARY, HactlError, Unknown

if TYPE_CHECKING:
    from hactl.cli.client import AgentClient
    from hactl.model.spec import ResourceSpec

INTERVAL = 0.5
"""Seconds between two looks."""

PATIENCE = 10.0
"""Seconds for which something may be in the way: an agent may look at a disk before it has made it."""

Tell = Callable[[str], None]


def bring_up(
    agent: AgentClient,
    resource: ResourceSpec,
    on: str,
    seconds: float,
    tell: Tell,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Wait up to ``seconds`` for all its nodes, telling what is waited for, then promote ``on``; where it is
    active, which may be another node if Pacemaker chooses.

    :class:`Unknown` ``create-unfinished``: it exists, and is not active yet.
    """
    end = clock() + seconds
    told: tuple[str, ...] = ()
    since: float | None = None
    while True:
        now = _try(agent, resource, on)
        if now is None:
            return on
        if now.ready:
            break
        lines = tuple(dict.fromkeys((*now.problems, *now.waiting)))
        if lines != told:
            told = lines
            tell("; ".join(lines))
        since = (clock() if since is None else since) if now.problems else None
        if since is not None and clock() - since > PATIENCE:
            raise unfinished(resource.name, on, "; ".join(now.problems))
        if clock() > end:
            raise unfinished(resource.name, on, f"not ready after {seconds:g} s: {'; '.join(lines)}")
        sleep(INTERVAL)
    tell("Pacemaker to promote it")
    while (active := _active(agent, resource.name)) is None:
        if clock() > end:
            raise unfinished(resource.name, None, f"Pacemaker has not promoted it after {seconds:g} s")
        sleep(INTERVAL)
    return active


def _try(agent: AgentClient, resource: ResourceSpec, on: str) -> Progress | None:
    """Promote it if it is ready. None: it is active; a `Progress` that is ready: Pacemaker is in charge."""
    try:
        now = _look(agent, resource)
        if now.ready:
            agent.promote(resource.name, on)
            return None
    except HactlError as error:
        if error.code == "not-ready":
            # Between the look and the order something may have begun, and the agent may be about to end it.
            return Progress((error.message,), (error.message,))
        if error.code in MOMENTARY:
            return Progress((error.message,), ())
        if error.code != "pacemaker-in-charge":
            raise unfinished(resource.name, on, f"{error.message} [{error.code}]") from None
    return now


def _active(agent: AgentClient, resource: str) -> str | None:
    try:
        return active_node(views(agent.cluster(), resource))
    except AgentUnreachable:
        return None


def _look(agent: AgentClient, resource: ResourceSpec) -> Progress:
    try:
        document = agent.cluster()
    except AgentUnreachable as error:
        # An agent that is just being restarted must not end the wait; the next look tells.
        return Progress((str(error.message),), ())
    return progress(
        document, resource.name, resource.nodes, resource.replicas, (v.number for v in resource.volumes)
    )


def unfinished(name: str, on: str | None, why: str) -> Unknown:
    """The outcome of a creation that is done in the store only. ``on``: to be promoted by hand there."""
    then = "" if on is None else f"; then: hactl promote {name} --node {on}"
    return Unknown(
        "create-unfinished",
        f"{name} is created, and not active yet: {why}",
        f"the agents go on; see: hactl status{then}",
    )
