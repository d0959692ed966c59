"""Ctrl-C and SIGTERM end a training after the step that runs and the checkpoint that is due."""

import signal
import threading
from pathlib import Path

TERMINATED = 143  # 128 + SIGTERM, as shells count


class Interrupts:
    """Notes the first Ctrl-C or SIGTERM inside the block; a second one ends the process at once.

    Threads other than the main one receive no signals: there it does nothing.
    """

    def __init__(self):
        self.signal = 0
        self._before = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def end(self, number: int, step: int, folder: Path) -> None:
        """Ends the process as the signal asks.

        Args:
            number: Of the signal; other processes of a launch may have received it.
            step: The step of the checkpoint that was written.
            folder: Of the training.

        Raises:
            SystemExit: With code 143, after SIGTERM.
            KeyboardInterrupt: After Ctrl-C, which ends a command with code 130.
        """
        print(f"stopped at step {step}: the same call on {folder} resumes from there", flush=True)
        if number == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        raise KeyboardInterrupt
