"""What the frozen model is good for: embeddings, probes beside honest controls, and the tables a study prints."""
# SPDX-License-Identifier: Apache-2.0
