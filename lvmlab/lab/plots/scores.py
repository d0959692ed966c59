"""Tables and charts of evaluated rows."""

from rich.console import Console
from rich.table import Table

from lvmlab.world import tasks


def table(rows: list[dict], title: str = "") -> str:
    """Rows of an evaluation as an aligned text table."""
    grid = Table(title=title or None, show_edge=False, pad_edge=False, box=None, header_style="bold")
    for name in ("model", "task", "setting", "condition"):
        grid.add_column(name)
    for name in (
        "k",
        "metric",
        "score",
        "95 % interval",
        "ceiling",
        "best floor",
        "skill",
        "95 % interval",
        "prompts",
        "sources",
    ):
        grid.add_column(name, justify="left" if name == "metric" else "right")
    for r in rows:
        floor = f"{r['floors'][r['best_floor']]:.3g} ({r['best_floor']})"
        skill = (
            ("-", "-")
            if r["skill"] is None
            else (f"{r['skill']:.2f}", f"{r['skill_low']:.2f}..{r['skill_high']:.2f}")
        )
        grid.add_row(
            r["model"],
            r["task"],
            r["setting"],
            r["condition"],
            str(r["examples"]),
            r["metric"],
            f"{r['score']:.3f}",
            f"{r['low']:.3f}..{r['high']:.3f}",
            f"{r['ceiling']:.3f}",
            floor,
            *skill,
            str(r["prompts"]),
            str(r["sources"]),
        )
    return text(grid)


def text(grid: Table) -> str:
    """A table as plain lines, without colours and trailing blanks."""
    console = Console(width=190, force_terminal=False, force_jupyter=False, no_color=True)
    with console.capture() as capture:
        console.print(grid, markup=False)
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


def choose(rows: list[dict], **wanted) -> list[dict]:
    """The rows with these values, the task's own metric alone unless one is asked for."""
    found = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    if "metric" in wanted:
        return found
    return [r for r in found if r["metric"] == tasks.get(r["task"]).metric]


def examples_chart(rows: list[dict], axis=None):
    """Skill after 1 to 7 examples, one line a task with its interval, on white."""
    import matplotlib.pyplot as plt

    axis = axis or plt.subplots(figsize=(7, 3.6), facecolor="white", layout="constrained")[1]
    for name in dict.fromkeys(r["task"] for r in rows):
        mine = sorted((r for r in rows if r["task"] == name), key=lambda r: r["examples"])
        x, y = [r["examples"] for r in mine], [r["skill"] for r in mine]
        (line,) = axis.plot(x, y, marker="o", label=name)
        axis.fill_between(
            x,
            [r["skill_low"] for r in mine],
            [r["skill_high"] for r in mine],
            color=line.get_color(),
            alpha=0.15,
            lw=0,
        )
    axis.axhline(0, color="black", lw=1)
    axis.set_xlabel("examples in the prompt")
    axis.set_ylabel("skill")
    axis.legend(frameon=False, ncols=3)
    return axis
