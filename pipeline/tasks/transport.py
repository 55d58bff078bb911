"""Robomimic's Transport: two arms hand over a hammer and clear a bin."""

from pipeline.tasks.api import PaperFacts
from pipeline.tasks.robomimic.task import robomimic_task

TASK = robomimic_task(
    "transport",
    "Transport",
    10,
    "pipeline.experts.robomimic_transport:EXPERT",
    objects=3,
    paper=PaperFacts(
        dataset="transport_ph",
        columns={"": 3},
        observations=("state", "one_arm"),
        d1=(8, 16, "1x50", "ConditionalUnet1D", 66, None, None, 1e-4, 5e-6),
        d2=(2, 3, 20, 200, 700, False),
    ),
)
