"""The hospital's door: a thin Flower ClientApp around `panfm`, run at a site next to its scans."""
# SPDX-License-Identifier: Apache-2.0
