"""The tasks, by name. A new one is one file here and one line below."""

from lvmlab.world.tasks.base import Encoding, Pair, Task
from lvmlab.world.tasks.colourise import Colourise
from lvmlab.world.tasks.deblur import Deblur
from lvmlab.world.tasks.derain import Derain
from lvmlab.world.tasks.edges import Edges
from lvmlab.world.tasks.inpaint import Inpaint
from lvmlab.world.tasks.motion import Motion
from lvmlab.world.tasks.pose import Pose
from lvmlab.world.tasks.segmentation import Segmentation
from lvmlab.world.tasks.selection import Selection

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Segmentation(),
        Selection(),
        Pose(),
        Derain(),
        Motion(),
        Deblur(),
        Colourise(),
        Inpaint(),
        Edges(),
    )
}
TRAINED = [name for name, task in TASKS.items() if task.trained]
NEW = [name for name, task in TASKS.items() if not task.trained]


def get(name: str) -> Task:
    """The task of this name; an unknown one is a ``ValueError`` that lists them."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]


__all__ = ["NEW", "TASKS", "TRAINED", "Encoding", "Pair", "Task", "get"]
