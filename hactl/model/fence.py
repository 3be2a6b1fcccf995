"""What makes fence devices usable, and keeps their secrets out of Pacemaker's configuration. Pure; no message
holds a secret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hactl.model.problem import Path, Problem
from hactl.model.spec import FenceSpec, NodeSpec

SCRIPTS = {"password": "password_script", "snmp_priv_passwd": "snmp_priv_passwd_script"}
"""Secrets that fence agents can have from a program, and the options that name it: those of their library,
which most agents are made with."""

OURS = frozenset({"action", "pcmk_host_list", "pcmk_host_check"})
"""Options that hactl decides on."""

MAX_VALUE = 1024
"""Characters of a value."""

_SECRET = re.compile(r"passw(d|ord)|passphrase|secret|token|api_?key|hexadecimal_kg")


def secret_like(option: str) -> bool:
    """Whether an option's value is a secret by its name; a path to one is not."""
    return _SECRET.search(option) is not None and not option.endswith(("_script", "_file"))


def fence_problems(nodes: Sequence[NodeSpec]) -> Iterator[Problem]:
    """What is wrong with the nodes' fence devices."""
    for i, node in enumerate(nodes):
        if node.fencing is not None:
            base: Path = ("nodes", i, "fencing")
            yield from _options(base, node.fencing)
            yield from _secrets(base, node.fencing)


def _options(base: Path, fencing: FenceSpec) -> Iterator[Problem]:
    for option, value in fencing.options.items():
        path = (*base, "options", option)
        if option in OURS:
            yield Problem(
                path, "fence-option-ours", f"{option} is hactl's to set", "leave it out, all else may stay"
            )
        elif secret_like(option):
            yield Problem(
                path,
                "fence-secret-open",
                f"{option} is a secret, and options are readable in Pacemaker's configuration",
                _elsewhere(option),
            )
        elif not value.isprintable() or not value or len(value) > MAX_VALUE:
            yield Problem(
                path,
                "fence-option-value",
                f"{option} is empty, has control characters, or more than {MAX_VALUE} characters",
                "correct it, or leave it out for the agent's default",
            )
        elif any(option == SCRIPTS.get(secret) for secret in fencing.secrets):
            yield Problem(
                path,
                "fence-option-ours",
                f"{option} is hactl's to set, since the secret is given too",
                "give the one or the other",
            )


def _elsewhere(option: str) -> str:
    if option in SCRIPTS or option == "passwd":
        name = "password" if option == "passwd" else option
        return f"move it from options to secrets, as {name}"
    return "name a file that holds it, if the agent has an option for one, on every node and for root only"


def _secrets(base: Path, fencing: FenceSpec) -> Iterator[Problem]:
    for option, secret in fencing.secrets.items():
        path = (*base, "secrets", option)
        value = secret.get_secret_value()
        if option not in SCRIPTS:
            meant = "call it password" if option == "passwd" else f"known are: {', '.join(sorted(SCRIPTS))}"
            yield Problem(
                path,
                "fence-secret-unknown",
                f"fence agents cannot be given {option} in a way that keeps it secret",
                meant,
            )
        elif not value or not value.isprintable() or value != value.strip() or len(value) > MAX_VALUE:
            # They strip what the program prints.
            yield Problem(
                path,
                "fence-secret-value",
                f"{option} is empty, begins or ends with white space, has control characters, or more than "
                f"{MAX_VALUE} characters",
                "choose another one on the device",
            )
