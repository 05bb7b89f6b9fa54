"""Where a name leads: slot port before alias before the store, and the same answer until something changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.registry.entry import Entry
from homelab_llm.core.registry.state import clear, register, serve
from homelab_llm.testing.controller import FIRST, Rig


@pytest.fixture
async def named(rig: Rig) -> Rig:
    """``one`` on the first slot, and a model of the store that is called like the second slot."""
    rig.model("one"), rig.model("jerry-l")
    entry = Entry("one", "one", request_params={"temperature": 0.1})  # an export may leave the tag out
    rig.registry.change(lambda state: serve(register(state, entry), FIRST, "one", 1.0))
    await rig.controller.refresh()
    return rig


@pytest.mark.requirement("R-F1", "R-F3")
async def test_slot_port_comes_before_alias_and_alias_before_store(named: Rig) -> None:
    route = named.controller.route
    assert route("jerry-l:latest", FIRST).model.name == "one:latest"
    assert route("jerry-xl").alias == "jerry-xl"
    assert route("jerry-l:latest").alias == ""
    with pytest.raises(HomelabError) as caught:
        route("jerry-l")  # the slot, not the model
    assert caught.value.code == "slot_empty"
    with pytest.raises(HomelabError) as caught:
        route("nobody")
    assert caught.value.code == "model_not_found"


async def test_a_route_is_the_same_object_until_something_changes(named: Rig) -> None:
    controller = named.controller
    alias, name = controller.route("jerry-xl"), controller.route("one:latest")
    assert (controller.route("x", FIRST), controller.route("one:latest")) == (alias, name)
    assert controller.route("jerry-xl") is alias
    assert await controller.settled(alias) is False
    assert alias.params == name.params == {"temperature": 0.1}
    named.registry.change(lambda state: register(state, replace(state.entries["one"], max_output_tokens=9)))
    await controller.refresh()
    assert controller.route("jerry-xl").max_output_tokens == controller.route("one:latest").max_output_tokens == 9
    assert await controller.settled(alias) is True


async def test_the_stamp_follows_store_registry_and_pointers(named: Rig) -> None:
    stamps = [named.controller.stamp()]
    named.model("more")
    stamps.append(named.controller.stamp())
    named.registry.change(lambda state: clear(state, FIRST, 2.0))
    await named.controller.refresh()
    stamps.append(named.controller.stamp())
    assert len(set(map(str, stamps))) == 3
    assert named.controller.listed() == []


async def test_a_model_that_leaves_the_store_is_named_as_missing(named: Rig) -> None:
    named.shelf.remove("one:latest")
    with pytest.raises(HomelabError) as caught:
        named.controller.route("jerry-xl")
    assert (caught.value.code, caught.value.hint) == ("slot_empty", "mlxctl reconcile --apply")
    assert (await named.row())["drift"] == "one is not in the store"
