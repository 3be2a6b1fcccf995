"""A Docker engine for tests, of Debian's packages: unpacked, not installed; in network, mount and process
namespaces of its own; gone without a trace when it is killed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from lab.builder import ALONE, Builder
from tests.contract.etcd_binary import CACHE
from tests.contract.etcd_servers import listening, port_of

IMAGE = "hactl-tests/etcd"
_RECIPE = (
    "--variant=extract", "--include=etcd-server",
    # Packages are unpacked and no more: the links of a merged /usr, where the loader is looked for, are ours.
    '--extract-hook=cd "$1" && for d in lib lib64; do [ -e $d ] || ln -s usr/$d $d; done'
    " && rm -rf usr/share usr/lib/*/perl*",
    # Debian of the storage nodes.
    "trixie",
)  # fmt: skip
_STARTUP = 30.0
_RELAY = Path(__file__).with_name("relay.py")

# All but the socket is on file systems that end with the engine, also what it writes outside of its folder.
_INSIDE = """
set -e
ip link set lo up
mkdir "$1/inside"
mount -t tmpfs tmpfs "$1/inside"
mkdir "$1/inside/etc" "$1/inside/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/inside/etc,workdir=$1/inside/work" overlay /etc
mount -t tmpfs tmpfs /run
exec dockerd --data-root "$1/inside/data" --exec-root "$1/inside/exec" --pidfile "$1/inside/pid" \
  --host "unix://$1/socket" --bridge none --iptables=false --ip6tables=false --userland-proxy=false \
  --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$2"
"""


class DockerHost:
    """Containers on the loopback of the engine's namespace, reached through a relay.

    Raises whatever keeps the engine from running here: OSError, RuntimeError, lab.errors.BuildError,
    docker.errors.DockerException.
    """

    def __init__(self) -> None:
        # Short: a socket's path has at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="hactl-docker-"))
        self._group = self._folder.name
        self._processes: list[subprocess.Popen[bytes]] = []
        self._servers: list[ServerContainer] = []
        self._host_before = os.environ.get("DOCKER_HOST")
        try:
            image = _image()
            self._engine = self._start(_engine())
            self._import(image)
        except BaseException:
            self.close()
            raise

    def _start(self, tree: Path) -> subprocess.Popen[bytes]:
        path = ":".join(f"{tree}/{d}" for d in ("usr/sbin", "usr/bin", "sbin", "bin"))
        libraries = ":".join(str(d) for d in (tree / "usr/lib", tree / "lib") for d in d.glob("*-linux-gnu"))
        environment = {
            "LC_ALL": "C",
            "PATH": f"{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": libraries,
        }
        log = self._folder / "log"
        with log.open("wb") as sink:
            engine = subprocess.Popen(
                [*ALONE, "--net", "sh", "-c", _INSIDE, "sh", str(self._folder), self._group],
                stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment,
            )  # fmt: skip
        self._processes.append(engine)
        # testcontainers reads the environment, and would use the developer's own engine otherwise.
        os.environ["DOCKER_HOST"] = f"unix://{self._folder}/socket"
        end = time.monotonic() + _STARTUP
        while not (self._folder / "socket").exists():
            if engine.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"dockerd does not run here: {log.read_text()[-1000:]}")
            time.sleep(0.05)
        return engine

    def _import(self, image: Path) -> None:
        client = DockerClient(timeout=60).client
        try:
            client.api.import_image_from_file(str(image), repository=IMAGE)
        finally:
            client.close()

    def ports(self, count: int) -> list[int]:
        sockets = [listening() for _ in range(count)]
        ports = [port_of(each) for each in sockets]
        pairs = [f"{each.fileno()}:{port}" for each, port in zip(sockets, ports, strict=True)]
        relay = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self._engine.pid}/ns/net",
             sys.executable, str(_RELAY), *pairs],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=[each.fileno() for each in sockets],
        )  # fmt: skip
        self._processes.append(relay)
        for each in sockets:
            each.close()
        assert relay.stdout is not None
        with relay.stdout as output:
            if output.readline() != b"ready\n":
                raise RuntimeError("the relay into the engine's network namespace did not start")
        return ports

    def server(self, name: str, arguments: Sequence[str], folder: Path) -> ServerContainer:
        self._servers.append(ServerContainer(name, arguments, folder))
        return self._servers[-1]

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        if self._host_before is None:
            os.environ.pop("DOCKER_HOST", None)
        else:
            os.environ["DOCKER_HOST"] = self._host_before
        self._remove_groups()
        shutil.rmtree(self._folder)

    def _remove_groups(self) -> None:
        """The control groups, once the last process in them is gone, which takes a moment after the kill of
        the namespace's first."""
        end = time.monotonic() + _STARTUP
        root = Path("/sys/fs/cgroup")
        for top in (root / self._group, *root.glob(f"*/{self._group}")):
            for folder, _, _ in os.walk(top, topdown=False):
                while True:
                    try:
                        Path(folder).rmdir()
                        break
                    except OSError:
                        if time.monotonic() > end:
                            raise
                        time.sleep(0.02)


