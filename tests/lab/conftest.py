"""A lab for the tests, and evidence of every machine when one fails."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import failover, product, story
from lab.api import Lab

EVIDENCE = Path(os.environ.get("HACTL_LAB_EVIDENCE", "out/evidence"))
collect_ignore = ["long", "more"]
"""Only if they are named on the command line."""
ORDER = (
    "test_lab",
    "test_bmc",
    "test_contracts",
    "test_commands",
    "test_host_script",
    "test_bad_input",
    "test_access",
    "test_story",
    "test_refused",
    "test_disturbed",
    "test_pr_races",
    "test_pr_many",
    "test_pr_tools",
    "test_reservations",
    "test_pr_kills",
    "test_take_over",
    "test_reservation_faults",
    "test_failover",
    "test_failover_faults",
    "test_failover_planned",
    "test_storage_cut",
)
"""One boot serves all files; each begins with what the one before it left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the files of this folder into their order."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else -1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]  # a wrapper is sent the report
    if report.failed and report.when != "teardown":
        lab = item.funcargs.get("lab") if isinstance(item, pytest.Function) else None
        if isinstance(lab, Lab):
            folder = EVIDENCE / re.sub(r"[^\w.-]+", "_", item.nodeid)
            story.keep_evidence(lab, folder)
            report.sections.append(
                ("lab", f"consoles, journals and states of all machines: {folder.resolve()}")
            )
    return report  # type: ignore[return-value]  # see above


@contextlib.contextmanager
def fresh_lab() -> Iterator[Lab]:
    """A lab with hactl installed and nothing configured. It ends with this process."""
    running = Lab.up(f"test-{os.getpid()}", fresh=True, kinds=os.environ.get("HACTL_LAB_MACHINES", "auto"))
    try:
        product.install(running)
        yield running
    finally:
        running.down(remove=True)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A fresh lab for all files that are run."""
    chosen = os.environ.get("HACTL_LAB")
    if chosen:
        # One that runs already, for work on a test by hand. Its state is whatever it is.
        yield Lab(chosen)
        return
    with fresh_lab() as running:
        yield running


@pytest.fixture(autouse=True)
def healed(lab: Lab) -> Iterator[None]:
    """No test leaves a network cut behind for the next one."""
    yield
    if lab.status()["cut"]:
        lab.heal()


@pytest.fixture(scope="session")
def cluster(lab: Lab) -> Lab:
    """The lab with r0 replicated, exported from n1 and n2, and active (at first on n1)."""
    story.make_cluster(lab)
    story.apply(lab, story.specification(lab))
    story.wait_until_ready(lab)
    if not any(r["active_node"] for r in story.status(lab["n1"])["resources"]):
        lab["n1"].succeed("hactl promote r0")
    story.wait_until_ready(lab)
    return lab


@pytest.fixture(scope="session")
def device(cluster: Lab) -> str:
    """The client's multipath device."""
    return story.attach(cluster)


@pytest.fixture(scope="session")
def fenced(cluster: Lab, device: str) -> Lab:
    """The cluster with a fence device for each node, so that Pacemaker is in charge."""
    failover.fence_devices(cluster)
    failover.wait_until_in_charge(cluster)
    return cluster


@pytest.fixture
def load(cluster: Lab, device: str) -> Iterator[story.Load]:
    """fio writing and verifying for as long as the test lasts; whatever happens, it saw no error."""
    running = story.Load(cluster["c1"], device)
    running.start()
    yield running
    if running.running:
        report = running.stop()
        assert report.error == 0
        assert report.writes > 0
