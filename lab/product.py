"""Puts the working tree's hactl on the nodes of a lab, without touching their images."""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

from lab.api import Lab, Machine, in_parallel

TREE = Path(__file__).parent.parent
SITE = "/opt/hactl/venv/lib/python3.13/site-packages"


@cache
def _archive() -> bytes:
    """hactl and its tests as a compressed tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:

        def keep(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
            entry.uid = entry.gid = 0
            return None if "__pycache__" in entry.name else entry

        for folder in ("hactl", "tests", "ocf"):
            if (TREE / folder).exists():
                archive.add(TREE / folder, folder, filter=keep)
        archive.add(TREE / "pyproject.toml", "pyproject.toml", filter=keep)
    return buffer.getvalue()


def install(lab: Lab, *nodes: Machine) -> None:
    """hactl and its unit files on these nodes, or on all."""
    in_parallel(*(lambda m=machine: _install_one(m) for machine in nodes or lab.nodes))


def _install_one(machine: Machine) -> None:
    machine.write("/root/hactl.tar.gz", _archive())
    machine.succeed(
        "rm -rf /opt/hactl/src && mkdir -p /opt/hactl/src && tar -xzf /root/hactl.tar.gz -C /opt/hactl/src"
        f" && echo /opt/hactl/src > {SITE}/hactl.pth"
        " && ln -sf /opt/hactl/venv/bin/hactl /usr/local/sbin/hactl"
        " && cp /opt/hactl/src/hactl/target/*.rules /etc/udev/rules.d/"
        # Where Pacemaker looks for resource agents, and DRBD for its handler.
        " && install -D -m 755 -t /usr/lib/ocf/resource.d/hactl /opt/hactl/src/ocf/hactl/*"
        " && install -D -m 755 -t /usr/lib/hactl /opt/hactl/src/ocf/fence-peer"
        # A unit that systemd has never heard of is found without a reload, which costs a second.
        " && for unit in /opt/hactl/src/hactl/*/*.service; do known=/etc/systemd/system/${unit##*/};"
        " [ ! -e $known ] || cmp -s $unit $known || reload=yes; cp $unit $known; done"
        ' && if [ "${reload-}" ]; then systemctl daemon-reload; fi'
    )
    # Bytecode, so that the first start is as fast as any; and nothing that a power loss takes back.
    machine.succeed("/opt/hactl/venv/bin/python -m compileall -q /opt/hactl/src/hactl; sync")
