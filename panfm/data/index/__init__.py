"""From a folder of scans, however it is laid out, to the site's table (`panfm data index`)."""
# SPDX-License-Identifier: Apache-2.0
