"""The data room: from the scans on a hospital's disk to the batches that training reads."""
# SPDX-License-Identifier: Apache-2.0
