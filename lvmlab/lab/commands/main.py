"""The command line's entry: one table of commands, and how they end."""

import signal
import sys

import tyro

import lvmlab
from lvmlab.lab.commands.answer import demo, evaluate, prompt
from lvmlab.lab.commands.checks import did_you_mean
from lvmlab.lab.commands.data import tokenize
from lvmlab.lab.commands.perception import perception
from lvmlab.lab.commands.results import bench, results, runs, study, targets
from lvmlab.lab.commands.train import cost, export, train, train_aim, train_tokenizer

COMMANDS = {
    "demo": demo,
    "prompt": prompt,
    "tokenize": tokenize,
    "train": train,
    "train-tokenizer": train_tokenizer,
    "train-aim": train_aim,
    "export": export,
    "evaluate": evaluate,
    "perception": perception,
    "cost": cost,
    "runs": runs,
    "study": study,
    "results": results,
    "targets": targets,
    "bench": bench,
}
INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal's number


def main() -> None:
    """Runs the command in sys.argv. Errors end in one line and exit code 1, Ctrl-C in 130, SIGTERM in 143."""
    first = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if first == "--version":
        print(f"lvmlab {lvmlab.__version__}")
        return
    if not first.startswith("-") and first not in COMMANDS:
        print(f"lvmlab: no command {first!r}{did_you_mean(first, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="lvmlab",
            args=sys.argv[1:] or ["--help"],
            description="A workbench for autoregressive large vision models. "
            "`lvmlab COMMAND --help` explains a command, `lvmlab --version` prints the version.",
            sort_subcommands=False,
        )
    except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
        sys.exit(f"lvmlab: {error}")
    except KeyboardInterrupt:
        print("lvmlab: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == TERMINATED:
            print("lvmlab: terminated", file=sys.stderr)
        raise


def _terminate(number: int, frame) -> None:
    """SIGTERM ends the process as an exception does, so that files are closed and workers are ended."""
    raise SystemExit(TERMINATED)
