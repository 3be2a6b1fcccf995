"""A lab for the tests, and evidence of every machine when one fails."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import product, story
from lab.api import Lab

EVIDENCE = Path(os.environ.get("HACTL_LAB_EVIDENCE", "out/evidence"))
FAILED = pytest.StashKey[bool]()


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


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A fresh lab with hactl installed and nothing configured. It ends with this process."""
    chosen = os.environ.get("HACTL_LAB")
    if chosen:
        # One that runs already, for work on a test by hand. Its state is whatever it is.
        yield Lab(chosen)
        return
    with Lab.up(
        f"test-{os.getpid()}", fresh=True, kinds=os.environ.get("HACTL_LAB_MACHINES", "auto")
    ) as running:
        product.install(running)
        yield running
