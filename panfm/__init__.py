"""panfm: hospitals pre-train one pan-organ imaging foundation model together, and no scan leaves its hospital.

This package is the library and the only thing in the wheel: pure ideas, no Flower. The doors that speak Flower are
`client/` and `server/`; the rehearsal is `simulation/`. Importing `panfm` loads nothing heavy: name the room you need.
"""
# SPDX-License-Identifier: Apache-2.0

__version__ = "0.1.0"
