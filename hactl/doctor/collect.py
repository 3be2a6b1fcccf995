"""Gathers the facts of the machine it runs on; changes nothing and judges nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

from hactl.cluster.layout import Layout
from hactl.doctor import fence_devices
from hactl.doctor.facts import Certificate, Facts, Key, Lvm, Module, Port, Service, Version
from hactl.doctor.judge import WATCHED, version
from hactl.doctor.judge_failover import needed
from hactl.model.spec import ClusterSpec
from hactl.pacemaker import secrets
from hactl.runner import CommandFailed, CommandTimeout, Runner
from hactl.target.processors import ONLINE, online

MODULES = ("dm_mod", "drbd", "target_core_mod", "target_core_iblock", "iscsi_target_mod")
DBROOT_FOLDERS = ("alua", "pr")
PATH = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/sbin", "usr/local/bin")
CONNECT = 2.0
"""Seconds for a connection to another node's port."""

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What to look at beside the machine itself.

    ``ports`` are tried; ``agents`` are other nodes by name with the address of their agent, whose clocks are
    compared over TLS with ``context``. ``cluster`` is what it shall be.
    """

    node: str
    in_cluster: bool
    ports: tuple[Port, ...] = ()
    agents: Mapping[str, str] = field(default_factory=dict)
    context: ssl.SSLContext | None = None
    cluster: ClusterSpec | None = None


async def collect(runner: Runner, wanted: Wanted, *, root: Path = Path("/")) -> Facts:
    """Everything at once; ``root`` is the file system's, given in tests only."""
    return await _Collector(runner, root).collect(wanted)


class _Collector:
    def __init__(self, runner: Runner, root: Path) -> None:
        self._runner = runner
        self._root = root
        self._unseen: list[tuple[str, str]] = []

    async def collect(self, wanted: Wanted) -> Facts:
        modules = await self._modules()
        dbroot, missing = self._dbroot()
        tls = self._root / "etc/hactl/tls"
        certificates = tuple(_certificate(p) for p in (tls / "ca.crt", tls / "node.crt") if p.exists())
        ports, skews = await asyncio.gather(
            asyncio.gather(*(_try(port) for port in wanted.ports)),
            self._skews(wanted.agents, wanted.context),
        )
        drbd, utils = await self._drbd()
        spec = wanted.cluster if wanted.cluster is not None and wanted.cluster.pacemaker else None
        return Facts(
            node=wanted.node,
            now=datetime.now(UTC),
            in_cluster=wanted.in_cluster,
            kernel=os.uname().release,
            processors=len(online(self._root / str(ONLINE).lstrip("/"))) or None,
            modules=modules,
            drbd=drbd,
            drbd_utils=utils,
            etcd=await self._ask("the version of etcd", self._etcd) if wanted.in_cluster else None,
            dbroot=dbroot,
            dbroot_missing=missing,
            clock_synchronised=await self._ask("whether the clock is synchronised", self._clock),
            skews=skews,
            ports=tuple(ports),
            certificates=certificates,
            keys=tuple(_key(tls / name) for name in ("node.key", "ca.key")),
            services=await self._ask("services", self._services) or {},
            lvm=await self._ask("LVM's filters", self._lvm),
            cluster=wanted.cluster,
            missing=self._missing(wanted),
            secrets_missing=await self._ask("fence devices' secrets", lambda: self._secrets(wanted)) or (),
            fence_faults=await fence_devices.faults(self._runner, spec, wanted.node) if spec else {},
            unseen=tuple(self._unseen),
        )

    async def _ask(self, what: str, question: Callable[[], Awaitable[T]]) -> T | None:
        """An answer, or None with the reason noted."""
        try:
            return await question()
        except (OSError, CommandFailed, CommandTimeout, ValueError) as error:
            self._unseen.append((what, str(error)))
            return None

    async def _out(self, *argv: str) -> str:
        return (await self._runner.run(list(argv), timeout=10.0)).stdout

    async def _modules(self) -> dict[str, Module]:
        found = {}
        for name in MODULES:
            if (self._root / "sys/module" / name).exists():
                found[name] = Module.LOADED
                continue
            try:
                await self._out("modinfo", "--field", "name", name)
                found[name] = Module.AVAILABLE
            except CommandFailed:
                found[name] = Module.MISSING
            except (OSError, CommandTimeout) as error:
                self._unseen.append((f"the module {name}", str(error)))
        return found

    def _dbroot(self) -> tuple[str | None, tuple[str, ...]]:
        try:
            text = (self._root / "sys/kernel/config/target/dbroot").read_text().strip()
        except OSError:
            return None, ()
        inside = self._root / text.lstrip("/")
        return text, tuple(f"{text}/{name}" for name in DBROOT_FOLDERS if not (inside / name).is_dir())

    async def _drbd(self) -> tuple[Version | None, bool | None]:
        try:
            told = await self._out("drbdadm", "--version")
        except FileNotFoundError:
            return None, False
        except (OSError, CommandFailed, CommandTimeout) as error:
            self._unseen.append(("the version of DRBD", str(error)))
            return None, None
        found = re.search(r"^DRBD_KERNEL_VERSION_CODE=0x([0-9a-fA-F]+)", told, re.MULTILINE)
        code = int(found[1], 16) if found else 0
        return ((code >> 16, code >> 8 & 0xFF, code & 0xFF) if code else None), True

    async def _etcd(self) -> Version:
        told = await self._out("etcd", "--version")
        found = re.search(r"etcd Version:\s*(\S+)", told)
        if not found:
            raise ValueError("etcd --version does not tell it")
        return version(found[1])

    async def _clock(self) -> bool:
        told = await self._out("timedatectl", "show", "--property=NTPSynchronized", "--value")
        return {"yes": True, "no": False}[told.strip()] if told.strip() in ("yes", "no") else _bad(told)

    async def _services(self) -> dict[str, Service]:
        told = await self._out("systemctl", "show", "--property=Id,LoadState,ActiveState", *WATCHED)
        active = {}
        for block in told.strip().split("\n\n"):
            unit = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            if unit.get("LoadState") == "loaded":
                active[unit["Id"]] = unit.get("ActiveState") in ("active", "activating", "reloading")
        # The property UnitFileState is remembered from systemd's last reload; this is asked of the files. Its
        # status is that of the units.
        asked = await self._runner.run(["systemctl", "is-enabled", *active], timeout=10.0, check=False)
        states = zip(active, asked.stdout.split(), strict=True)
        return {
            unit: Service(state in ("enabled", "enabled-runtime"), active[unit]) for unit, state in states
        }

    async def _lvm(self) -> Lvm | None:
        keys = ("devices/global_filter", "devices/use_devicesfile")
        try:
            told = await self._out("lvmconfig", "--typeconfig", "full", *keys)
        except FileNotFoundError:
            # No LVM, nothing that looks into devices.
            return None
        values = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
        patterns = re.findall(r'"((?:[^"\\]|\\.)*)"', values.get("global_filter", ""))
        listed = (self._root / "etc/lvm/devices/system.devices").exists()
        return Lvm(tuple(patterns), values.get("use_devicesfile", "0").strip() == "1" and listed)

    def _missing(self, wanted: Wanted) -> frozenset[str]:
        def there(name: str) -> bool:
            if name.startswith("/"):
                return (self._root / name.lstrip("/")).exists()
            return any((self._root / folder / name).exists() for folder in PATH)

        return frozenset(name for name in needed(wanted.cluster) if not there(name))

    async def _secrets(self, wanted: Wanted) -> tuple[str, ...]:
        if wanted.cluster is None:
            return ()
        return tuple(map(str, secrets.missing(Layout(self._root), wanted.cluster)))

    async def _skews(self, agents: Mapping[str, str], context: ssl.SSLContext | None) -> dict[str, float]:
        if context is None:
            return {}
        found = {}
        for node, seconds in zip(
            agents,
            await asyncio.gather(*(_skew(n, a, context) for n, a in agents.items()), return_exceptions=True),
            strict=True,
        ):
            if isinstance(seconds, float):
                found[node] = seconds
            elif isinstance(seconds, (OSError, ValueError)):
                self._unseen.append((f"the clock of {node}", str(seconds) or type(seconds).__name__))
            else:
                raise seconds
        return found


