"""What each notebook takes here, as in the README's table: `python assets/notebooks.py [NOTEBOOK ...]` runs
them and prints time and memory.

Time is from the kernel's start to its last cell; memory the highest sum over the kernel and all processes it
started, looked at five times a second.
"""

import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

from lvmlab.utils.device import default_device, describe

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def resident(process: psutil.Process) -> int:
    """Bytes of a process and its children; those that ended meanwhile count nothing."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return total


def measure(path: Path) -> tuple[float, float]:
    """(seconds, highest GB) of a notebook that is run whole; an error in a cell is raised."""
    highest, ended = [0], threading.Event()
    before = resident(psutil.Process())

    def watch() -> None:
        while not ended.wait(0.2):
            highest.append(
                resident(psutil.Process()) - before
            )  # what came after the start is the kernel and its own

    watcher, start = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    try:
        NotebookClient(
            nbformat.read(path, 4), timeout=3600, resources={"metadata": {"path": path.parent}}
        ).execute()
    finally:
        ended.set()
        watcher.join()
    return time.perf_counter() - start, max(highest) / 1e9


def main() -> None:
    print(f"On {describe(default_device())}:\n\n| notebook | seconds | GB |\n|---|---|---|")
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"| {path.stem} | {'{:.0f} | {:.1f}'.format(*measure(path))} |", flush=True)


if __name__ == "__main__":
    main()
