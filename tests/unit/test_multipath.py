"""The multipath drop-in, read back the way multipath reads it: one item a line."""

from __future__ import annotations

import re

import pytest

from hactl.multipath import render

Section = dict[str, "str | Section"]


def read(text: str) -> Section:
    """The sections of a multipath.conf; AssertionError for what multipath would misread."""
    top: Section = {}
    stack = [top]
    for line in text.splitlines():
        line = re.sub(r'^([^"#!]*("[^"]*")?)[#!].*', r"\1", line).strip()
        if not line:
            continue
        if line == "}":
            assert len(stack) > 1, "a bracket too many"
            stack.pop()
        elif opened := re.fullmatch(r"(\w+) \{", line):
            inner: Section = {}
            assert opened[1] not in stack[-1], "a section twice"
            stack[-1][opened[1]] = inner
            stack.append(inner)
        else:
            item = re.fullmatch(r'(\w+) ("[^"]+"|[^\s"{}]+)', line)
            assert item, f"multipath would misread: {line!r}"
            assert item[1] not in stack[-1], f"{item[1]} twice"
            stack[-1][item[1]] = item[2].strip('"')
    assert stack == [top], "a section is not closed"
    return top


def device(text: str) -> Section:
    devices = read(text)["devices"]
    assert isinstance(devices, dict)
    found = devices["device"]
    assert isinstance(found, dict)
    return found


def test_what_makes_failover_work() -> None:
    wanted = {
        "vendor": "HACTL",
        "product": ".*",
        "path_checker": "tur",
        "detect_checker": "no",
        "prio": "alua",
        "hardware_handler": "1 alua",
        "path_grouping_policy": "group_by_prio",
        "failback": "immediate",
    }
    assert device(render()).items() >= wanted.items()


def test_sections_are_never_on_one_line() -> None:
    for line in render().splitlines():
        if not line.lstrip().startswith("#"):
            assert not ("{" in line and "}" in line)
    with pytest.raises(AssertionError, match="misread"):
        read("defaults { polling_interval 2 }")


@pytest.mark.parametrize(("queue", "polling"), [(180, 2), (61, 5), (86400, 60), (10, 1)])
def test_io_queues_as_long_as_asked(queue: int, polling: int) -> None:
    text = render(queue_seconds=queue, polling_interval=polling)
    defaults, lun = read(text)["defaults"], device(text)
    assert isinstance(defaults, dict)
    interval, retries = defaults["polling_interval"], lun["no_path_retry"]
    assert isinstance(interval, str)
    assert isinstance(retries, str)
    assert queue <= int(interval) * int(retries) < queue + polling
    assert int(str(lun["dev_loss_tmo"])) > int(interval) * int(retries)
    assert int(str(defaults["max_polling_interval"])) >= int(interval)


def test_every_setting_is_explained() -> None:
    """Above each setting stands a comment, or another setting that shares it."""
    before = ""
    for line in (raw.strip() for raw in render().splitlines()):
        if line and not line.startswith("#") and not line.endswith(("{", "}")):
            assert before.startswith("#") or before.startswith("vendor"), line
        before = line


def test_iscsid_advice_stays_a_comment() -> None:
    lines = [line for line in render().splitlines() if "node.session" in line or "node.conn" in line]
    assert len(lines) >= 3
    assert all(line.lstrip().startswith("#") for line in lines)


def test_a_narrower_product() -> None:
    assert device(render(product="^hactl-"))["product"] == "^hactl-"


@pytest.mark.parametrize(
    "arguments",
    [{"product": ""}, {"product": 'a"b'}, {"product": "a\nb"}, {"queue_seconds": 1}, {"polling_interval": 0}],
)
def test_values_that_make_no_sense(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        render(**arguments)  # type: ignore[arg-type]  # wrong values on purpose
