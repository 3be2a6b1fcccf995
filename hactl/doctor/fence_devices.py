"""Asks fence devices whether they answer this node; nothing is switched."""

from __future__ import annotations

import asyncio

from hactl.model.spec import ClusterSpec, FenceSpec
from hactl.runner import CommandTimeout, Runner

SECONDS = 20.0
"""For a device to answer: what Pacemaker gives a device's monitor by default."""

UNASKABLE = frozenset({"fence_watchdog"})
"""Agents without a device: the node itself does it."""


async def faults(runner: Runner, cluster: ClusterSpec, here: str) -> dict[str, str]:
    """Why devices of other nodes than ``here`` did not answer, by node. One whose program is not installed is
    not among them."""
    devices = {
        n.name: n.fencing
        for n in cluster.nodes
        if n.name != here and n.fencing is not None and n.fencing.agent not in UNASKABLE
    }
    answers = await asyncio.gather(*(_ask(runner, device) for device in devices.values()))
    return {node: fault for node, fault in zip(devices, answers, strict=True) if fault}


async def _ask(runner: Runner, device: FenceSpec) -> str:
    # Agents read options from standard input, where nobody else sees them.
    secrets = {key: secret.get_secret_value() for key, secret in device.secrets.items()}
    options = {"action": "monitor", **device.options, **secrets}
    text = "".join(f"{key}={value}\n" for key, value in options.items() if not key.startswith("pcmk_"))
    try:
        done = await runner.run([device.agent], timeout=SECONDS, check=False, stdin=text)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    except CommandTimeout:
        return f"no answer within {SECONDS:g} s"
    if done.status == 0:
        return ""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    told = (lines[-1] if lines else f"exit status {done.status}")[:200]
    for value in secrets.values():
        told = told.replace(value, "(secret)")
    return told
