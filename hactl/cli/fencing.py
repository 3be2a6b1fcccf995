"""``hactl fencing``: how the other nodes switch a node off that they have lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hactl.cli.options import SOCKET, Json, Node, Seconds, ShowSecrets, Socket
from hactl.cli.reporting import Mode, begin, named, print_json
from hactl.errors import Refused

if TYPE_CHECKING:
    from hactl.model.desired import Desired
    from hactl.model.spec import ClusterSpec, FenceSpec

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Fencing: lost nodes are switched off by the others."
)

OPTION = "--password-file"
USERS = frozenset({"username", "login"})
"""Options that say that a password belongs to them."""
INSTEAD = frozenset({"password_script", "passwd_script", "identity_file"})
"""Options that stand in for a password."""


@app.command(name="set")
def set_device(
    context: typer.Context,
    node: Node,
    agent: Annotated[
        str,
        typer.Argument(metavar="AGENT", help="Fence agent, such as fence_ipmilan; its manual: man AGENT."),
    ],
    option: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Its options, such as ip=10.0.9.1 username=admin."),
    ] = None,
    password_file: Annotated[
        str | None,
        typer.Option(
            OPTION,
            metavar="FILE",
            help="Its password: first line of a file (mode 0600), or - for standard input; with a username, "
            "it is asked for else.",
        ),
    ] = None,
    secret_file: Annotated[
        list[str] | None,
        typer.Option("--secret-file", metavar="KEY=FILE", help="Another secret: snmp_priv_passwd. As above."),
    ] = None,
    keep_secrets: Annotated[
        bool, typer.Option("--keep-secrets", help="Secrets that are not given stay as they are.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how a node is switched off; what was said before is replaced."""
    from hactl.cli.configuration import change
    from hactl.cli.documents import fencing_document
    from hactl.model import edit as edits
    from hactl.model import find
    from hactl.pacemaker import charge

    mode = begin(context, as_json, ordering=True)
    named("node", node)
    options = _pairs(option, "KEY=VALUE")
    _refuse_open(options)
    given = _secrets(mode, node, options, password_file, _pairs(secret_file, "KEY=FILE"), keep_secrets)

    def how(desired: Desired) -> Desired:
        kept = _known(find.node(desired, node).fencing) if keep_secrets else {}
        return edits.set_fencing(desired, node, edits.fence_device(agent, options, {**kept, **given}))

    what = f"fence device of node {node}"
    after, changed = change(context, what, how)
    text = f"node {node}: switched off by {agent}; {_outlook(after.cluster)}"
    if changed and charge.fences(after.cluster):
        text += f"\ntry it, when nothing is active there: hactl fencing test {node}"
    _tell(mode, what, after, changed, text, fencing=fencing_document(after.cluster.node(node)))


