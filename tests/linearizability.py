"""Is a history of operations on one object linearizable (Herlihy and Wing)?

An operation that was answered took effect at one moment between its start and its end; one that was not may
have taken effect at any moment after its start, or not at all. A history is linearizable if the operations
can be put in one order in which every answer is the one that a sequential specification gives.

The search goes from answer to answer in time (Wing and Gong's, in the form that Lowe calls just-in-time) and
remembers which states it has seen with which operations still open. An unanswered operation is put in only
where it changes the state, latest places first, and only when doing with fewer of them has failed nearby; so
they cost little as long as reads tell which of them took effect. To show that no order explains a history can
take all their subsets, though: give `Operation.until` wherever it is known.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

S = TypeVar("S")
C = TypeVar("C")
A = TypeVar("A")


class Unanswered(Enum):
    """What stands in the place of an answer: none came, or one that does not say what happened."""

    UNANSWERED = "unanswered"


UNANSWERED = Unanswered.UNANSWERED


@dataclass(frozen=True)
class Operation(Generic[C, A]):
    """What a client did. Times are of one clock, in any unit.

    ``end`` counts only with an answer; when the client gave up says nothing about when the operation may have
    taken effect. ``until`` counts only without one: from then on it cannot take effect any more (its node was
    powered off, say); None if nothing is known.
    """

    client: str
    start: float
    end: float | None
    call: C
    answer: A | Unanswered = UNANSWERED
    until: float | None = None

    def __post_init__(self) -> None:
        if self.answer is not UNANSWERED and self.end is None:
            raise ValueError(f"answered without an end: {self}")
        if any(last is not None and last < self.start for last in (self.end, self.until)):
            raise ValueError(f"over before it began: {self}")

    @property
    def answered(self) -> bool:
        """Whether it certainly took effect."""
        return self.answer is not UNANSWERED

    @property
    def last(self) -> float | None:
        """The last moment at which it can have taken effect."""
        return self.end if self.answered else self.until


@dataclass(frozen=True)
class Violation(Generic[S, C, A]):
    """Where a history stops being linearizable.

    ``at``: the operation whose answer nothing explains: all that ended before it can be put in order, and
    with it no more. ``in_flight``: the answered operations that overlap it and ended later, and the
    unanswered ones that began before its end. ``possible``: states that the object may have been in just
    before (at most ``SHOWN`` of them), each with the answer that ``at`` would have got there. ``order``: one
    order of what was before.
    """

    at: Operation[C, A]
    in_flight: tuple[Operation[C, A], ...]
    possible: tuple[tuple[S, A], ...]
    order: tuple[Operation[C, A], ...]

    def __str__(self) -> str:
        lines = ["not linearizable; nothing explains", f"  {_shown(self.at)}"]
        if self.in_flight:
            lines += ["in flight then:", *(f"  {_shown(one)}" for one in self.in_flight)]
        for state, answer in self.possible:
            lines += [f"in {state}", f"  it would have got {answer}"]
        lines += ["the last before it, in an order that explains them:"]
        lines += [f"  {_shown(one)}" for one in self.order[-SHOWN:]]
        return "\n".join(lines)


SHOWN = 8

PRICE = 8
"""How many ends of operations the search goes back before it takes in one more unanswered operation."""


def _shown(operation: Operation[C, A]) -> str:
    end = "…" if operation.last is None else f"{operation.last:g}"
    answer = "no answer" if not operation.answered else operation.answer
    return f"{operation.start:g}-{end} {operation.client}: {operation.call} -> {answer}"


class NotLinearizableError(AssertionError):
    """The history shows a fault. ``violation`` says where."""

    def __init__(self, violation: Violation[S, C, A]) -> None:
        super().__init__(str(violation))
        self.violation = violation


class UndecidedError(Exception):
    """The search was given up: too many operations without an answer and too few reads between them.

    ``violation`` says how far it came. What helps: `Operation.until`, and reads of the whole state.
    """

    def __init__(self, limit: int, violation: Violation[S, C, A]) -> None:
        super().__init__(f"given up after {limit} steps; as far as was seen: {violation}")
        self.violation = violation


def check(
    history: Iterable[Operation[C, A]],
    initial: S,
    apply: Callable[[S, C], tuple[A, S]],
    *,
    key: Callable[[S], Hashable] = lambda state: state,
    accepts: Callable[[A, A], bool] = lambda expected, answer: expected == answer,
    limit: int = 300_000,
) -> tuple[Operation[C, A], ...]:
    """One order that explains the history; raises `NotLinearizableError` if there is none.

    ``apply``: the specification: the answer to a call and the state after it. ``key``: of a state; equal
    exactly for states that are the same for every later call. ``accepts``: whether an answer is the expected
    one. ``limit``: steps after which the search raises `UndecidedError`.
    """
    return _Search(tuple(history), initial, apply, key, accepts, limit).run()


@dataclass(frozen=True)
class _Step(Generic[C, A]):
    """A linked list of the operations put in order so far, the latest first."""

    operation: Operation[C, A]
    before: _Step[C, A] | None


@dataclass(frozen=True)
class _Point(Generic[S, C, A]):
    """Somewhere in the search: ``event`` is the next end; ``early`` are answered operations that are in order
    already but end at it or later; ``used`` are the unanswered ones in order, as bits."""

    event: int
    early: frozenset[int]
    used: int
    state: S
    steps: _Step[C, A] | None


class _Search(Generic[S, C, A]):
    def __init__(
        self,
        history: tuple[Operation[C, A], ...],
        initial: S,
        apply: Callable[[S, C], tuple[A, S]],
        key: Callable[[S], Hashable],
        accepts: Callable[[A, A], bool],
        limit: int,
    ) -> None:
        self._initial, self._apply, self._key, self._accepts, self._limit = (
            initial,
            apply,
            key,
            accepts,
            limit,
        )
        self._ends: list[tuple[float, Operation[C, A]]] = sorted(
            ((one.last, one) for one in history if one.last is not None), key=lambda end: end[0]
        )
        event_of = {id(one): event for event, (_, one) in enumerate(self._ends)}
        self._maybe = sorted((one for one in history if not one.answered), key=lambda one: one.start)
        self._maybe_starts = [one.start for one in self._maybe]
        # For each end, the answered operations that began before it and end at it or later.
        self._open: list[list[int]] = [[] for _ in self._ends]
        begun = sorted((one for one in history if one.answered), key=lambda one: one.start)
        active: list[int] = []
        at = 0
        for event, (time, _) in enumerate(self._ends):
            while at < len(begun) and begun[at].start <= time:
                active.append(event_of[id(begun[at])])
                at += 1
            active = sorted(one for one in active if one >= event)
            self._open[event] = list(active)
        # Unanswered operations that are over, as bits: whether they were used makes no difference any more.
        self._over: list[int] = []
        over = 0
        bit_of = {id(one): bit for bit, one in enumerate(self._maybe)}
        for _, one in self._ends:
            self._over.append(over)
            if not one.answered:
                over |= 1 << bit_of[id(one)]
        self._over.append(over)

    def run(self) -> tuple[Operation[C, A], ...]:
        seen: dict[tuple[int, frozenset[int], Hashable], list[int]] = defaultdict(list)
        furthest = _Point[S, C, A](0, frozenset(), 0, self._initial, None)
        stuck: dict[Hashable, S] = {}
        waiting: list[tuple[int, int, bool, _Point[S, C, A]]] = [(0, 0, False, furthest)]
        steps = 0
        number = count(1)  # makes heap entries differ; of equally good ones the youngest comes first
        while waiting:
            cost, _, more, point = heappop(waiting)
            if more:
                following = self._with_unanswered(point)
            elif point.event == len(self._ends):
                return _in_order(point.steps)
            else:
                state = self._key(point.state)
                if point.event > furthest.event:
                    furthest, stuck = point, {}
                if point.event == furthest.event:
                    stuck.setdefault(state, point.state)
                # What failed with fewer unanswered operations used up fails with more, too.
                known = seen[point.event, point.early, state]
                used = point.used & ~self._over[point.event]
                if any(other & ~used == 0 for other in known):
                    continue
                known.append(used)
                heappush(waiting, (cost + PRICE, -next(number), True, point))
                following = self._answered(point)
            for one in following:
                steps += 1
                if steps > self._limit:
                    raise UndecidedError(self._limit, self._violation(furthest, list(stuck.values())))
                heappush(waiting, (one.used.bit_count() * PRICE - one.event, -next(number), False, one))
        raise NotLinearizableError(self._violation(furthest, list(stuck.values())))

    def _answered(self, point: _Point[S, C, A]) -> Iterator[_Point[S, C, A]]:
        """The points one step on, without an unanswered operation; the likeliest last."""
        event = point.event
        for other in reversed(self._open[event]):
            if other in point.early or event in point.early:
                continue
            operation = self._ends[other][1]
            answer, after = self._apply(point.state, operation.call)
            assert not isinstance(operation.answer, Unanswered)
            if self._accepts(answer, operation.answer):
                steps = _Step(operation, point.steps)
                if other == event:
                    yield _Point(event + 1, point.early, point.used, after, steps)
                else:
                    yield _Point(event, point.early | {other}, point.used, after, steps)
        if event in point.early or not self._ends[event][1].answered:
            yield _Point(event + 1, point.early - {event}, point.used, point.state, point.steps)

    def _with_unanswered(self, point: _Point[S, C, A]) -> Iterator[_Point[S, C, A]]:
        """The points one step on by an unanswered operation that changes the state; the latest last."""
        event = point.event
        before = self._key(point.state)
        blocked = point.used | self._over[event]
        for bit in range(bisect_right(self._maybe_starts, self._ends[event][0])):
            if not blocked >> bit & 1:
                operation = self._maybe[bit]
                after = self._apply(point.state, operation.call)[1]
                if self._key(after) != before:
                    steps = _Step(operation, point.steps)
                    yield _Point(event, point.early, point.used | 1 << bit, after, steps)

    def _violation(self, furthest: _Point[S, C, A], states: list[S]) -> Violation[S, C, A]:
        time, at = self._ends[furthest.event]
        others = [self._ends[event][1] for event in self._open[furthest.event] if event != furthest.event]
        maybe = self._maybe[: bisect_right(self._maybe_starts, time)]
        alive = [one for bit, one in enumerate(maybe) if not self._over[furthest.event] >> bit & 1]
        return Violation(
            at=at,
            in_flight=(*others, *alive),
            possible=tuple((state, self._apply(state, at.call)[0]) for state in states[:SHOWN]),
            order=_in_order(furthest.steps),
        )


def _in_order(steps: _Step[C, A] | None) -> tuple[Operation[C, A], ...]:
    found: list[Operation[C, A]] = []
    while steps is not None:
        found.append(steps.operation)
        steps = steps.before
    return tuple(reversed(found))
