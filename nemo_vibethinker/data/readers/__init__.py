"""Users' datasets, read row by row into records.

The format is told by the columns of the first row (`formats.py` lists the known ones). Rows that cannot be used are
reported with a reason, never silently lost.
"""

from nemo_vibethinker.data.readers.dataset import (
    Dataset,
    DroppedRow,
    ReadResult,
    Row,
    iterate_dataset,
    read_dataset,
)
from nemo_vibethinker.data.readers.fields import MATH_SUBJECT_DOMAINS, Kind
from nemo_vibethinker.data.readers.source_row import SourceRow, json_line

__all__ = [
    "MATH_SUBJECT_DOMAINS",
    "Dataset",
    "DroppedRow",
    "Kind",
    "ReadResult",
    "Row",
    "SourceRow",
    "iterate_dataset",
    "json_line",
    "read_dataset",
]
