"""Secrets of fence devices on this node: programs that print them, for fence agents to run.

Pacemaker's configuration can be read by more than root, and is in every report that people send around. So it
holds only the names of these programs (``password_script`` of fence agents).
"""

from __future__ import annotations

import shlex
from pathlib import Path

from hactl.cluster.layout import Layout, remove
from hactl.cluster.layout import write as put
from hactl.errors import Failed
from hactl.model.fence import SCRIPTS
from hactl.model.spec import ClusterSpec, NodeSpec

FOLDER = Path("/etc/hactl/fence")
MODE = 0o700
_HEAD = "#!/bin/sh\n# Written by hactl, which removes it when it is not needed any more.\n"


def parameters(node: NodeSpec) -> dict[str, str]:
    """The options of a node's fence device by name as Pacemaker shall have them: with the programs in the
    place of the secrets. Empty if it has no device. Pure."""
    if node.fencing is None:
        return {}
    names = {SCRIPTS[secret]: str(FOLDER / _file(node, secret)) for secret in sorted(node.fencing.secrets)}
    return {**node.fencing.options, **names}


def scripts(cluster: ClusterSpec) -> dict[str, str]:
    """The programs that every node of the cluster shall have, by file name. Pure."""
    if not cluster.pacemaker:
        return {}
    return {
        _file(node, secret): f"{_HEAD}printf '%s\\n' {shlex.quote(value.get_secret_value())}\n"
        for node in cluster.nodes
        if node.fencing is not None
        for secret, value in node.fencing.secrets.items()
    }


def write(layout: Layout, cluster: ClusterSpec) -> bool:
    """Make this node's programs those that the cluster wants, for root only; whether anything was changed.

    Those that hactl wrote and that are not wanted any more are removed; other files in the folder stay.
    :class:`Failed` ``fence-secrets`` if a file cannot be written.
    """
    folder, wanted = folder_of(layout), scripts(cluster)
    try:
        there = {path.name: path for path in folder.iterdir()} if folder.exists() else {}
        changed = False
        for name, text in wanted.items():
            if name not in there or not _same(there[name], text):
                put(folder / name, text, MODE)
                changed = True
        for name, path in there.items():
            # With what a write that was interrupted left: its name begins with a point.
            if name not in wanted and path.is_file() and path.read_bytes().startswith(_HEAD.encode()):
                remove(path)
                changed = True
    except OSError as error:
        raise Failed(
            "fence-secrets",
            f"the secrets of fence devices cannot be kept in {folder}: {error.strerror or error}",
            f"make {folder} a folder that is writable, with room",
        ) from None
    return changed


def missing(layout: Layout, cluster: ClusterSpec) -> tuple[Path, ...]:
    """The programs that this node lacks, or that others than root could read."""
    folder = folder_of(layout)
    return tuple(folder / name for name, text in scripts(cluster).items() if not _same(folder / name, text))


def folder_of(layout: Layout) -> Path:
    """Where they are: :data:`FOLDER`, below the layout's root."""
    return layout.root / FOLDER.relative_to("/")


def _same(path: Path, text: str) -> bool:
    try:
        return path.stat().st_mode & 0o777 == MODE and path.read_text() == text
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _file(node: NodeSpec, option: str) -> str:
    # A name of a node has no point in it.
    return node.name if option == "password" else f"{node.name}.{option}"
