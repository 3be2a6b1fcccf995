"""``hactl``: the commands, put together. Each subject has a module of its own beside this one.

Storage nodes start Python slowly, and what is imported costs every run. So imports are inside the commands,
and of the commands themselves only those of the module are built that the command line names.
Exit codes: :mod:`hactl.cli.exits`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from hactl.cli.reporting import NODE_FILE, Mode, Reporting

COMPLETE = "_HACTL_COMPLETE"
"""The environment variable in which a shell says that it wants completions."""

MODULES: dict[str, tuple[str, ...]] = {
    "status": ("status", "plan"),
    "roles": ("promote", "demote", "switchover"),
    "apply": ("apply", "diff", "dump"),
    "imports": ("import",),
    "check": ("check",),
    "export": ("export", "unexport"),
    "doctor": ("doctor",),
    "multipath": ("multipath-conf",),
    "manual": ("man", "completion"),
    "agent": ("agent",),
}
"""Modules of :mod:`hactl.cli`, in the order of the help, and their commands."""
GROUPS = ("node", "resource", "volume", "host", "cluster", "fencing", "failover", "witness", "pr")
"""Modules that are a command with subcommands, of their own name."""
WHOLE = frozenset({"man", "completion"})
"""Commands that look at all the others."""


def main() -> None:
    """Entry point of the ``hactl`` program."""
    if COMPLETE in os.environ:
        from hactl.cli import manual

        manual.prepare_completion()
        program()()
    else:
        program(needed(sys.argv[1:]))()


def needed(words: Sequence[str]) -> str | None:
    """The module that a command line is about; None if that is not plain from its first word."""
    first = next((word for word in words if word != "--debug"), "")
    if first in GROUPS:
        return first
    if first in WHOLE:
        return None
    return next((module for module, commands in MODULES.items() if first in commands), None)


@cache
def program(module: str | None = None) -> typer.Typer:
    """The commands of one module as a program, or all of them."""
    app = typer.Typer(
        name="hactl",
        cls=Reporting,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="High-availability cluster storage on LIO, DRBD and Pacemaker.",
        epilog=(
            "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 refused (nothing changed), "
            "4 agent or store not reachable (nothing changed), 5 outcome unknown (see: hactl status), "
            "6 looked and found differences (diff) or errors (doctor), 130 interrupted."
        ),
    )
    app.callback()(_options)
    wanted: Iterable[str] = (*MODULES, *GROUPS) if module is None else (module,)
    for name in wanted:
        found = import_module(f"hactl.cli.{name}")
        if name in GROUPS:
            app.add_typer(found.app, name=name)
        else:
            found.register(app)
    return app


def __getattr__(name: str) -> typer.Typer:
    """``app``: the program with all its commands."""
    if name == "app":
        return program()
    raise AttributeError(name)


def _version(wanted: bool) -> None:
    if wanted:
        from hactl import __version__

        typer.echo(f"hactl {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for errors.")] = False,
    node_file: Annotated[
        Path,
        typer.Option(
            "--node-file", envvar="HACTL_NODE_FILE", help="Tells this node's cluster, name and etcd servers."
        ),
    ] = NODE_FILE,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    mode = context.ensure_object(Mode)
    mode.debug, mode.node_file = debug, node_file


if __name__ == "__main__":
    main()
