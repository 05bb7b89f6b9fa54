import pytest

from homelab_llm.core.errors import HomelabError
from homelab_llm.core.registry.slots import ALIASES, SlotTable, parse_ports


@pytest.mark.requirement("R-F1")
def test_ten_ports_have_ten_names() -> None:
    table = SlotTable.of("8100-8109", ALIASES)
    assert table.ports == tuple(range(8100, 8110))
    assert (table.find(8103).alias, table.find("utility-b").port) == ("jerry-s", 8109)


def test_fewer_ports_take_the_first_names_and_more_get_one_from_their_number() -> None:
    assert SlotTable.of("8100,8102", ALIASES).aliases == ("jerry-xl", "jerry-l")
    assert SlotTable.of("8100-8110", ALIASES).aliases[-1] == "slot-8110"
    assert SlotTable.of("none", ALIASES).slots == ()


@pytest.mark.parametrize(
    "text", ["8109-8100", "80", "70000", "8100-8200", "8100,8100", "a", "8100-", "-1", "8100;8101"]
)
def test_what_is_no_list_of_ports_is_refused(text: str) -> None:
    with pytest.raises(HomelabError) as caught:
        parse_ports(text)
    assert caught.value.code == "invalid_input"


@pytest.mark.parametrize("aliases", [("a", "a"), ("Not A Slug",)])
def test_aliases_are_distinct_slugs(aliases: tuple[str, ...]) -> None:
    with pytest.raises(HomelabError):
        SlotTable.of("8100-8101", aliases)


def test_an_unknown_slot_names_those_there_are() -> None:
    with pytest.raises(HomelabError) as caught:
        SlotTable.of("8100", ALIASES).find("9999")
    assert caught.value.code == "slot_not_found"
    assert "8100 (jerry-xl)" in caught.value.hint
