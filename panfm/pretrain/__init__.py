"""How the model is trained: masked self-distillation with Saliency-Guided Masking, one round at one site."""
# SPDX-License-Identifier: Apache-2.0
