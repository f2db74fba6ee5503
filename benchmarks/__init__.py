"""What measures: one program a question, each with its table beside it. Run them from the checkout with PYTHONPATH=. before the
command: Opacus installs a package of the same name, which would otherwise be found first."""
# SPDX-License-Identifier: Apache-2.0
