"""Pacemaker's side of the agent: what the resource agents ``ocf:hactl:resource`` and ``ocf:hactl:agent``
ask.

Every action ends with an :class:`Answer`, whatever happens, within the time that the caller gives; each may
be asked again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from hactl.agents.observe import EVERYTHING
from hactl.agents.ocf_codes import (
    HANDED_OVER,
    RECOVERY,
    Answer,
    Code,
    Recovery,
    Unchanged,
    code_of,
)
from hactl.agents.ocf_monitor import Question, busy, judge
from hactl.agents.resource import ROLES
from hactl.agents.states import Aspect, ResourceObserved
from hactl.errors import HactlError, Refused
from hactl.pacemaker.charge import rules

if TYPE_CHECKING:
    from hactl.agents.keeper import Keeper
    from hactl.agents.ocf_orders import ClusterOrders

Form = Mapping[str, str]
"""``seconds``: until when there has to be an answer. ``interval`` of a recurring action in milliseconds, 0 of
a probe. ``role`` that Pacemaker believes the resource to be in. ``promote``: nodes that will be promoted by
the same transition, by Pacemaker's word. ``type`` and ``operation`` of a notification."""

SECONDS = 18.0
"""Time for an action whose caller does not say."""
_CHANGES = frozenset({Aspect.DRBD, Aspect.GATES})
_HEALS = 5.0
"""Seconds that a monitor waits at most for what the agent mends by itself."""
_log = structlog.get_logger("hactl.ocf")


