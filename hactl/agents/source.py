"""Where an agent has the desired state from: a file, or the cluster's store, with a copy on this node's
disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Protocol

import structlog

from hactl.errors import Failed, HactlError, Refused
from hactl.model import records
from hactl.model.check import check
from hactl.model.desired import Desired
from hactl.model.load import load
from hactl.store.desired import read, watch
from hactl.store.protocol import UNREACHABLE, Store

CACHE = Path("/var/lib/hactl/desired.json")
SCHEMA = 1
_PATIENCE = 5.0
"""Seconds to wait for the store at the start before the copy is used."""
_BACKOFF = (1.0, 2.0, 5.0, 10.0)
_log = structlog.get_logger("hactl.agent")


class Source(Protocol):
    """Gives each desired state after the other, as long as it is iterated; ``problem``: why what it gave last
    may be out of date."""

    @property
    def problem(self) -> str | None: ...

    def states(self) -> AsyncGenerator[Desired, None]:
        """The first one at once, or :class:`hactl.errors.HactlError` if there is none to be had; then what it
        changes to."""
        ...


class FileSource:
    """The specification file, as it is when the agent starts."""

    problem: str | None = None

    def __init__(self, path: Path, *, max_replicas: int | None = None) -> None:
        self._path = path
        self._max_replicas = max_replicas

    async def states(self) -> AsyncGenerator[Desired, None]:
        yield Desired(load(self._path, max_replicas=self._max_replicas))
        await asyncio.Event().wait()


class StoreSource:
    """The cluster's store. Each state is kept in a file before it is given, so that an agent which starts
    without the store never goes back behind what it has done.

    A store that cannot be read, holds what this hactl does not understand, or has gone back in time, is a
    ``problem``: the last good state stays, and the store is asked again and again.
    """

    def __init__(
        self,
        store: Store,
        cluster: str,
        *,
        cache: Path = CACHE,
        patience: float = _PATIENCE,
        backoff: tuple[float, ...] = _BACKOFF,
        max_replicas: int | None = None,
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._cache = cache
        self._patience = patience
        self._backoff = backoff
        self._max_replicas = max_replicas
        self._problem: HactlError | None = None
        self._unwritten: HactlError | None = None
        self._kept: tuple[int, int] | None = None

    @property
    def problem(self) -> str | None:
        if self._problem is not None:
            return f"the desired state may be out of date: {self._problem}"
        return None if self._unwritten is None else str(self._unwritten)

    async def states(self) -> AsyncGenerator[Desired, None]:
        last = await self._copy()
        state = await self._first(last)
        while True:
            await self._keep(state)
            yield state
            last = state
            if self._problem is None:
                try:
                    async with contextlib.aclosing(watch(self._store, self._cluster, last)) as changes:
                        async for change in changes:
                            state = self._judged(change, last)
                            await self._keep(state)
                            yield state
                            last = state
                except HactlError as error:
                    self._tell(error)
            state = await self._again(last)

    async def _first(self, last: Desired | None) -> Desired:
        try:
            async with asyncio.timeout(self._patience):
                return self._judged(await read(self._store, self._cluster), last)
        except TimeoutError:
            error: HactlError = Refused(
                UNREACHABLE, f"the store did not answer within {self._patience:g} s", "see hactl status"
            )
        except HactlError as refusal:
            error = refusal
        if last is None:
            raise error
        self._tell(error)
        return last

    async def _again(self, last: Desired) -> Desired:
        """The state, once the store gives one that can be gone by."""
        attempt = 0
        while True:
            await asyncio.sleep(self._backoff[min(attempt, len(self._backoff) - 1)])
            attempt += 1
            try:
                return self._judged(await read(self._store, self._cluster), last)
            except HactlError as error:
                self._tell(error)

    def _judged(self, state: Desired, last: Desired | None) -> Desired:
        """The state, if it can be gone by."""
        if last is not None and state.generation < last.generation:
            raise Refused(
                "desired-older",
                f"the store is at generation {state.generation}, and this node has seen {last.generation}: "
                "was it restored from an old copy?",
                f"if what it holds shall be, remove {self._cache} and restart hactl-agent on every node",
            )
        # It is what the cluster is: whoever changed it was answerable for its replicas.
        problems = check(
            state.cluster, state.leftovers, max_replicas=self._max_replicas, before=state.cluster
        )
        if problems:
            raise Refused(
                "desired-unfit",
                f"what the store holds does not fit together: {problems[0].message}",
                "somebody else than hactl wrote to it, or a newer one; see hactl dump",
            )
        if self._problem is not None:
            _log.info("the store can be followed again", generation=state.generation)
        self._problem = None
        return state

    def _tell(self, error: HactlError) -> None:
        if self._problem is None or self._problem.code != error.code:
            _log.warning("the store cannot be followed", code=error.code, error=str(error))
        self._problem = error

    async def _keep(self, state: Desired) -> None:
        """Write the copy before anything is done by it; unless that cannot be: then the agent goes on."""
        if self._kept == (state.revision, state.generation):
            return
        try:
            await asyncio.to_thread(_write_copy, self._cache, state)
        except HactlError as error:
            _log.warning("no copy of the desired state", code=error.code, error=str(error))
            self._unwritten = error
        else:
            self._kept, self._unwritten = (state.revision, state.generation), None

    async def _copy(self) -> Desired | None:
        """The state of last time, if there is one of this cluster that can be understood."""
        try:
            found = await asyncio.to_thread(read_copy, self._cache, self._cluster)
        except HactlError as error:
            _log.warning("the copy of the desired state is not used", code=error.code, error=str(error))
            return None
        self._kept = None if found is None else (found.revision, found.generation)
        return found


def _write_copy(path: Path, desired: Desired) -> None:
    """Write the copy, for root only: it has secrets. It is on the disk when this returns."""
    change = desired.change
    values = records.split(desired)
    if change is not None:
        values[records.CONFIG] = records.config(desired.generation, change)
    text = json.dumps(
        {
            "schema": SCHEMA,
            "cluster": desired.cluster.name,
            "revision": desired.revision,
            "records": {key: value.decode() for key, value in values.items()},
        }
    )
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Failed(
            "desired-copy", f"cannot write {path}: {error}", f"make {path.parent} writable, with room"
        ) from error


def read_copy(path: Path, cluster: str) -> Desired | None:
    """The state in a copy, None if there is none; :class:`HactlError` ``desired-copy``, ``schema-newer``."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Failed("desired-copy", f"cannot read {path}: {error}", f"make {path} readable") from error
    try:
        value: Any = json.loads(text)
        if value["schema"] != SCHEMA:
            raise Refused(
                "schema-newer", f"{path} has schema {value['schema']!r}, this hactl knows {SCHEMA}", "upgrade"
            )
        if value["cluster"] != cluster:
            raise Refused("desired-copy", f"{path} is of cluster {value['cluster']!r}, not {cluster}")
        found = {str(key): str(text).encode() for key, text in value["records"].items()}
        return records.join(cluster, found, int(value["revision"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(
            "desired-copy", f"{path} cannot be understood: {error!r}", "it is written anew"
        ) from error
