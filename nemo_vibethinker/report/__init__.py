"""One self-contained HTML page from what lies in a run folder."""

from nemo_vibethinker.report.render import write_report

__all__ = ["write_report"]
