"""What is trained: the shared trunk, the heads and one small group of parameters per organ."""
# SPDX-License-Identifier: Apache-2.0
