"""Places for decoding are given out in turn."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from enlarger.service.uploads.fair_slots import FairSlots
from tests.support.queues import async_test


async def order_of(slots: FairSlots, owners: Sequence[str]) -> list[str]:
    """The owners in the order in which they were served, one after another."""
    served: list[str] = []

    async def work(owner: str) -> None:
        async with slots.hold(owner):
            served.append(owner)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(owner) for owner in owners))
    return served


@async_test
async def test_owners_are_served_in_turn() -> None:
    assert await order_of(FairSlots(1, 1), ["a"] * 5 + ["b", "c", "b"]) == ["a", "b", "c", "a", "b", "a", "a", "a"]
    assert await order_of(FairSlots(2, 2), ["a"] * 3) == ["a"] * 3


@async_test
async def test_nobody_holds_all_places() -> None:
    slots = FairSlots(3, 2)
    async with slots.hold("a"), slots.hold("a"):
        third = asyncio.ensure_future(order_of(slots, ["a"]))
        async with asyncio.timeout(5), slots.hold("b"):
            assert not third.done()
        assert not third.done()
    assert await third == ["a"]


@async_test
async def test_who_gives_up_waiting_leaves_the_place_to_others() -> None:
    slots = FairSlots(1, 1)
    async with slots.hold("a"):
        waiting = [asyncio.ensure_future(order_of(slots, ["b"])) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        with suppress(asyncio.CancelledError):
            await waiting[0]
    assert await waiting[1] == ["b"]
    late = asyncio.ensure_future(order_of(slots, ["c"]))
    await asyncio.sleep(0)
    late.cancel()  # it has the place already
    with suppress(asyncio.CancelledError):
        await late
    assert await order_of(slots, ["d"]) == ["d"]
