"""Probing sets: N problems per domain that training and evaluation do not hold (arXiv 2511.06221, section 3.3).

The report says only that "a capable LLM" built them. Here a model behind an OpenAI-compatible endpoint names the
domain of each problem and solves it; problems that it finds ill posed, or whose given answer it does not reach, are
left out. Without an endpoint the subject labels of the dataset decide, by the table in `subjects.py`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.command import run_command
from nemo_vibethinker.data.records import MATH_DOMAINS, Record, write_jsonl
from nemo_vibethinker.reward.math import MathVerifier
from nemo_vibethinker.spectrum.difficulty import read_difficulties
from nemo_vibethinker.spectrum.endpoint_arguments import (
    add_endpoint_arguments,
    endpoint_of,
    print_estimate,
    spending_of,
)
from nemo_vibethinker.spectrum.labelling import CHECK_VERSION, LABEL_VERSION
from nemo_vibethinker.spectrum.probe_pool import Candidate, Dropped, drop_overlapping, read_pool
from nemo_vibethinker.spectrum.probe_selection import ProbingSets, choose
from nemo_vibethinker.spectrum.problem_review import Reviewer, kept_answers
from nemo_vibethinker.spectrum.resume_file import ResumeFile
from nemo_vibethinker.spectrum.spending import Spending, Usage

NAME = "nemo_vibethinker.spectrum.probing_sets"
_EPILOG = """examples:
  python -m nemo_vibethinker.spectrum.probing_sets --pool math/train.jsonl --per-domain 100 \\
      --train sft.jsonl rl.jsonl --eval math500.jsonl aime24.jsonl --out probe.jsonl
  python -m nemo_vibethinker.spectrum.probing_sets --pool pool.jsonl --per-domain 100 --out probe.jsonl \\
      --base-url http://localhost:8000/v1 --model Qwen2.5-72B-Instruct --price-in 0.4 --price-out 0.4 --max-cost 5

Answers are kept in OUT.answers.jsonl: stopped or killed, the same command goes on and asks nothing twice.
Exit code 2: wrong use, or too few problems in a domain; 1: a fault on the way, run again to go on."""


def build_parser() -> argparse.ArgumentParser:
    """The flags; `--help` teaches them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}",
        description="Choose problems per domain for probing, disjoint from training and evaluation by 10-grams.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--pool", type=Path, nargs="+", required=True, metavar="FILE", help="problems with answers")
    add("--per-domain", type=int, required=True, metavar="N", help="problems of each domain")
    add("--domains", default=",".join(MATH_DOMAINS), help="comma-separated (default: %(default)s)")
    add("--out", type=Path, required=True, metavar="FILE", help="the problems, as JSON lines of records")
    add("--report", type=Path, metavar="FILE", help="counts and reasons as JSON (default: OUT.report.json)")
    add("--train", type=Path, nargs="+", default=[], metavar="FILE", help="training data to be disjoint from")
    add("--eval", type=Path, nargs="+", default=[], metavar="FILE", help="evaluation sets to be disjoint from")
    add("--difficulty", type=Path, metavar="FILE", help="pass rates, as spectrum.difficulty writes them")
    add("--seed", type=int, default=0, help="another one chooses other problems (default: %(default)s)")
    add("--allow-fewer", action="store_true", help="accept domains with less than N problems")
    add("--model", default="", help="the endpoint's name of the model that labels and checks; without it none does")
    add("--labels", choices=("model", "dataset"), default="model", help=_LABELS_HELP)
    add("--label-tokens", type=int, default=1024, help="most tokens of a label's answer (default: %(default)s)")
    add("--check-tokens", type=int, default=8192, help="most tokens of a check's answer (default: %(default)s)")
    add_endpoint_arguments(parser)
    return parser


