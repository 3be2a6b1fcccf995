"""How a run of ``hactl`` reports: errors once and in one place, JSON and exit codes."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from hactl.cli.exits import Exit, code_of
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.log import muted

if TYPE_CHECKING:
    from hactl.store.protocol import Store

NODE_FILE = Path("/etc/hactl/node.yaml")


@dataclass
class Mode:
    """How this run reports, and where it finds the cluster. It is the ``obj`` of every command's context."""

    debug: bool = False
    json: bool = False
    ordering: bool = False
    """Orders or changes something, so that an interruption leaves the outcome unknown."""
    node_file: Path = NODE_FILE
    open_store: Callable[[], tuple[Store, str, str]] | None = field(default=None, repr=False)
    """Store, names of the cluster and of this node; None: as ``node_file`` says. Tests bring their own."""
    terminal: bool | None = None
    """Whether somebody sits in front of it; None: look at standard input and output."""


def begin(context: typer.Context, as_json: bool, *, ordering: bool = False) -> Mode:
    """The mode of this run, told how the command at hand prints and whether it changes something."""
    mode: Mode = context.obj
    mode.json = as_json
    mode.ordering = ordering
    if not mode.debug:
        context.with_resource(muted())
    return mode


class Reporting(TyperGroup):
    """Turns every error of a command into one report and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        mode = ctx.ensure_object(Mode)
        try:
            return super().invoke(ctx)
        except HactlError as error:
            _trace(error, mode)
            found: HactlError = error
        except KeyboardInterrupt:
            if not mode.ordering:
                raise typer.Exit(Exit.INTERRUPTED) from None
            found = Unknown(
                "interrupted", "interrupted; the order may still be carried out", "see: hactl status"
            )
        except Exception as error:
            if isinstance(error, typer.Abort):
                # Ctrl-C or the end of input where something was asked: nothing has been ordered yet.
                typer.echo("hactl: not confirmed; nothing was changed", err=True)
                raise typer.Exit(Exit.INTERRUPTED) from None
            # Click's own exceptions (wrong options, exit) know their exit code and are for Click to handle.
            if hasattr(error, "exit_code") or isinstance(error, BrokenPipeError):
                raise
            _trace(error, mode)
            kind = Unknown if mode.ordering else Failed
            what = f"{type(error).__name__}: {error}"
            found = kind("internal-error", what, "this is an error in hactl; see it with: hactl --debug")
        _report(found, mode)
        raise typer.Exit(code_of(found))


def print_json(value: object, *, err: bool = False) -> None:
    """Print a document for programs, on standard output unless ``err``."""
    print(json.dumps(value, indent=2, ensure_ascii=True), file=sys.stderr if err else sys.stdout)


def warn(text: str) -> None:
    """Tell people something that is no error, on standard error."""
    typer.echo(f"hactl: {text}", err=True)


def named(what: str, name: str) -> str:
    """``name`` if it is a possible one for a node, host or resource; :class:`Refused` otherwise."""
    from hactl.model.names import valid_name

    try:
        return valid_name(name)
    except ValueError as error:
        raise Refused(f"{what}-name", f"{what}: {error}", "see: hactl status") from None


def _trace(error: Exception, mode: Mode) -> None:
    if mode.debug:
        typer.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _report(error: HactlError, mode: Mode) -> None:
    """The one place where an error is printed."""
    findings = getattr(error, "findings", ())
    if mode.json:
        body: dict[str, Any] = dict(error.as_dict())
        if findings:
            body["findings"] = [f.as_dict() for f in findings]
        print_json({"error": body}, err=True)
        return
    for finding in findings:
        typer.echo(str(finding), err=True)
        if finding.hint:
            typer.echo(f"    {finding.hint}", err=True)
    typer.echo(f"hactl: {error.code}: {error.message}", err=True)
    if error.hint:
        typer.echo(f"hint: {error.hint}", err=True)
