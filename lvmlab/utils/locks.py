"""One launch at a time writes into a folder; a second one is refused and learns which process holds it."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, OWNER = "launch.lock", "launch.json"


class FolderInUse(RuntimeError):
    """Another launch writes into the folder; the message names its process and since when it runs."""


@contextlib.contextmanager
def hold(folder: str | Path) -> Iterator[None]:
    """Holds a folder for this launch until the block ends; the system frees it when the process dies.

    Args:
        folder: Is made where it is missing.

    Raises:
        FolderInUse: Another launch holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / LOCK, timeout=0), folder / OWNER
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUse(
            f"{folder} is in use by {_named(owner)}: wait until it ends, or choose another folder"
        ) from None
    try:
        launch = {"process": os.getpid(), "machine": socket.gethostname()}
        owner.write_text(json.dumps(launch | {"since": time.strftime("%Y-%m-%d %H:%M:%S")}), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _named(owner: Path) -> str:
    """The launch that wrote ``owner``, for a message."""
    try:
        launch = json.loads(owner.read_text(encoding="utf-8"))
        return f"process {launch['process']} on {launch['machine']} since {launch['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
