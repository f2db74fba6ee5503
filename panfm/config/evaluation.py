"""Rounds in which sites judge the model on subjects that they hold out, and which checkpoint is the best."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from dataclasses import dataclass, field

from panfm.config.require import require

RELATIVE_LOSS, LOSS = "relative_loss", "loss"
"""The two rules for the best checkpoint that need no label; the lowest wins."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


@dataclass(slots=True, kw_only=True)
class EvaluationConfig:
    """When the sites evaluate, what they look at on the subjects of their split `validation`, and which round is the best."""

    every: int = 0
    """Rounds between two evaluations by the sites; the last round is always evaluated. 0: none."""
    max_subjects: int = 256
    """Most subjects that a site looks at, and most of its training subjects on which it fits a probe: the same ones each time."""
    numbers: list[str] = field(default_factory=list)
    """Labels that a ridge probe reads from the teacher's embeddings, scored by R2, such as [age]. A name that ends
    with an underscore stands for the mean over all labels that begin so. A site that lacks a label tells nothing of it."""
    classes: list[str] = field(default_factory=list)
    """The same for labels of 0 and 1, scored by the area under the ROC curve, such as [sex_male, cat_]."""
    best_by: str = RELATIVE_LOSS
    """What makes a round the best. relative_loss: lowest held-out loss of hidden patches, over that of the best constant
    prediction. loss: lowest weighted sum of the terms. Or one of `numbers` and `classes`: highest score."""

    def __post_init__(self) -> None:
        name = "federation.evaluation"
        require(self.every >= 0, f"{name}.every must be 0 or more, got {self.every}")
        require(self.max_subjects >= 1, f"{name}.max_subjects must be at least 1, got {self.max_subjects}")
        for label in self.probes:
            require(
                _LABEL.fullmatch(label) is not None and label not in (RELATIVE_LOSS, LOSS),
                f"{name}: {label!r:.60} cannot be a label; give letters, digits and _, and _ at its end for several",
            )
        require(
            len(set(self.probes)) == len(self.probes), f"{name}.numbers and .classes name a label twice; remove one"
        )
        rules = (RELATIVE_LOSS, LOSS, *self.probes)
        require(self.best_by in rules, f"{name}.best_by must be one of {', '.join(rules)}, got {self.best_by!r:.60}")

    @property
    def probes(self) -> tuple[str, ...]:
        """All labels that are read, numbers first."""
        return (*self.numbers, *self.classes)

    def is_due(self, number: int, rounds: int) -> bool:
        """Whether the model after that round of so many is evaluated."""
        return self.every > 0 and (number % self.every == 0 or number == rounds)
