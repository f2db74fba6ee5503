"""How a round's answers become the next model: pure functions of tensors, without Flower, disk or clock.

`checks` says what may count, `weights` how much each site counts, `organ_mean` averages per group and `server_step`
moves the student and lets the teacher follow. All of it is a function of its arguments, in the order of site names.
"""
# SPDX-License-Identifier: Apache-2.0
