"""The manual says what the code does: every error code is in its table, and its examples are good."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from typer import Typer
from typer.main import get_command

from hactl.agents.kit import Timings
from hactl.cli.exits import Exit
from hactl.cli.main import app as hactl
from hactl.cli.roff import commands as all_commands
from hactl.doctor.judge_failover import FILES, PACKAGES
from hactl.model.load import load
from lab import newcomer
from lab.cli import app as lab
from lab.images import DISPOSABLE, KEEP_DAYS
from tests.lab.conftest import ORDER

TREE = Path(__file__).parents[2]
DOCUMENTS = [
    *sorted((TREE / "docs").rglob("*.md")),
    *(TREE / name for name in ("README.md", "CHANGELOG.md", "vagrant/README.md")),
]

POSITION = {
    "Refused": 0, "Failed": 0, "Unknown": 0, "AgentUnreachable": 0, "kind": 0, "_lost": 1,
    "Problem": 1, "Fault": 2, "_fault": 2, "_add": 2, "Finding": 4,
    "Diagnosis": 0, "SkipError": 0, "_remark": 1, "Unusable": 1, "Verdict": 1, "until": 2, "Again": 0,
}  # fmt: skip
"""Which argument of a call is an error code. ``super().__init__`` of an error counts as position 0."""

COMPOSED = {
    "{what}-unknown": {"node-unknown", "host-unknown"},
    "{what}-listed-twice": {"node-listed-twice", "host-listed-twice"},
    "{what}-name": {"node-name", "resource-name", "host-name", "cluster-name", "failure-domain-name"},
    "configfs-{name.lower()}": {"configfs-*"},
}
"""Codes that are put together from a word, by their pattern in the source."""

TABLES = {
    "cli/client.py",
    "model/chap.py",
    "model/check.py",
    "replication/errors.py",
}
"""Modules that keep codes in tuples, beside their messages."""

PASSED_ON = {
    "agents/disks.py",
    "agents/errors_http.py",
    "cli/client.py",
    "cli/configuration.py",
    "cli/status.py",
    "cluster/checks.py",
    "cluster/membership.py",
    "model/load.py",
    "model/takeover.py",
    "model/tree.py",
    "model/values.py",
    "store/etcd_members.py",
}
"""Modules that hand on a code that came from elsewhere."""

NAMESAKES = {("agents/observe.py", "_lost")}
"""Calls of functions that have the name of one that makes errors."""

INTERNAL = {"store-compacted"}
"""Codes that no user ever sees."""

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+\Z")


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((TREE / "hactl").rglob("*.py")):
        # Twins repeat the codes of what they stand for.
        if not path.name.startswith("memory"):
            yield path.relative_to(TREE / "hactl").as_posix(), ast.parse(path.read_text())


def constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names that a module gives to texts."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            for target in node.targets:
                if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                    yield target.id, node.value.value


def known_in(tree: ast.Module, trees: dict[str, ast.Module]) -> dict[str, str]:
    """Texts by name in a module: its own constants, and those that it imports from others of hactl's."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hactl."):
            path = str(node.module).removeprefix("hactl.").replace(".", "/") + ".py"
            there = dict(constants(trees[path])) if path in trees else {}
            found |= {a.asname or a.name: there[a.name] for a in node.names if a.name in there}
    return found | dict(constants(tree))


def called(node: ast.Call) -> str:
    """Name of what is called, without what it is an attribute of."""
    if isinstance(node.func, ast.Attribute):
        return "Refused" if ast.unparse(node.func) == "super().__init__" else node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def pattern(text: ast.JoinedStr) -> str:
    """An f-string as it is written."""
    return ast.unparse(text)[2:-1]


