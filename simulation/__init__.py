"""The rehearsal: pretend hospitals, each a real folder, running the very apps that a deployment runs."""
# SPDX-License-Identifier: Apache-2.0