class ServerContainer:
    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        # Its own way to remove what is left over is one more image; ours end with their engine.
        testcontainers_config.ryuk_disabled = True
        self._log = folder / f"{name}.log"
        self._container = (
            DockerContainer(IMAGE, name=name, network_mode="host")
            .with_command(["/usr/bin/etcd", *arguments])
            .with_volume_mapping(str(folder), str(folder), "rw")
        )
        self._started = False
        self._running = False
        self._paused = False

    @property
    def _wrapped(self) -> Any:
        return self._container.get_wrapped_container()

    def start(self) -> None:
        assert not self._running
        if self._started:
            self._wrapped.start()
        else:
            self._container.start()
        self._started = self._running = True

    def kill(self) -> None:
        self._wrapped.kill()
        self._wrapped.wait()
        self._running = self._paused = False

    def pause(self) -> None:
        self._wrapped.pause()
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._wrapped.unpause()
            self._paused = False

    def running(self) -> bool:
        if not self._running:
            return False
        self._wrapped.reload()
        if self._wrapped.status in ("running", "paused"):
            return True
        self._log.write_bytes(self._wrapped.logs())
        return False

    def close(self) -> None:
        """Forget it; it ends with its engine."""
        self._container.get_docker_client().client.close()


def _image() -> Path:
    """A root file system with Debian's etcd, as a tar file."""
    image = CACHE / f"etcd-{hashlib.sha256(repr(_RECIPE).encode()).hexdigest()[:12]}.tar"
    builder = Builder(lambda _text, _done: None)
    with builder.locked(CACHE / "image.lock"):
        if not image.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                made = Path(scratch) / "image.tar"
                builder.mmdebstrap([*_RECIPE, str(made)], CACHE / "image.log", CACHE / "archives", 1.0)
                made.rename(image)
    return image


def _engine() -> Path:
    """Debian's engine and those libraries of it that this machine lacks, unpacked."""
    tree = CACHE / "docker"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "docker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                _download(Path(scratch))
                for package in Path(scratch).glob("*.deb"):
                    _run(["dpkg-deb", "-x", str(package), f"{scratch}/tree"])
                (Path(scratch) / "tree").rename(tree)
    return tree


def _download(folder: Path) -> None:
    (folder / "partial").mkdir()
    download = [
        "apt-get", "install", "--download-only", "--reinstall", "-y", "-q", "--no-install-recommends",
        "-o", f"Dir::Cache::archives={folder}", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root",
        "docker.io",
    ]  # fmt: skip
    if subprocess.run(download, capture_output=True, check=False).returncode:
        _run(["apt-get", "update", "-q"])
        _run(download)


def _run(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip()}")
