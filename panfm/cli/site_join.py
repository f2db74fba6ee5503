"""`panfm site join`: take up the coordinator's kit, once it is known to be from a coordinator whom the site's policy names."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from panfm.errors import ConfigError


def join(
    kit: Annotated[Path, typer.Argument(help="The kit that the coordinator made for this site: NAME.kit.json.")],
    folder: Annotated[Path, typer.Option(help="The site's folder.")] = Path(),
    runtime_port: Annotated[int, typer.Option(help="Where the SuperNode hands out tasks, on 127.0.0.1 only.")] = 9094,
    health_port: Annotated[int, typer.Option(help="Where health is asked for, on 127.0.0.1 only.")] = 9098,
    forward_port: Annotated[int, typer.Option(help="Mutual TLS: where the forward listens, on 127.0.0.1 only.")] = 9443,
) -> None:
    """Check a kit and keep what is in it. Safe to run again, and to be run with a later kit."""
    from panfm.cli.site_init import spaced
    from panfm.site.joining import LocalPorts, join

    ports = LocalPorts(runtime=runtime_port, health=health_port, forward=forward_port)
    link = join(folder, _content(kit), datetime.now(UTC), ports)
    print(f"{link.site} has joined {link.study} at {link.address}" + (", with mutual TLS" if link.mutual_tls else ""))
    print(f"signed by    {spaced(link.coordinator)}  (a coordinator that policy.yaml names)")
    print(f"software     panfm {link.panfm_version}, protocol {link.protocol_version}, Flower {link.flower_version}")
    print(f"its code     {link.bundle_sha256}")
    print(_NEXT.format(folder=folder))


def _content(kit: Path) -> bytes:
    try:
        return kit.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the kit {kit} cannot be read ({error.strerror}); give the file that the coordinator sent"
        ) from error


_NEXT = """
What to do next
1. Read the study's code and let it run here: panfm site review, panfm site approve (the digest above names it).
2. panfm site preflight --folder {folder}
3. Start the site's service: deploy/guides/README.md
Guide: deploy/guides/4_site_join.md"""
