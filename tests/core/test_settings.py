from __future__ import annotations

from pathlib import Path

import pytest

from homelab_llm.core.errors import InvalidSettings
from homelab_llm.core.settings import load_settings


@pytest.mark.requirement("R-G10")
def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("fleet:\n  keep_alive: 10m\n  queue_limit: 3\nengine:\n  parallel: 2\n")
    environ = {"HOMELAB_FLEET__QUEUE_LIMIT": "5", "HOMELAB_ENGINE__PARALLEL": "3", "HOMELAB_HOME": "/x"}
    settings = load_settings(file, environ, {"engine": {"parallel": 7}})
    assert settings.fleet.keep_alive == 600
    assert settings.fleet.queue_limit == 5
    assert settings.engine.parallel == 7
    assert settings.server.listen == ("127.0.0.1:1234", "127.0.0.1:11434")


@pytest.mark.requirement("R-G10")
@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("fleet:\n  keep_alife: 5m\n", 2, "fleet.keep_alife", "no such setting"),
        ("\n\nfleets:\n  a: 1\n", 4, "fleets", "no such setting"),
        ("fleet:\n  keep_alive: 5m\n  queue_limit: many\n", 3, "fleet.queue_limit", "integer"),
        ("fleet:\n  keep_alive: soon\n", 2, "fleet.keep_alive", "not a duration"),
        ("fleet: 5\n", 1, "fleet", "mapping"),
        ("fleet: [\n", 2, "", "not YAML"),
    ],
)
def test_a_wrong_setting_names_file_line_and_key(tmp_path: Path, text: str, line: int, key: str, says: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InvalidSettings) as caught:
        load_settings(file, {})
    assert caught.value.facts["line"] == line
    assert key in caught.value.message
    assert f"config.yaml:{line}" in caught.value.message
    assert says in caught.value.message


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(InvalidSettings, match="HOMELAB_SERVER__MAX_DEPTH"):
        load_settings(None, {"HOMELAB_SERVER__MAX_DEPTH": "3"})


def test_lists_and_sizes_read_from_the_environment() -> None:
    environ = {"HOMELAB_SERVER__LISTEN": "127.0.0.1:0, [::1]:0", "HOMELAB_SERVER__MAX_BODY_BYTES": "2MB"}
    settings = load_settings(None, environ)
    assert settings.server.listen == ("127.0.0.1:0", "[::1]:0")
    assert settings.server.max_body_bytes == 2_000_000
