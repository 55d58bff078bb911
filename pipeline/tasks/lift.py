"""Robomimic's Lift: lift a cube."""

from pipeline.tasks.robomimic.task import robomimic_task

TASK = robomimic_task("lift", "Lift", 70, "pipeline.experts.robomimic_lift_can:LIFT")
