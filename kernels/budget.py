"""Error budgets: how far from float64 an implementation may be, measured and not guessed.

The oracle is the reference in float64 on the same (already quantised) inputs. An implementation's
error to it may be at most 2x in the maximum and 1.5x in the mean of the error that the reference
itself makes at the inputs' precision, or what rounding the oracle to the output's dtype costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """Factors over the reference's own error."""

    max_factor: float = 2.0
    mean_factor: float = 1.5


@dataclass(frozen=True)
class Verdict:
    """One output's errors beside what they may be; `ok` if both hold."""

    output: str
    max_error: float
    max_budget: float
    mean_error: float
    mean_budget: float

    @property
    def ok(self) -> bool:
        """Whether both errors are within budget; NaN never is."""
        return self.max_error <= self.max_budget and self.mean_error <= self.mean_budget


def judge(
    output: str, actual: Tensor, reference: Tensor, oracle: Tensor, budget: Budget
) -> Verdict:
    """Compare an output with the float64 `oracle`; integer outputs must be equal."""
    if actual.shape != oracle.shape or actual.dtype != reference.dtype:
        return Verdict(output, float("nan"), 0.0, float("nan"), 0.0)
    if not actual.is_floating_point():
        wrong = (actual != oracle).double()
        return Verdict(output, float(wrong.sum()), 0.0, float(wrong.sum()), 0.0)
    if actual.numel() == 0:
        return Verdict(output, 0.0, 0.0, 0.0, 0.0)
    exact = oracle.double()
    error, baseline = ((x.double() - exact).abs() for x in (actual, reference))
    # Even a perfect result is rounded once.
    rounding = (exact.to(reference.dtype).double() - exact).abs()
    return Verdict(
        output,
        max_error=float(error.max()),
        max_budget=max(budget.max_factor * float(baseline.max()), float(rounding.max())),
        mean_error=float(error.mean()),
        mean_budget=max(budget.mean_factor * float(baseline.mean()), float(rounding.mean())),
    )