def _pairs(words: Iterable[str] | None, form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not equals or not key:
            # Not the word itself: it may be a password that somebody put there.
            raise typer.BadParameter(f"options are of the form {form}")
        if key in found:
            raise typer.BadParameter(f"{key} is given twice")
        found[key] = value
    return found


def _refuse_open(options: Mapping[str, str]) -> None:
    from hactl.model.fence import secret_like

    for key in options:
        if secret_like(key):
            raise Refused(
                "fence-secret-open",
                f"{key} is a secret, and everybody on this machine can read command lines",
                f"leave it out and put it into a file (mode 0600): {OPTION} FILE; choose another one if this "
                "line was kept somewhere",
            )


def _secrets(
    mode: Mode,
    node: str,
    options: Mapping[str, str],
    password_file: str | None,
    files: Mapping[str, str],
    keep: bool,
) -> dict[str, str]:
    from hactl.cli import confirm

    if "password" in files:
        raise typer.BadParameter(f"the password's file is given with {OPTION}")
    if [password_file, *files.values()].count("-") > 1:
        raise typer.BadParameter("only one secret can come from standard input")
    found = {
        key: confirm.password(mode, file, key, "--secret-file").get_secret_value()
        for key, file in files.items()
    }
    expected = options.keys() & USERS and not options.keys() & INSTEAD and not keep
    if password_file is not None or expected:
        what = f"password of node {node}'s fence device"
        found["password"] = confirm.password(mode, password_file, what, OPTION).get_secret_value()
    return found


def _known(device: FenceSpec | None) -> dict[str, str]:
    return {} if device is None else {key: s.get_secret_value() for key, s in device.secrets.items()}


def _outlook(cluster: ClusterSpec) -> str:
    """What becomes of the cluster's resources when a node is lost, in a few words."""
    from hactl.pacemaker import charge

    why = charge.reasons(cluster)
    if not why:
        return "Pacemaker takes over by itself"
    return f"nobody takes over by itself, because {'; '.join(why)}"


def _tell(mode: Mode, what: str, after: Desired, changed: bool, text: str, **documents: object) -> None:
    from hactl.cli.configuration import tell
    from hactl.pacemaker import charge

    made = {"failover": charge.document(after.cluster), **documents}
    tell(mode, what, after, changed, text, **{name: lambda _, d=d: d for name, d in made.items()})


@app.command()
def remove(context: typer.Context, node: Node, as_json: Json = False) -> None:
    """Forget how a node is switched off; nobody takes over by itself then."""
    from hactl.cli.configuration import change
    from hactl.model import edit as edits

    mode = begin(context, as_json, ordering=True)
    named("node", node)
    what = f"remove fence device of node {node}"
    after, changed = change(context, what, lambda desired: edits.remove_fencing(desired, node))
    _tell(mode, what, after, changed, f"node {node}: has no fence device; {_outlook(after.cluster)}")


@app.command()
def show(context: typer.Context, show_secrets: ShowSecrets = False, as_json: Json = False) -> None:
    """Show the nodes' fence devices, and whether Pacemaker takes over by itself."""
    from hactl.cli.configuration import read
    from hactl.cli.documents import fencing_document
    from hactl.pacemaker import charge

    begin(context, as_json)
    cluster = read(context).cluster
    found = {n.name: fencing_document(n, secrets=show_secrets) for n in cluster.nodes}
    if as_json:
        print_json({"schema": 1, "failover": charge.document(cluster), "fencing": found})
        return
    from hactl.cli import render, render_failover

    columns = {"node": "NODE", "agent": "AGENT", "options": "OPTIONS", "secrets": "SECRETS"}
    render.listing([_row(name, device) for name, device in found.items()], columns, "no nodes")
    render.show(render_failover.failover(charge.document(cluster)))


def _row(node: str, device: Mapping[str, Any] | None) -> dict[str, object]:
    if device is None:
        return {"node": node, "agent": "-", "options": "-", "secrets": "-"}
    secrets = (key if value is None else f"{key}={value}" for key, value in device["secrets"].items())
    return {
        "node": node,
        "agent": device["agent"],
        "options": " ".join(f"{key}={value}" for key, value in device["options"].items()) or "-",
        "secrets": " ".join(secrets) or "-",
    }


@app.command(name="test")
def try_device(
    context: typer.Context,
    node: Node,
    yes_fence: Annotated[
        str | None,
        typer.Option("--yes-fence", metavar="NODE", help="Switch this node off and on, without asking."),
    ] = None,
    socket: Socket = SOCKET,
    timeout: Seconds = 180.0,
    as_json: Json = False,
) -> None:
    """Have Pacemaker switch a node off and on, to see that it can; asks for the node's name."""
    from hactl.cli import confirm
    from hactl.cli.client import AgentClient
    from hactl.cli.cluster_view import active_node, views
    from hactl.errors import Failed

    mode = begin(context, as_json)
    named("node", node)
    agent = AgentClient(str(socket), order_seconds=timeout)
    told = agent.cluster()
    try:
        names = [str(resource["name"]) for resource in told["resources"]]
    except (KeyError, TypeError) as error:
        raise Failed("agent-bad-answer", f"the agent's answer has no {error}", "see it with --json") from None
    active = [name for name in names if active_node(views(told, name)) == node]
    warning = f"{node} is switched off at once, as by pulling its plug, and then on again"
    if active:
        warning += f"; {', '.join(active)}, active there, has to be taken over by another node"
    confirm.order(mode, node, yes_fence, warning, "--yes-fence")
    mode.ordering = True
    done = agent.fence(node)
    if as_json:
        print_json({"schema": 1, "node": node, **done})
    else:
        typer.echo(f"{node}: was switched off and on again in {done.get('seconds', 0):g} s; fencing works")
