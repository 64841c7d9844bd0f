"""Places for work that takes long, given out in turn between owners."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

Place = asyncio.Future[None]


class FairSlots:
    """So many places. Who holds least comes first, then who was served longest ago; nobody holds more than
    `per_owner`, so that a place is free soon for those who come anew."""

    def __init__(self, count: int, per_owner: int) -> None:
        self._free, self._per_owner = count, per_owner
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[Place]] = {}
        self._num_served, self._last_served = 0, dict[str, int]()  # there are as many owners as keys

    @asynccontextmanager
    async def hold(self, owner: str) -> AsyncGenerator[None]:
        """Hold a place, once it is this owner's turn."""
        place: Place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(place)
        self._give_out()
        try:
            await place
            yield
        finally:
            self._leave(owner, place)

    def _leave(self, owner: str, place: Place) -> None:
        if place.done() and not place.cancelled():
            self._held[owner] -= 1
            self._free += 1
        else:
            self._waiting[owner].remove(place)
        self._give_out()

    def _give_out(self) -> None:
        while self._free and (owner := self._next_owner()) is not None:
            self._held[owner] += 1
            self._free -= 1
            self._num_served += 1
            self._last_served[owner] = self._num_served
            self._waiting[owner].popleft().set_result(None)

    def _next_owner(self) -> str | None:
        self._waiting = {owner: places for owner, places in self._waiting.items() if places}
        owners = [owner for owner in self._waiting if self._held[owner] < self._per_owner]
        return min(owners, key=lambda owner: (self._held[owner], self._last_served.get(owner, 0)), default=None)
