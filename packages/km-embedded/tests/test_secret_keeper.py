"""Places outside km: for how long what they gave is used, and what a rotation makes of it."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from km_core.errors import ControlError
from km_embedded.secret_keeper import SecretKeeper


class Place:
    """A slow place whose answers the test lets go one by one."""

    kind = "command"

    def __init__(self, fresh_s=0.4):
        self.fresh_s = fresh_s
        self.value = "first"
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def stamp(self):
        return ""

    def read(self):
        self.asked += 1
        value = self.value
        self.entered.set()
        assert self.gate.wait(10)
        if value is None:
            raise ControlError("a command for a secret gave none")
        return value


def keeper_of(place):
    sealed = SimpleNamespace(fingerprint=lambda value: f"print-{value}", values=lambda names: {})
    return SecretKeeper(None, sealed, lambda: SimpleNamespace(secrets={"k": place}), lambda: 0.0)


async def value(keeper):
    return (await keeper.values(["k"]))["k"]


def test_what_a_place_gave_is_used_for_its_time_and_not_longer():
    async def main():
        place = Place()
        keeper = keeper_of(place)
        assert await value(keeper) == "first"
        place.value = "second"
        assert await value(keeper) == "first"
        # However long nobody asked: what is past its time is not used even once.
        await asyncio.sleep(0.5)
        assert await value(keeper) == "second"
        assert place.asked == 2
        await keeper.close()

    asyncio.run(main())


def test_a_place_that_breaks_is_used_no_longer_than_its_time():
    async def main():
        place = Place()
        keeper = keeper_of(place)
        await value(keeper)
        place.value = None
        await asyncio.sleep(0.5)
        for _ in range(2):
            with pytest.raises(ControlError, match="gave none"):
                await value(keeper)
        await keeper.close()

    asyncio.run(main())


def test_a_place_is_asked_ahead_of_time_so_that_requests_do_not_wait():
    async def main():
        place = Place(fresh_s=2.0)
        keeper = keeper_of(place)
        await value(keeper)
        place.value = "second"
        await asyncio.sleep(1.1)
        assert await value(keeper) == "first"
        for _ in range(200):
            if await value(keeper) == "second":
                break
            await asyncio.sleep(0.01)
        assert await value(keeper) == "second"
        assert place.asked == 2
        await keeper.close()

    asyncio.run(main())


@pytest.mark.parametrize("late_first", [True, False])
def test_a_rotation_is_not_undone_by_an_answer_that_was_asked_for_before(late_first):
    async def main():
        place = Place(fresh_s=60.0)
        keeper = keeper_of(place)
        await value(keeper)
        place.gate.clear()
        place.entered.clear()
        keeper._refresh("k", place)
        assert await asyncio.to_thread(place.entered.wait, 5)
        place.value = "second"
        place.entered.clear()
        rotation = asyncio.ensure_future(keeper.reread("k"))
        if not late_first:
            assert await asyncio.to_thread(place.entered.wait, 5)
        place.gate.set()
        assert await rotation == ("print-first", "print-second")
        await asyncio.sleep(0.05)
        assert await value(keeper) == "second"
        await keeper.close()

    asyncio.run(main())
