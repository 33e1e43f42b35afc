"""Scores of a model per domain, from graded samples: Pass@K with intervals, lengths, truncation; JSON and text."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import get_args

from nemo_vibethinker.config import CODE_DOMAIN
from nemo_vibethinker.evaluation.provenance import Provenance
from nemo_vibethinker.reward.verdict import Kind
from nemo_vibethinker.spectrum.pass_at_k import Estimate, bootstrap_interval, pass_at_k

MATH_UNION = "math"  # all domains except CODE_DOMAIN

_MAX_TABLE_WIDTH = 140
_MAX_LABEL_WIDTH = 28


@dataclass(frozen=True)
class ProblemSamples:
    """The graded samples of one problem: for each its verdict, its response length in tokens, and whether it was cut
    at the length limit. Raises ValueError for no samples, unequal numbers of entries or an unknown verdict."""

    domain: str
    verdicts: Sequence[Kind]
    lengths: Sequence[int]
    truncated: Sequence[bool]

    def __post_init__(self) -> None:
        counts = (len(self.verdicts), len(self.lengths), len(self.truncated))
        if len(set(counts)) != 1 or 0 in counts:
            raise ValueError(
                f"a problem needs as many verdicts as lengths and truncated flags, at least one; got {counts}"
            )
        unknown = set(self.verdicts) - set(get_args(Kind))
        if unknown:
            raise ValueError(f"verdicts must be right, wrong or ungraded, got {sorted(unknown)}")


@dataclass(frozen=True)
class Score:
    """One model on one domain, on the union "math", or on a published benchmark.

    Ungraded samples are in no denominator of `pass_at`: a problem's n is its graded samples. A problem with fewer
    graded samples than k does not enter `pass_at[k]` and is counted in `left_out[k]`; where no problem is left,
    `pass_at` has no entry for k. `mean_tokens` and `truncated_share` are over all samples.

    Of a benchmark's score `domain` and `benchmark` are the benchmark's name, `maj_at[k]` says how often the answer that
    most of k samples give is right (empty for programs), and `provenance` what the number rests on. Of a score on
    held-out data these three are empty.
    """

    model: str
    domain: str
    num_problems: int
    samples_per_problem: int
    pass_at: Mapping[int, Estimate]
    left_out: Mapping[int, int]
    mean_tokens: float
    truncated_share: float
    num_ungraded: int
    benchmark: str = ""
    maj_at: Mapping[int, Estimate] = field(default_factory=dict)
    provenance: Provenance | None = None

    @property
    def ungraded_share(self) -> float:
        """Of all samples."""
        return self.num_ungraded / (self.num_problems * self.samples_per_problem)


def score_samples(model: str, problems: Sequence[ProblemSamples], ks: Sequence[int], *, seed: int = 0) -> list[Score]:
    """Scores for the union "math" (every domain except "code"), for each domain in it, and for "code".

    Problems keep their order of first appearance; a domain without problems gets no score. `seed` is the
    bootstrap's. Raises ValueError for no problems, no ks or a k below 1, and for a domain whose problems
    differ in their number of samples.
    """
    if not problems or not ks or min(ks) < 1:
        raise ValueError(f"scoring {model!r} needs problems and ks >= 1, got {len(problems)} problems, ks {list(ks)}")
    groups: dict[str, list[ProblemSamples]] = {
        MATH_UNION: [problem for problem in problems if problem.domain != CODE_DOMAIN]
    }
    for problem in problems:
        if problem.domain != MATH_UNION:
            groups.setdefault(problem.domain, []).append(problem)
    ordered = sorted(groups, key=lambda domain: domain == CODE_DOMAIN)
    return [score_domain(model, domain, groups[domain], ks, seed) for domain in ordered if groups[domain]]


def score_domain(model: str, domain: str, problems: Sequence[ProblemSamples], ks: Sequence[int], seed: int) -> Score:
    """One score over these problems, whatever their domains; ValueError where they differ in number of samples."""
    sample_counts = {len(problem.verdicts) for problem in problems}
    if len(sample_counts) != 1:
        raise ValueError(f"problems of {domain!r} must have equally many samples, got {sorted(sample_counts)}")
    values = {k: _pass_at_k_per_problem(problems, k) for k in ks}
    lengths = [length for problem in problems for length in problem.lengths]
    truncated = [flag for problem in problems for flag in problem.truncated]
    return Score(
        model=model,
        domain=domain,
        num_problems=len(problems),
        samples_per_problem=sample_counts.pop(),
        pass_at={k: estimate(per_problem, seed) for k, per_problem in values.items() if per_problem},
        left_out={k: len(problems) - len(per_problem) for k, per_problem in values.items()},
        mean_tokens=math.fsum(lengths) / len(lengths),
        truncated_share=sum(truncated) / len(truncated),
        num_ungraded=sum(problem.verdicts.count("ungraded") for problem in problems),
    )


def _pass_at_k_per_problem(problems: Iterable[ProblemSamples], k: int) -> list[float]:
    counts = [(problem.verdicts.count("right"), problem.verdicts.count("wrong")) for problem in problems]
    return [pass_at_k(right + wrong, right, k) for right, wrong in counts if right + wrong >= k]


def estimate(per_problem: Sequence[float], seed: int) -> Estimate:
    """The mean over problems with its 95% bootstrap interval."""
    return Estimate(math.fsum(per_problem) / len(per_problem), *bootstrap_interval(per_problem, seed=seed))


def scores_to_json(scores: Sequence[Score]) -> str:
    """The scores as JSON text, `ungraded_share` with them; `scores_from_json` gives back equal scores."""
    return json.dumps([asdict(score) | {"ungraded_share": score.ungraded_share} for score in scores], indent=1)


def scores_from_json(text: str) -> list[Score]:
    """Reads what `scores_to_json` wrote. Raises ValueError for text that is not JSON."""
    return [_score_from_raw(raw) for raw in json.loads(text)]


def _score_from_raw(raw: dict) -> Score:
    fields = {name: value for name, value in raw.items() if name != "ungraded_share"}  # follows from the others
    for name in ("pass_at", "maj_at"):
        fields[name] = {int(k): Estimate(**found) for k, found in raw.get(name, {}).items()}
    fields["left_out"] = {int(k): count for k, count in raw["left_out"].items()}
    provenance = raw.get("provenance")
    fields["provenance"] = Provenance(**provenance) if provenance else None
    return Score(**fields)


def format_score_table(scores: Sequence[Score]) -> str:
    """An aligned text table, one row per model, in percent; brackets hold 95% bootstrap intervals over problems.

    Columns: math pass@1 and pass@k for the largest k, code pass@1 and pass@k, tokens, truncated, ungraded samples,
    pass@1 per maths domain. More columns than fit 140 characters go on in a second block below.
    """
    by_model: dict[str, dict[str, Score]] = {}
    for score in scores:
        by_domain = by_model.setdefault(score.model, {})
        if score.domain in by_domain:
            raise ValueError(
                f"two scores for model {score.model!r} on {score.domain!r}; give the models distinct labels"
            )
        by_domain[score.domain] = score
    labels = [label if len(label) <= _MAX_LABEL_WIDTH else label[: _MAX_LABEL_WIDTH - 1] + "~" for label in by_model]
    blocks = _wrap_columns(["model", *labels], _columns(list(by_model.values())))
    return "\n\n".join(blocks + _left_out_lines(scores))


def _columns(rows: Sequence[Mapping[str, Score]]) -> list[list[str]]:
    """The columns after the model's label, each a list of its header and one text per model; empty ones dropped."""
    k_max = max((k for row in rows for score in row.values() for k in score.pass_at), default=1)
    domains = dict.fromkeys(domain for row in rows for domain in row if domain not in (MATH_UNION, CODE_DOMAIN))
    columns = [_pass_column(rows, MATH_UNION, 1, interval=True)]
    columns += [_pass_column(rows, MATH_UNION, k_max)] if k_max > 1 else []
    columns += [_pass_column(rows, CODE_DOMAIN, 1, interval=True)]
    columns += [_pass_column(rows, CODE_DOMAIN, k_max)] if k_max > 1 else []
    unions = [[row[domain] for domain in (MATH_UNION, CODE_DOMAIN) if domain in row] for row in rows]
    columns.append(["tokens", *(_format_mean(row, [score.mean_tokens for score in row], ".0f") for row in unions)])
    columns.append(["trunc", *(_format_mean(row, [100 * s.truncated_share for s in row], ".1f") for row in unions)])
    columns.append(["ungraded", *(str(sum(s.num_ungraded for s in row)) if row else "-" for row in unions)])
    columns += [_pass_column(rows, domain, 1, header=domain) for domain in domains]
    return [column for column in columns if set(column[1:]) != {"-"}]


