"""The table of the leaderboard, in markdown."""

from __future__ import annotations

from typing import Any

from prior_options import budget_of

COLUMNS = {  # of the table: a row's value, and how it is written
    "tokenizer": "{}",
    "prior": "{}",
    "tokens": "{}",
    "bits": "{:,.0f}",
    "parameters": "{:,}",
    "steps": "{:,}",
    "distortion": "{:.4f}",
    "rate": "{:.4f}",
    "total": "{:.4f}",
    "rfd": "{:.2f}",
    "gfd": "{:.2f}",
    "gfd_unguided": "{:.2f}",
    "agreement": "{:.1%}",
    "images_per_second": "{:.0f}",
    "minutes": "{:.1f}",
    "processor": "{}",
}
HIGHER = ("agreement", "images_per_second", "steps")  # columns whose largest value comes first


def table(rows: list[dict[str, Any]], column: str) -> str:
    """The rows in markdown, the best of a column first; those without a value come last."""
    sign = -1 if column in HIGHER else 1

    def key(row: dict[str, Any]) -> tuple[bool, Any]:
        value = row[column]
        return value is None, sign * value if isinstance(value, int | float) else str(value)

    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in sorted(rows, key=key):
        cells = ["–" if row[name] is None else form.format(row[name]) for name, form in COLUMNS.items()]
        if row["bound"]:
            bounds = ["≤ " if name in ("rate", "total") else "" for name in COLUMNS]
            cells = [bound + cell for bound, cell in zip(bounds, cells, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables(rows: list[dict[str, Any]], column: str) -> str:
    """A table for each budget, below a line that names it: rows of two budgets are no comparison.

    Rows differ in budget too if the parameters that all pairs share differ. Of two rows of a pair the later one counts.
    """
    of: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in rows:
        changes, (eager, precision), *_ = budget_of(row)
        words = [f"{row['budget_minutes']:g} minutes a prior", precision, *(f"-S {change}" for change in changes)]
        words += ["--eager"] * eager
        words += [f"threads {row['settings']['threads']}", f"settings {row['settings']['shared']}"]
        of.setdefault(", ".join(words), {})[row["tokenizer"], row["prior"]] = row
    return "\n\n".join(f"{budget}:\n\n{table([*of[budget].values()], column)}" for budget in sorted(of))
