"""Forecast Seattle's temperatures: a time series as an offline task, which observes the past and predicts the future.

The series is from the package ``vega_datasets``: daily precipitation, highest and lowest temperature and wind, 2012 to
2015. Each morning a forecaster knows the last week and the season, and predicts the temperatures of the coming days.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.api import Dataset, Demonstrations, Observation, Task
from pipeline.utils.errors import UserError

MEASURED = ("precipitation", "temp_max", "temp_min", "wind")
FORECAST = ("temp_max", "temp_min")
HISTORY = 7
"""Observed days."""
STRETCH = 28
"""Days per episode."""
YEAR = 365.25


def series_file() -> Path:
    """Locate the file in the package without importing the package."""
    package = find_spec("vega_datasets")
    root = Path(package.origin).parent if package and package.origin else Path("vega_datasets")
    return root / "_data" / "seattle-weather.csv"


def read(path: Path) -> Demonstrations:
    """Read the series; each day is a step.

    The state holds the last ``HISTORY`` days, the newest last, and the season as cosine and sine of an angle. The
    action is the next day's temperatures. Days at the end that make no whole episode are left out.

    Raises:
        UserError: the file does not exist or holds no such series.
    """
    import pandas as pd

    try:
        days = pd.read_csv(path, parse_dates=["date"])
        values, known = days[[*MEASURED]].to_numpy(np.float32), days[[*FORECAST]].to_numpy(np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: no series of Seattle's weather, which the package vega-datasets has: {error}"
        ) from None
    today = np.arange(HISTORY - 1, len(days) - 1)
    steps = len(today) - len(today) % STRETCH
    today = today[:steps]
    history = values[today[:, None] + np.arange(1 - HISTORY, 1)].reshape(steps, -1)
    angle = 2 * np.pi * days["date"].dt.dayofyear.to_numpy()[today] / YEAR
    season = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Demonstrations(
        state=np.concatenate([history, season], axis=1, dtype=np.float32),
        action=known[today + 1],
        episode_ends=np.arange(STRETCH, steps + 1, STRETCH),
    )


def observe(states: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the states (…, 30) unchanged, as float32."""
    return np.asarray(states, dtype=np.float32)


TASK = Task(
    title="Seattle weather",
    datasets={
        "seattle_weather": Dataset(
            "daily weather of Seattle, 2012 to 2015, as stretches of 28 days",
            "public domain (NOAA); MIT, of the package vega_datasets that ships it",
            "NOAA, daily measurements at Seattle, as packed by VanderPlas et al., vega_datasets 0.9",
            read,
            episodes=51,
            local=series_file(),
            local_sha256="62f0609f787158128aa2bd102967173a4953122dd4f872bf1d502cae1037df0b",
        )
    },
    observations={"state": Observation(len(MEASURED) * HISTORY + 2, observe)},
    action_dim=len(FORECAST),
    series=True,
)
