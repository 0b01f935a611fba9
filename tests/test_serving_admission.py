"""Whose turn it is: a bounded queue, fair between clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ocr.server.api_errors import ClosingError, QueueFullError
from deepseek_ocr.server.queueing.admission import Admission, Visit


def in_a_loop(test: Callable[..., Any]) -> Callable[..., None]:
    """Run a test within an event loop."""

    def run(*arguments: Any, **named: Any) -> None:
        async def body() -> None:
            test(*arguments, **named)

        asyncio.run(body())

    run.__name__ = test.__name__
    return run


def has_turn(visit: Visit, page: int = 0) -> bool:
    turn = visit.turn(page)
    return turn.done() and turn.exception() is None


def refusal(visit: Visit, page: int = 0) -> BaseException | None:
    turn = visit.turn(page)
    return turn.exception() if turn.done() else None


@in_a_loop
def test_pages_take_the_free_places_and_others_wait() -> None:
    queue = Admission([2], most_waiting=10)
    visit = queue.enter("a", 3)
    assert [has_turn(visit, page) for page in range(3)] == [True, True, False]
    assert (queue.active, queue.waiting) == (2, 1)
    visit.release(0)
    assert has_turn(visit, 2)
    assert (queue.active, queue.waiting) == (2, 0)


@in_a_loop
def test_clients_take_turns_however_much_one_has_brought() -> None:
    queue = Admission([1], most_waiting=100)
    running = queue.enter("first", 1)
    greedy = queue.enter("greedy", 6)
    modest = [queue.enter(name, 1) for name in ("b", "c", "d")]
    order = []
    holder, page = running, 0
    while queue.active:
        waiting = [(greedy, "greedy", n) for n in range(6)] + [
            (visit, visit.client, 0) for visit in modest
        ]
        before = {(name, n) for visit, name, n in waiting if has_turn(visit, n)}
        holder.release(page)
        for visit, name, n in waiting:
            if has_turn(visit, n) and (name, n) not in before:
                order.append(name)
                holder, page = visit, n
    assert order == ["greedy", "b", "c", "d", *["greedy"] * 5]


@in_a_loop
def test_the_least_loaded_engine_gets_the_page() -> None:
    queue = Admission([2, 3], most_waiting=10)
    places = [queue.enter("a", 1).turn(0).result() for _ in range(5)]
    assert places[0] == 1
    assert Counter(places) == {0: 2, 1: 3}
    assert set(places[1:3]) == {0, 1}


@in_a_loop
def test_a_full_queue_refuses() -> None:
    queue = Admission([1], most_waiting=2)
    for _ in range(3):
        queue.enter("a", 1)
    with pytest.raises(QueueFullError):
        queue.enter("a", 1)
    assert queue.waiting == 2


@in_a_loop
def test_a_full_queue_makes_room_for_who_has_less_in_it() -> None:
    queue = Admission([1], most_waiting=4)
    greedy = [queue.enter("greedy", 1) for _ in range(5)]
    newcomer = queue.enter("modest", 1)
    assert isinstance(refusal(greedy[-1]), QueueFullError)  # its newest gives way
    assert refusal(greedy[1]) is None
    assert queue.waiting == 4
    greedy[0].release(0)
    greedy[1].release(0)
    assert has_turn(newcomer)


@in_a_loop
def test_several_requests_give_way_where_that_makes_room() -> None:
    queue = Admission([1], most_waiting=6)
    queue.enter("reader", 1)
    greedy = [queue.enter("greedy", 1) for _ in range(5)]
    modest = queue.enter("modest", 1)
    newcomer = queue.enter("newcomer", 2)
    assert [refusal(visit) is None for visit in greedy] == [True, True, True, False, False]
    assert refusal(modest) is None
    assert refusal(newcomer) is None
    assert queue.waiting == 6


@in_a_loop
def test_who_is_refused_has_thrown_nobody_out() -> None:
    """The first of the two who would have to go has more than the newcomer, the second has not."""
    queue = Admission([1], most_waiting=6)
    queue.enter("reader", 1)
    others = [queue.enter("a", 2), queue.enter("a", 2), queue.enter("b", 2)]
    with pytest.raises(QueueFullError):
        queue.enter("newcomer", 3)
    assert [refusal(visit) for visit in others] == [None, None, None]
    assert queue.waiting == 6


@in_a_loop
def test_a_request_that_has_begun_is_not_sent_away() -> None:
    queue = Admission([1], most_waiting=3)
    begun = queue.enter("greedy", 4)
    with pytest.raises(QueueFullError):
        queue.enter("modest", 1)
    assert refusal(begun, 3) is None


@in_a_loop
def test_leaving_gives_everything_back() -> None:
    queue = Admission([1], most_waiting=10)
    with queue.enter("a", 3):
        other = queue.enter("b", 1)
        assert (queue.active, queue.waiting) == (1, 3)
    assert has_turn(other)
    assert (queue.active, queue.waiting) == (1, 0)
    other.release(0)
    other.release(0)  # once is enough
    assert queue.active == 0


@in_a_loop
def test_closing_refuses_what_waits_and_what_comes_but_not_what_is_read() -> None:
    queue = Admission([1], most_waiting=10)
    visit = queue.enter("a", 2)
    queue.close()
    assert has_turn(visit, 0)
    assert isinstance(refusal(visit, 1), ClosingError)
    with pytest.raises(ClosingError):
        queue.enter("b", 1)
    visit.release(0)
    assert (queue.active, queue.waiting) == (0, 0)


@settings(max_examples=200, deadline=None)
@given(
    places=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    most=st.integers(0, 6),
    steps=st.lists(
        st.tuples(st.sampled_from("elr"), st.sampled_from("abc"), st.integers(1, 3)), max_size=40
    ),
)
@in_a_loop
def test_whatever_comes_and_goes_nothing_is_lost(
    places: list[int], most: int, steps: list[tuple[str, str, int]]
) -> None:
    """Enter, leave, release in any order: places are never overbooked, none idles while pages wait,
    and in the end all are free."""
    queue = Admission(places, most)
    visits: list[Visit] = []
    for action, client, number in steps:
        if action == "e":
            try:
                visits.append(queue.enter(client, number))
            except QueueFullError:
                assert queue.waiting > 0
        elif visits and action == "l":
            visits.pop(number % len(visits)).__exit__(None, None, None)
        elif visits:
            visits[number % len(visits)].release(number - 1)
        assert 0 <= queue.active <= sum(places)
        assert queue.waiting == sum(visit.waiting for visit in visits)
        assert queue.active == sum(places) or queue.waiting == 0
    for visit in visits:
        visit.__exit__(None, None, None)
    assert (queue.active, queue.waiting) == (0, 0)
