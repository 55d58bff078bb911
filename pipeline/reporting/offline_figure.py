"""The figure of an offline task: its scores on held-out episodes against NFE, as PNG and SVG."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from pipeline.evaluation.rollouts import UNPERTURBED
from pipeline.reporting.figures import STYLE, draw_methods, legend_below, nfe_axis, save_figure
from pipeline.utils.errors import UserError

_PANELS = {
    "mean_error": "RMSE (of the mean of the answers)",
    "crps": "CRPS",
    "best_of_k": "Error of the best of K answers",
    "nll": "NLL of a component (nats)",
}


def offline_vs_nfe(table: pd.DataFrame, path: Path, title: str) -> None:
    """Draw four scores of each method against NFE, less being better; ``table``: from ``offline_table``.

    Raises:
        UserError: no row has an NFE.
    """
    table = table[table["perturbation"] == UNPERTURBED]
    numbers = sorted(set(table["nfe"]) - {0})
    if not numbers:
        raise UserError(f"{path.stem}: no row of a trained model, so there is nothing to draw")
    first = table.iloc[0]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 6.8), layout="constrained")
        for panel, (name, label) in zip(figure.subplots(2, 2, sharex=True).flat, _PANELS.items(), strict=True):
            draw_methods(panel, table, name)
            nfe_axis(panel, numbers)
            panel.set_title(label)
            panel.tick_params(labelbottom=True)
            panel.set_xlabel("NFE (function evaluations per answer)")
        figure.suptitle(
            f"{title}: held-out episodes, less is better\n"
            f"scale {first['scale']}, data set {first['dataset']}, training seed {first['train_seeds']}\n"
            f"{first['n_episodes']} episodes, bars are 95 % intervals; normalised units",
            fontsize=10,
        )
        legend_below(figure)
        save_figure(figure, path)
