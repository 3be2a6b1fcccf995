"""What tests have in common: of faults while Pacemaker is in charge (see ``failover_scene``), of reservations
by many initiators (see ``pr_world``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import failover, story
from lab.api import Lab
from tests.lab.more import failover_scene
from tests.lab.more.failover_scene import SECONDS, Scene
from tests.lab.pr_world import HOST, INITIATORS, make_clean


@pytest.fixture
def whole(fenced: Lab) -> Iterator[Lab]:
    """The cluster with everything on and both disks UpToDate, before and after."""
    failover.wait_until_well(fenced, SECONDS)
    yield fenced
    failover_scene.mend(fenced)


@pytest.fixture
def reservation(whole: Lab) -> str:
    """Both paths are registered, that through n1 holds a reservation."""
    return failover_scene.reserve(whole)


@pytest.fixture
def scene(whole: Lab, reservation: str, load: story.Load) -> Iterator[Scene]:
    """A host that writes, verifies and holds a reservation, and a watch on the gates."""
    found = failover_scene.begin(whole, load, reservation)
    yield found
    found.watch.stop()


@pytest.fixture(scope="module")
def hosts(cluster: Lab) -> Iterator[Lab]:
    """Initiators that see r0 and are used by nobody else."""
    node = cluster["n1"]
    if node.execute(f"hactl host show {HOST}").status != 0:
        node.succeed(f"hactl host add {HOST} " + " ".join(f"--initiator {name}" for name in INITIATORS))
    node.succeed(f"hactl export r0 {HOST}")
    story.wait_until_settled(cluster)
    yield cluster
    make_clean(cluster)
    node.succeed(f"hactl unexport r0 {HOST} && hactl host remove {HOST}")
    story.wait_until_settled(cluster)