def codes_in(name: str, tree: ast.Module, known: dict[str, str]) -> set[str]:
    """Every error code a module can give; what cannot be told fails the test that asks."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and name in TABLES:
            words = (e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str))
            found |= {word for word in words if _CODE.match(word)}
        if isinstance(node, ast.Dict):
            found |= {
                value.value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
                and key.value == "code"
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            }
        if not isinstance(node, ast.Call) or len(node.args) <= POSITION.get(called(node), 99):
            continue
        if called(node) == "Refused" and "super()" in ast.unparse(node.func) and not _is_error(node):
            continue
        if (name, called(node)) in NAMESAKES:
            continue
        argument = node.args[POSITION[called(node)]]
        match argument:
            case ast.Constant(value=str(code)):
                found.add(code)
            case ast.Name(id=constant) if constant in known:
                found.add(known[constant])
            case ast.IfExp(body=ast.Constant(value=str(one)), orelse=ast.Constant(value=str(other))):
                found |= {one, other}
            case ast.JoinedStr():
                found |= COMPOSED[pattern(argument)]
            case _:
                assert name in PASSED_ON | TABLES, (
                    f"hactl/{name}:{node.lineno}: which codes can {ast.unparse(argument)} be? "
                    "Write it out there, or teach this test"
                )
    return found


def _is_error(node: ast.Call) -> bool:
    return isinstance(node.args[0], ast.Constant) and bool(_CODE.match(str(node.args[0].value)))


def in_code() -> set[str]:
    trees = dict(modules())
    found = (codes_in(name, tree, known_in(tree, trees)) for name, tree in trees.items())
    return set().union(*found) - INTERNAL


def in_manual() -> list[str]:
    text = (TREE / "docs/operations.md").read_text().partition("\n## Error codes\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE)
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row)]


def test_every_error_code_is_in_the_manual_and_no_other() -> None:
    code = in_code()
    assert {"rolled-back", "busy", "chap-null", "drbd-in-use", "spec-invalid", "yaml-merge"} <= code
    manual = in_manual()
    assert code - set(manual) == set(), "not in docs/operations.md"
    assert set(manual) - code == set(), "in docs/operations.md, and nowhere in the code"
    assert len(manual) == len(set(manual)), "twice in docs/operations.md"


def test_every_exit_code_is_in_the_manual() -> None:
    text = (TREE / "docs/operations.md").read_text().partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    assert rows == [str(int(code)) for code in Exit]


def commands(app: Typer) -> set[str]:
    """A program's commands, by the words that call them."""
    found = all_commands(get_command(app), ())
    return {" ".join(words) for words, command in found if not getattr(command, "commands", None)}


def section(document: str, heading: str) -> str:
    """The text below a heading, down to the next one of its kind."""
    return (TREE / document).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_command_is_in_the_manual_and_no_other() -> None:
    text = section("docs/operations.md", "Commands")
    table = re.findall(r"^\| `hactl ([a-z][a-z-]*(?: [a-z][a-z-]*)*)", text, re.MULTILINE)
    assert sorted(table) == sorted(commands(hactl))
    shown = re.findall(r"\.venv/bin/lab ([a-z]+)", section("docs/lab.md", "By hand"))
    assert set(shown) == commands(lab)


def test_no_text_names_a_command_that_does_not_exist() -> None:
    """Documents, hints of errors, and what Pacemaker shows of the resource agents."""
    names = commands(hactl)
    beginnings = {
        " ".join(words[:count]) for words in map(str.split, names) for count in range(1, len(words))
    }
    groups = {words for words in beginnings if " " not in words}
    prose = {"node does"}
    texts = [*DOCUMENTS, *(TREE / "hactl").rglob("*.py"), *(TREE / "ocf/hactl").iterdir()]
    named = {
        (text.relative_to(TREE).as_posix(), words)
        for text in texts
        for words in re.findall(rf"\bhactl ((?:{'|'.join(sorted(groups))}) [a-z][a-z-]*)", text.read_text())
    }
    assert {"resource set", "fencing test", "cluster join"} <= {words for _, words in named}
    assert {(text, words) for text, words in named if words not in names | beginnings | prose} == set()


