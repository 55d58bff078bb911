"""Robomimic's Can: put a can into its bin."""

from pipeline.tasks.robomimic.task import robomimic_task

TASK = robomimic_task("can", "Can", 43, "pipeline.experts.robomimic_lift_can:CAN")
