"""A specification file to a :class:`ClusterSpec`, or to every reason why not with its line.

``load`` is the one function here that reads a file; nothing is ever written or changed.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hactl.errors import Refused
from hactl.model import explain, tree
from hactl.model.check import Problem, check
from hactl.model.fence import secret_like
from hactl.model.spec import ClusterSpec

TEXT = "<text>"
"""What a specification that is not in a file is called."""

Judgement = tuple[ClusterSpec | None, tuple[Problem, ...]]
"""A specification, or none, and what is wrong with it."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong with a specification: where (line and column from 1), what, and what to do.

    ``path`` is in words: ``resources.r0.volumes[0].lun``; empty for the whole file.
    """

    source: str
    line: int
    column: int
    path: str
    code: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}:{self.column}: "
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"

    def as_dict(self) -> dict[str, str | int]:
        """The finding as ``--json`` shows it."""
        return dict(vars(self))


class SpecError(Refused):
    """A specification was refused; ``findings`` has every reason, in the order of the file."""

    def __init__(self, source: str, findings: tuple[Finding, ...], command: str = "check") -> None:
        self.findings = findings
        count = len(findings)
        super().__init__(
            "spec-invalid",
            f"{source} has {count} {'error' if count == 1 else 'errors'}; nothing was changed",
            f"correct the file and run: hactl {command} {shlex.quote(source)}",
        )

    def __str__(self) -> str:
        lines = (f"{f}" + (f" ({f.hint})" if f.hint else "") for f in self.findings)
        return "\n".join((self.message, *lines))


def load(source: Path | str, *, max_replicas: int | None = None) -> ClusterSpec:
    """The specification in a file or text: a ``str`` with a line break or brace is a text, any other a path.

    ``max_replicas`` is what the cluster's DRBD can do (see :func:`hactl.model.check.check`).

    Raises :class:`SpecError` with every finding. A file with secrets that others than its owner can access is
    refused as well.
    """
    return parse(*contents(source), max_replicas=max_replicas)


def contents(source: Path | str) -> tuple[bytes | str, str, int | None]:
    """What :func:`load` reads: data, its name in findings, and the mode of its file if it is one."""
    if isinstance(source, str) and any(c in source for c in "\n{"):
        return source, TEXT, None
    data, mode = _read(Path(source))
    return data, str(source), mode


def parse(
    data: bytes | str, name: str = TEXT, mode: int | None = None, *, max_replicas: int | None = None
) -> ClusterSpec:
    """The specification in a text called ``name`` in findings; ``mode`` is its file's, if it has one."""

    def judged(value: tree.Value) -> Judgement:
        spec, problems = explain.validate(value)
        return (spec, problems) if spec is None else (spec, check(spec, max_replicas=max_replicas))

    return judge(data, name, mode, judged)


def judge(
    data: bytes | str,
    name: str,
    mode: int | None,
    judged: Callable[[tree.Value], Judgement],
    *,
    command: str = "check",
) -> ClusterSpec:
    """The specification that ``judged`` makes of a text's value; :class:`SpecError` with what is wrong with
    it as YAML and with what ``judged`` found. ``command`` of hactl is what to run again then."""
    read = tree.read(data)
    findings = [
        Finding(
            name, f.place.line, f.place.column, explain.words(f.path, read.value), f.code, f.message, f.hint
        )
        for f in read.faults
    ]
    if mode is not None and mode & 0o077 and _has_secret(read.value):
        findings.append(
            Finding(
                name,
                1,
                1,
                "",
                "secrets-readable",
                f"it has secrets in it, and mode {mode & 0o777:04o} lets others than its owner access it",
                f"chmod 600 {shlex.quote(name)}",
            )
        )
    # What could not be read as YAML is missing from the value: judging the rest would report what is not so.
    complete = not any(f.code.startswith(("yaml-", "too-large", "not-utf-8")) for f in read.faults)
    spec: ClusterSpec | None = None
    if complete:
        spec, problems = judged(read.value)
        for problem in problems:
            place = read.place(problem.path)
            path = explain.words(problem.path, read.value)
            findings.append(
                Finding(name, place.line, place.column, path, problem.code, problem.message, problem.hint)
            )
    if findings or spec is None:
        raise SpecError(name, tuple(sorted(findings, key=lambda f: (f.line, f.column))), command)
    return spec


def _read(path: Path) -> tuple[bytes, int]:
    """Bytes and mode of a regular file; one byte more than allowed is enough to know that it is too long."""
    try:
        # O_NONBLOCK: opening a FIFO would wait for its writer. fstat: the mode of what was opened.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _unreadable(path, "it is not a regular file", "name the specification file")
            return file.read(tree.MAX_BYTES + 1), status.st_mode
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise _unreadable(path, reason, "check the path and its permissions") from None


def _unreadable(path: Path, reason: str, hint: str) -> SpecError:
    finding = Finding(str(path), 1, 1, "", "file-unreadable", f"cannot be read: {reason}", hint)
    return SpecError(str(path), (finding,))


def _has_secret(value: tree.Value) -> bool:
    """Whether a secret is anywhere in it, also where it does not belong."""
    if isinstance(value, dict):
        return any(
            (secret_like(key) and item not in (None, {})) or _has_secret(item) for key, item in value.items()
        )
    return isinstance(value, list) and any(_has_secret(item) for item in value)
