"""Layers of the dense layout that own parameters of several organs, each with its rule for gradients subject by subject.

Opacus sees a layer's positional inputs and the gradient of its output, and asks for one gradient of each parameter for each
subject. It has rules for Linear and LayerNorm; a layer without one falls to a slow path that is wrong for tokens with a mask.
So what is neither is a layer here: dimension 0 of every input and output is the subject, and `subject_gradients` is written
out by hand. One layer holds the adapters of all organs of a block, which costs one hook instead of three for each organ.

The parameters are those of the `PanOrganModel`, the same objects under the same names there.
Legend: B subjects, L tokens of the dense layout, O organs, E width, R hidden features of an adapter, T patches of an organ.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from panfm.models.adapters import Adapter
from panfm.models.dense_layout import DenseLayout
from panfm.models.patch_embed import PatchEmbed, cut_patches

_KINDS = ("weight", "bias")


class SubjectLayer(nn.Module, ABC):
    """A layer that knows its own gradients subject by subject."""

    @abstractmethod
    def subject_gradients(self, inputs: Sequence[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        """Parameter -> [B, *its shape], from the layer's inputs and the gradient of its output, all [B, ...]."""


class PatchLayer(SubjectLayer):
    """One organ's patch embedding: [B, X, Y, Z] to [B, T, E]."""

    def __init__(self, embed: PatchEmbed) -> None:
        super().__init__()
        self.patch, self.weight, self.bias = embed.patch, embed.weight, embed.bias

    def forward(self, volumes: Tensor) -> Tensor:
        return functional.linear(cut_patches(volumes, self.patch), self.weight.flatten(1), self.bias)

    def subject_gradients(self, inputs: Sequence[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        weight = gradient.transpose(1, 2) @ cut_patches(inputs[0], self.patch)
        return {self.weight: weight.reshape(len(weight), *self.weight.shape), self.bias: gradient.sum(1)}


class TokenLayer(SubjectLayer):
    """The tokens that are no patches, and the mask token in place of those that are hidden: [B, L, E] to [B, L, E].

    Inputs: patches in their places with zeros elsewhere [B, L, E], and which tokens are hidden, bool [B, L].
    """

    def __init__(
        self,
        layout: DenseLayout,
        subject_token: nn.Parameter,
        mask_token: nn.Parameter,
        tokens: Mapping[str, nn.Parameter],
        embeddings: Mapping[str, nn.Parameter],
    ) -> None:
        super().__init__()
        self._layout = layout
        self.subject_token, self.mask_token = subject_token, mask_token
        self._tokens, self._embeddings = dict(tokens), dict(embeddings)
        for organ in layout.spans:
            self.register_parameter(f"{organ}_token", tokens[organ])
            self.register_parameter(f"{organ}_embedding", embeddings[organ])

    def forward(self, patches: Tensor, hidden: Tensor) -> Tensor:
        rows = [self.subject_token.unsqueeze(0)]
        for organ, span in self._layout.spans.items():
            embedding = self._embeddings[organ]
            rows += [(self._tokens[organ] + embedding).unsqueeze(0), embedding.expand(span.stop - span.start - 1, -1)]
        return torch.where(hidden.unsqueeze(-1), self.mask_token, patches) + torch.cat(rows)

    def subject_gradients(self, inputs: Sequence[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        hidden = inputs[1].unsqueeze(1).to(gradient.dtype)
        found = {self.subject_token: gradient[:, 0], self.mask_token: (hidden @ gradient).squeeze(1)}
        for organ, span in self._layout.spans.items():
            found[self._tokens[organ]] = gradient[:, span.start]
            found[self._embeddings[organ]] = gradient[:, span].sum(1)
        return found


class QueryLayer(SubjectLayer):
    """Subject tokens with the query of each organ added: [B, E] to [B, O, E]."""

    def __init__(self, queries: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._queries = dict(queries)
        for organ, query in queries.items():
            self.register_parameter(f"{organ}_query", query)

    def forward(self, subject_tokens: Tensor) -> Tensor:
        return subject_tokens.unsqueeze(1) + torch.stack(list(self._queries.values()))

    def subject_gradients(self, inputs: Sequence[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        return {query: gradient[:, place] for place, query in enumerate(self._queries.values())}


class AdapterLayer(SubjectLayer):
    """The adapters of all organs after one block, each on its own tokens; the subject token passes: [B, L, E] to [B, L, E]."""

    def __init__(self, layout: DenseLayout, adapters: Mapping[str, Adapter]) -> None:
        super().__init__()
        self._layout = layout
        self._adapters = dict(
            adapters
        )  # not registered, so that Linear and LayerNorm within are no layers of their own
        for organ, adapter in adapters.items():
            for number, parameter in enumerate(_parameters(adapter)):
                self.register_parameter(f"{organ}_{number}", parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        spans = self._layout.spans.items()
        return torch.cat([tokens[:, :1], *(self._adapters[organ](tokens[:, span]) for organ, span in spans)], dim=1)

    def subject_gradients(self, inputs: Sequence[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
        found: dict[nn.Parameter, Tensor] = {}
        for organ, span in self._layout.spans.items():
            found |= _adapter_gradients(self._adapters[organ], inputs[0][:, span], gradient[:, span])
        return found


def _parameters(adapter: Adapter) -> tuple[nn.Parameter, ...]:
    """Weight and bias of norm, down and up."""
    return tuple(layer.get_parameter(kind) for layer in (adapter.norm, adapter.down, adapter.up) for kind in _KINDS)


def _adapter_gradients(adapter: Adapter, tokens: Tensor, gradient: Tensor) -> dict[nn.Parameter, Tensor]:
    """Of one organ's adapter, from its tokens and the gradient of what it gave, [B, 1 + T, E] each.

    The small inner activations [B, 1 + T, R] are computed again and not kept since the forward pass.
    """
    norm, down, up = adapter.norm, adapter.down, adapter.up
    standardised = functional.layer_norm(tokens, norm.normalized_shape, eps=norm.eps)
    normed = standardised * norm.weight + norm.bias
    before = functional.linear(normed, down.weight, down.bias)
    of_hidden = gradient @ up.weight
    of_before = torch.ops.aten.gelu_backward(of_hidden, before)
    of_normed = of_before @ down.weight
    gradients = (
        (of_normed * standardised).sum(1),
        of_normed.sum(1),
        of_before.transpose(1, 2) @ normed,
        of_before.sum(1),
        gradient.transpose(1, 2) @ functional.gelu(before),
        gradient.sum(1),
    )
    return dict(zip(_parameters(adapter), gradients, strict=True))
