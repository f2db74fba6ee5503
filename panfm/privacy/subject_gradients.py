"""Gradients of a loss subject by subject, by Opacus' hooks, over a model whose every layer sees all subjects in dimension 0.

Opacus' mode `hooks` with a rule for each layer is exact and the cheapest of its modes for such a model. `ghost` keeps norms of
the batch before for a layer that is not called, `ew` cannot run it, and a layer without a rule falls to a path that is wrong
in silence for inputs by keyword: none of them can be had here. What Opacus does not check is checked: no layer may see other
subjects (batch normalisation) or remember them (buffers), each trained parameter must have got a gradient from each subject
in this very pass, and what a pass that broke off has left behind is dropped before the next.

The gradient of the batch as a whole is not computed at all. Only gradients of activations flow back, to where the first trained
layer begins, and each rule makes of them its parameters' gradients: a fifth faster than Opacus' own way, which computes both,
and no `grad` with un-noised numbers in it ever exists.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from panfm.errors import ConfigError


@runtime_checkable
class HasSubjectGradients(Protocol):
    """A layer with a rule of its own."""

    def subject_gradients(self, inputs: Sequence[Tensor], gradient: Tensor) -> Mapping[nn.Parameter, Tensor]:
        """Parameter -> [B, *its shape], from the layer's inputs and the gradient of its output, all [B, ...]."""


_RULES_OF_OPACUS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv3d)
"""Its rules that were compared with a loop over subjects (torch 2.13, opacus 1.6); others are let in when they were, too."""


class SubjectGradients:
    """A model under hooks; it owns what they leave behind, and clears it before and after each pass."""

    def __init__(self, model: nn.Module, trained: Mapping[str, nn.Parameter]) -> None:
        """Hook the model.

        Args:
            trained: the parameters that are trained, under the names of their gradients; every other one must be frozen.
        Raises: ConfigError when a layer cannot be had under privacy.
        """
        refuse_layers(model)
        found = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        if found != {id(parameter) for parameter in trained.values()}:
            raise ValueError(
                "the parameters that are trained, and those of the model that are not frozen, should be the same"
            )
        self._trained = dict(trained)
        self._layers = [layer for layer in model.modules() if _is_trained(layer)]
        self._hooks = _hooked(model, self._layers)
        self._begins: list[Tensor] = []
        for layer in self._layers:
            layer.register_forward_pre_hook(self._begin)

    def of(self, losses: Callable[[], Tensor]) -> dict[str, Tensor]:
        """The gradient of each subject's loss: parameter -> [B, *its shape].

        Args:
            losses: runs the model, and gives [B], the loss of each subject, that depends on no other.
        Raises: ValueError when a trained parameter did not get one gradient from each subject.
        """
        self._clear()
        self._hooks.enable_hooks()
        try:
            with torch.enable_grad():
                of_subjects = losses()
            if self._begins:
                torch.autograd.grad(of_subjects.sum(), self._begins, allow_unused=True)
            return {name: self._rows(name, len(of_subjects)) for name in self._trained}
        finally:
            self._hooks.disable_hooks()
            self._clear()

    def _begin(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Where nothing before this layer is trained, gradients flow back to here."""
        first, *others = inputs
        if not (self._hooks.hooks_enabled and torch.is_grad_enabled()) or first.requires_grad:
            return None
        self._begins.append(first.detach().requires_grad_())
        return (self._begins[-1], *others)

    def _rows(self, name: str, num_subjects: int) -> Tensor:
        parameter = self._trained[name]
        rows = self._hooks.rows.get(parameter)
        if rows is None or rows.shape != (num_subjects, *parameter.shape):
            raise ValueError(
                f"{name} should have got one gradient from each of {num_subjects} subjects, got "
                f"{'none' if rows is None else tuple(rows.shape)}; each layer must be called on all subjects, subjects first, "
                "and its output used"
            )
        return rows

    def _clear(self) -> None:
        self._begins.clear()
        self._hooks.rows.clear()
        for layer in self._layers:
            for left in ("activations", "max_batch_len"):  # Opacus' names
                layer.__dict__.pop(left, None)


class _Hooks(GradSampleHooks):  # type: ignore[misc]  # Opacus has no types
    """Opacus' hooks and rules, with the gradients kept here and not on the parameters, where each is copied once more."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: dict[nn.Parameter, Tensor] = {}
        super().__init__(model, batch_first=True, loss_reduction="sum", strict=True)

    def capture_backprops_hook(
        self, module: nn.Module, _: object, forward_output: tuple[Tensor, ...], loss_reduction: str, batch_first: bool
    ) -> None:
        """One call of a layer, seen backwards: last call first."""
        if not self.hooks_enabled:
            return
        inputs, gradient = self.rearrange_grad_samples(
            module=module, backprops=forward_output[0].detach(), loss_reduction=loss_reduction, batch_first=batch_first
        )
        for parameter, rows in self.GRAD_SAMPLERS[type(module)](module, inputs, gradient).items():
            if parameter.requires_grad:
                self.rows[parameter] = self.rows[parameter] + rows if parameter in self.rows else rows.detach()


def refuse_layers(model: nn.Module) -> None:
    """Raises: ConfigError when a layer couples subjects, remembers data, or has no rule for gradients subject by subject."""
    for path, layer in model.named_modules():
        where = f"{path or 'the model'} ({type(layer).__name__})"
        if isinstance(layer, _NormBase):
            raise ConfigError(
                f"{where} normalises over other subjects or keeps their statistics, so it cannot be had with privacy; "
                "use LayerNorm"
            )
        if buffers := dict(layer.named_buffers(recurse=False)):
            raise ConfigError(
                f"{where} keeps the buffer {min(buffers)!r}; what a model remembers of data beside its parameters gets no "
                "noise, so it cannot be had with privacy; make it a parameter, or a plain constant"
            )
        if _is_trained(layer) and not (isinstance(layer, HasSubjectGradients) or type(layer) in _RULES_OF_OPACUS):
            raise ConfigError(
                f"{where} has parameters that are trained and no rule for gradients subject by subject; give it a "
                "`subject_gradients`, or freeze it"
            )


def _is_trained(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


def _hooked(model: nn.Module, layers: Sequence[nn.Module]) -> _Hooks:
    """The model under hooks that do nothing until they are enabled."""
    for kind in {type(layer) for layer in layers if isinstance(layer, HasSubjectGradients)}:
        register_grad_sampler(kind)(_by_own_rule)
    hooks = _Hooks(model)
    hooks.disable_hooks()
    return hooks


def _by_own_rule(layer: HasSubjectGradients, inputs: list[Tensor], gradient: Tensor) -> Mapping[nn.Parameter, Tensor]:
    return layer.subject_gradients(inputs, gradient)
