"""Validation of the block ``custom`` of params.yaml."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.tasks.custom.settings import CustomSettings

SOURCE = {"path": "data/mine", "observation": {"pose": 3, "goal": 2}, "action": {"action": 4}}
ENVIRONMENT = {"id": "Walk-v0", "success": "solved", "max_steps": 50}
SHA = "0" * 64


def test_dimensions_are_summed_over_keys() -> None:
    settings = CustomSettings.model_validate({"datasets": {"mine": SOURCE}, "environment": ENVIRONMENT})
    assert settings.dims == (5, 4)
    assert CustomSettings.model_validate({"datasets": {"mine": SOURCE}}).environment is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": None}, "either path or url"),
        ({"url": "https://example.org/a.zip", "sha256": SHA}, "either path or url"),
        ({"path": None, "url": "https://example.org/a.zip"}, "sha256 is missing, which a url needs"),
        ({"path": None, "url": "ftp://example.org/a.zip", "sha256": SHA}, "pattern"),
        ({"sha256": "abc"}, "pattern"),
        ({"format": "csv"}, "lerobot"),
        ({"observation": {}}, "at least 1"),
        ({"observation": {"pose": 0}}, "greater than or equal to 1"),
        ({"action": {"left": 2, "right": 2}}, "at most 1"),
        ({"keys": []}, "not permitted"),
        ({"image": {"left": 96, "right": 96}}, "at most 1"),
        ({"image": {"left": 90}}, "multiple of 16"),
    ],
)
def test_invalid_source_is_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CustomSettings.model_validate({"datasets": {"mine": SOURCE | source}})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"returns": [-1, 0]}, "either success, a key of info, or returns"),
        ({"success": None}, "either success, a key of info, or returns"),
        ({"success": None, "returns": [0, -1]}, "low below high"),
        ({"max_steps": 0}, "greater than or equal to 1"),
        ({"render_mode": "human"}, "rgb_array"),
    ],
)
def test_invalid_environment_is_refused(environment: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CustomSettings.model_validate({"datasets": {"mine": SOURCE}, "environment": ENVIRONMENT | environment})


def test_images_of_one_task_have_one_size() -> None:
    filmed, other = SOURCE | {"image": {"top": 96}}, SOURCE | {"image": {"top": 64}}
    given = {"datasets": {"mine": filmed}, "environment": ENVIRONMENT | {"image": {"pixels": 96}}}
    assert CustomSettings.model_validate(given).side == 96
    with pytest.raises(ValidationError, match=r"datasets\.other\.image: given .*, allowed: 96 pixels, as of the first"):
        CustomSettings.model_validate({"datasets": {"mine": filmed, "other": other}})
    for environment, allowed in (({}, "a key, and 96 pixels"), ({"image": {"pixels": 64}}, "a key, and 96 pixels")):
        with pytest.raises(ValidationError, match=rf"environment\.image: given .*, allowed: {allowed} as in the data"):
            CustomSettings.model_validate(given | {"environment": ENVIRONMENT | environment})
    with pytest.raises(ValidationError, match=r"environment\.image: .*, allowed: none, since no data set has one"):
        CustomSettings.model_validate(given | {"datasets": {"mine": SOURCE}})


def test_data_sets_of_one_task_have_one_shape() -> None:
    other = SOURCE | {"action": {"action": 3}}
    with pytest.raises(ValidationError, match=r"datasets\.other: has 5 observed numbers and 3 of action, allowed: 5"):
        CustomSettings.model_validate({"datasets": {"mine": SOURCE, "other": other}})
