"""The command line and stored runs, as a user meets them."""

import ast
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from lvmlab.data.building import build
from lvmlab.data.mini_world import World
from lvmlab.lab import runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
]


def lvmlab(*words: str, **options):
    return subprocess.run(
        [sys.executable, "-m", "lvmlab", *words], capture_output=True, text=True, timeout=120, **options
    )


def test_help_names_every_command():
    text = lvmlab("--help").stdout
    for command in (
        "demo",
        "prompt",
        "evaluate",
        "tokenize",
        "train-tokenizer",
        "train",
        "cost",
        "runs",
        "bench",
        "export",
        "train-aim",
    ):
        assert command in text


def test_errors_are_one_line_that_names_the_culprit(tmp_path):
    found = lvmlab("prompt", "a.png", "--query", "b.png")
    assert found.returncode == 1 and "pairs" in found.stderr and "Traceback" not in found.stderr
    found = lvmlab("runs", "show", "nothing-like-it")
    assert found.returncode == 1 and "nothing-like-it" in found.stderr and "Traceback" not in found.stderr


@pytest.mark.parametrize(
    "words, message",
    [
        (("prompt", "a.png", "b.png", "--query", "c.png"), "there is no file a.png"),
        (("prompt", "a.png", "b.png", "--query", "c.png", "--out", "folder"), "end it in .png"),
        (("demo", "--models", "mini-techer"), "did you mean mini-teacher"),
        (("tokenize", "store", "nowhere"), "nowhere is no folder"),
        (("train", "out", "--store", "nowhere"), "nowhere is no folder"),
        (("export", "nowhere"), "nowhere is no folder"),
        (("runs", "show", "scalng"), "the nearest are scaling-"),
        (("promt",), "did you mean prompt"),
        (("train", "out", "--shape", "mini-studnt"), "mini-student"),
    ],
)
def test_paths_and_names_are_checked_before_anything_heavy_is_imported(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        if "--out" in words:
            (tmp_path / name).touch()
    script = (
        "import sys; sys.argv = ['lvmlab', *sys.argv[1:]]\n"
        "from lvmlab.lab.commands.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy'\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, env=environment, timeout=60
    )
    assert ended.returncode in (1, 2) and message in " ".join(ended.stderr.split()), ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_version_is_printed():
    import lvmlab as package

    assert lvmlab("--version").stdout == f"lvmlab {package.__version__}\n"


WAITING = """
import sys, time
from lvmlab.lab.commands import main as entry
def bench() -> None:
    print("ready", flush=True)
    time.sleep(60)
entry.COMMANDS["bench"] = bench
sys.argv = ["lvmlab", "bench"]
entry.main()
"""


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_in_one_line_and_their_code(sent, code):
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", WAITING], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr in ("lvmlab: interrupted\n", "lvmlab: terminated\n")


def test_choices_in_the_help_are_those_of_the_package():
    from lvmlab.distillation.objectives import DIVERGENCES
    from lvmlab.lab.commands import checks, choices
    from lvmlab.lab.specialists import GOALS
    from lvmlab.model.aim import AIM_PRESETS
    from lvmlab.model.config import LVM_PRESETS
    from lvmlab.tokenizer.tokenizer import PRESETS as TOKENIZER_PRESETS
    from lvmlab.training import checkpoints, cost
    from lvmlab.utils.device import PRECISIONS

    for choice, names in (
        (choices.ModelPreset, LVM_PRESETS),
        (choices.AIMPreset, AIM_PRESETS),
        (choices.TokenizerPreset, TOKENIZER_PRESETS),
        (choices.PerceptionTask, GOALS),
        (choices.Divergence, DIVERGENCES),
        (choices.Precision, PRECISIONS),
        (choices.GPU, ("here", *cost.PEAKS)),
    ):
        assert set(get_args(choice)) == set(names)
    assert checks.CHECKPOINT == checkpoints.CHECKPOINT


def test_what_commands_import_when_they_run_exists():
    for path in (ROOT / "lvmlab" / "lab" / "commands").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("lvmlab"):
                home = importlib.import_module(node.module)
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    assert hasattr(home, alias.name) or importlib.util.find_spec(name), f"{path}: {name}"


def test_a_folder_of_pairs_becomes_a_store_and_goes_on(tmp_path):
    from PIL import Image

    (tmp_path / "pairs").mkdir()
    for i in range(3):
        for name in (f"{i}.png", f"{i}-label.png"):
            Image.new("RGB", (90, 70), (40 * i, 100, 200)).save(tmp_path / "pairs" / name)
    for _ in range(2):
        found = lvmlab(
            "tokenize",
            str(tmp_path / "store"),
            str(tmp_path / "pairs"),
            "--task",
            "mine",
            "--parquet",
            str(tmp_path / "parquet"),
        )
        assert found.returncode == 0, found.stderr
        assert (
            "holds 3 rows of mine" in found.stdout
            and (tmp_path / "parquet" / "mine.000000.parquet").is_file()
        )
    assert "0 members" in found.stdout, "what is there is not read again"
    found = lvmlab("tokenize", str(tmp_path / "other"), str(tmp_path / "nowhere"))
    assert (
        found.returncode != 0 and "nowhere is no folder" in found.stderr and "Traceback" not in found.stderr
    )


def test_processes_of_a_launch_share_the_parts(tmp_path):
    from PIL import Image

    from lvmlab.data.building import SHARD
    from lvmlab.data.store import Store

    (tmp_path / "pairs").mkdir()
    for i in range(SHARD + 3):
        for name in (f"{i:02d}.png", f"{i:02d}-label.png"):
            Image.new("RGB", (64, 64), (7 * i, 100, 200)).save(tmp_path / "pairs" / name)
    # without a GPU --multi_gpu is how accelerate is told of several processes on one machine: gloo joins them
    command = [*LAUNCH, "-m", "lvmlab", "tokenize", str(tmp_path / "store"), str(tmp_path / "pairs")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stderr
    assert f"process 0: {SHARD} members" in found.stdout and "process 1: 3 members" in found.stdout
    assert found.stdout.count("holds") == 1 and Store(tmp_path / "store").counts() == {"pairs": SHARD + 3}


def test_folders_and_runs_are_named_without_flags():
    for command in ("train", "train-tokenizer"):
        found = lvmlab(command, "--help")
        assert f"lvmlab {command} [-h]" in found.stdout and "FOLDER" in found.stdout.split("options")[0]


def test_a_prompt_of_picture_files_is_answered_beside_its_query(tmp_path):
    from PIL import Image

    for i, name in enumerate(("a", "a-label", "query")):
        Image.new("RGB", (90, 70), (40 * i, 100, 200)).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / f"{name}.png") for name in ("a", "a-label")]
    query = ["--query", str(tmp_path / "query.png")]
    widths = []
    for more in (["--answers", "3"], ["--greedy", "--out", str(tmp_path / "out.png")]):
        found = lvmlab("prompt", *files, *query, *more)
        out = tmp_path / ("out.png" if "--out" in more else "query-answer.png")
        assert found.returncode == 0 and f"wrote {out}" in found.stdout, found.stderr
        widths.append(Image.open(out).width)
    assert 0 < widths[0] - widths[1] - 3 * 192 < 30, "the mean and three samples, 192 pixels each, or one"