def test_time_limits_of_a_switchover_are_those_of_the_code() -> None:
    found = re.search(r"The limits \(([^)]+)\) are `Timings`", (TREE / "docs/switchover.md").read_text())
    assert found is not None
    told = {float(limit.removesuffix(" s")) for limit in found[1].split(", ")}
    regular = {Timings().reconcile, Timings().calm}
    assert told == set(astuple(Timings())) - regular


def test_lab_tests_are_told_in_the_order_in_which_they_run() -> None:
    text = section("docs/lab.md", "Tests")
    found = re.findall(
        r"^\| `(more/)?(test_\w+)\.py` \|", text.partition("`tests/lab/long` takes")[0], re.MULTILINE
    )
    assert tuple(file for _, file in found) == ORDER
    for folder in ("", "more/"):
        there = {file.stem for file in (TREE / "tests/lab" / folder).glob("test_*.py")}
        assert {file for where, file in found if where == folder} == there


def test_what_is_removed_from_the_labs_cache_is_told() -> None:
    text = section("docs/lab.md", "What it guarantees")
    assert f"not used for {KEEP_DAYS} days" in text
    for prefix in DISPOSABLE:
        assert f"`{prefix}*`" in text


def test_decisions_are_numbered_without_a_hole_and_have_the_same_parts() -> None:
    records = sorted((TREE / "docs/decisions").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {record.name[:4]}: "), record.name
        parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequences", "Evidence"], record.name


def test_the_specification_in_the_manual_is_good() -> None:
    text = section("docs/operations.md", "Commands")
    examples = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(examples) == 1
    cluster = load(examples[0], max_replicas=2)
    assert cluster.resource("r0").replicas == ("alpha", "beta")


def test_the_commands_in_the_readme_are_ones_that_exist() -> None:
    steps = newcomer.steps()
    assert len(steps) <= 8
    typed = [step.command.removeprefix("hactl ") for step in steps if step.command.startswith("hactl ")]
    assert len(typed) >= 5
    for words in typed:
        assert any(words.startswith(name) for name in commands(hactl)), words


def test_what_the_doctor_looks_for_is_installed_by_the_readme() -> None:
    """Packages of Debian's, and hactl's own programs in the places where they are called."""
    text = section("README.md", "A first cluster in ten minutes").replace("\\\n", "")
    packages = re.search(r"^apt install (.+)$", text, re.MULTILINE)
    assert packages is not None
    assert set(PACKAGES.values()) <= set(packages[1].split())
    placed = set()
    for folder, sources in re.findall(r"^install -D -m 755 -t (\S+) (.+)$", text, re.MULTILINE):
        files = [file for source in sources.split() for file in TREE.glob(source)]
        assert files, sources
        placed |= {f"{folder}/{file.name}" for file in files}
    assert placed == set(FILES)


def anchors(path: Path) -> set[str]:
    """What a heading's link is called: lower case, spaces as hyphens, other signs left out."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(TREE).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        name, _, anchor = link.partition("#")
        target = (document.parent / name) if name else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(TREE).as_posix())
def test_files_that_are_named_exist(document: Path) -> None:
    for name in re.findall(r"`((?:hactl|lab|ocf|tests|docs|requirements)/[\w./-]+)`", document.read_text()):
        assert (TREE / name).exists(), name


def test_vagrant_installs_a_node_by_the_words_of_the_readme() -> None:
    script = (TREE / "vagrant/node.sh").read_text()
    take = re.search(r"^sed .*(?= >/root/install\.sh$)", script, re.MULTILINE)
    assert take is not None
    taken = subprocess.run(["sh", "-c", take[0]], cwd=TREE, capture_output=True, text=True, check=True).stdout
    assert taken.startswith("apt install ")
    assert taken in (TREE / "README.md").read_text()
    assert taken.endswith("udevadm control --reload\n")
