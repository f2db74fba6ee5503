"""What a hospital owns and keeps; nothing here arrives from the coordinator."""
# SPDX-License-Identifier: Apache-2.0