class Ocf:
    """Answers for one agent."""

    def __init__(self, agent: ClusterOrders) -> None:
        self._agent = agent
        self._successors: dict[str, str] = {}
        """Who will be promoted by the transition that is under way, by resource."""

    async def resource(self, resource: str, action: str, form: Form) -> Answer:
        """One action of ``ocf:hactl:resource``."""
        actions: dict[str, Callable[[str, Form], Awaitable[Answer]]] = {
            "start": self._start,
            "stop": self._stop,
            "monitor": self._monitor,
            "demote": self._demote,
            "promote": self._promote,
            "notify": self._notify,
            "validate-all": self._validate,
        }
        return await self._told(f"{action} of {resource}", actions, action, resource, form)

    async def agent(self, action: str, form: Form) -> Answer:
        """One action of ``ocf:hactl:agent``."""
        actions = {"start": self._well, "monitor": self._well, "stop": self._no_agent}
        return await self._told(f"{action} of the agent", actions, action, "", form)

    async def _told(
        self,
        what: str,
        actions: Mapping[str, Callable[[str, Form], Awaitable[Answer]]],
        action: str,
        resource: str,
        form: Form,
    ) -> Answer:
        if action not in actions:
            return Answer(Code.ERR_UNIMPLEMENTED, reason=f"there is no action {action!r}")
        try:
            answer = await actions[action](resource, form)
        except HactlError as error:
            # Another node is active, whatever Pacemaker believes: this one must not be tried again at once.
            score = None if error.code == "active-elsewhere" else Unchanged.SCORE
            answer = Answer(code_of(error), score, f"{error} [{error.code}]")
        except TimeoutError:
            answer = Answer(Code.ERR_GENERIC, reason=f"{what} has not ended in time")
        quiet = action in ("monitor", "notify", "validate-all")
        well = answer.code in (Code.SUCCESS, Code.RUNNING_PROMOTED)
        if not quiet or not (well or RECOVERY[answer.code] is Recovery.NONE):
            level = _log.info if well else _log.warning
            level("answered", action=what, code=int(answer.code), reason=answer.reason)
        return answer

    def _until(self, form: Form) -> float:
        try:
            seconds = float(form.get("seconds", SECONDS))
        except ValueError:
            raise Refused("bad-request", f"seconds is {form['seconds']!r}, not a number") from None
        return self._agent.kit.clock.now() + seconds

    async def _start(self, resource: str, form: Form) -> Answer:
        await self._agent.start_here(resource, self._until(form))
        return await self._scored(resource)

    async def _stop(self, resource: str, form: Form) -> Answer:
        await self._agent.stop_here(resource, self._until(form))
        return Answer(Code.SUCCESS, None)

    async def _promote(self, resource: str, form: Form) -> Answer:
        self._successors.pop(resource, None)
        await self._agent.promote_here(resource, self._until(form))
        return await self._scored(resource)

    async def _demote(self, resource: str, form: Form) -> Answer:
        told = _only(form.get("promote", ""))
        successor = told or self._successors.pop(resource, None)
        handed_over = await self._agent.demote_here(resource, successor, self._until(form))
        answer = await self._scored(resource)
        if handed_over and isinstance(answer.score, int):
            return Answer(Code.SUCCESS, HANDED_OVER, answer.reason)
        return answer

    async def _scored(self, resource: str) -> Answer:
        """Success, with the score that a monitor would tell now."""
        keeper = self._agent.keepers.get(resource)
        if keeper is None:
            return Answer(Code.SUCCESS, None)
        judged = judge(self._agent.subject(keeper, await _quick_look(keeper)))
        return Answer(Code.SUCCESS, judged.score, judged.reason)

    async def _notify(self, resource: str, form: Form) -> Answer:
        successor = _only(form.get("promote", ""))
        if (form.get("type"), form.get("operation")) == ("pre", "demote") and successor:
            self._successors[resource] = successor
        elif form.get("type") == "post":
            # That transition is over, as far as it concerns who is active.
            self._successors.pop(resource, None)
        return Answer(Code.SUCCESS)

    async def _monitor(self, resource: str, form: Form) -> Answer:
        question = Question(probe=form.get("interval", "0") in ("", "0"), role=form.get("role") or None)
        until = self._until(form)
        clock = self._agent.kit.clock
        heals = min(until, clock.now() + min(_HEALS, (until - clock.now()) / 2))
        while True:
            keeper = self._agent.keepers.get(resource)
            if keeper is None:
                return Answer(Code.NOT_RUNNING, None, f"{self._agent.node} does not have {resource}")
            answer = await self._look(keeper, question)
            fine = RECOVERY[answer.code] is Recovery.NONE
            if fine or answer.code in (Code.RUNNING_PROMOTED, Code.NOT_RUNNING) or clock.now() >= heals:
                return answer
            self._agent.touch(resource)
            await clock.sleep(self._agent.timings.ask)

    async def _look(self, keeper: Keeper, question: Question) -> Answer:
        seen = await (keeper.glance(EVERYTHING) if question.probe else _quick_look(keeper))
        answer = judge(self._agent.subject(keeper, seen), question)
        if answer.code is Code.FAILED_PROMOTED:
            # What was told last may be older than what is: before it counts as failed, look properly.
            answer = judge(self._agent.subject(keeper, await keeper.observe()), question)
        return answer

    async def _validate(self, resource: str, form: Form) -> Answer:  # noqa: ARG002 - as all are called
        if any(r.name == resource for r in self._agent.cluster.resources):
            return Answer(Code.SUCCESS)
        why = f"the cluster has no resource {resource!r}: see hactl status"
        return Answer(Code.ERR_CONFIGURED, reason=why)

    # The agent itself

    async def _well(self, _: str, form: Form) -> Answer:  # noqa: ARG002 - as all are called
        reasons = "; ".join(self._agent.reasons())
        return Answer(Code.DEGRADED if reasons else Code.SUCCESS, reason=reasons)

    async def _no_agent(self, _: str, form: Form) -> Answer:  # noqa: ARG002 - as all are called
        """Pacemaker will ask nothing of this node any more, so nothing that it rules may be active here."""
        for name, keeper in sorted(self._agent.keepers.items()):
            if rules(self._agent.desired.cluster, name):
                why = busy(await keeper.observe(ROLES))
                if why is not None:
                    return Answer(Code.ERR_GENERIC, reason=f"{name} is still active here: {why}")
        return Answer(Code.SUCCESS)


async def _quick_look(keeper: Keeper) -> ResourceObserved:
    """What changes without this agent: no program is started for it, and LIO's tree is not read, which is the
    regular pass's business."""
    return replace(await keeper.glance(_CHANGES), export=())


def _only(names: str) -> str | None:
    """The one name of a list of Pacemaker's; None if there is none, or more than one."""
    found = names.split()
    return found[0] if len(found) == 1 else None
