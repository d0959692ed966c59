"""The tasks, by name. A new one is one file here and one line below."""

from lvmlab.world.laws import DEFAULT
from lvmlab.world.tasks.base import Encoding, Pair, Task
from lvmlab.world.tasks.category import Category
from lvmlab.world.tasks.colourise import Colourise
from lvmlab.world.tasks.deblur import Deblur
from lvmlab.world.tasks.derain import Derain
from lvmlab.world.tasks.edges import Edges
from lvmlab.world.tasks.inpaint import Inpaint
from lvmlab.world.tasks.motion import Motion
from lvmlab.world.tasks.pose import Pose
from lvmlab.world.tasks.segmentation import Segmentation
from lvmlab.world.tasks.selection import Selection
from lvmlab.world.tasks.semantic import Semantic

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Segmentation(),
        Semantic(),
        Selection(),
        Category(),
        Pose(),
        Derain(),
        Motion(),
        Deblur(),
        Colourise(),
        Inpaint(),
        Edges(),
    )
}
TRAINED = list(DEFAULT.trained)
NEW = list(DEFAULT.new)


def get(name: str) -> Task:
    """The task of this name; an unknown one is a ``ValueError`` that lists them."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]


def scored(names: tuple[str, ...] | list[str]) -> list[str]:
    """Those of the named tasks whose answers have a score."""
    return [name for name in names if get(name).metric]


__all__ = ["NEW", "TASKS", "TRAINED", "Encoding", "Pair", "Task", "get", "scored"]
