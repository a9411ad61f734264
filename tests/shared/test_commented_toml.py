"""Files with a remark at every key read back as what was written."""

from __future__ import annotations

import tomllib

from client.settings import ClientSettings
from shared.commented_toml import commented
from shared.config import PrivacyConfig, RunConfig


def test_every_key_is_there_with_its_remark_and_reads_back_as_it_was() -> None:
    config = RunConfig(name="first", privacy=PrivacyConfig(epsilon=4.0, rounds=7))
    text = commented(config, "A run.")
    assert RunConfig.from_toml(text) == config
    assert text.startswith("# A run.\n")
    lines = text.splitlines()
    keys = [at for at, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    assert len(keys) == sum(len(table) if isinstance(table, dict) else 1 for table in tomllib.loads(text).values())
    assert all(lines[at - 1].startswith("# ") for at in keys)
    assert "# rounds of the run (1 to 100000)\nrounds = 7" in text
    assert max(map(len, lines)) <= 120


def test_keys_and_tables_can_be_left_out_and_text_is_quoted() -> None:
    settings = ClientSettings(domain="books", text_model='a "strange" \\ folder\n#')
    text = commented(settings, "Books.", leave_out={"benchmark", "data.links", "base"})
    values = tomllib.loads(text)
    assert values["text_model"] == settings.text_model
    assert "benchmark" not in values
    assert "links" not in values["data"]
    assert "items" in values["data"]
