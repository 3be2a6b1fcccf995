"""Carrying plans out: step by step, each one's precondition looked at again right before it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

import structlog

from hactl.agents import actions as a
from hactl.agents.kit import Kit
from hactl.agents.states import Aspect, ResourceObserved
from hactl.errors import Failed, HactlError, Refused, Unknown
from hactl.model.spec import ClusterSpec, ResourceSpec
from hactl.runner import CommandFailed, CommandTimeout

AfterStep = Callable[[str, str], None]
"""Called with resource and step after each step; tests raise from it to die there."""

Look = Callable[[frozenset[Aspect]], Awaitable[ResourceObserved]]

_log = structlog.get_logger("hactl.agent")


def nothing(resource: str, step: str) -> None:
    """The hook of an agent that is not under test."""


async def execute(
    steps: Iterable[a.Action],
    *,
    look: Look,
    glance: Look | None = None,
    perform: Callable[[a.Action], Awaitable[None]],
    after_step: AfterStep = nothing,
) -> None:
    """Take ``steps`` in order. The first one that cannot be taken ends it and raises; the rest is dropped,
    and whoever called looks at the world anew. One that is no ``must`` raises only after the rest was taken.
    ``glance`` is a cheaper ``look`` that may lag behind: what it shows to be in the way is looked at
    properly."""
    late: HactlError | None = None
    for batch in _batches(steps):
        try:
            await _take_all(batch, look, glance, perform, after_step)
        except HactlError as error:
            if any(step.must for step in batch):
                raise (late or error) from error
            late = late or error
    if late is not None:
        raise late


async def _take_all(
    batch: tuple[a.Action, ...],
    look: Look,
    glance: Look | None,
    perform: Callable[[a.Action], Awaitable[None]],
    after_step: AfterStep,
) -> None:
    await _check(batch, look, glance)
    # Every one to its end, also if another fails: half a step is nowhere to go on from.
    done = await asyncio.gather(*(_take(step, perform, after_step) for step in batch), return_exceptions=True)
    for outcome in done:
        if outcome is not None:
            raise outcome


def _batches(steps: Iterable[a.Action]) -> Iterator[tuple[a.Action, ...]]:
    for _, group in itertools.groupby(steps, type):
        batch = tuple(group)
        if batch[0].together:
            yield batch
        else:
            yield from ((step,) for step in batch)


async def _check(batch: tuple[a.Action, ...], look: Look, glance: Look | None) -> None:
    """:class:`Refused` if one of the steps must not be taken as things are now."""
    first = batch[0]
    if not first.needs:
        return
    looks = (glance, look) if glance is not None and first.glance else (look,)
    refusal: Refused | None = None
    for way in looks:
        observed = await way(first.needs)
        found = [(step, step.hindrance(observed)) for step in batch]
        refused = [(step, why) for step, why in found if why is not None]
        if not refused:
            return
        step, why = refused[0]
        refusal = Refused(
            "precondition", f"cannot {step.describe()}: {why}", "see hactl status and hactl plan"
        )
    if refusal is not None:
        raise refusal


async def _take(
    step: a.Action, perform: Callable[[a.Action], Awaitable[None]], after_step: AfterStep
) -> None:
    began = time.monotonic()
    try:
        await perform(step)
    except HactlError as error:
        _report(step, began, error)
        raise
    except (CommandFailed, OSError) as error:
        _report(step, began, error)
        raise Failed("step-failed", f"cannot {step.describe()}: {error}") from error
    except (CommandTimeout, TimeoutError) as error:
        _report(step, began, error)
        raise Unknown("step-unknown", f"no end of: {step.describe()}: {error}") from error
    _log.info(
        "step",
        resource=step.resource,
        action=step.describe(),
        reason=step.reason,
        milliseconds=round((time.monotonic() - began) * 1000, 1),
    )
    after_step(step.resource, type(step).__name__)


def _report(step: a.Action, began: float, error: Exception) -> None:
    _log.warning(
        "step failed",
        resource=step.resource,
        action=step.describe(),
        reason=step.reason,
        milliseconds=round((time.monotonic() - began) * 1000, 1),
        error=str(error),
    )


async def perform(kit: Kit, cluster: ClusterSpec, spec: ResourceSpec, step: a.Action) -> None:
    """Take one step on the real thing, or on its twin."""
    match step:
        case a.EnsureDisk(disk=disk, create=create):
            await kit.backing.ensure(disk, create=create)
        case a.WriteDrbdConfig():
            await kit.drbd.write_config(cluster, spec)
        case a.CreateMetadata(volume=volume):
            await kit.drbd.create_metadata(spec, volume)
        case a.EnlargeDisk(disk=disk):
            await kit.backing.extend(disk.device, disk.wanted)
        case a.AdoptDisk(volume=volume):
            await kit.drbd.adopt_metadata(spec, volume)
        case a.DrbdUp():
            await kit.drbd.up(step.resource)
        case a.SkipInitialSync(volumes=volumes):
            await kit.drbd.skip_initial_sync(step.resource, volumes)
        case a.DrbdResize():
            await kit.drbd.resize(step.resource)
        case a.CreateGate(gate=gate, size=size):
            await kit.gates.create(gate, size)
        case a.ResizeGate(gate=gate, size=size):
            await kit.gates.resize(gate, size)
        case a.ApplyTarget(change=change):
            await kit.exports.apply(change)
        case a.SetAlua(states=states):
            await kit.exports.set_states(cluster, spec, states)
        case _:
            await perform_role(kit, step)


async def perform_role(kit: Kit, step: a.Action) -> None:
    """The steps that need no specification: roles, and taking down."""
    match step:
        case a.DrbdPrimary():
            await kit.drbd.primary(step.resource)
        case a.DrbdSecondary():
            await kit.drbd.secondary(step.resource)
        case a.OpenGate(gate=gate, backing=backing):
            await kit.gates.open(gate, backing)
        case a.HoldGate(gate=gate):
            await kit.gates.hold(gate)
        case a.CloseGate(gate=gate):
            await kit.gates.close(gate)
        case a.RemoveGate(gate=gate):
            await kit.gates.remove(gate)
        case a.DrbdDown():
            await kit.drbd.down(step.resource)
        case a.RemoveDrbdConfig():
            await kit.drbd.remove_config(step.resource)
        case _:
            raise TypeError(f"no way to {step.describe()}")
