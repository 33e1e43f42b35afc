"""Evaluation folders: where a run has its own, and the two files with the scores."""

from collections.abc import Sequence
from pathlib import Path

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.evaluation.comparison import comparison_rows, format_comparison
from nemo_vibethinker.evaluation.scores import Score, format_score_table, scores_to_json
from nemo_vibethinker.run_folder import RunFolder


def evaluation_folder(path: Path) -> Path:
    """The evaluation folder of a run, or `path` itself where it is one.

    Raises:
        ValueError: it is neither.
    """
    if (path / "config.yaml").is_file():
        run = RunFolder.load(path)
        path = run.stage_folder("evaluate") if "evaluate" in run.config.stages else path
    if not path.is_dir():
        raise ValueError(f"{path} is neither a run nor an evaluation folder")
    return path


def scores_text(scores: Sequence[Score]) -> str:
    """Held-out scores, and benchmarks beside the published numbers."""
    held_out = [score for score in scores if not score.benchmark]
    parts = [format_score_table(held_out)] if held_out else []
    if len(held_out) < len(scores):
        parts += [format_benchmarks(scores), format_comparison(comparison_rows(scores))]
    return "\n\n".join(parts)


def format_benchmarks(scores: Sequence[Score]) -> str:
    """A block of lines for each benchmark score, in percent; brackets hold 95% bootstrap intervals over problems."""
    lines = []
    for score in scores:
        if score.benchmark:
            size = f"{score.num_problems} problems x {score.samples_per_problem} responses"
            lines.append(f"{score.model}, {score.benchmark}: {size}")
            lines += [f"  {name:<9}{text}" for name, text in _lines(score)]
    return "\n".join(lines)


def _lines(score: Score) -> list[tuple[str, str]]:
    rates = [*(("pass", k, e) for k, e in score.pass_at.items()), *(("maj", k, e) for k, e in score.maj_at.items())]
    lines = [(f"{n}@{k}", f"{100 * e.mean:5.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]") for n, k, e in rates]
    shares = f"{100 * score.truncated_share:.1f}% truncated, {100 * score.ungraded_share:.2f}% ungraded"
    return [*lines, ("tokens", f"{score.mean_tokens:,.0f} a response, {shares}")]


def write_scores(folder: Path, scores: Sequence[Score]) -> None:
    """`scores.json` and `scores.txt`."""
    atomic_write_text(folder / "scores.json", scores_to_json(scores))
    atomic_write_text(folder / "scores.txt", scores_text(scores) + "\n")