def test_a_run_is_computed_once_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(
        runs, "folders", lambda: {"shipped": tmp_path / "shipped", "cache": tmp_path / "cache"}
    )
    calls = []
    compute = lambda config: calls.append(config) or {"answer": config["x"] * 2}  # noqa: E731
    first, second = (runs.run("double", {"x": 21}, compute) for _ in range(2))
    assert first == second and first["result"]["answer"] == 42 and len(calls) == 1
    assert {"config", "versions", "seconds", "commit", "world"} <= set(first)
    assert runs.run("double", {"x": 4}, compute)["name"] != first["name"]
    assert runs.promote(first["name"]).is_file() and runs.load(first["name"]) == first
    assert runs.prune() == [first["name"]] and list(runs.listing()["where"]) == ["shipped", "cache"]
    with pytest.raises(FileNotFoundError, match="several"):
        runs.load("double")


def test_one_command_trains_on_a_store_from_a_teacher_on_two_processes(tmp_path):
    """The very command that runs alone, under accelerate launch; the second time it finds its work done."""
    from lvmlab.tokenizer.tokenizer import Tokenizer
    from lvmlab.training.checkpoints import read_log

    build(
        tmp_path / "store",
        Tokenizer.from_pretrained("mini"),
        [World("segmentation", 4, workers=1)],
        progress=False,
    )
    command = [
        "train",
        str(tmp_path / "training"),
        "--store",
        str(tmp_path / "store"),
        "--teacher",
        "mini-student",
        "--divergence",
        "js",
        "--steps",
        "2",
        "--tokens",
        "1024",
        "--pairs",
        "4",
        "--precision",
        "fp32",
    ]
    found = subprocess.run([*LAUNCH, "-m", "lvmlab", *command], capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stderr[-3000:]
    log = read_log(tmp_path / "training")
    assert [r["step"] for r in log] == [0, 1]
    found = lvmlab(*command)
    assert found.returncode == 0 and [r["step"] for r in read_log(tmp_path / "training")] == [0, 1], (
        found.stderr
    )
    found = lvmlab(*command[:1], str(tmp_path / "other"), *command[2:], "--divergence", "sideways")
    assert (
        found.returncode != 0
        and "'sideways' for argument '--divergence'" in " ".join(found.stderr.replace("│", " ").split())
        and "Traceback" not in found.stderr
    )


def test_costs_are_estimated():
    found = lvmlab("cost", "1b", "--tokens", "1e10", "--device", "A100", "--devices", "16", "--teacher", "1b")
    assert found.returncode == 0 and "1164.2M parameters" in found.stdout and "13.79 h" in found.stdout, (
        found.stdout
    )
    refused = lvmlab("cost", "2b").stderr
    assert "'2b'" in refused and "'300m'" in refused
