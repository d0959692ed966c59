"""The perception ceilings that are stored: what the codes of a tokenizer still know, task by task.

`lvmlab perception TOKENIZER` measures them (`lvmlab.lab.perception`); here their rows are read.
"""

import json

from lvmlab.utils import paths


def perception_rows(fingerprint: str) -> list[dict]:
    """Every stored row {task, reads, metric, score, low, high, steps, ...} of the tokenizer of this
    fingerprint.

    Shipped runs come before those in the user's cache; of two runs of a task the one with more steps counts.
    """
    best: dict[str, list[dict]] = {}
    for folder in (paths.assets() / "runs", paths.cache() / "runs"):
        for path in sorted(folder.glob("perception-*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            rows = record["result"]
            known = best.get(record["config"]["task"])
            if record["config"]["tokenizer"] == fingerprint and (
                known is None or rows[0]["steps"] > known[0]["steps"]
            ):
                best[record["config"]["task"]] = rows
    return [row for rows in best.values() for row in rows]


def perception_ceiling(fingerprint: str, task: str, source: str = "codes") -> float | None:
    """What a specialist reaches in a task's score from the codes, from "pixels" or the "round trip"; None:
    not measured.
    """
    return next(
        (r["score"] for r in perception_rows(fingerprint) if (r["task"], r["reads"]) == (task, source)), None
    )
