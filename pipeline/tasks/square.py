"""Robomimic's Square: put a square nut on its peg."""

from pipeline.tasks.robomimic.task import robomimic_task

TASK = robomimic_task("square", "Square", 40, "pipeline.experts.robomimic_square:EXPERT")