_LABELS_HELP = (
    "dataset: keep the dataset's own subject labels and ask the model for checks alone (default: %(default)s)"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = build_parser().parse_args(arguments)
    return run_command(NAME, lambda: _run(options), stopped="the same command goes on")


def _run(options: argparse.Namespace) -> None:
    domains = _domains(options)
    difficulties = read_difficulties(options.difficulty) if options.difficulty else None
    pool, dropped = read_pool(options.pool, difficulties)
    rows = len(pool) + len(dropped)
    kept, overlapping = drop_overlapping(pool, {"training": options.train, "evaluation": options.eval})
    print(f"pool: {rows:,} rows, {len(kept):,} usable, distinct and disjoint problems", file=sys.stderr)
    with ExitStack() as stack:
        reviewer, spending = _open_reviewer(options, stack)
        if reviewer:
            _print_estimates(options, reviewer, [c.record for c in kept], len(domains), spending)
        if options.plan:
            return
        labels, unlabelled = _labels(options, kept, reviewer)
        labelled = {domain: [c for c in kept if labels.get(c.record.id) == domain] for domain in domains}
        sets = choose(
            labelled,
            options.per_domain,
            options.seed,
            lambda wave: reviewer.check([c.record for c in wave]) if reviewer else {},
        )
    others = [c for c in kept if labels.get(c.record.id) not in (None, *domains)]
    sets.dropped += dropped + overlapping + unlabelled
    sets.dropped += [Dropped(id=c.record.id, step="other domain", reason=labels[c.record.id]) for c in others]
    report = _report(options, rows, sets, _agreement(kept, labels) if reviewer else None, spending)
    _write(options, sets, report)


def _domains(options: argparse.Namespace) -> tuple[str, ...]:
    domains = tuple(name.strip() for name in options.domains.split(",") if name.strip())
    if unknown := [name for name in domains if name not in MATH_DOMAINS]:
        raise ValueError(f"--domains: unknown {unknown[0]!r}; known: {', '.join(MATH_DOMAINS)}")
    if not domains or len(set(domains)) < len(domains):
        raise ValueError("--domains: name at least one domain, each once")
    if options.per_domain < 1 or min(options.label_tokens, options.check_tokens) < 1:
        raise ValueError("--per-domain, --label-tokens and --check-tokens must be at least 1")
    if options.out.resolve() in {path.resolve() for path in (*options.pool, *options.train, *options.eval)}:
        raise ValueError(f"--out {options.out} is one of the input files")
    return domains


def _open_reviewer(options: argparse.Namespace, stack: ExitStack) -> tuple[Reviewer | None, Spending]:
    if not options.model:
        if options.labels == "model" and options.max_cost is not None:
            raise ValueError("--max-cost needs --model, the endpoint's name of the model that labels and checks")
        return None, Spending()
    if not options.base_url:
        raise ValueError("--model needs --base-url URL (or the environment's OPENAI_BASE_URL)")
    endpoint = endpoint_of(options)
    resume = stack.enter_context(ResumeFile(Path(f"{options.out}.answers.jsonl")))
    spending = spending_of(options, sum((a.usage for a in kept_answers(resume).values()), Usage()))
    verifier = stack.enter_context(MathVerifier())
    reviewer = Reviewer(
        endpoint,
        resume,
        spending,
        verifier,
        label_tokens=options.label_tokens,
        check_tokens=options.check_tokens,
    )
    return reviewer, spending


def _print_estimates(
    options: argparse.Namespace, reviewer: Reviewer, records: Sequence[Record], domains: int, spending: Spending
) -> None:
    """Which problems are checked depends on their labels; the cost is estimated by as many others."""
    if options.labels == "model":
        print_estimate("labels", reviewer.label_requests(records), spending)
    checks = reviewer.check_requests(records[: options.per_domain * domains])
    print_estimate("checks, if none is rejected", checks, spending)


def _labels(
    options: argparse.Namespace, candidates: Sequence[Candidate], reviewer: Reviewer | None
) -> tuple[dict[str, str], list[Dropped]]:
    """The label of each candidate by id, and those without one."""
    if reviewer and options.labels == "model":
        labels, reasons = reviewer.label([candidate.record for candidate in candidates])
    else:
        labels = {c.record.id: c.subject for c in candidates if c.subject}
        reasons = {c.record.id: "no known subject label" for c in candidates if not c.subject}
    return labels, [Dropped(id=identity, step="unlabelled", reason=reason) for identity, reason in reasons.items()]


def _agreement(candidates: Sequence[Candidate], labels: Mapping[str, str]) -> dict[str, int]:
    """How often the labels are those of the dataset, where it has some."""
    known = [(c.subject, labels[c.record.id]) for c in candidates if c.subject and c.record.id in labels]
    same = sum(subject == label for subject, label in known)
    return {"same": same, "different": len(known) - same}


def _report(
    options: argparse.Namespace,
    rows: int,
    sets: ProbingSets,
    agreement: dict[str, int] | None,
    spending: Spending,
) -> dict[str, Any]:
    chosen = sum(map(len, sets.chosen.values()))
    funnel: dict[str, Any] = {"pool": rows}
    for step in ("unusable", "duplicate", "overlaps training", "overlaps evaluation", "unlabelled", "other domain"):
        funnel[step] = sum(row.step == step for row in sets.dropped)
    funnel["rejected"] = sum(row.step == "rejected" for row in sets.dropped)
    funnel["not needed"] = rows - chosen - len(sets.dropped)
    funnel["chosen"] = chosen
    named = ("unusable", "duplicate", "unlabelled", "other domain", "rejected")
    review = {"model": options.model, "labels": options.labels, "versions": [LABEL_VERSION, CHECK_VERSION]}
    review |= {"usage": asdict(spending.used), "subject_agreement": agreement, "spent": str(spending)}
    return {
        "settings": {name: str(value) for name, value in vars(options).items() if name != "base_url"},
        "review": review if options.model else None,
        "funnel": funnel,
        "reasons": {step: Counter(r.reason for r in sets.dropped if r.step == step) for step in named},
        "domains": {domain: _domain_report(options, sets, domain) for domain in sets.chosen},
        "dropped": [asdict(row) for row in sets.dropped],
    }


def _domain_report(options: argparse.Namespace, sets: ProbingSets, domain: str) -> dict[str, Any]:
    chosen = sets.chosen[domain]
    strata = Counter("unknown" if c.stratum is None else str(c.stratum) for c in chosen)
    return {
        "available": sets.available[domain],
        "chosen": len(chosen),
        "short": options.per_domain - len(chosen),
        "difficulty": dict(sorted(strata.items())),
    }


def _write(options: argparse.Namespace, sets: ProbingSets, report: dict[str, Any]) -> None:
    """The report in any case; the problems where there are enough of them."""
    path = options.report or Path(f"{options.out}.report.json")
    atomic_write_text(path, json.dumps(report, indent=1))
    print(summary(report))
    counts = {domain: len(chosen) for domain, chosen in sets.chosen.items()}
    short = [domain for domain, count in counts.items() if count < options.per_domain]
    if short and not options.allow_fewer:
        listed = ", ".join(f"{domain} {counts[domain]:,}" for domain in short)
        raise ValueError(
            f"fewer than {options.per_domain:,} problems: {listed} (see {path}); give more --pool files, "
            "a smaller --per-domain, or --allow-fewer"
        )
    records = [
        replace(candidate.record, domain=domain) for domain, chosen in sets.chosen.items() for candidate in chosen
    ]
    if not records:
        raise ValueError(f"no problem is left (see {path})")
    write_jsonl(options.out, records)
    print(f"{options.out}: {len(records):,} problems; {path} says what became of the others")


def summary(report: Mapping[str, Any]) -> str:
    """The funnel on one line, and one line a domain."""
    lines = [", ".join(f"{step} {count:,}" for step, count in report["funnel"].items())]
    width = max(map(len, report["domains"]))
    for domain, row in report["domains"].items():
        spread = ", ".join(f"{stratum}: {count}" for stratum, count in row["difficulty"].items())
        lines.append(f"{domain:{width}}  {row['chosen']:,} of {row['available']:,}; by difficulty {spread or '-'}")
    if report["review"]:
        review, agreement = report["review"], report["review"]["subject_agreement"]
        lines.append(
            f"{review['model']}: {review['usage']['requests']:,} answers, {review['spent']}; "
            f"labels like the dataset's {agreement['same']:,}, others {agreement['different']:,}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
