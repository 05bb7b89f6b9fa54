from homelab_llm.core.events import Event, EventBus


async def test_a_reader_of_an_earlier_life_misses_nothing_of_the_next_one() -> None:
    first = EventBus(lambda: 1000.0)
    first.publish(Event("loading"))
    async with first.subscribe(after_id=0) as news:
        last_id = (await anext(news)).id
    second = EventBus(lambda: 1001.0)
    second.publish(Event("adopted"))
    async with second.subscribe(after_id=last_id) as news:
        assert (await anext(news)).kind == "adopted"


async def test_a_slow_reader_loses_the_oldest_and_is_told_how_many() -> None:
    bus = EventBus(lambda: 1.0)
    async with bus.subscribe(limit=2) as news:
        for kind in ("a", "b", "c"):
            bus.publish(Event(kind))
        assert ((await anext(news)).kind, (await anext(news)).kind, news.dropped) == ("b", "c", 1)


async def test_a_closed_bus_ends_its_readers_after_what_has_arrived() -> None:
    bus = EventBus(lambda: 1.0)
    news = bus.subscribe()
    bus.publish(Event("a"))
    bus.close()
    assert [event.kind async for event in news] == ["a"]


def test_what_is_debug_is_told_and_not_recorded() -> None:
    recorded: list[str] = []
    bus = EventBus(lambda: 1.0, lambda event: recorded.append(event.kind))
    bus.publish(Event("progress", level="debug"))
    bus.publish(Event("loaded"))
    assert recorded == ["loaded"]
