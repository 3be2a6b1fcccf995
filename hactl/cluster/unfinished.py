"""What was begun on this machine and is not finished, so that it can be run again after an interruption."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import ValidationError

from hactl.cluster.draft import Draft
from hactl.cluster.layout import Layout, remove, write
from hactl.errors import Refused
from hactl.model.spec import Frozen, Name

SCHEMA = 1
Work = Literal["init", "join", "leave", "recover"]


class Unfinished(Frozen):
    """``cluster`` is None while a join has not been told it. ``told``: the cluster has been told (leave).
    ``pacemaker``: the cluster gets Pacemaker too (init). ``lost``, ``rejoining``: the nodes that are given
    up; ``aside``: name of the folder with the data as they were; ``made``: they are of this node alone
    (recover).
    """

    what: Work
    cluster: Name | None
    draft: Draft | None = None
    told: bool = False
    pacemaker: bool = False
    lost: tuple[Name, ...] = ()
    rejoining: tuple[Name, ...] = ()
    aside: str | None = None
    made: bool = False


def load(layout: Layout) -> Unfinished | None:
    """What is unfinished; None if nothing is. :class:`Refused` ``unfinished-file`` if that is not clear."""
    try:
        value = json.loads(layout.unfinished.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or value.pop("schema", None) != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        return Unfinished.model_validate(value)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise Refused(
            "unfinished-file",
            f"{layout.unfinished} cannot be understood: {error}",
            "start over: hactl cluster leave --only-here",
        ) from None


def save(layout: Layout, work: Unfinished) -> None:
    """Note what has begun."""
    write(layout.unfinished, json.dumps({"schema": SCHEMA, **work.model_dump(mode="json")}), 0o600)


def done(layout: Layout) -> None:
    """Nothing is unfinished any more."""
    remove(layout.unfinished)


def resumed(layout: Layout, work: Unfinished) -> bool:
    """Whether this very work was begun before; False: nothing was.

    :class:`Refused` ``unfinished`` if something else was begun, or the same with other options.
    """
    found = load(layout)
    if found is None:
        return False
    same = (found.what, found.draft, found.pacemaker) == (work.what, work.draft, work.pacemaker)
    if same and found.cluster in (work.cluster, None):
        return True
    same = found.what == work.what and found.cluster in (work.cluster, None)
    how = "was begun with other options" if same else "was begun and is not finished"
    whose = f" of the cluster {found.cluster}" if found.cluster else ""
    raise Refused(
        "unfinished",
        f"hactl cluster {found.what}{whose} {how} on this machine",
        "run it again as it was; or undo it here: hactl cluster leave --only-here",
    )
