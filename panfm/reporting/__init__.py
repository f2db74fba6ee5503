"""What a person sees of a run afterwards, made from its record and nothing else."""
# SPDX-License-Identifier: Apache-2.0
