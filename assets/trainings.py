"""What each shipped model was trained on and how long, of its own record, as in the README: `python
assets/trainings.py`.
"""

import json

from lvmlab.lab.studies import common
from lvmlab.utils import paths

ORDER = ("mini", "mini-teacher", "mini-student", "mini-student-kd")


def row(name: str) -> tuple[str, str, str, str]:
    """(model, parameters, trained on, time) from its config.json, and for the tokenizer, whose record names
    no device, from its log.
    """
    folder = paths.assets() / "models" / name
    training = json.loads((folder / "config.json").read_text())["training"]
    size = f"{training['parameters'] / 1e6:.2f}M"
    if "stages" not in training:
        hours = json.loads((folder / "log.json").read_text())[-1]["seconds"] / 3600
        return (
            f"`{name}` (tokenizer)",
            size,
            f"{training['step']} steps of {training['more']['batch']} pictures",
            f"{hours:.1f} h",
        )
    stages, taught = training["stages"], training.get("teacher")
    tokens, hours = (sum(stage[k] for stage in stages) for k in ("tokens", "hours"))
    devices = ", ".join(sorted({stage["device"] for stage in stages}))
    what = f"{tokens / 1e6:.1f}M tokens" + (
        f", {stages[-1]['tokens'] / 1e6:.1f}M of them with the teacher's word" if taught else ""
    )
    return f"`{name}`", size, what, f"{hours:.1f} h on {devices}"


def markdown() -> str:
    """A line a model, as a Markdown table."""
    return common.markdown(("model", "parameters", "trained on", "time"), *map(row, ORDER))


if __name__ == "__main__":
    print(markdown())
