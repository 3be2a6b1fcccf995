"""What ``hactl cluster`` reads and prints: tokens, invitations, the state of the store."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hactl.cli.reporting import print_json
from hactl.errors import Refused

if TYPE_CHECKING:
    from hactl.cluster.invite import Token


def read_token(word: str | None, file: Path | None, *, needed: bool) -> str:
    """The token's text; empty if there is none and none is needed."""
    if word not in (None, "-"):
        raise Refused(
            "token-exposed",
            "a token on the command line can be seen by every user of this machine, and is in your history",
            "revoke it if others use it: hactl cluster invite --revoke ID; then hactl cluster join <<< TOKEN",
        )
    if file is not None and str(file) != "-":
        try:
            return file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Refused("token-file", f"cannot read the token from {file}: {error}") from None
    if word is None and file is None and (found := os.environ.get("HACTL_TOKEN")):
        return found
    if sys.stdin is None or sys.stdin.closed:
        text = ""
    elif sys.stdin.isatty():
        if not needed and word is None and file is None:
            return ""
        text = typer.prompt("Token", hide_input=True, err=True)
    else:
        text = sys.stdin.readline(4096)
    if needed and not text.strip():
        raise Refused(
            "token-missing",
            "there is no token on standard input",
            "make one on a node of the cluster with hactl cluster invite; then: hactl cluster join <<< TOKEN",
        )
    return text.strip()


def show_token(token: Token, as_json: bool, *, uses: int, first: str = "") -> None:
    """Print an invitation and the command that uses it, on standard output."""
    until = f"{token.expires:%Y-%m-%d %H:%M} UTC"
    if as_json:
        # The one place that prints it: it is what was asked for.
        print_json(
            {
                "schema": 1,
                "cluster": token.cluster,
                "invitation": token.id,
                "token": token.text(),
                "uses": uses,
                "expires": token.expires.isoformat(timespec="seconds"),
            }
        )
        return
    if first:
        typer.echo(first)
    nodes = "another machine" if uses == 1 else f"up to {uses} other machines"
    typer.echo(f"To bring in {nodes}, until {until}, run there as root (with that machine's own options):\n")
    typer.echo(f"    hactl cluster join <<< {token.text()}\n")
    typer.echo(f"Keep it to yourself; to end it early: hactl cluster invite --revoke {token.id}")


def show_invitations(found: dict[str, Any], as_json: bool) -> None:
    """Print invitations, without secrets, which nobody has."""
    rows = [
        {
            "id": number,
            "expires": i.expires.isoformat(timespec="seconds"),
            "uses": i.uses,
            "used": i.used,
            "joined": sorted(i.joined),
            "by": i.by,
        }
        for number, i in sorted(found.items(), key=lambda pair: pair[1].expires)
    ]
    if as_json:
        print_json({"schema": 1, "invitations": rows})
        return
    if not rows:
        typer.echo("no invitations")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("INVITATION", "EXPIRES", "USED", "BY NODES", "MADE ON", box=None)
    for row in rows:
        joined = ", ".join(row["joined"]) or "-"
        table.add_row(row["id"], row["expires"], f"{row['used']} of {row['uses']}", joined, row["by"])
    Console().print(table)


def show_status(document: dict[str, Any]) -> None:
    """Print the document of :func:`hactl.cluster.status.status` as tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    store = document["store"]
    majority = "has a majority" if store["majority"] else "has no majority: nothing can be changed now"
    console.print(
        Text(f"cluster {document['cluster']}, seen from {document['node']}; the store {majority}"),
        soft_wrap=True,
    )
    members = Table("MEMBER", "STATE", "VOTE", "VERSION", "SIZE", "ADDRESS", box=None)
    for m in store["members"]:
        state = "leader" if m["leader"] else "answers" if m["answers"] else Text("no answer", "red")
        size = "-" if m["db_size"] is None else f"{m['db_size'] / (1 << 20):.1f} MiB"
        members.add_row(
            m["name"] or "(new)",
            state,
            "yes" if m["voter"] else "learner",
            m["version"] or "-",
            size,
            m["url"] or "-",
        )
    console.print(members)
    if document["nodes"] is not None:
        nodes = Table("NODE", "ID", "ADDRESS", "STORE", "AGENT", "SINCE", box=None)
        for n in document["nodes"]:
            agent = n["agent"]
            nodes.add_row(
                n["name"],
                str(n["id"]),
                n["address"],
                "member" if n["member"] else "client",
                Text("no lease", "red") if agent is None else str(agent["version"]),
                "-" if agent is None else str(agent["since"]),
            )
        console.print(nodes)
    console.print(f"certificate of this node: until {document['certificate']['until']}")
    for text in document["problems"]:
        console.print(Text(f"! {text}", "yellow"), soft_wrap=True)
