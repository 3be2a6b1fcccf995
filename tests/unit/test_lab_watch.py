"""Two gates that are open at once are found, and nothing else is taken for it."""

from __future__ import annotations

from lab.watch import Look, Span, overlaps, spans


def looks(node: str, *seen: tuple[float, bool | None]) -> list[Look]:
    """Looks that took 0.2 s each."""
    return [Look(node, begin, begin + 0.2, found) for begin, found in seen]


def test_a_gate_is_open_from_the_first_answer_to_the_last_question() -> None:
    assert spans(looks("n1", (0, True), (1, True), (2, True), (3, False))) == [Span("n1", 0.2, 2)]


def test_a_node_that_does_not_answer_ends_the_span() -> None:
    seen = looks("n1", (0, True), (1, True), (2, None), (3, True), (4, True))
    assert spans(seen) == [Span("n1", 0.2, 1), Span("n1", 3.2, 4)]


def test_a_moment_within_the_span_of_another_node_is_found() -> None:
    mine = spans(looks("n1", (0, True), (1, True), (2, True)))
    other = spans(looks("n2", (0.9, False), (1.2, True), (1.6, False)))
    assert overlaps([*mine, *other]) == [(mine[0], other[0])]


def test_a_hand_over_between_two_looks_is_none() -> None:
    mine = spans(looks("n1", (0, True), (1, True), (2, False)))
    other = spans(looks("n2", (0.5, False), (1.1, True), (2, True)))
    assert overlaps([*mine, *other]) == []


def test_two_single_looks_prove_nothing_unless_one_lies_in_the_span_of_the_other() -> None:
    mine, other = spans(looks("n1", (0, True))), spans(looks("n2", (0.1, True), (0.6, False)))
    assert overlaps([*mine, *other]) == []
    assert overlaps([Span("n1", 0, 0.5), *spans(looks("n2", (0.4, True)))]) == []
