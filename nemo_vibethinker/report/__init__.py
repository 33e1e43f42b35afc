"""One self-contained HTML page from what lies in a run folder, or in several of them.

`gather` reads; the `*_views` modules and those of charts are pure functions from what was read to tables and charts
(Vega-Lite, see `vega`); `render` fills the templates of `page/`.
"""

from nemo_vibethinker.report.compare import write_comparison
from nemo_vibethinker.report.render import write_report

__all__ = ["write_comparison", "write_report"]
