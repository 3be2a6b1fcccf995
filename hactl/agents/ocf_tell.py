"""Tells Pacemaker at once that this node is isolated, which its monitors would tell some seconds later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

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
    """Tell the promotion score of everything that is active here and that Pacemaker rules, one after the
    other; what cannot be told is left to the monitors."""
    for name, keeper in sorted(agent.keepers.items()):
        mine = any(r.name == name for r in agent.cluster.resources) and rules(agent.cluster, name)
        if mine and keeper.record.role is OrderedRole.ACTIVE:
            try:
                await _tell(agent, keeper)
            except HactlError as error:
                _log.warning("score not told", resource=name, code=error.code, error=str(error))


async def _tell(agent: ClusterOrders, keeper: Keeper) -> None:
    pacemaker, primitive = agent.kit.pacemaker, primitive_of(keeper.name)
    observed = await keeper.observe(ROLES)
    score = judge(agent.subject(keeper, observed), Question(role="Promoted")).score
    if pacemaker is None or not isinstance(score, int):
        return
    await pacemaker.score(primitive, agent.node, score)
    _log.info("score told", resource=keeper.name, score=score)