def _pass_column(
    rows: Sequence[Mapping[str, Score]], domain: str, k: int, *, header: str = "", interval: bool = False
) -> list[str]:
    estimates = [row[domain].pass_at.get(k) if domain in row else None for row in rows]
    return [header or f"{domain} pass@{k}", *(_format_estimate(estimate, interval) for estimate in estimates)]


def _format_estimate(estimate: Estimate | None, interval: bool) -> str:
    if estimate is None:
        return "-"
    bounds = f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]" if interval else ""
    return f"{100 * estimate.mean:.1f}{bounds}"


def _format_mean(scores: Sequence[Score], values: Sequence[float], spec: str) -> str:
    """The mean of one value per score, each weighted by its samples."""
    weights = [score.num_problems * score.samples_per_problem for score in scores]
    if not weights:
        return "-"
    return format(math.fsum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights), spec)


def _wrap_columns(label_column: list[str], columns: Sequence[list[str]]) -> list[str]:
    blocks = [[label_column]]
    for column in columns:
        if max(map(len, _render([*blocks[-1], column]).splitlines())) > _MAX_TABLE_WIDTH:
            blocks.append([label_column])
        blocks[-1].append(column)
    return [_render(block) for block in blocks]


def _render(columns: Sequence[list[str]]) -> str:
    widths = [max(map(len, column)) for column in columns]
    padded = [[cell.ljust(width) for cell in column] for column, width in zip(columns, widths, strict=True)]
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def _left_out_lines(scores: Iterable[Score]) -> list[str]:
    lines = [
        f"{score.model}, {score.domain}: pass@{k} leaves out {count} of {score.num_problems} problems "
        f"(fewer than {k} graded samples)"
        for score in scores
        for k, count in score.left_out.items()
        if count
    ]
    return ["\n".join(lines)] if lines else []
