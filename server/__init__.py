"""The coordinator's door: a Flower ServerApp that sends tasks, checks answers and averages what counts.

What is computed here is said in `server/README.md`; the arithmetic lives in `server.aggregation`, without Flower.
"""
# SPDX-License-Identifier: Apache-2.0
