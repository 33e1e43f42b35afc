"""The page: views of the gathered run, put into the template and written atomically."""

import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.report import charts, model_views, run_views
from nemo_vibethinker.report.gather import RunData, gather
from nemo_vibethinker.spectrum.selection import select_specialists

_TEMPLATE = Path(__file__).with_name("template.html")


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, finished or half-way, and return its path.

    The page needs no network and no other file. What the run does not have is left out with a sentence.

    Raises:
        ValueError: `run_dir` is not a run folder.
    """
    run = gather(run_dir)
    # StrictUndefined: a name missing in the context is our fault, not an empty place in the page.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = model_views.percent
    page = environment.from_string(_TEMPLATE.read_text()).render(_context(run))
    atomic_write_text(run_dir / "report.html", page)
    return run_dir / "report.html"


def _context(run: RunData) -> dict[str, Any]:
    stages = model_views.signal_stages(run.config)
    board = model_views.ScoreBoard(run.scores)
    context = {
        **_head(run, board, stages),
        **_models(run, board, stages),
        **_training(run, stages),
        **_record(run),
    }
    context["sections"] = [(id, name) for id, name, shown in _SECTIONS if shown is None or any(map(context.get, shown))]
    return context


_SECTIONS = (  # id, entry in the table of contents, shown if one of these has content
    ("headline", "Headline", None),
    ("lineage", "Lineage", None),
    ("probe", "Pass@K map", ("probe", "probe_planned")),
    ("sft", "SFT", ("sft_chart", "sft_planned")),
    ("signal", "RL curves", ("panels", "signal_planned")),
    ("scores", "Scores", ("scores", "scores_planned")),
    ("time", "Time and cost", None),
    ("data", "Data", ("funnel", "data_planned")),
    ("provenance", "Provenance", None),
)


def _head(run: RunData, board: model_views.ScoreBoard, stages: list[str]) -> dict[str, Any]:
    config = run.config
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {
        "title": f"Run {run.path.name}",
        "subtitle": f"Recipe {config.recipe}, scale {config.scale.name}, seed {config.seed}",
        "status": run_views.status_text(run),
        "cards": run_views.cards_view(run, board, stages),
        "gains": model_views.gains_view(board, stages),
        "footer": f"Written {written} from the files of the run folder.",
    }


def _models(run: RunData, board: model_views.ScoreBoard, stages: list[str]) -> dict[str, Any]:
    graph, caption = model_views.lineage_view(run.config, run.done, run.probe_table, board)
    scores = model_views.scores_view(board, stages) if board.scores else None
    if scores:
        scores["chart"] = Markup(scores["chart"])
    return {
        "graph": graph,
        "graph_caption": caption,
        "graph_text": "Lineage: " + ", ".join(box.model.name for box in graph.boxes),
        "probe": model_views.probe_view(run.probe_table, run.config.probe.select_k) if run.probe_table else None,
        "probe_planned": "probe" in run.config.stages,
        "scores": scores,
        "scores_planned": "evaluate" in run.config.stages,
    }


def _training(run: RunData, stages: list[str]) -> dict[str, Any]:
    lines = run_views.signal_lines(run, stages)
    sft = run.metrics.get("sft", [])
    shares = run_views.shares_view(lines)
    panels = run_views.panels_view(lines, stages)
    return {
        "sft_chart": Markup(charts.loss_chart(sft, _specialist_marks(run))) if sft else None,
        "sft_caption": "Thin line: every step; thick line: mean over the neighbouring steps. Dotted: the checkpoints "
        "chosen as specialists. Look for a smooth fall that flattens without a jump.",
        "sft_planned": "sft" in run.config.stages,
        "panels": [panel | {"svg": Markup(panel["svg"])} for panel in panels],
        "bands": run_views.bands_view(lines, stages),
        "signal_table": run_views.signal_table(lines),
        "signal_planned": bool(stages),
        "shares": shares and shares | {"chart": Markup(shares["chart"])},
    }


def _specialist_marks(run: RunData) -> dict[int, str]:
    if run.probe_table is None:
        return {}
    marks: dict[int, str] = {}
    for domain, step in select_specialists(run.probe_table, run.config.probe.select_k).items():
        marks[step] = f"{marks[step]}, {domain}" if step in marks else domain
    return marks


def _record(run: RunData) -> dict[str, Any]:
    command, facts, hashes = run_views.provenance_view(run)
    hours = run_views.hours_view(run.costs) if run.costs else None
    return {
        "hours": hours and hours | {"chart": Markup(hours["chart"])},
        "funnel": run_views.funnel_view(run.funnel) if run.funnel else None,
        "data_planned": "prepare" in run.config.stages,
        "command": command,
        "provenance": facts,
        "hashes": hashes,
        "config_text": run.config_text,
    }
