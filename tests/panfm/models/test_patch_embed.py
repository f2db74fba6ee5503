"""The patch embedding is a 3D convolution whose kernel is its stride."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from panfm.models.patch_embed import PatchEmbed, cut_patches


def test_patches_are_cut_in_xyz_order() -> None:
    volumes = torch.arange(2 * 4 * 6 * 2.0).reshape(2, 4, 6, 2)
    corners = [(x, y, z) for x in (0, 2) for y in (0, 2, 4) for z in (0,)]
    patches = cut_patches(volumes, 2)
    assert patches.shape == (2, 6, 8)
    for number, (x, y, z) in enumerate(corners):
        assert torch.equal(patches[:, number], volumes[:, x : x + 2, y : y + 2, z : z + 2].reshape(2, -1))


def test_embedding_equals_a_strided_convolution() -> None:
    torch_generator = torch.Generator().manual_seed(0)
    embed = PatchEmbed(width=5, patch=4)
    with torch.no_grad():
        nn.init.normal_(embed.weight, generator=torch_generator)
        nn.init.normal_(embed.bias, generator=torch_generator)
    volumes = torch.randn(3, 8, 4, 12, generator=torch_generator)
    expected = functional.conv3d(volumes.unsqueeze(1), embed.weight, embed.bias, stride=4).flatten(2).transpose(1, 2)
    assert torch.allclose(embed(volumes), expected, atol=1e-5)
