"""Tells Pacemaker at once that this node is isolated, or well again; monitors would do so seconds later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from hactl.agents.observe import EVERYTHING
from hactl.agents.ocf_monitor import Question, judge
from hactl.agents.resource import ROLES
from hactl.agents.states import OrderedRole
from hactl.errors import HactlError
from hactl.pacemaker.charge import rules
from hactl.pacemaker.wanted import primitive_of

if TYPE_CHECKING:
    from hactl.agents.keeper import Keeper
    from hactl.agents.ocf_orders import ClusterOrders

_log = structlog.get_logger("hactl.agent")


async def tell_scores(agent: ClusterOrders) -> None:
    """Tell the promotion score of everything here that Pacemaker rules, one after the other; what cannot be
    told is left to the monitors.

    Also of what is standby: if all nodes are cut off and only the active one has said so, the score of the
    standby pulls it to a node that is as badly off.
    """
    for name, keeper in sorted(agent.keepers.items()):
        mine = any(r.name == name for r in agent.cluster.resources) and rules(agent.cluster, name)
        if mine:
            try:
                await _tell(agent, keeper)
            except HactlError as error:
                _log.warning("score not told", resource=name, code=error.code, error=str(error))


async def _tell(agent: ClusterOrders, keeper: Keeper) -> None:
    pacemaker, primitive = agent.kit.pacemaker, primitive_of(keeper.name)
    active = keeper.record.role is OrderedRole.ACTIVE
    observed = await keeper.observe(ROLES if active else EVERYTHING)
    question = Question(role="Promoted" if active else "Unpromoted")
    score = judge(agent.subject(keeper, observed), question).score
    if pacemaker is None or not isinstance(score, int):
        return
    await pacemaker.score(primitive, agent.node, score)
    _log.info("score told", resource=keeper.name, score=score)
