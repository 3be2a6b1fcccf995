"""What tests of faults have in common while Pacemaker is in charge: see ``failover_scene``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import story
from lab.api import Lab
from tests.lab.more import failover_scene
from tests.lab.more.failover_scene import Scene


@pytest.fixture
def whole(fenced: Lab) -> Iterator[Lab]:
    """The cluster with everything on and both disks UpToDate, before and after."""
    failover_scene.well(fenced)
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
