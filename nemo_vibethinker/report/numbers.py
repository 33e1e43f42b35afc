"""How figures are written in the page."""

from nemo_vibethinker.spectrum.pass_at_k import Estimate


def percent(value: float) -> str:
    """A share as percent with one decimal, without the sign: 0.4125 -> "41.2"."""
    return f"{100 * value:.1f}"


def format_estimate(estimate: Estimate | None) -> str:
    """Value and interval in percent; a dash where there is none."""
    return f"{percent(estimate.mean)} [{percent(estimate.low)}, {percent(estimate.high)}]" if estimate else "-"
