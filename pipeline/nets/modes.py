"""Evaluation mode for the time of an inference: no dropout, and the model is left in the mode that it came in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)
Given = ParamSpec("Given")
Result = TypeVar("Result")


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Put ``model`` in evaluation mode, and at the end every part of it back in the mode that it was in.

    What is no ``nn.Module`` has no modes and is left alone.
    """
    training = [part for part in model.modules() if part.training] if isinstance(model, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def in_evaluation_mode(
    method: Callable[Concatenate[Model, Given], Result],
) -> Callable[Concatenate[Model, Given], Result]:
    """Make a module's method, or a function whose first argument is a module, run while that is ``evaluating``."""

    @wraps(method)
    def run(model: Model, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with evaluating(model):
            return method(model, *args, **kwargs)

    return run
