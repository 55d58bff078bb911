"""Settings of tasks without environments."""

from typing import Any

import pytest

from tests.settings.params import dumped, parsed, raw, refused

LISTS: dict[str, Any] = {"scale": "lab", "tasks": ["seattle_weather"], "offline": ["seattle_weather"], "images": []}
LISTS |= {"baselines": ["persistence"], "residual": ["resft_fm-nfe16"], "robustness": ["fm-nfe16"], "theory": ["lab"]}


def text(**changes: object) -> str:
    return dumped(raw() | LISTS | changes)


def test_offline_task_may_be_the_only_task() -> None:
    settings = parsed(text())
    assert settings.lab.task(settings.offline[0]).load_task().offline


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"offline": []}, "offline: given [], allowed: ['seattle_weather'], those of tasks without environments"),
        (
            {"tasks": ["pusht"], "baselines": []},
            "offline: given ['seattle_weather'], allowed: [], those of tasks without environments",
        ),
        (
            {"tasks": ["seattle_weather", "pusht"]},
            "baselines: given persistence, allowed: only where no task has environments, as pusht does",
        ),
    ],
)
def test_inconsistent_lists_are_refused(changes: dict[str, object], line: str) -> None:
    assert line in refused(text(**changes))


def test_offline_task_cannot_select_checkpoints_by_rollouts() -> None:
    values = raw()
    values["lab"]["seattle_weather"]["select"]["rule"] = "rollouts"
    assert "select.rule: given 'rollouts', allowed for seattle_weather: validation_loss" in refused(dumped(values))
