"""Who may read next: a bounded queue of pages, fair between clients.

A request enters with as many pages as it has and is given a turn for each. Turns go round the
clients that wait, one page each, however many pages one of them has brought; of a client's own
requests the first comes first. When the queue is full the newest request that has not begun of
whoever has most pages waiting gives way to a client that has fewer; otherwise the newcomer is
refused.

Everything here belongs to one event loop: no other thread may call it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence

from deepseek_ocr.server.api_errors import ApiError, ClosingError, QueueFullError


class Visit:
    """The pages of one request on their way through the queue; leave it by `with`. `started`: true
    once a page of it has been given its turn."""

    def __init__(self, admission: Admission, client: str, pages: int) -> None:
        loop = asyncio.get_running_loop()
        self.client = client
        self.started = False
        self._admission = admission
        self._turns: list[asyncio.Future[int]] = [loop.create_future() for _ in range(pages)]
        self._next = 0
        self._held: dict[int, int] = {}

    @property
    def waiting(self) -> int:
        """Pages that have not been given their turn."""
        return len(self._turns) - self._next

    def turn(self, page: int) -> asyncio.Future[int]:
        """Done when page `page` (from 0) may be read; its result is the place (which engine).

        Its exception is a `QueueFullError` or a `ClosingError` where that will never be. It must
        not be cancelled.
        """
        return self._turns[page]

    def release(self, page: int) -> None:
        """Page `page` has been read, or never will be: give its place to the next."""
        place = self._held.pop(page, None)
        if place is not None:
            self._admission.free(place)

    def grant(self, place: int) -> None:
        """Give the next page its turn (for `Admission`)."""
        self._held[self._next] = place
        self._turns[self._next].set_result(place)
        self._next += 1
        self.started = True

    def refuse(self, error: ApiError) -> None:
        """End the wait of all pages that still wait (for `Admission`)."""
        for turn in self._turns[self._next :]:
            turn.set_exception(error)
            turn.exception()  # nobody may be waiting, and asyncio would complain
        self._next = len(self._turns)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.leave(self)
        for page in list(self._held):
            self.release(page)


class Admission:
    """The queue in front of some engines: `places[i]` pages at once on engine `i`, at most
    `most_waiting` pages waiting."""

    def __init__(self, places: Sequence[int], most_waiting: int) -> None:
        self._free = list(places)
        self._clients: OrderedDict[str, deque[Visit]] = OrderedDict()
        self._most_waiting = most_waiting
        self._places = sum(places)
        self._closed = False
        self.waiting = 0

    @property
    def active(self) -> int:
        """Pages that have their turn now."""
        return self._places - sum(self._free)

    def enter(self, client: str, pages: int) -> Visit:
        """Queue `pages` pages of `client`. Raises `QueueFullError` where there is no room,
        `ClosingError` after `close`."""
        if self._closed:
            raise ClosingError
        for visit in self._in_the_way(client, pages):
            self.leave(visit)
        visit = Visit(self, client, pages)
        self._clients.setdefault(client, deque()).append(visit)
        self.waiting += pages
        self._give_turns()
        return visit

    def leave(self, visit: Visit) -> None:
        """Take the pages of `visit` that still wait out of the queue."""
        if not visit.waiting:
            return
        self.waiting -= visit.waiting
        visits = self._clients[visit.client]
        visits.remove(visit)
        if not visits:
            del self._clients[visit.client]
        visit.refuse(QueueFullError())

    def free(self, place: int) -> None:
        """A page on engine `place` is done (for `Visit`)."""
        self._free[place] += 1
        self._give_turns()

    def close(self) -> None:
        """Refuse everything that waits and whoever comes; pages being read go on."""
        self._closed = True
        for visits in self._clients.values():
            for visit in visits:
                visit.refuse(ClosingError())
        self._clients.clear()
        self.waiting = 0

    def _give_turns(self) -> None:
        """Give free places to the client whose turn it is, and put that client last."""
        while self._clients and max(self._free) > 0:
            client, visits = next(iter(self._clients.items()))
            place = self._free.index(max(self._free))  # the least loaded
            self._free[place] -= 1
            self.waiting -= 1
            visits[0].grant(place)
            if not visits[0].waiting:
                visits.popleft()
            if visits:
                self._clients.move_to_end(client)
            else:
                del self._clients[client]

    def _in_the_way(self, client: str, pages: int) -> list[Visit]:
        """The requests that give way to `pages` pages of `client`: always the newest of whoever
        then waits with most.

        Raises `QueueFullError`, and nobody has to go, where that is us before there is room.
        """
        left, unstarted = {}, {}
        for name, visits in self._clients.items():
            left[name] = sum(visit.waiting for visit in visits)
            unstarted[name] = [visit for visit in visits if not visit.started]
        mine = left.get(client, 0) + pages
        room = self._most_waiting + sum(self._free)
        found: list[Visit] = []
        while (waiting := sum(left.values())) and waiting + pages > room:
            heaviest = max(left, key=left.__getitem__)
            if not unstarted[heaviest] or left[heaviest] <= mine:
                raise QueueFullError
            found.append(unstarted[heaviest].pop())
            left[heaviest] -= found[-1].waiting
        return found
