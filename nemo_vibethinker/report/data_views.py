"""What the page shows of the data: the funnel of every set, what was dropped and why, and the decontamination."""

from collections.abc import Mapping
from typing import Any

from nemo_vibethinker.report import vega
from nemo_vibethinker.report.vega import Chart, Row

_MAX_ROWS = 200  # of a list that may be as long as the data
_MAX_REASONS = 12
_KINDS = {"kept": vega.SERIES[2], "dropped": vega.SERIES[4], "removed for overlap": vega.LOST}


def funnel_chart(funnel: Mapping[str, Any]) -> Chart:
    """Share of the rows of each set that were kept, dropped, or removed as overlapping a held-out problem."""
    rows: list[Row] = []
    for name, counts in funnel["sets"].items():
        parts = _parts(counts)
        left, read = 0.0, max(1, counts["read"])
        for kind, count in zip(_KINDS, parts, strict=True):
            row = {"set": name, "kind": kind, "count": count, "a": left / read, "b": (left + count) / read}
            rows += [row] if count else []
            left += count
    y = vega.category("set") | {"axis": {"labelColor": vega.colour(vega.INK), "grid": False}}
    x = vega.number("a", "share of the rows read", scale={"domain": [0, 1]}, axis={"format": "%"})
    tips = [vega.tip("set", "set"), vega.tip("kind", "rows"), vega.tip("count", "number", ",d")]
    bar = {"type": "bar", "height": 16, "opacity": 0.75}
    paint = vega.colours("kind", _KINDS)
    spec = vega.layers(
        vega.layer(rows, bar, x=x, x2={"field": "b"}, y=y, color=paint, tooltip=tips), height=26 * len(funnel["sets"])
    )
    text = ", ".join(f"{name} {counts['kept']:,} of {counts['read']:,}" for name, counts in funnel["sets"].items())
    return Chart(name="funnel", description=f"Rows kept: {text}", spec=spec, legend=list(_KINDS.items()))


def _dropped(counts: Mapping[str, Any]) -> int:
    return counts.get("dropped_count", len(counts["dropped"]))


def _parts(counts: Mapping[str, Any]) -> tuple[int, int, int]:
    """Kept, dropped, removed for overlap: what is read is one of them."""
    dropped = _dropped(counts)
    return counts["kept"], dropped, max(0, counts["read"] - counts["kept"] - dropped)


def funnel_view(funnel: Mapping[str, Any]) -> dict[str, Any]:
    """How many records of each set were read, kept and dropped, and the proof that held-out problems are disjoint."""
    sets = funnel["sets"]
    removed = funnel.get("overlaps_removed_count", len(funnel.get("overlaps_removed", [])))
    total = sum(_dropped(counts) for counts in sets.values())
    dropped = [
        (name, str(item["line"] or "-"), item["id"] or "-", item["reason"])
        for name, counts in sets.items()
        for item in counts["dropped"]
    ][:_MAX_ROWS]
    overlaps = [
        (str(item["train_id"]), str(item["held_out_id"]), str(item["shared_text"]))
        for item in funnel.get("overlaps_removed", [])
    ][:_MAX_ROWS]
    return {
        "head": ["set", "read", "dropped", "removed for overlap", "kept", "kept, %", *_LENGTH_HEAD],
        "rows": [_set_row(name, counts) for name, counts in sets.items()],
        "caption": "Rows of each set. Read is kept plus dropped plus removed for overlap with held-out problems.",
        "reasons": _reasons(sets),
        "disjoint": _disjoint_text(funnel, removed),
        "dropped": dropped,
        "dropped_summary": _summary("Dropped rows", total, len(dropped)),
        "overlaps": overlaps,
        "overlaps_summary": _summary("Rows removed for overlap", removed, len(overlaps)),
    }


_LENGTH_HEAD = ["prompt tokens, p50", "response tokens, p50", "over the window, %"]


def _set_row(name: str, counts: Mapping[str, Any]) -> list[str]:
    kept, dropped, removed = _parts(counts)
    share = f"{100 * kept / counts['read']:.1f}" if counts["read"] else "-"
    return [name, f"{counts['read']:,}", f"{dropped:,}", f"{removed:,}", f"{kept:,}", share, *_lengths(counts, kept)]


def _lengths(counts: Mapping[str, Any], kept: int) -> list[str]:
    tokens = counts.get("tokens") or {}
    medians = [tokens.get(side, {}).get("p50") for side in ("prompt", "response")]
    over = f"{100 * tokens['over_window'] / kept:.1f}" if kept and "over_window" in tokens else "-"
    return [*("-" if median is None else f"{median:,}" for median in medians), over]


def _reasons(sets: Mapping[str, Any]) -> list[list[str]]:
    """(set, reason, rows), the most frequent first."""
    found = [
        (count, name, reason)
        for name, counts in sets.items()
        for reason, count in counts.get("dropped_by_reason", {}).items()
    ]
    return [[name, reason, f"{count:,}"] for count, name, reason in sorted(found, reverse=True)[:_MAX_REASONS]]


def _summary(what: str, count: int, shown: int) -> str:
    return f"{what}: {count:,}" + (f", the first {shown:,} shown" if count > shown else "")


def _disjoint_text(funnel: Mapping[str, Any], removed: int) -> str:
    checked = {
        True: "After that no training prompt shares a 10-gram with a held-out prompt.",
        False: "Training and held-out prompts still overlap.",
        None: "No check of disjointness was recorded.",
    }[funnel.get("disjoint")]
    return f"Training records removed because they share a 10-gram with a held-out record: {removed:,}. {checked}"
