"""The prompt studio: a `Session` to be seen and touched, in JupyterLab and without code.

    from lvmlab.lab.studio.studio import Studio
    studio = Studio()
    studio

Everything a hand can do, a cell can: ``studio.act("answer", model="mini-teacher").wait()``. What it does runs
    in one thread of its own, one
thing after another, and a computation stops between two steps where something else is asked for.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anywidget
import numpy as np
from traitlets import Dict

from lvmlab.evaluation import sensitivity
from lvmlab.evaluation.prompts import Job
from lvmlab.lab.studio.session import SPLIT, Answer, Session, png
from lvmlab.world import tasks

HERE, SHOWN = Path(__file__).parent, 4  # tokens between two pictures of a growing answer
EDITS = ("draw", "arrange", "put", "recolour", "back")  # methods of the session that take little time
Progress = Iterator[tuple[int, int, str]]  # steps done, of how many (0: not known), and a message


class Studio(anywidget.AnyWidget):
    """The widget. session: what it shows (None: the shipped tokenizer and models on mini-world's val
    prompts).

    Its synced traits are what is on the screen: numbers, texts, and pictures as PNG in base64.
        ``status["error"]`` is the sentence that is
    shown where something went wrong.
    """

    _esm = "\n".join(
        (HERE / f"{name}.js").read_text(encoding="utf-8")
        for name in ("parts", "prompt", "answer", "inside", "panels", "studio")
    )
    _css = (HERE / "studio.css").read_text(encoding="utf-8")
    choices, prompt, answer, inside, compare, sensitivity, taken, status = (
        Dict().tag(sync=True) for _ in range(8)
    )

    def __init__(self, session: Session | None = None, **options):
        super().__init__(**options)
        self.session, self._pool, self._stop, self._last = (
            session or Session(),
            ThreadPoolExecutor(1),
            threading.Event(),
            None,
        )
        self.choices = {"tasks": list(tasks.TASKS), "models": self.session.names, "paper": sensitivity.PAPER}
        self._show_prompt()
        self.on_msg(
            lambda _, content, buffers: self.act(
                **content, **({"source": bytes(buffers[0])} if buffers else {})
            )
        )

    def act(self, do: str, **arguments) -> "Studio":
        """One action by its name and what it needs, in the background, after what was asked before; a
        computation that is under way stops.

        The session's draw, arrange, put, recolour, answer, choose, back and replay; look (inside), contrast
        (models), vary (sensitivity), take
        (away); stop.
        """
        self._stop.set()
        if do != "stop":
            self._stop = threading.Event()
            self._last = self._pool.submit(self._do, self._stop, do, arguments)
        return self

    def wait(self, seconds: float = 300) -> "Studio":
        """Until what was asked for is done. Raises TimeoutError."""
        _ = self._last and self._last.result(seconds)
        return self

    def _do(self, stop: threading.Event, do: str, arguments: dict) -> None:
        """Never raises: an error becomes a sentence in the studio."""
        self.status, end = {"busy": do}, {}
        try:
            for done, of, message in self._steps(do, arguments):
                self.status, end = (
                    {"busy": do, "done": done, "of": of, "message": message},
                    {"message": message},
                )
                if stop.is_set() and done != of:
                    end = {"message": f"Stopped after {done} of {of}."}
                    break
        except Exception as error:
            own = isinstance(error, (ValueError, OSError))  # these name the remedy
            end = {
                "error": str(error)
                if own
                else "Something went wrong that should not "
                f"({type(error).__name__}: {error}): draw another prompt."
            }
        self.status = {"busy": ""} | end

    def _steps(self, do: str, arguments: dict) -> Progress:
        if do in ("answer", "choose", "replay"):
            yield from self._growing(getattr(self.session, do)(**arguments))
        elif do in EDITS:
            getattr(self.session, do)(**arguments)
            self._show_prompt()
            if self.session.current:
                self._show_answer()
            yield 1, 1, ""
        else:
            yield from getattr(self, f"_do_{do}")(**arguments) or ()

    def _do_look(self, sample: int, place: int) -> None:
        (ids, likely, patches), (heads, rolled) = self.session.inside(sample, place)
        others = [
            {"code": int(c), "p": float(p), "picture": png(x)}
            for c, p, x in zip(ids, likely, patches, strict=True)
        ]
        self.inside = {
            "sample": sample,
            "place": place,
            "alternatives": others,
            "rolled": _short(rolled),
            "heads": _short(heads),
        }

    def _do_contrast(self, models: list[str], **options) -> Progress:
        session, self.compare = self.session, {}
        for i, name in enumerate(models):
            for answer in session.answer(name, keep=False, **options):
                yield i * session.n + len(answer.steps), len(models) * session.n, f"{name} answers"
            row = {"model": name, "seconds": answer.seconds} | self._judged(session.pictures(answer))
            self.compare = {"rows": [*self.compare.get("rows", []), row]}
            yield (i + 1) * session.n, len(models) * session.n, f"{name} answered in {answer.seconds:.2f} s."

    def _do_vary(self, model: str, prompts: int = 16) -> Progress:
        session, rows, job = self.session, [], Job(self.session.sentence.task, prompts=prompts, split=SPLIT)
        for change, row in sensitivity.measure(session.lvm(model), session.tokenizer, job):
            if row:
                rows = [*rows, row | {"model": model}]
                self.sensitivity = {"rows": rows}
            yield len(rows), 0, change

    def _do_take(self) -> None:
        self.taken = {"recipe": self.session.recipe()}

    def _growing(self, answers: Iterator[Answer]) -> Progress:
        self.inside, answer = {}, None
        try:
            for answer in answers:
                if self.session.sentence is not self._shown:  # a recipe brings its own prompt
                    self._show_prompt()
                if len(answer.steps) % SHOWN == 0:
                    self._show_answer()
                yield len(answer.steps), self.session.n, f"{answer.model} answers"
        finally:  # also where it is stopped
            if answer and len(answer.steps) % SHOWN:
                self._show_answer()
        yield 1, 1, answer.message or f"{answer.model} answered in {answer.seconds:.2f} s."

    def _show_prompt(self) -> None:
        self._shown = sentence = self.session.sentence
        shown = [[png(pair.image), png(pair.label)] for pair in sentence.pairs]
        self.prompt = {
            "task": sentence.task,
            "examples": shown[:-1],
            "query": shown[-1][0],
            "truth": shown[-1][1] if self.session.known else "",
            "colours": sentence.encoding.colours,
            "grid": self.session.tokenizer.grid,
        }
        self.answer, self.inside, self.compare, self.taken = {}, {}, {}, {}

    def _show_answer(self) -> None:
        answer, complete, pictures = (
            self.session.current,
            len(self.session.current.steps) == self.session.n,
            self.session.pictures(self.session.current),
        )
        parts = zip(pictures, *(answer.of(name) for name in ("ids", "logprobs", "entropies")), strict=True)
        samples = [
            {"picture": png(p), "codes": ids.tolist(), "p": _short(log.exp()), "entropy": _short(h)}
            for p, ids, log, h in parts
        ]
        self.answer = {
            "done": len(answer.steps),
            "of": self.session.n,
            "model": answer.model,
            "seconds": answer.seconds,
            "samples": samples,
            "first": bool(self.session.original),
        } | self._judged(pictures, complete)

    def _judged(self, pictures: np.ndarray, complete: bool = True) -> dict:
        """The mean of the answers, and the scores of the mean and, where there are several, of each."""
        mean = np.rint(pictures.astype(np.float32).mean(0)).astype(np.uint8)
        return {
            "mean": png(mean),
            "rows": self.session.rows([mean, *(pictures if len(pictures) > 1 else ())]) if complete else [],
        }


def _short(values) -> list:
    return np.round(values.double().numpy(), 4).tolist()
