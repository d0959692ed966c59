"""Tables and charts of evaluated rows."""

from rich.console import Console
from rich.table import Table


def table(rows: list[dict], title: str = "") -> str:
    """Rows of an evaluation as an aligned text table."""
    grid = Table(title=title or None, show_edge=False, pad_edge=False, box=None, header_style="bold")
    for name in ("model", "task", "setting", "condition"):
        grid.add_column(name)
    for name in ("k", "metric", "score", "95 % interval", "ceiling", "best floor", "skill", "95 % interval", "prompts", "sources"):
        grid.add_column(name, justify="left" if name == "metric" else "right")
    for r in rows:
        floor = f"{r['floors'][r['best_floor']]:.3g} ({r['best_floor']})"
        skill = ("-", "-") if r["skill"] is None else (f"{r['skill']:.2f}", f"{r['skill_low']:.2f}..{r['skill_high']:.2f}")
        grid.add_row(
            r["model"], r["task"], r["setting"], r["condition"], str(r["examples"]), r["metric"], f"{r['score']:.3f}",
            f"{r['low']:.3f}..{r['high']:.3f}", f"{r['ceiling']:.3f}", floor, *skill, str(r["prompts"]), str(r["sources"]),
        )  # fmt: skip
    console = Console(width=190, force_terminal=False, no_color=True)
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def skill_chart(rows: list[dict], axis=None):
    """Skill of each task and model with its interval, on white; the axis drawn on."""
    import matplotlib.pyplot as plt

    axis = axis or plt.subplots(figsize=(7, 3.2), facecolor="white", layout="constrained")[1]
    names = list(dict.fromkeys(r["task"] for r in rows))
    models = list(dict.fromkeys(r["model"] for r in rows))
    for i, model in enumerate(models):
        mine = [r for r in rows if r["model"] == model]
        x = [names.index(r["task"]) + (i - (len(models) - 1) / 2) * 0.8 / len(models) for r in mine]
        bars = [[r["skill"] - r["skill_low"] for r in mine], [r["skill_high"] - r["skill"] for r in mine]]
        axis.bar(x, [r["skill"] for r in mine], 0.75 / len(models), yerr=bars, capsize=3, label=model)
    axis.axhline(0, color="black", lw=1)
    axis.axhline(1, color="grey", lw=1, ls="--")
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("skill (0: best floor, 1: ceiling)")
    axis.legend(frameon=False)
    return axis
