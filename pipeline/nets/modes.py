"""Run an inference in evaluation mode (no dropout), and restore the model's mode afterwards."""

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
    """Put ``model`` in evaluation mode, and restore the mode of every part of it at the end.

    An object that is not an ``nn.Module`` has no modes and is left alone.
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
    """Run a module's method, or a function with a module as first argument, while the module is ``evaluating``."""

    @wraps(method)
    def run(model: Model, /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        with evaluating(model):
            return method(model, *args, **kwargs)

    return run
