"""Recipes as YAML, values only; Hydra needs this file to find the folder."""
# SPDX-License-Identifier: Apache-2.0
