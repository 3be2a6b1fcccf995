"""``hactl``: parse, call, render. Imports are inside the commands, since storage nodes start Python slowly.

Exit codes: 0 done, 1 failed, 2 wrong command line, 3 refused (nothing changed), 4 agent not reachable
(nothing changed), 5 outcome unknown (see ``hactl status``), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hactl.cli.exits import Exit, code_of
from hactl.errors import Failed, HactlError, Refused, Unknown

if TYPE_CHECKING:
    from hactl.cli.client import AgentClient

SOCKET = Path("/run/hactl/agent.sock")
SPEC = Path("/etc/hactl/cluster.yaml")


class Drbd(StrEnum):
    """DRBD generations that differ in what they can do."""

    V84 = "8.4"
    V9 = "9"


@dataclass
class Mode:
    """How this run reports."""

    debug: bool = False
    json: bool = False
    ordering: bool = False
    """Orders something, so that an interruption leaves the outcome unknown."""


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
            # Click's own exceptions (wrong options, exit) know their exit code and are for Click to handle.
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort | BrokenPipeError):
                raise
            _trace(error, mode)
            kind = Unknown if mode.ordering else Failed
            what = f"{type(error).__name__}: {error}"
            found = kind("internal-error", what, "this is an error in hactl; see it with: hactl --debug")
        _report(found, mode)
        raise typer.Exit(code_of(found))


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
        "4 agent not reachable (nothing changed), 5 outcome unknown (see: hactl status), 130 interrupted."
    ),
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON; errors too, to standard error.")]
Socket = Annotated[Path, typer.Option("--socket", envvar="HACTL_SOCKET", help="The agent's socket.")]
Resource = Annotated[str, typer.Argument(metavar="RESOURCE", help="Name of the resource.")]
Seconds = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the outcome.")]


def main() -> None:
    """Entry point of the ``hactl`` program."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from hactl import __version__

        typer.echo(f"hactl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for errors.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.ensure_object(Mode).debug = debug


@app.command()
def check(
    context: typer.Context,
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="Specification file (YAML).")],
    drbd: Annotated[Drbd | None, typer.Option(help="Check for what this DRBD can do, too.")] = None,
    as_json: Json = False,
) -> None:
    """Validate a specification file; nothing is changed."""
    from hactl.model.load import SpecError, load

    context.obj.json = as_json
    try:
        cluster = load(spec, max_replicas=2 if drbd is Drbd.V84 else None)
    except SpecError as error:
        if not as_json:
            raise
        # The findings are the result that was asked for, so they go to standard output.
        _print_json({"ok": False, "source": str(spec), "findings": [f.as_dict() for f in error.findings]})
        raise typer.Exit(Exit.REFUSED) from None
    counts = {what: len(getattr(cluster, what)) for what in ("nodes", "hosts", "resources")}
    if as_json:
        _print_json({"ok": True, "source": str(spec), "findings": [], "cluster": cluster.name, **counts})
    else:
        typer.echo(f"{spec}: OK: " + ", ".join(f"{n} {what}" for what, n in counts.items()))


@app.command()
def status(
    context: typer.Context,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="Tell, too, how this file differs from what the agent runs.")
    ] = None,
    socket: Socket = SOCKET,
    as_json: Json = False,
) -> None:
    """Show resources, roles, replication and access states as this node sees them."""
    context.obj.json = as_json
    document = _ask(socket, lambda agent: agent.status())
    notes = _compare(document, spec) if spec else {}
    if as_json:
        _print_json({**document, **({"spec": notes} if spec else {})})
        return
    from hactl.cli import render

    render.status(document)
    for what, names in notes.items():
        if names:
            typer.echo(f"{what.replace('_', ' ')}: {', '.join(names)}")


@app.command()
def plan(context: typer.Context, socket: Socket = SOCKET, as_json: Json = False) -> None:
    """Show what the agent would do next and why; nothing is changed."""
    context.obj.json = as_json
    document = _ask(socket, lambda agent: agent.plan())
    if as_json:
        _print_json(document)
        return
    from hactl.cli import render

    render.plan(document)


