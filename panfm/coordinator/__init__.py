"""What the coordinator of a study owns and keeps: its folder, its sites, its keys, and the runs that it asked for."""
# SPDX-License-Identifier: Apache-2.0
