"""Puts the working tree's hactl on the nodes of a lab, without touching their images."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from lab.api import Lab, Machine, in_parallel
from lab.layout import MachineSpec, machines

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


def install(lab: Lab) -> None:
    """hactl on every node, its unit file, and certificates of an authority made for this lab."""
    authority = lab.folder / "tls"
    if not authority.exists():
        _make_authority(authority)
    in_parallel(*(lambda m=machine: _install_one(m, authority) for machine in lab.nodes))


def _install_one(machine: Machine, authority: Path) -> None:
    machine.write("/root/hactl.tar.gz", _archive())
    machine.succeed(
        "rm -rf /opt/hactl/src && mkdir -p /opt/hactl/src && tar -xzf /root/hactl.tar.gz -C /opt/hactl/src"
        f" && echo /opt/hactl/src > {SITE}/hactl.pth"
        " && ln -sf /opt/hactl/venv/bin/hactl /usr/local/sbin/hactl"
        " && cp /opt/hactl/src/hactl/target/*.rules /etc/udev/rules.d/"
        # A unit that systemd has never heard of is found without a reload, which costs a second.
        " && for unit in /opt/hactl/src/hactl/agents/*.service; do known=/etc/systemd/system/${unit##*/};"
        " [ ! -e $known ] || cmp -s $unit $known || reload=yes; cp $unit $known; done"
        ' && if [ "${reload-}" ]; then systemctl daemon-reload; fi'
    )
    for local, remote, mode in (
        ("ca.crt", "ca.crt", 0o644),
        (f"{machine.name}.crt", "node.crt", 0o644),
        (f"{machine.name}.key", "node.key", 0o600),
    ):
        machine.write(f"/etc/hactl/tls/{remote}", (authority / local).read_bytes(), mode)
    # Bytecode, so that the first start is as fast as any; and nothing that a power loss takes back.
    machine.succeed("/opt/hactl/venv/bin/python -m compileall -q /opt/hactl/src/hactl; sync")


def _make_authority(folder: Path) -> None:
    """An authority and a certificate for each possible node, with its name and cluster address."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "tls"
        made.mkdir(mode=0o700)

        def openssl(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=made)

        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650")
        # Key usage and key identifiers spelled out: Python 3.13 checks certificates strictly (RFC 5280).
        openssl("req", "-x509", *key, "-subj", "/CN=hactl lab", "-keyout", "ca.key", "-out", "ca.crt",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        for spec in machines(9, client=False):
            address = _plain(spec)
            openssl(
                "req",
                *key[:4],
                "-nodes",
                "-subj",
                f"/CN={spec.name}",
                "-keyout",
                f"{spec.name}.key",
                "-out",
                "csr",
            )
            (made / "ext").write_text(
                f"subjectAltName=DNS:{spec.name},IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n"
                "keyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE\n"
                "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
            )
            openssl("x509", "-req", "-in", "csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                    "-days", "3650", "-extfile", "ext", "-out", f"{spec.name}.crt")  # fmt: skip
        made.rename(folder)


def _plain(spec: MachineSpec) -> str:
    return spec.addresses("cluster")[0].partition("/")[0]
