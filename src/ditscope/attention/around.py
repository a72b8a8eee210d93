"""A context around every forward of a module, in whatever thread it runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch._guards import detect_fake_mode

from ditscope.errors import BadRequest

Context = Callable[[tuple[Any, ...], dict[str, Any]], AbstractContextManager[object]]
"""The arguments of a forward -> the context that it runs in."""


def checked_module(model: object, verb: str) -> nn.Module:
    """`model`, if contexts can be put around its forwards; else BadRequest. `verb`: what for."""
    if not isinstance(model, nn.Module):
        raise BadRequest(
            f"a {type(model).__name__} cannot be {verb}ed",
            field="model",
            expected="a torch.nn.Module",
            fix=f"of a diffusers pipeline, {verb} the network: pipe.transformer",
        )
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise BadRequest(
            f"the {type(model).__name__} was compiled in place, with its hooks inside",
            field="model",
            fix=f"instead of model.compile(), use compiled = torch.compile(model) and {verb} that",
        )
    return model


@dataclass
class _Running:
    """A forward under way."""

    handling: BaseException | None  # what was being handled when it began
    context: AbstractContextManager[object] | None = None  # None: of a tracer, or not yet entered


class Around:
    """While entered, every forward of `model` runs in a context that `make` returns.

    Guarantees that the context is left when the forward ends, also by an exception, and that the
    module is left as it was. Several around one module nest in the order in which they are entered.
    A forward on fake tensors, by which someone traces the model, runs as it is.
    """

    def __init__(self, model: nn.Module, make: Context) -> None:
        self._model, self._make = model, make
        self._running = threading.local()  # .stack: of this thread, outermost first
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        # The post hook is prepended so that the last to be entered is the first to be left.
        self._handles = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(
                self._after, prepend=True, with_kwargs=True, always_call=True
            ),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        while self._stack():  # an interrupt runs no hooks
            context, interrupt = self._stack().pop().context, error or KeyboardInterrupt()
            if context:
                context.__exit__(type(interrupt), interrupt, traceback)

    def _stack(self) -> list[_Running]:
        if not hasattr(self._running, "stack"):
            self._running.stack = []
        return self._running.stack

    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        running = _Running(handling=sys.exc_info()[1])
        self._stack().append(running)
        if not detect_fake_mode((args, kwargs)):
            context = self._make(args, kwargs)
            context.__enter__()
            running.context = context

    def _after(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        stack = self._stack()
        if not stack:  # a hook before ours failed
            return
        running = stack.pop()
        if running.context is None:
            return
        error = sys.exc_info()[1]
        error = None if error is running.handling else error
        running.context.__exit__(type(error) if error else None, error, None)