def _bad(told: str) -> bool:
    raise ValueError(f"timedatectl says {told.strip()!r}")


def _certificate(path: Path) -> Certificate:
    from cryptography import x509

    try:
        read = x509.load_pem_x509_certificate(path.read_bytes())
        names: Iterable[str] = ()
        with contextlib.suppress(x509.ExtensionNotFound):
            names = read.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value.get_values_for_type(x509.DNSName)
        return Certificate(str(path), read.not_valid_before_utc, read.not_valid_after_utc, tuple(names))
    except (OSError, ValueError) as error:
        return Certificate(str(path), fault=str(error) or type(error).__name__)


def _key(path: Path) -> Key:
    try:
        return Key(str(path), path.stat().st_mode & 0o777)
    except OSError:
        return Key(str(path), None)


async def _try(port: Port) -> Port:
    try:
        async with asyncio.timeout(CONNECT):
            _, writer = await asyncio.open_connection(port.address, port.port)
    except TimeoutError:
        return Port(port.node, port.address, port.port, port.purpose, f"no answer within {CONNECT:g} s")
    except OSError as error:
        return Port(port.node, port.address, port.port, port.purpose, error.strerror or str(error))
    writer.close()
    return port


async def _skew(node: str, address: str, context: ssl.SSLContext) -> float:
    """Seconds by which an agent's clock is ahead, by the Date of its answer, which counts whole seconds."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(2 * CONNECT):
        reader, writer = await asyncio.open_connection(
            host.strip("[]"), int(port), ssl=context, server_hostname=node
        )
        try:
            writer.write(
                f"HEAD /v1/peer/status HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\n\r\n".encode()
            )
            sent = time.time()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            got = time.time()
        except asyncio.IncompleteReadError:
            raise ValueError("its agent did not answer in HTTP") from None
        finally:
            writer.close()
    found = re.search(r"^Date: ([^\r]+)", head, re.MULTILINE | re.IGNORECASE)
    if not found:
        raise ValueError("its agent's answer has no date")
    return parsedate_to_datetime(found[1]).timestamp() + 0.5 - (sent + got) / 2
