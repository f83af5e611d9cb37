"""Reading cards: what is wrong with one is said with its file and field."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.families import families
from server.families.card import Card, read_card

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
TYPES: dict[str, type[Card]] = {name: family.card for name, family in families().items()}


def written(folder: Path, **changes: Any) -> Path:
    """SD 1.5's card with other fields; a change to None takes a field out."""
    fields = json.loads((REPOSITORY / "sd15.json").read_text()) | changes
    path = folder / "card.json"
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return path


def test_a_card_comes_back_as_its_family_has_it(tmp_path: Path) -> None:
    card = read_card(written(tmp_path), TYPES)
    assert type(card) is TYPES["sd15"]
    assert card.name == "sd15"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_width": None}, "text_width"),
        ({"joint_width": 4096}, "joint_width"),
        ({"family": "sd16"}, "'sd16'"),
        ({"family": None}, "family"),
        ({"scheduler": {"num_train_timesteps": 1000, "shift": 3.0}}, "FlowScheduler, sd15 has a Scheduler"),
        ({"scheduler": {"num_train_timesteps": 1000}}, "beta_start"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match="card") as raised:
        read_card(path, TYPES)
    assert str(path) in str(raised.value)
    assert said in str(raised.value)


def test_a_file_that_is_no_json_is_no_card(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="not a card"):
        read_card(path, TYPES)
