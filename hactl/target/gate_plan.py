"""Which device-mapper steps bring a gate from where it is to where it shall be; pure.

Every plan starts from what is there, so that it also completes what was interrupted. Two rules of the kernel
shape all of them (``drivers/md/dm.c``, ``dm-ioctl.c``):

- A resume with an inactive table present waits for the I/O in flight, swaps the tables, closes the old
table's
  devices and lets what queued up meanwhile run against the new table. If it is interrupted by a signal, the
  device goes on with its old table.
- I/O that queues in a suspended *hold* device is in flight for the gate above it. Suspending the gate would
wait
  for it for ever, so the hold device is always let go first.
"""

from __future__ import annotations

from dataclasses import dataclass

from hactl.target.dmsetup import Device, error_table, is_error, linear_device, linear_table
from hactl.target.gates import Mode


@dataclass(frozen=True)
class Load:
    """Put a table into the device's inactive slot, in place of what is there; opens the devices it names."""

    name: str
    table: str


@dataclass(frozen=True)
class Clear:
    """Empty the inactive slot, closing what it names."""

    name: str


@dataclass(frozen=True)
class Suspend:
    """Wait for I/O in flight, queue what comes after."""

    name: str


@dataclass(frozen=True)
class Resume:
    """Make the inactive table the live one, if there is one, and let I/O run."""

    name: str


Step = Load | Clear | Suspend | Resume


def is_idle(hold: Device) -> bool:
    """The hold device is ready to queue, and keeps nothing open: table ``error``, suspended, no second
    table."""
    return is_error(hold.table) and hold.suspended and not hold.inactive


def backing_of(gate: Device, hold: Device) -> str | None:
    """``major:minor`` of the device I/O goes to, or would go to, if any."""
    device = linear_device(gate.table)
    return linear_device(hold.table) if device == hold.number else device


def mode(gate: Device, hold: Device | None) -> Mode:
    """What the gate does now. An unused inactive table or a hold device that is not idle is the trace of an
    interrupted change, and keeps DRBD open: that is never reported as one of the three settled modes."""
    if not is_error(gate.table) and linear_device(gate.table) is None:
        return Mode.FOREIGN
    if gate.suspended or gate.inactive or hold is None or not is_idle(hold):
        return Mode.SUSPENDED
    if is_error(gate.table):
        return Mode.CLOSED
    return Mode.HELD if linear_device(gate.table) == hold.number else Mode.OPEN


def may_wait(now: Mode, wanted: Mode) -> bool:
    """Whether the steps from one mode to another may wait for I/O on the backing device. None gets there from
    a closed gate, and what a held one queued has failed before it is waited for when it is closed."""
    return not (now is Mode.CLOSED or (now is Mode.HELD and wanted is Mode.CLOSED))


def open_steps(gate: Device, hold: Device, backing: str, size: int) -> tuple[Step, ...]:
    """To OPEN on ``backing`` (``major:minor``); what is held goes there first, in its order."""
    steps: list[Step] = []
    through_hold = linear_device(gate.table) == hold.number
    if through_hold:
        # From here on I/O flows, through both devices; the rest only takes the detour out.
        if linear_device(hold.table) == backing:
            steps += _run_as_is(hold)
        else:
            steps += [Load(hold.name, linear_table(size, backing)), Resume(hold.name)]
    if linear_device(gate.table) == backing and gate.size == size:
        steps += _run_as_is(gate)
    else:
        steps += [Load(gate.name, linear_table(size, backing)), Resume(gate.name)]
    return (*steps, *(_make_idle(hold, size) if through_hold else idle_steps(hold, size)))


def hold_steps(gate: Device, hold: Device, size: int) -> tuple[Step, ...]:
    """To HELD."""
    to_hold = Load(gate.name, linear_table(size, hold.number)), Resume(gate.name)
    if linear_device(gate.table) != hold.number:
        return (*idle_steps(hold, size), *to_hold)
    flowing_to = linear_device(hold.table)
    if flowing_to is not None:
        # An opening was interrupted when I/O flowed through the hold device already. Emptying that one
        # without failing I/O takes a gate that does not lead there, so the opening is completed first.
        return (*open_steps(gate, hold, flowing_to, size), *to_hold)
    # The hold device first: what queued in the gate must queue again, not fail.
    return (*idle_steps(hold, size), *_run_as_is(gate))


def close_steps(gate: Device, hold: Device, size: int) -> tuple[Step, ...]:
    """To CLOSED; what is held fails."""
    steps: list[Step] = []
    let_go = linear_device(gate.table) == hold.number and hold.suspended
    if let_go:
        if is_error(hold.table):
            # A second table here would lead to the backing device: what queued would be written, not failed.
            steps += _run_as_is(hold)
        else:
            steps += [Load(hold.name, error_table(size)), Resume(hold.name)]
    if is_error(gate.table) and gate.size == size:
        steps += _run_as_is(gate)
    else:
        steps += [Load(gate.name, error_table(size)), Resume(gate.name)]
    return (*steps, *((Suspend(hold.name),) if let_go else idle_steps(hold, size)))


def resize_steps(gate: Device, hold: Device, size: int) -> tuple[Step, ...]:
    """To another size in mode CLOSED or OPEN. The hold device is never the smaller one, so that a gate that
    is interrupted in between can still be held."""
    backing = linear_device(gate.table)
    table = error_table(size) if backing is None else linear_table(size, backing)
    gate_steps: tuple[Step, ...] = Load(gate.name, table), Resume(gate.name)
    if gate.size == size:
        gate_steps = tuple(_run_as_is(gate))
    idle = idle_steps(hold, size) if hold.size == size else _make_idle(hold, size)
    return (*idle, *gate_steps) if size > gate.size else (*gate_steps, *idle)


def idle_steps(hold: Device, size: int) -> tuple[Step, ...]:
    """Make a hold device idle through which no I/O of the gate goes (or none that may not fail)."""
    if not is_error(hold.table) or hold.size < size:
        return _make_idle(hold, size)
    steps: list[Step] = [Clear(hold.name)] if hold.inactive else []
    if not hold.suspended:
        steps.append(Suspend(hold.name))
    return tuple(steps)


def _make_idle(hold: Device, size: int) -> tuple[Step, ...]:
    return Load(hold.name, error_table(size)), Resume(hold.name), Suspend(hold.name)


def _run_as_is(device: Device) -> list[Step]:
    """Run on with the live table."""
    steps: list[Step] = [Clear(device.name)] if device.inactive else []
    if device.suspended:
        steps.append(Resume(device.name))
    return steps
