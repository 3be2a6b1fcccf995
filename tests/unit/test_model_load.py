"""Specification files: every mistake is reported with its line and no input gets through as a traceback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.model.load import Finding, SpecError, load, parse
from tests.unit.test_model_check import valid

TEXT = """\
name: lab
nodes:
  - name: n1
    id: 1
    addresses: {cluster: 10.0.1.1, replication: 10.0.2.1, storage: [10.0.3.1]}
  - name: n2
    id: 2
    addresses: {cluster: 10.0.1.2, replication: 10.0.2.2, storage: [10.0.3.2]}
hosts:
  - name: h1
    initiators: [iqn.2026-01.com.example:h1]
resources:
  - name: r0
    id: 1
    iqn: iqn.2026-01.com.example:r0
    nodes: [n1, n2]
    hosts: [h1]
    volumes:
      - number: 0
        lun: 0
        size: 10G
        disks:
          n1: /dev/sdb
          n2: /dev/sdb
"""


def findings(text: str | bytes) -> tuple[Finding, ...]:
    with pytest.raises(SpecError) as error:
        parse(text, name="c.yaml")
    assert error.value.findings
    return error.value.findings


def one(text: str) -> Finding:
    found = findings(text)
    assert len(found) == 1, found
    return found[0]


def test_a_valid_text() -> None:
    spec = load(TEXT)
    assert spec.resource("r0").volumes[0].size == 10 << 30
    assert parse(yaml.safe_dump(valid())).name == "lab"


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(TEXT)
    assert load(path) == load(str(path)) == load(TEXT)


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "code", "says"),
    [
        ("lun: 0", "lum: 0", 20, "resources.r0.volumes[0].lum", "unknown-key", "did you mean lun"),
        ("size: 10G", "size: 10X", 21, "resources.r0.volumes[0].size", "invalid", "'10X' is not a size"),
        ("lun: 0", "lun: 010", 20, "resources.r0.volumes[0].lun", "wrong-type", "whole number"),
        ("lun: 0", "lun: 16384", 20, "resources.r0.volumes[0].lun", "out-of-range", "at most 16383"),
        ("    id: 1\n    iqn", "    id: 0\n    iqn", 14, "resources.r0.id", "out-of-range", "at least 1"),
        ("hosts: [h1]", "hosts: h1", 17, "resources.r0.hosts", "wrong-type", "must be a list"),
        ("hosts: [h1]", "hosts:", 17, "resources.r0.hosts", "empty", "no value"),
        ("hosts: [h1]", "hosts: [h2]", 17, "resources.r0.hosts[0]", "host-unknown", "no host h2"),
        ("name: r0", "name: 12", 13, "resources[0].name", "wrong-type", "quotes"),
        ("cluster: 10.0.1.2", "cluster: 10.0.1", 8, "nodes.n2.addresses.cluster", "invalid", "not an IP"),
        ("n2: /dev/sdb", "n2: sdb", 22, "resources.r0.volumes[0].disks", "invalid", "under /dev"),
        ("n2: /dev/sdb", "n1: /dev/sdc", 24, "resources.r0.volumes[0].disks.n1", "duplicate-key", "line 23"),
        ("r0\n    nodes", "r 0\n    nodes", 15, "resources.r0.iqn", "invalid", "white space"),
        ("size: 10G", "size: 5000000", 21, "resources.r0.volumes[0].size", "size-not-aligned", "4096"),
        ("  - name: n1", "  - name: n1\n   id", 4, "", "yaml-syntax", "indentation"),
        ("name: lab", "name: !!python/name:os.system x", 1, "name", "yaml-tag", "tag"),
        ("name: lab", "name: @lab", 1, "", "yaml-syntax", "cannot start any token"),
    ],
)
def test_a_mistake_is_reported_with_its_line(
    old: str, new: str, line: int, path: str, code: str, says: str
) -> None:
    assert old in TEXT
    found = one(TEXT.replace(old, new, 1))
    assert (found.line, found.path, found.code) == (line, path, code)
    assert says in found.message + found.hint
    assert str(found).startswith(f"c.yaml:{line}:{found.column}: ")
    assert found.hint


def test_a_missing_key_is_reported_at_its_mapping() -> None:
    found = one(TEXT.replace("        lun: 0\n", ""))
    assert (found.line, found.path, found.code) == (19, "resources.r0.volumes[0].lun", "missing")


def test_columns_count_from_one() -> None:
    found = one(TEXT.replace("lun: 0", "lun: x"))
    assert (found.line, found.column) == (20, 9)


def test_all_findings_come_at_once_and_in_order() -> None:
    text = TEXT.replace("id: 1", "id: x").replace("lun: 0", "lum: 0").replace("size: 10G", "size: big")
    found = findings(text)
    assert [f.code for f in found] == ["wrong-type", "wrong-type", "unknown-key", "invalid"]
    assert [f.line for f in found] == sorted(f.line for f in found)


def test_words_that_yaml_1_1_would_take_for_something_else() -> None:
    spec = parse(TEXT.replace("name: r0", "name: no").replace("name: lab", "name: on"))
    assert (spec.name, spec.resources[0].name) == ("on", "no")


def test_aliases_are_understood() -> None:
    text = TEXT.replace("nodes: [n1, n2]", "nodes: &both [n1, n2]")
    assert parse(text) == parse(TEXT)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(['*a' + str(i - 1)] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (BOMB, "yaml-too-many"),
        ("a: &a [*a]", "yaml-too-deep"),
        ("[" * 100_000, "yaml-too-deep"),
        ("- " * 50_000, "yaml-too-deep"),
        (b"\xff\xfe\x00", "not-utf-8"),
        (b"name: \xe4", "not-utf-8"),
        ("a\x00b: 1", "yaml-character"),
        (b"# " + b"x" * (3 << 20), "too-large"),
        ("", "empty"),
        ("--- a\n--- b\n", "yaml-syntax"),
        ('a: "\\UFFFFFFFF"', "yaml-syntax"),
        ("{? [1, 2] : 3}", "yaml-key"),
        ("base: &b {x: 1}\nname: {<<: *b}", "yaml-merge"),
        ("42", "wrong-type"),
        ("[]", "wrong-type"),
    ],
)
def test_hostile_and_odd_texts_are_refused(text: str | bytes, code: str) -> None:
    assert code in {f.code for f in findings(text)}


SECRET = "s3cr3t-of-h0st"
WITH_SECRET = TEXT.replace(
    "hosts:\n",
    "hosts:\n  - name: h0\n    initiators: [iqn.2026-01.a.b:h0]\n"
    f"    chap: {{user: h0, password: {SECRET}}}\n",
    1,
)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_with_secrets_is_only_its_owners(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(WITH_SECRET)
    path.chmod(mode)
    with pytest.raises(SpecError) as error:
        load(path)
    assert [f.code for f in error.value.findings] == ["secrets-readable"]
    assert error.value.findings[0].hint == f"chmod 600 {path}"
    path.chmod(0o600)
    assert load(path).host("h0").chap is not None


@pytest.mark.parametrize(
    "text",
    [
        WITH_SECRET.replace(SECRET, SECRET + " " + SECRET),
        WITH_SECRET.replace(SECRET, "*" + SECRET),
        WITH_SECRET.replace(SECRET, "!" + SECRET),
        WITH_SECRET.replace(SECRET, f"!{SECRET}!x y"),
        WITH_SECRET.replace(SECRET, f"[{SECRET}]"),
        WITH_SECRET.replace(SECRET, f"'{SECRET}"),
        WITH_SECRET.replace(SECRET, f"{SECRET}, pasword: {SECRET}"),
        WITH_SECRET.replace("user: h0", f"user: h0, mutual_password: {SECRET}"),
        WITH_SECRET.replace("user: h0", f"user: [{SECRET}]"),
    ],
)
def test_no_finding_shows_a_secret(text: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(text, mode=0o644)
    assert SECRET not in str(error.value) + repr(error.value)


def test_a_number_as_password_is_not_shown() -> None:
    found = one(WITH_SECRET.replace(SECRET, "123456789012"))
    assert found.path == "hosts.h0.chap.password"
    assert "quotes" in found.hint
    assert "123456789012" not in str(found)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, tmp_path / "none", fifo, Path("/dev/null"), tmp_path / ("x" * 300)):
        with pytest.raises(SpecError) as error:
            load(path)
        assert [f.code for f in error.value.findings] == ["file-unreadable"]
    with pytest.raises(SpecError):
        load("nul\0byte")


def refuse_or_accept(data: str | bytes) -> None:
    refused: tuple[Finding, ...] = ()
    try:
        parse(data)
    except SpecError as error:
        refused = error.findings
    assert all(f.message and f.line >= 1 and f.column >= 1 for f in refused)


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
@settings(deadline=None)
def test_any_text_is_refused_in_order(data: str | bytes) -> None:
    with pytest.raises(SpecError):
        parse(data)


@given(st.text(alphabet="{}[]:,-?&*!|>'\"%@`#~ \n\tabn01.\\UxuN<=\x85\ufeff", max_size=60))
@settings(max_examples=400, deadline=None)
def test_yaml_syntax_is_refused_in_order(data: str) -> None:
    with pytest.raises(SpecError):
        parse(data)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, item in items for p in paths(item, (*path, key)))]


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


@given(st.sampled_from(paths(valid())[1:]), ODD)
@settings(max_examples=300, deadline=None)
def test_any_value_anywhere_is_accepted_or_refused_in_order(path: tuple[str | int, ...], odd: object) -> None:
    spec = valid()
    here: Any = spec
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = odd
    refuse_or_accept(yaml.safe_dump(spec))


@given(st.integers(0, len(WITH_SECRET)), st.integers(0, 20), st.text(max_size=5))
@settings(max_examples=300, deadline=None)
def test_any_edit_of_a_valid_text_is_accepted_or_refused_in_order(at: int, cut: int, new: str) -> None:
    refuse_or_accept(WITH_SECRET[:at] + new + WITH_SECRET[at + cut :])