@app.command()
def promote(
    context: typer.Context,
    resource: Resource,
    socket: Socket = SOCKET,
    timeout: Seconds = 120.0,
    as_json: Json = False,
) -> None:
    """Make this node the active one of a resource."""
    _order(
        context, resource, as_json, socket, timeout, lambda a: a.promote(resource), "is active on this node"
    )


@app.command()
def demote(
    context: typer.Context,
    resource: Resource,
    socket: Socket = SOCKET,
    timeout: Seconds = 120.0,
    as_json: Json = False,
) -> None:
    """Make this node a standby one of a resource."""
    _order(
        context, resource, as_json, socket, timeout, lambda a: a.demote(resource), "is demoted on this node"
    )


@app.command()
def switchover(
    context: typer.Context,
    resource: Resource,
    to: Annotated[str, typer.Option("--to", metavar="NODE", help="The node to become active.")],
    socket: Socket = SOCKET,
    timeout: Seconds = 120.0,
    as_json: Json = False,
) -> None:
    """Move a resource from this node to another; initiators see a pause."""
    context.obj.json = as_json
    _named("node", to)
    _order(
        context,
        resource,
        as_json,
        socket,
        timeout,
        lambda a: a.switchover(resource, to),
        f"is active on {to}",
    )


@app.command(name="multipath-conf")
def multipath_conf(
    context: typer.Context,
    queue_seconds: Annotated[
        int, typer.Option(min=10, max=86400, help="How long I/O waits when no path is left.")
    ] = 180,
    polling_interval: Annotated[int, typer.Option(min=1, max=60, help="Seconds between path checks.")] = 2,
    as_json: Json = False,
) -> None:
    """Print the drop-in for multipath-tools on hosts: /etc/multipath/conf.d/hactl.conf."""
    from hactl.multipath import render

    context.obj.json = as_json
    text = render(queue_seconds=queue_seconds, polling_interval=polling_interval)
    if as_json:
        _print_json({"path": "/etc/multipath/conf.d/hactl.conf", "text": text})
    else:
        typer.echo(text, nl=False)


@app.command()
def agent(
    spec: Annotated[Path, typer.Option("--spec", help="Specification file (YAML).")] = SPEC,
    socket: Socket = SOCKET,
) -> None:
    """Run this node's agent in the foreground."""
    from hactl.agents.main import run

    run(spec, socket)


def _ask(
    socket: Path, question: Callable[[AgentClient], dict[str, Any]], seconds: float = 120.0
) -> dict[str, Any]:
    from hactl.cli.client import AgentClient

    return question(AgentClient(str(socket), order_seconds=seconds))


def _order(
    context: typer.Context,
    resource: str,
    as_json: bool,
    socket: Path,
    timeout: float,
    order: Callable[[AgentClient], dict[str, Any]],
    done: str,
) -> None:
    context.obj.json, context.obj.ordering = as_json, True
    _named("resource", resource)
    answer = _ask(socket, order, timeout)
    if as_json:
        _print_json(answer)
        return
    seconds = answer.get("seconds")
    typer.echo(f"{resource} {done}" + (f" ({seconds:.1f} s)" if isinstance(seconds, int | float) else ""))


def _named(what: str, name: str) -> None:
    from hactl.model.names import valid_name

    try:
        valid_name(name)
    except ValueError as error:
        raise Refused(f"{what}-name", f"{what}: {error}", "see: hactl status") from None


def _compare(document: dict[str, Any], spec: Path) -> dict[str, list[str]]:
    """Resources that only the file has for this node, and that only the agent has."""
    from hactl.model.load import load

    cluster = load(spec)
    here = {r.name for r in cluster.resources if document.get("node") in r.nodes}
    running = {str(r["name"]) for r in document.get("resources", [])}
    return {"only_in_file": sorted(here - running), "only_in_agent": sorted(running - here)}


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
        _print_json({"error": body}, err=True)
        return
    for finding in findings:
        typer.echo(str(finding), err=True)
        if finding.hint:
            typer.echo(f"    {finding.hint}", err=True)
    typer.echo(f"hactl: {error.code}: {error.message}", err=True)
    if error.hint:
        typer.echo(f"hint: {error.hint}", err=True)


def _print_json(value: object, *, err: bool = False) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True), file=sys.stderr if err else sys.stdout)


if __name__ == "__main__":
    main()
