r"""The domain of a problem by the subject labels of its own dataset.

| dataset | column | labels |
|---|---|---|
| MATH and its copies | `subject` or `type` | "Algebra", "Counting & Probability", ... |
| OlymMATH | `subject` | "Algebra", "Geometry", "Number Theory", "Combinatorics" |
| NuminaMath-1.5, OpenR1-Math | `problem_type` | "Algebra", "Inequalities", "Calculus", "Combinatorics", ... |
| DeepMath-103K | `topic` | a path, "Mathematics -> Algebra -> Intermediate Algebra -> ..." |
| Omni-MATH, Big-Math | `domain` | a list of such paths |
| this project's records | `domain` | the domain itself |

Two readings to know: number theory counts as algebra, and counting, combinatorics and probability as statistics, as
the four domains of the report (arXiv 2511.06221, section 3.3) have no other place for them. MATH has no calculus:
Precalculus (vectors, matrices, complex numbers, trigonometry) is the nearest and stands for it.
"""

from collections.abc import Mapping
from typing import Any

from nemo_vibethinker.data.readers import MATH_SUBJECT_DOMAINS
from nemo_vibethinker.data.records import MATH_DOMAINS

SUBJECT_DOMAINS = {subject.casefold(): domain for subject, domain in MATH_SUBJECT_DOMAINS.items()} | {
    "abstract algebra": "algebra",
    "elementary algebra": "algebra",
    "inequalities": "algebra",
    "linear algebra": "algebra",
    "euclidean geometry": "geometry",
    "plane geometry": "geometry",
    "solid geometry": "geometry",
    "calculus": "calculus",
    "differential calculus": "calculus",
    "integral calculus": "calculus",
    "combinatorics": "statistics",
    "probability": "statistics",
    "statistics": "statistics",
}
SUBJECT_COLUMNS = ("subject", "type", "problem_type", "topic", "domain")


def subject_domain(row: Mapping[str, Any]) -> str | None:
    """The domain that the dataset's own labels give a raw row; None without a known label, or if labels disagree.

    Of a path the last part with a known label counts, since the later parts are the more exact ones.
    """
    columns = {column.lower(): value for column, value in row.items()}
    for column in SUBJECT_COLUMNS:
        value = columns.get(column)
        labels = value if isinstance(value, list) else [value]
        domains = {domain for label in labels if isinstance(label, str) and (domain := _domain(label))}
        if domains:
            return domains.pop() if len(domains) == 1 else None
    return None


def _domain(label: str) -> str | None:
    for part in reversed(label.split("->")):
        name = part.strip().casefold()
        if name in MATH_DOMAINS or name in SUBJECT_DOMAINS:
            return SUBJECT_DOMAINS.get(name, name)
    return None
