"""The `panfm` command: one file per family of verbs, each importing the rooms it needs only when its verb is called."""
# SPDX-License-Identifier: Apache-2.0
