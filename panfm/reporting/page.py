"""From a template and values to one self-contained HTML file: no script, no address outside the file, text escaped.

A report must open in a hospital's locked-down browser, years later, without a network. Everything that a record says is
untrusted text: a site may be called <script>, and the page must show that name and nothing else.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined


def write_page(path: Path, template: str, values: Mapping[str, object]) -> Path:
    """Render the template of `panfm/reporting/templates` into that file, whole or not at all."""
    environment = Environment(
        loader=PackageLoader("panfm.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    # A lone surrogate in a name costs a letter and not the page.
    unfinished.write_bytes(text.encode("utf-8", errors="replace"))
    return unfinished.replace(path)
