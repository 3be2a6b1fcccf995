"""Asks people what must not happen by mistake. Without a terminal nobody can be asked: then it is refused."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hactl.cli.reporting import Mode
from hactl.errors import Refused

if TYPE_CHECKING:
    from pydantic import SecretStr

MAX_PASSWORD = 4096
"""Bytes that are read of a password's file; CHAP takes far fewer."""


def at_terminal(mode: Mode) -> bool:
    """Whether somebody can be asked."""
    return mode.terminal if mode.terminal is not None else sys.stdin.isatty() and sys.stderr.isatty()


def printing_to_terminal(mode: Mode) -> bool:
    """Whether what is printed appears on a screen."""
    return mode.terminal if mode.terminal is not None else sys.stdout.isatty()


def destruction(mode: Mode, names: tuple[str, ...], consented: tuple[str, ...], what: str) -> None:
    """Have each of ``names``, whose data would be lost, typed, unless it was named on the command line.

    :class:`Refused` ``confirmation-needed`` without a terminal, ``confirmation-wrong`` for another name.
    """
    for name in names:
        if name in consented:
            continue
        if not at_terminal(mode):
            raise Refused(
                "confirmation-needed",
                f"{what} {name} destroys its data, and nobody can be asked",
                f"if that is meant, add: --yes-destroy {name}",
            )
        typer.echo(f"{what} {name} destroys its data on all nodes. This cannot be undone.", err=True)
        typed = typer.prompt("Type the name to go on", default="", show_default=False, err=True)
        if typed != name:
            raise Refused("confirmation-wrong", f"{typed!r} is not {name}; nothing was changed", "")


def order(mode: Mode, name: str, consented: str | None, warning: str, option: str) -> None:
    """Have a resource's name typed, unless it was given with ``option`` on the command line; ``warning`` is a
    sentence about what the order does. Refusals as by :func:`destruction`."""
    if consented == name:
        return
    if consented is not None:
        raise Refused(
            "confirmation-wrong", f"{option} names {consented}, not {name}; nothing was changed", ""
        )
    if not at_terminal(mode):
        raise Refused(
            "confirmation-needed",
            f"{warning}, and nobody can be asked",
            f"if that is meant, add: {option} {name}",
        )
    typer.echo(f"{warning}.", err=True)
    typed = typer.prompt("Type the name to go on", default="", show_default=False, err=True)
    if typed != name:
        raise Refused("confirmation-wrong", f"{typed!r} is not {name}; nothing was changed", "")


def sentence(mode: Mode, name: str, consented: str | None, text: str, warning: str, option: str) -> None:
    """Have ``text`` typed, unless ``name`` was given with ``option`` on the command line; ``warning`` says
    what may happen. Refusals as by :func:`destruction`."""
    if consented is not None or not at_terminal(mode):
        order(mode, name, consented, warning, option)
        return
    typer.echo(f"{warning}.", err=True)
    typed = typer.prompt(f"Type to go on: {text}\n", default="", show_default=False, err=True)
    if " ".join(typed.split()) != text:
        raise Refused("confirmation-wrong", f"{typed!r} is not {text!r}; nothing was changed", "")


def password(mode: Mode, file: str | None, what: str, option: str = "--chap-password-file") -> SecretStr:
    """A password from a file, from standard input (``-``), or asked for twice on the terminal.

    :class:`Refused` ``password-needed``, ``password-file`` or ``secrets-readable``.
    """
    from pydantic import SecretStr

    if file == "-":
        return SecretStr(_line(sys.stdin.readline(MAX_PASSWORD)))
    if file is not None:
        return SecretStr(_from_file(Path(file)))
    if not at_terminal(mode):
        raise Refused(
            "password-needed",
            f"{what} is needed, and nobody can be asked",
            f"put it into a file (mode 0600) and name that, or - for standard input, as {option}",
        )
    return SecretStr(typer.prompt(what, hide_input=True, confirmation_prompt=True, err=True))


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise Refused(
                    "secrets-readable",
                    f"{path} has a password in it, and mode {mode & 0o777:04o} lets others read it",
                    f"chmod 600 {path}",
                )
            return _line(file.readline(MAX_PASSWORD).decode())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Refused("password-file", f"{path} cannot be read: {reason}", "check the path") from None


def _line(text: str) -> str:
    line = text.rstrip("\r\n")
    if not line:
        raise Refused("password-file", "the password is empty", "its first line is the password")
    return line
