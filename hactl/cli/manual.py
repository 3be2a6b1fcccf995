"""``hactl man`` and ``hactl completion``: made from the commands themselves."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hactl.cli.main import COMPLETE as COMPLETE
from hactl.cli.options import Json
from hactl.cli.reporting import begin, print_json


class Shell(StrEnum):
    """Shells that commands can be completed in."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(man)
    app.command()(completion)


def prepare_completion() -> None:
    """Make this run answer the shell's question instead of doing anything."""
    # Used by typer itself from there, though not in its list of exports.
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()


def man(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Folder to write hactl.1, hactl-node.1 ... into.")
    ],
    as_json: Json = False,
) -> None:
    """Write the manual pages, one for each command."""
    from hactl import __version__
    from hactl.cli.roff import pages
    from hactl.errors import Failed

    begin(context, as_json)
    program: Any = context.find_root().command
    written = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in pages(program, __version__).items():
            (output / name).write_text(text)
            written.append(str(output / name))
    except OSError as error:
        raise Failed(
            "file-unwritable",
            f"{output} cannot be written to: {error.strerror or error}",
            "choose another folder",
        ) from None
    if as_json:
        print_json({"written": written})
    else:
        typer.echo(f"{len(written)} pages in {output}")


def completion(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
    as_json: Json = False,
) -> None:
    """Print what makes a shell complete hactl's commands: eval "$(hactl completion bash)"."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    begin(context, as_json)
    text = get_completion_script(prog_name="hactl", complete_var=COMPLETE, shell=shell.value)
    if as_json:
        print_json({"shell": shell.value, "text": text})
    else:
        typer.echo(text)
