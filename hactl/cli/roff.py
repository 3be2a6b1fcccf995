"""Manual pages from the commands, in the man macros of groff (man(7)). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

EXITS = (
    ("0", "done"),
    ("1", "tried and certainly not done, or an error in hactl itself"),
    ("2", "wrong command line; nothing was tried"),
    ("3", "refused; nothing was changed"),
    ("4", "the agent or the store cannot be reached; nothing was changed"),
    ("5", "tried, and not known whether it was done: look at hactl status before trying again"),
    ("6", "looked, and found differences (hactl diff) or errors (hactl doctor)"),
    ("130", "interrupted while only looking"),
)

FILES = (
    ("/etc/hactl/node.yaml", "this node's cluster, name and etcd servers"),
    ("/etc/hactl/tls/", "certificates"),
    ("/run/hactl/agent.sock", "the agent's socket"),
)


def pages(program: Any, version: str) -> dict[str, str]:
    """The text of each page by file name, for a program (a Click group) and everything below it."""
    return {
        f"{'-'.join(words)}.1": _page(command, words, version)
        for words, command in commands(program, ("hactl",))
    }


def commands(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A command and all below it, each with the words that call it."""
    yield words, command
    for name, below in sorted(getattr(command, "commands", {}).items()):
        if not below.hidden:
            yield from commands(below, (*words, name))


def _page(command: Any, words: tuple[str, ...], version: str) -> str:
    name = " ".join(words)
    text = " ".join((command.help or "").split())
    lines = [
        f'.TH "{"-".join(words).upper()}" 1 "" "hactl {version}" "hactl manual"',
        ".SH NAME",
        rf"{escape('-'.join(words))} \- {escape(text.partition('. ')[0].rstrip('.'))}",
        ".SH SYNOPSIS",
        rf"\fB{escape(name)}\fR {' '.join(_synopsis(command))}".rstrip(),
        ".SH DESCRIPTION",
        escape(text),
    ]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    if arguments:
        lines.append(".SH ARGUMENTS")
        for argument in arguments:
            lines += [".TP", rf"\fI{escape(_metavar(argument))}\fR", escape(argument.help or "")]
    lines.append(".SH OPTIONS")
    for option in options:
        lines += [".TP", _option(option), escape(_explained(option))]
    lines += [".TP", r"\fB\-\-help\fR", "Show a short help and exit."]
    below = sorted(getattr(command, "commands", {}).items())
    if below:
        lines.append(".SH COMMANDS")
        for sub, its in below:
            if not its.hidden:
                lines += [".TP", rf"\fB{escape(sub)}\fR", escape(its.get_short_help_str(200))]
    lines.append(".SH EXIT STATUS")
    for code, meaning in EXITS:
        lines += [".TP", rf"\fB{code}\fR", escape(meaning)]
    lines.append(".SH FILES")
    for path, meaning in FILES:
        lines += [".TP", rf"\fI{escape(path)}\fR", escape(meaning)]
    lines += [".SH SEE ALSO", _see(command, words)]
    return "\n".join(lines) + "\n"


def _see(command: Any, words: tuple[str, ...]) -> str:
    above = ["-".join(words[:-1])] if len(words) > 1 else []
    below = ["-".join((*words, sub)) for sub in sorted(getattr(command, "commands", {}))]
    named = [rf"\fB{escape(page)}\fR(1)" for page in (*above, *below)]
    return ", ".join([*named, r"\fBdrbdadm\fR(8)", r"\fBmultipath\fR(8)"])


def _synopsis(command: Any) -> Iterator[str]:
    yield r"[\fIOPTIONS\fR]"
    for p in command.params:
        if p.param_type_name == "argument":
            shown = rf"\fI{escape(_metavar(p))}\fR" + ("..." if p.nargs == -1 else "")
            yield shown if p.required else f"[{shown}]"
    if getattr(command, "commands", None):
        yield r"\fICOMMAND\fR ..."


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _option(option: Any) -> str:
    names = ", ".join(rf"\fB{escape(name)}\fR" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    return rf"{names} \fI{escape(option.metavar or option.name.upper())}\fR"


def _explained(option: Any) -> str:
    parts = [option.help or ""]
    if option.envvar:
        parts.append(f"Environment: {option.envvar}.")
    if not option.is_flag and option.default not in (None, (), []) and not callable(option.default):
        parts.append(f"Default: {option.default}.")
    return " ".join(parts)


def escape(text: str) -> str:
    """Text as roff prints it unchanged: no request at a line's beginning, hyphens that can be copied."""
    plain = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    plain = "".join(c if c.isascii() else rf"\[u{ord(c):04X}]" for c in plain)
    return rf"\&{plain}" if plain.startswith(".") else plain
