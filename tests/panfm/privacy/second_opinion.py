"""What Google's dp-accounting says of a history: an implementation that shares no line with the accountants under test.

It reads `NoisySteps` only; it neither merges nor sorts them, so that a mistake in either shows.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable

from dp_accounting import DpEvent, DpEventBuilder, GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from panfm.privacy.accounting import ORDERS, NoisySteps


def epsilon_by_pld(history: Iterable[NoisySteps], *deltas: float) -> list[float]:
    """By privacy loss distributions, rounded up on a grid of 1e-4: as near to the truth as anybody computes."""
    accountant = PLDAccountant()
    accountant.compose(_event(history))
    return [float(accountant.get_epsilon(delta)) for delta in deltas]


def epsilon_by_rdp(history: Iterable[NoisySteps], *deltas: float) -> list[float]:
    """By its Renyi accountant, at the orders that ours has. Where its series does not converge it leaves an order out."""
    accountant = RdpAccountant(orders=ORDERS)
    accountant.compose(_event(history))
    return [float(accountant.get_epsilon(delta)) for delta in deltas]


def _event(history: Iterable[NoisySteps]) -> DpEvent:
    builder = DpEventBuilder()
    for entry in history:
        gaussian = GaussianDpEvent(entry.noise_multiplier)
        sampled = gaussian if entry.sampling_rate == 1 else PoissonSampledDpEvent(entry.sampling_rate, gaussian)
        builder.compose(sampled, entry.steps)
    return builder.build()
