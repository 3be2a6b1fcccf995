"""Runs the programs that make images, so that nothing of them is left when whoever wanted the image is
gone."""

from __future__ import annotations

import fcntl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lab.errors import BuildError

Progress = Callable[[str, float], None]
"""Told what is going on and how much of it is done, 0 to 1."""
T = TypeVar("T")

# A build that loses its parent, however that ended, is killed with all of its children; what it mounted is in
# a mount namespace of its own and ends with it (setpriv(1), unshare(1)).
WITH_ITS_PARENT = ("setpriv", "--pdeathsig", "KILL")
ALONE = (
    *WITH_ITS_PARENT, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
    "--propagation", "private",
)  # fmt: skip

STEPS = {
    "running apt-get update": 0.05,
    "downloading packages": 0.1,
    "extracting archives": 0.15,
    "installing essential": 0.25,
    "installing remaining": 0.4,
    "cleaning package lists": 0.95,
    "success": 1.0,
}
"""How mmdebstrap's ``I:`` lines begin, and how much is done by then."""


class Builder:
    """Programs of one build, which may be ended from another thread."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()
        """Held to start something or to stop, so that nothing starts unseen while all is being stopped."""

    def stop(self) -> None:
        """End what runs and let nothing else start."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.kill()

    def run(self, command: list[str], log: Path, heard: Callable[[str], None] = lambda _line: None) -> None:
        """Run a command to its end, its output in the log, with the seconds since it began."""
        begun = time.monotonic()
        with log.open("a") as sink:
            sink.write(f"$ {' '.join(command)}\n")
            with self._lock:
                if self._stopped:
                    raise BuildError("interrupted")
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, errors="replace",
                )  # fmt: skip
                self._running.add(process)
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    sink.write(f"{time.monotonic() - begun:6.1f} {line}")
                    heard(line)
            except BaseException:
                process.kill()
                raise
            finally:
                with process:  # waits, and closes the pipe
                    pass
                with self._lock:
                    self._running.discard(process)
        if self._stopped:
            raise BuildError("interrupted")
        if process.returncode:
            program = next(word for word in command[3:] if not word.startswith("-"))
            raise BuildError(f"{program} failed with status {process.returncode}; see {log}")

    def mmdebstrap(self, arguments: list[str], log: Path, archives: Path, upto: float) -> None:
        """Run mmdebstrap; ``upto`` is how much of the whole build it is.

        ``archives`` keeps what was downloaded for the next build; packages go there and come from there as
        hard links, so several builds share them without waiting for each other.
        """
        archives.mkdir(parents=True, exist_ok=True)
        own = '"$1/var/cache/apt/archives"'

        def heard(line: str) -> None:
            for word, done in STEPS.items():
                if line.startswith(f"I: {word}"):
                    self.progress(line[3:].strip(), done * upto)

        self.run(
            [
                *ALONE, "mmdebstrap", "--mode=root", "--skip=check/empty,essential/unlink",
                f"--setup-hook=mkdir -p {own} && find {archives} -name '*.deb' -exec cp -lt {own} {{}} +",
                f"--customize-hook=find {own} -maxdepth 1 -name '*.deb' -exec cp -lft {archives} {{}} +",
                *arguments,
            ],
            log,
            heard,
        )  # fmt: skip

    @contextmanager
    def locked(self, file: Path) -> Iterator[None]:
        """One builder at a time; others wait and then find the result."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._stopped:
                        raise BuildError("interrupted") from None
                    self.progress(f"waiting for another build of {file.stem}", 0)
                    time.sleep(0.2)  # in turns with a look at the flag
            yield


def side_by_side(jobs: Mapping[str, Callable[[Builder], T]], progress: Progress) -> dict[str, T]:
    """Results of several builds made at the same time; when one fails or is interrupted, all end."""
    share = dict.fromkeys(jobs, 0.0)

    def told(name: str) -> Progress:
        def tell(text: str, done: float) -> None:
            share[name] = max(share[name], done)
            progress(f"{name}: {text}", sum(share.values()) / len(share))

        return tell

    builders = {name: Builder(told(name)) for name in jobs}
    with ThreadPoolExecutor(max_workers=max(1, len(jobs))) as pool:
        futures = {name: pool.submit(job, builders[name]) for name, job in jobs.items()}
        try:
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            for builder in builders.values():
                builder.stop()
            raise
