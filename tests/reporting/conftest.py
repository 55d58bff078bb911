"""Fixtures of the tests of figures."""

import pytest
from matplotlib.figure import Figure

from pipeline.reporting import figures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return a list that gets each figure instead of its files."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, _: kept.append(figure))
    return kept
