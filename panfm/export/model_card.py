"""The model card: what a person must know before using an exported model, as Markdown (Mitchell et al. 2019, arXiv:1810.03993).

It says what stands in the model's folder and in the run's record, and nothing that was not measured there.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence

from panfm.config import Recipe, Spacing
from panfm.export.model_folder import ModelFolder
from panfm.groups import split_by_group
from panfm.reporting.record import Event, SiteAnswered, SiteJoined, end_of, events_of, start_of

CARD_FILE = "MODEL_CARD.md"

_USE = """## Use

```python
import panfm

model = panfm.load("{folder}")
answer = model.embed({{{scans}}})
answer.subject, answer.organs, answer.attention_share
```

Any non-empty set of the organs above will do; what is not given is neither imputed nor counted. Scans are NIfTI files or folders
of DICOM series, prepared as the training's were. The embeddings are for research: input to a probe that is trained and tested on
the user's own subjects. They are no diagnosis, and were validated for none."""

_LIMITS = """## Limits

- It learned from the subjects of its sites, with their scanners and their reasons to scan; on others it is untested.
- Which organs a subject has may itself say something of their health: compare with a probe on presence alone.
- {privacy}"""

_NOT_PRIVATE = (
    "Trained without differential privacy: what a model of this kind can give away of its training subjects is not "
    "bounded."
)
_PRIVATE = (
    "Trained with subject-level differential privacy (`{mode}`, noise multiplier {noise:g}, sampling rate {rate:g}, clip "
    "norm {clip:g}). Epsilon, as the ledger of each site has it, bounds what a subject who is added, removed or replaced by a "
    "null record can have lost by all that the site ever answered with noise. It bounds nothing else."
)


def card_text(model: ModelFolder, folder: str, events: Sequence[Event] = ()) -> str:
    """The card.

    Args:
        folder: what the reader will call the model's folder.
        events: the run's record, where it is at hand.
    """
    organs = list(model.recipe.organs)
    scans = ", ".join(f'"{organ}": "{organ}.nii.gz"' for organ in organs[:2])
    parts = [
        f"# Pan-organ model {model.card.run}, round {model.card.round}",
        _what_it_is(model),
        "## Organs\n\n" + _organ_table(model.recipe, split_by_group(model.teacher)),
        _USE.format(folder=folder, scans=scans),
        *([_origin(list(events), model.recipe)] if events else []),
        _LIMITS.format(privacy=_privacy(model.recipe)),
        _digests(model),
    ]
    return "\n\n".join(parts) + "\n"


def _what_it_is(model: ModelFolder) -> str:
    recipe, size = model.recipe, model.recipe.model
    millions = sum(tensor.numel() for tensor in model.teacher.values()) / 1e6
    return (
        f"A vision transformer of {size.depth} blocks of width {size.width} with a patch embedding and adapters for each organ, "
        f"{millions:.1f} million parameters in all, pre-trained by self-distillation with Saliency-Guided Masking (rule "
        f"`{recipe.pretrain.organ_mask.rule.value}`) across hospitals that kept their scans. Recipe `{recipe.recipe}`, seed "
        f"{recipe.seed}, {model.card.round} of {recipe.rounds} rounds of {recipe.pretrain.steps_per_round} steps. Written "
        f"by panfm {model.card.panfm_version} with torch {model.card.torch_version}."
    )


def _organ_table(recipe: Recipe, groups: Mapping[str, Mapping[str, object]]) -> str:
    lines = ["| organ | voxels | spacing (mm) | parameters' names |", "|---|---|---|---|"]
    for organ, grid in recipe.organs.items():
        native = grid.spacing is Spacing.native
        spacing = "the scan's own" if native else " x ".join(f"{side:g}" for side in grid.spacing_mm)
        voxels = " x ".join(map(str, grid.shape))
        lines.append(f"| {organ} | {voxels} | {spacing} | `organs.{organ}.*` ({len(groups.get(organ, {}))}) |")
    return "\n".join(lines)


def _privacy(recipe: Recipe) -> str:
    privacy = recipe.privacy
    if not privacy.is_on:
        return _NOT_PRIVATE
    return _PRIVATE.format(
        mode=privacy.mode.value,
        noise=privacy.noise_multiplier,
        rate=privacy.sampling_rate,
        clip=privacy.clip_norm,
    )


def _origin(events: list[Event], recipe: Recipe) -> str:
    """Who took part, how often the training of each site counted, and what it told of its subjects."""
    answers = events_of(SiteAnswered, events)
    sites = {joined.site: joined.organs for joined in events_of(SiteJoined, events)}
    told, of_site = ("epsilon told, at delta", _epsilon) if recipe.privacy.is_on else ("subjects told", _subjects)
    lines = [f"| site | organs | rounds that counted | {told} |", "|---|---|---|---|"]
    for site in sorted(sites):
        own = [answer for answer in answers if answer.site == site]
        counted = len({answer.round for answer in own if answer.outcome == "accepted"})
        lines.append(f"| {site} | {', '.join(sites[site])} | {counted} | {of_site(own)} |")
    return f"## Where it comes from\n\n{_said(events)}\n\n" + "\n".join(lines)


def _said(events: Sequence[Event]) -> str:
    """How the run began and ended."""
    start, end = start_of(events), end_of(events)
    reason = f": {end.reason}" if end is not None and end.reason else ""
    ended = "The run has not ended." if end is None else f"The run is {end.status}{reason}."
    if start is None or not start.init_from:
        return ended
    return f"{ended} It began from another model, of whose training nothing is said here."


def _subjects(answers: Sequence[SiteAnswered]) -> str:
    return str(max((answer.num_subjects for answer in answers if answer.outcome == "accepted"), default=0))


def _epsilon(answers: Sequence[SiteAnswered]) -> str:
    """The largest that the site told, also with an answer that did not count."""
    told = [(answer.epsilon, answer.epsilon_delta) for answer in answers if answer.epsilon is not None]
    if not told:
        return "none"
    epsilon, delta = max(told, key=lambda pair: pair[0])
    return f"{epsilon:.3g}" + ("" if delta is None else f" at {delta:g}")


def _digests(model: ModelFolder) -> str:
    card = model.card
    rows = (("student", card.student_digest), ("teacher", card.teacher_digest), ("recipe", card.recipe_digest))
    return "## Digests (SHA-256)\n\n" + "\n".join(f"- {name}: `{digest}`" for name, digest in rows)
