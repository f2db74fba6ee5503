"""`panfm data index`: a folder of scans, or a table that a site has already, becomes the site's own table under pseudonyms."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.data.index.layout import Layout
from panfm.errors import ConfigError

if TYPE_CHECKING:
    from panfm.data.index.build import SiteIndex


def index(
    folder: Annotated[Path, typer.Argument(help="Folder of scans, or a CSV table of them.")],
    out: Annotated[Path, typer.Option(help="The site's folder: gets scans.csv, labels.csv, skipped.csv, index.json.")],
    layout: Annotated[
        Layout,
        typer.Option(
            help="auto; bids; organs: organ/subject[/visit]; bodies: case/ct with case/segmentations; pattern: see --scan; "
            "table: a CSV; dicom: an archive's export, identified by its headers."
        ),
    ] = Layout.auto,
    organ: Annotated[
        list[str] | None, typer.Option(help="Which organ scans show: brain, or liver=*acq-liver*. Repeatable.")
    ] = None,
    scan: Annotated[
        list[str] | None,
        typer.Option(help="Where scans lie, such as {subject}/{visit}/t1 or {subject}_{visit}. Repeatable."),
    ] = None,
    label_map: Annotated[
        list[str] | None,
        typer.Option(
            help="Where label maps lie and what they mean: PATTERN=totalsegmentator_ct, =totalsegmentator_mr, "
            "=totalsegmentator_tissue, =ORGAN, or =labels.yaml. Repeatable."
        ),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="table: what the label maps in its column label_map mean, as for --label-map.")
    ] = "",
    suffix: Annotated[
        list[str] | None, typer.Option(help="bids: which suffixes to take, the preferred first; T1w if not given.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Headers of the site's own tables: subject=PatientKey. Repeatable.")
    ] = None,
    participants: Annotated[
        Path | None, typer.Option(help="Table with age and sex; FOLDER/participants.tsv if not given.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(help="Files not to look at, such as *acq-lowres*. Repeatable.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(help="Raw intensities that are the organ, such as adipose=-190:-30 on CT. Repeatable."),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Shares of subjects: pretrain=0.8 test=0.2, one per option; all pretrain if not given."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Key of the pseudonyms; panfm-pseudonym.key beside OUT if not given.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="Whose organs: a recipe that comes with panfm, or a study's own .yaml file.")
    ] = "real",
) -> None:
    """Make the site's tables of scans and labels, under pseudonyms whose key stays here."""
    from panfm.data.index import build
    from panfm.data.index.label_lists import label_list, label_pattern
    from panfm.data.index.organ_rules import organ_rules
    from panfm.data.index.patterns import compile_pattern
    from panfm.data.index.pseudonym import KEY_FILE, check_shares, site_key
    from panfm.recipes import read_recipe

    vocabulary = tuple(read_recipe(recipe).organs)
    request = build.IndexRequest(
        source=folder,
        layout=layout,
        organs=organ_rules(organ or (), vocabulary),
        scan_patterns=tuple(compile_pattern(text) for text in scan or ()),
        label_patterns=tuple(label_pattern(text, vocabulary) for text in label_map or ()),
        table_labels=label_list(labels, vocabulary) if labels else None,
        suffixes=tuple(suffix or ("T1w",)),
        columns=_pairs("column", column or ()),
        participants=participants,
        left_out=tuple(leave_out or ()),
        windows={name: _range(name, text) for name, text in _pairs("window", window or (), vocabulary).items()},
        shares=check_shares({name: _number("split", text) for name, text in _pairs("split", split or ()).items()})
        if split
        else {"pretrain": 1.0},
    )
    key_path = key or out.absolute().parent / KEY_FILE
    first_use = not key_path.exists()
    secret = site_key(key_path, kept_out_of=(out, folder) if folder.is_dir() else (out,))
    if first_use:
        print(f"made the key {key_path}: keep it here and back it up; without it a new index gives other pseudonyms")
    found = build.build_index(request, secret)
    build.write_index(out, found)
    _report(found, out, vocabulary)


def _pairs(option: str, texts: Sequence[str], known: Sequence[str] = ()) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value or name in pairs:
            raise ConfigError(f"--{option} should be NAME=VALUE, each name once, got {text!r}; correct it")
        if known and name not in known:
            raise ConfigError(f"--{option} {text}: this study knows {', '.join(known)}; correct the name")
        pairs[name] = value
    return pairs


def _range(name: str, text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    window = (_number("window", low), _number("window", high))
    if not window[0] < window[1]:
        raise ConfigError(f"--window {name}={text} should rise, such as {name}=-190:-30; correct it")
    return window


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--{option}: {text!r} should be a number; correct it") from error


def _report(found: SiteIndex, out: Path, vocabulary: Sequence[str]) -> None:
    from collections import Counter

    from panfm.data.index.build import LABELS, SCANS, SKIPPED, subjects_by_organ

    counts = subjects_by_organ(found)
    organs = ", ".join(f"{organ} {counts[organ]}" for organ in vocabulary if organ in counts)
    subjects = len({row.subject for row in found.rows})
    print(
        f"layout {found.layout.value}: {_counted(len(found.rows), 'scan')} of {_counted(subjects, 'subject')} in {out / SCANS}"
    )
    print(f"subjects by organ: {organs}")
    if found.labels is not None:
        print(f"{' and '.join(found.labels.names)} in {out / LABELS}")
    if found.skipped:
        codes = ", ".join(f"{count} {code}" for code, count in Counter(one.code for one in found.skipped).most_common())
        print(f"{len(found.skipped)} not listed ({codes}); {out / SKIPPED} says which, and why")


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
