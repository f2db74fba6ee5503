"""What privacy costs and how it is made: accounting, planning, samples, clipped sums, noise. No disk, no clock, no Flower."""
# SPDX-License-Identifier: Apache-2.0
