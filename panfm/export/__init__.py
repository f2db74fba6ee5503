"""What leaves a run: checkpoints and models as safetensors with a recipe and a card, never pickled."""
# SPDX-License-Identifier: Apache-2.0
