"""YAML text to plain values, each with its place in the text; builds dict, list and scalars only. Pure.

Scalars are read as in YAML 1.2's core schema: ``on``, ``no`` and ``010`` are words, not booleans and octal
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.resolver import BaseResolver

MAX_BYTES = 2 << 20
"""The longest text that is read."""

MAX_DEPTH = 16
"""The deepest nesting; a specification has 6 levels."""

MAX_VALUES = 100_000
"""The most values a text may stand for, with aliases counted as often as they are used."""

Path = tuple[str | int, ...]
Value = dict[str, "Value"] | list["Value"] | str | int | bool | None

_TOO_DEEP = f"more than {MAX_DEPTH} levels of nesting"
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})\Z")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, order=True)
class Place:
    """Line and column in a text, both from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Fault:
    """What is wrong with a text as YAML, and where."""

    place: Place
    path: Path
    code: str
    message: str
    hint: str


@dataclass
class Tree:
    """The value of a text, and where its parts are: of keys in a mapping the key's place."""

    value: Value = None
    places: dict[Path, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: Path) -> Place:
        """Where a part is, or the nearest part around it that exists."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(1, 1))


class _StopError(Exception):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class _Composer(
    yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, BaseResolver
):
    """PyYAML up to its node graph, with a limit on nesting; its constructors are never reached."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            place = Place(self.line + 1, self.column + 1)
            raise _StopError(Fault(place, (), "yaml-too-deep", _TOO_DEEP, "flatten it"))
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read(data: bytes | str) -> Tree:
    """The tree of a text. Never raises for what is in it: ``faults`` has what was wrong, and if there is any,
    ``value`` is incomplete."""
    tree = Tree()
    try:
        node = _Composer(_decode(data)).get_single_node()
        if node is not None:
            _Reader(tree).read(node, (), 0)
    except _StopError as stop:
        tree.faults.append(stop.fault)
    except yaml.YAMLError as error:
        tree.faults.append(_syntax(error))
    except (ValueError, IndexError, OverflowError):
        # PyYAML 6.0 lets these out of its scanner, as for chr() of a too large \U escape.
        tree.faults.append(
            Fault(Place(1, 1), (), "yaml-syntax", "not valid YAML", "look for escapes (\\U) and % directives")
        )
    return tree


def _decode(data: bytes | str) -> str:
    size = len(data) if isinstance(data, bytes) else len(data.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise _StopError(
            Fault(Place(1, 1), (), "too-large", f"more than {MAX_BYTES >> 20} MiB", "is it the right file?")
        )
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        place = Place(before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        raise _StopError(Fault(place, (), "not-utf-8", "not UTF-8 text", "save it as UTF-8")) from None


class _Reader:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.left = MAX_VALUES

    def read(self, node: Node, path: Path, depth: int) -> None:
        self.tree.value = self._value(node, path, depth)

    def _value(self, node: Node, path: Path, depth: int) -> Value:
        self.left -= 1
        if self.left < 0:
            raise _StopError(
                _fault(
                    node.start_mark,
                    (),
                    "yaml-too-many",
                    f"more than {MAX_VALUES} values",
                    "use fewer aliases (*)",
                )
            )
        if depth > MAX_DEPTH:
            # Only aliases can get here: an anchor that contains itself, or a chain of them.
            raise _StopError(
                _fault(
                    node.start_mark,
                    (),
                    "yaml-too-deep",
                    _TOO_DEEP,
                    "flatten it",
                )
            )
        self.tree.places.setdefault(path, _place(node.start_mark))
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            self._add(
                node, path, "yaml-tag", "a tag (!) that is not supported", "write the value without a tag"
            )
        if isinstance(node, SequenceNode):
            return [self._value(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        return dict(self._pairs(node, path, depth)) if isinstance(node, MappingNode) else None

    def _pairs(self, node: MappingNode, path: Path, depth: int) -> Iterator[tuple[str, Value]]:
        first: dict[str, Place] = {}
        for key, item in node.value:
            if not isinstance(key, ScalarNode):
                self._add(key, path, "yaml-key", "a key that is not a word", "write 'key: value'")
                continue
            name = key.value
            if name == "<<" and key.style is None:
                self._add(key, path, "yaml-merge", "merge keys (<<) are not supported", "write the keys out")
                continue
            if name in first:
                self._add(
                    key,
                    (*path, name),
                    "duplicate-key",
                    f"this key is given a second time; the first is in line {first[name].line}",
                    "remove one of the two",
                )
                continue
            first[name] = self.tree.places[(*path, name)] = _place(key.start_mark)
            yield name, self._value(item, (*path, name), depth + 1)

    def _scalar(self, node: ScalarNode, path: Path) -> Value:
        text: str = node.value
        plain = node.style is None
        kind = node.tag.removeprefix(_TAG) if node.tag else "str"
        if kind not in ("str", "int", "bool", "null"):
            self._add(
                node, path, "yaml-tag", "a tag (!) that is not supported", "write the value without a tag"
            )
            return None
        if not plain or len(text) > 40:
            return text
        if text in _WORDS:
            return _WORDS[text]
        return int(text) if _INT.match(text) else text

    def _add(self, node: Node, path: Path, code: str, message: str, hint: str) -> None:
        self.tree.faults.append(_fault(node.start_mark, path, code, message, hint))


def _place(mark: yaml.Mark | None) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark is not None else Place(1, 1)


def _fault(mark: yaml.Mark | None, path: Path, code: str, message: str, hint: str) -> Fault:
    return Fault(_place(mark), path, code, message, hint)


def _syntax(error: yaml.YAMLError) -> Fault:
    """PyYAML's complaint without longer pieces of the input, which may be part of a secret."""
    hint = "check the indentation (spaces only), colons, and quotes around values with special characters"
    if isinstance(error, yaml.reader.ReaderError):
        return Fault(
            Place(1, 1), (), "yaml-character", f"character number {error.position} is not text", hint
        )
    if isinstance(error, ComposerError) and "alias" in str(error.problem):
        what = "an alias (*) of something that is not defined before"
        hint = "put a value that begins with * into quotes"
        return _fault(error.problem_mark, (), "yaml-syntax", what, hint)
    if isinstance(error, yaml.MarkedYAMLError):
        words = re.sub(r"'(?!<)[^']{2,}'|\"[^\"]{2,}\"", "this", str(error.problem or "not valid YAML"))
        mark = error.problem_mark or error.context_mark
        return _fault(mark, (), "yaml-syntax", words[:200], hint)
    return Fault(Place(1, 1), (), "yaml-syntax", "not valid YAML", hint)
