"""Why nobody takes over from a node that is lost: it has not been fenced yet. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hactl.model.spec import ClusterSpec
from hactl.pacemaker.charge import fences
from hactl.pacemaker.protocol import State


def unfenced(cluster: ClusterSpec, state: State) -> Iterator[str]:
    """The nodes whose fencing has failed, or is under way, each in words with what to do about it."""
    if not fences(cluster):
        return
    for member in state.members:
        if member.online or member.clean:
            continue
        name = member.name
        mine = [event for event in state.fencing if event.target == name]
        # What succeeded, and what failed before that, is of earlier losses.
        since = max((e.completed or 0.0 for e in mine if e.state == "success"), default=-1.0)
        if any(e.state == "failed" and (e.completed or 0.0) > since for e in mine):
            yield (
                f"node {name} is lost and could not be fenced, so nobody takes over what was active there: "
                f"see that its fence device answers (hactl doctor), Pacemaker goes on trying; or make sure "
                f"yourself that it is off, then: stonith_admin --confirm {name}"
            )
        else:
            yield f"node {name} is lost; nobody takes over what was active there before it is fenced"
