"""The Pass@K map: domain by checkpoint, with intervals, and the specialists that it chose."""

from collections.abc import Sequence
from typing import Any

from nemo_vibethinker.report import vega
from nemo_vibethinker.report.numbers import format_estimate, percent
from nemo_vibethinker.report.vega import Chart, Row
from nemo_vibethinker.spectrum.selection import ProbeTable, select_specialists

_NARROWEST, _WIDEST, _ROW = 46, 92, 46  # pixels of a cell
_MAP_WIDTH = 940


def probe_chart(table: ProbeTable, select_k: int) -> Chart:
    """The map at every K that was measured, one at a time; it opens at the K of the selection."""
    width = min(_WIDEST, max(_NARROWEST, _MAP_WIDTH // len(table.steps)))
    chosen = select_specialists(table, select_k)
    rows = [row for k in table.ks for row in _cells(table, k, chosen)]
    at_k = [{"filter": "datum.k == K"}]
    x = {"field": "step", "type": "ordinal", "title": "SFT step", "axis": {"labelAngle": 0, "domain": False}}
    y = vega.category("domain") | {"axis": {"labelColor": vega.colour(vega.INK), "grid": False, "labelLimit": 140}}
    shade = {"field": "shade", "type": "quantitative", "legend": None}
    shade |= {"scale": {"domain": [0, 1], "range": [0.06, 0.55]}}
    tips = [vega.tip("domain", "domain"), vega.tip("step", "SFT step"), vega.tip("k", "K")]
    tips += [vega.tip("v", "Pass@K, %", ".1f"), vega.tip("range", "95% interval"), vega.tip("role", "role")]
    cell = {"type": "rect", "color": vega.colour(vega.HEAT), "cornerRadius": 3, "width": width - 3, "height": _ROW - 3}
    frame = cell | {"filled": False, "color": vega.colour(vega.INK), "strokeWidth": 2}
    value = {"type": "text", "dy": -7, "fontSize": 12}
    interval = {"type": "text", "dy": 9, "fontSize": 9.5, "opacity": 0.8}
    stars = [row for row in rows if row["star"]]
    spec = vega.layers(
        vega.layer(rows, cell, x=x, y=y, opacity=shade, tooltip=tips) | {"transform": at_k},
        vega.layer(stars, frame, x=x, y=y) | {"transform": at_k},
        vega.layer(rows, value, x=x, y=y, text={"field": "v", "type": "quantitative", "format": ".1f"})
        | {"transform": at_k},
        vega.layer(rows, interval, x=x, y=y, text={"field": "short", "type": "nominal"}) | {"transform": at_k},
        width={"step": width},
        height={"step": _ROW},
        params=[{"name": "K", "value": select_k, "bind": {"input": "select", "options": list(table.ks), "name": "K "}}],
    )
    caption = (
        f"Percent of the probing problems solved by at least one of K responses, and below the 95% bootstrap interval "
        f"over problems. Stronger colour is higher, scaled per domain. Framed: the checkpoint chosen at K = {select_k} "
        "as the domain's specialist. Look whether the domains peak at different steps, and whether the intervals of "
        "neighbouring checkpoints overlap."
    )
    best = ", ".join(f"{domain} step {step}" for domain, step in chosen.items())
    return Chart(name="probe-map", caption=caption, description=f"Pass@K map; chosen: {best}", spec=spec)


def _cells(table: ProbeTable, k: int, chosen: dict[str, int]) -> list[Row]:
    rows: list[Row] = []
    for domain in table.domains:
        cells = {step: table.cells[domain][step][k] for step in table.steps}
        means = [cell.mean for cell in cells.values()]
        for step, cell in cells.items():
            star = chosen[domain] == step
            rows.append(
                {
                    "domain": domain,
                    "step": step,
                    "k": k,
                    "v": round(100 * cell.mean, 1),
                    "range": f"{percent(cell.low)} to {percent(cell.high)}",
                    "short": f"{100 * cell.low:.0f}\N{EN DASH}{100 * cell.high:.0f}",
                    "shade": round(_shade(cell.mean, means), 3),
                    "star": star,
                    "role": "chosen specialist" if star else "checkpoint",
                }
            )
    return rows


def _shade(value: float, column: Sequence[float]) -> float:
    low, high = min(column), max(column)
    return (value - low) / (high - low) if high > low else 0.5


def probe_tables(table: ProbeTable, select_k: int) -> list[dict[str, Any]]:
    """The map in figures, first at the K of the selection, where a star marks the specialists."""
    chosen = select_specialists(table, select_k)
    order = [select_k, *(k for k in table.ks if k != select_k)]
    return [_probe_table(table, k, chosen if k == select_k else {}) for k in order]


def _probe_table(table: ProbeTable, k: int, chosen: dict[str, int]) -> dict[str, Any]:
    rows = [
        [
            str(step),
            *(
                format_estimate(table.cells[domain][step][k])
                + (" \N{BLACK STAR}" if chosen.get(domain) == step else "")
                for domain in table.domains
            ),
        ]
        for step in table.steps
    ]
    return {"head": ["SFT step", *table.domains], "rows": rows, "caption": f"Pass@{k}, percent"}
