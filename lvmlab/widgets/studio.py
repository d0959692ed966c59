"""The prompt studio: a `Session` to be seen and touched, in JupyterLab and without code.

    from lvmlab.widgets.studio import Studio
    studio = Studio()
    studio

Everything a hand can do, a cell can: ``studio.act("answer", model="mini-teacher").wait()``. What it does runs in one thread of its own, one
thing after another, and a computation stops between two steps where something else is asked for.
"""

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anywidget
import numpy as np
from traitlets import Dict

from lvmlab import sensitivity, tasks
from lvmlab.evaluate import Job
from lvmlab.plots.prompts import sheet
from lvmlab.plots.studio import sensitivity_chart
from lvmlab.recipes import Options, Recipe, compared, made, png
from lvmlab.widgets.session import SPLIT, Answer, Session

HERE = Path(__file__).parent
EVERY = 0.12  # seconds between two pictures of a growing answer
EDITS = ("draw", "arrange", "shuffle", "put", "recolour")  # methods of the session that leave another prompt
Progress = Iterator[tuple[int, int, str]]  # steps done, of how many, and what is said of it


class Studio(anywidget.AnyWidget):
    """The widget. session: what it shows (None: the shipped tokenizer and models on mini-world's val prompts).

    Its synced traits are what is on the screen: numbers, texts, and pictures as PNG in base64. ``status["error"]`` is the sentence that is
    shown where something went wrong.
    """

    _esm = "\n".join((HERE / f"{name}.js").read_text() for name in ("parts", "prompt", "answer", "inside", "panels", "studio"))
    _css = (HERE / "studio.css").read_text()
    choices, prompt, answer, inside, compare, sensitivity, taken, status = (Dict().tag(sync=True) for _ in range(8))

    def __init__(self, session: Session | None = None, **options):
        super().__init__(**options)
        self.session, self._pool, self._stop, self._last = session or Session(), ThreadPoolExecutor(1), threading.Event(), None
        self.choices = {"tasks": list(tasks.TASKS), "models": self.session.names, "paper": sensitivity.PAPER}
        self._show_prompt()
        self.on_msg(lambda _, content, buffers: self.act(**content, **({"source": bytes(buffers[0])} if buffers else {})))

    def act(self, do: str, **given) -> "Studio":
        """One action by its name and what it needs, in the background, after what was asked before; a computation that is under way stops.

        The session's draw, arrange, shuffle, put, recolour, choose and back; answer, look (inside), contrast (models), vary (sensitivity),
        take (away), open (a recipe); stop.
        """
        self._stop.set()
        if do != "stop":
            self._stop = threading.Event()
            self._last = self._pool.submit(self._do, self._stop, do, given)
        return self

    def wait(self, seconds: float = 300) -> "Studio":
        """Until what was asked for is done. Raises TimeoutError."""
        if self._last:
            self._last.result(seconds)
        return self

    def _do(self, stop: threading.Event, do: str, given: dict) -> None:
        """Never raises: an error becomes a sentence in the studio."""
        idle = {"busy": "", "done": 0, "of": 0, "said": "", "error": ""}
        self.status, shown, said, error = idle | {"busy": do}, time.perf_counter(), "", ""
        try:
            for done, of, said in self._edit(do, given) if do in EDITS else getattr(self, f"_do_{do}")(**given):
                if stop.is_set() and done < of:
                    said = f"Stopped after {done} of {of}."
                    break
                if time.perf_counter() - shown > EVERY:
                    self.status, shown = idle | {"busy": do, "done": done, "of": of, "said": said}, time.perf_counter()
        except (ValueError, OSError) as found:  # the package's own, which name the remedy
            error = str(found)
        except Exception as found:
            error = f"Something went wrong that should not ({type(found).__name__}: {found}): try again, or draw another prompt."
        self.status = idle | {"said": said, "error": error}

    def _edit(self, do: str, given: dict) -> Progress:
        getattr(self.session, do)(**given)
        self._show_prompt()
        yield 1, 1, ""

    def _do_answer(self, model: str, **options) -> Progress:
        self.inside = {}
        yield from self._growing(self.session.answer(model, Options(**options)))

    def _do_choose(self, sample: int, place: int, code: int) -> Progress:
        yield from self._growing(self.session.choose(sample, place, code))

    def _do_back(self) -> Progress:
        self.session.back()
        self._show_answer(self.session.found)
        yield 1, 1, "The first answer again."

    def _do_look(self, sample: int, place: int) -> Progress:
        (ids, likely, patches), (heads, rolled) = self.session.inside(sample, place)
        others = [{"code": int(c), "p": float(p), "picture": png(x)} for c, p, x in zip(ids, likely, patches, strict=True)]
        chosen = int(self.session.found.of("ids")[sample, place])
        self.inside = {"sample": sample, "place": place, "code": chosen, "alternatives": others, "rolled": _short(rolled), "heads": _short(heads)}
        yield 1, 1, ""

    def _do_contrast(self, models: list[str], **options) -> Progress:
        session, self.compare = self.session, {}
        for i, name in enumerate(models):
            for found in session.answer(name, Options(**options), keep=False):
                yield i * session.n + len(found.steps), len(models) * session.n, f"{name} answers"
            row = {"model": name, "seconds": found.seconds} | self._judged(session.pictures(found))
            self.compare = {"rows": [*self.compare.get("rows", []), row]}
            yield (i + 1) * session.n, len(models) * session.n, f"{name} answered in {found.seconds:.2f} s."

    def _do_vary(self, model: str, prompts: int = 16) -> Progress:
        session, rows, job = self.session, [], Job(self.session.asked.task, prompts=prompts, split=SPLIT)
        found = sensitivity.cases(session.tokenizer, job)
        yield 0, len(found), f"{len(found)} changes of {prompts} prompts"
        for row in sensitivity.measure(session.lvm(model), session.tokenizer, job, found):
            rows.append(row)
            figure = sensitivity_chart(rows)
            figure.canvas.draw()
            self.sensitivity = {"rows": rows, "task": job.task, "model": model, "picture": png(np.asarray(figure.canvas.buffer_rgba()))}
            yield len(rows), len(found), f"{row['group']}: {row['name']}"

    def _do_take(self) -> Progress:
        recipe, session = self.session.recipe(), self.session
        answers = {f"answer {i + 1}": picture for i, picture in enumerate(session.pictures(session.found))}
        shown = sheet([(f"{session.asked.task}, {recipe.model}", [session.asked], [answers])], columns=1, scale=2)
        self.taken = {"picture": png(np.asarray(shown)), "recipe": recipe.text()}
        yield 1, 1, "Ready to take away."

    def _do_open(self, source: bytes) -> Progress:
        recipe, session = Recipe.read(source), self.session
        session.set(recipe.asked, recipe.known)
        self._show_prompt()
        yield from self._growing(session.answer(recipe.model, recipe.options, recipe.forced))
        yield 1, 1, compared(session.found.of("ids"), recipe, made(session.lvm(recipe.model), session.tokenizer))

    def _growing(self, answers: Iterator[Answer]) -> Progress:
        shown, found = 0.0, None
        try:
            for found in answers:
                if time.perf_counter() - shown > EVERY:
                    self._show_answer(found)
                    shown = time.perf_counter()
                yield len(found.steps), self.session.n, f"{found.model} answers"
        finally:  # also where it is stopped
            if found is not None:
                self._show_answer(found)
        yield 1, 1, f"{found.model} answered in {found.seconds:.2f} s."

    def _show_prompt(self) -> None:
        asked, known = self.session.asked, self.session.known
        shown = [[png(pair.image), png(pair.label)] for pair in asked.pairs]
        self.prompt = {"task": asked.task, "examples": shown[:-1], "query": shown[-1][0], "truth": shown[-1][1] if known else "",
                       "colours": asked.encoding.colours, "grid": self.session.tokenizer.grid}  # fmt: skip
        self.answer, self.inside, self.compare, self.taken = {}, {}, {}, {}

    def _show_answer(self, found: Answer) -> None:
        pictures, first, whole = self.session.pictures(found), self.session.first, len(found.steps) == self.session.n
        parts = zip(pictures, *(found.of(name) for name in ("ids", "logprobs", "entropies")), strict=True)
        samples = [{"picture": png(p), "codes": ids.tolist(), "p": _short(log.exp()), "entropy": _short(h)} for p, ids, log, h in parts]
        self.answer = {"done": len(found.steps), "of": self.session.n, "model": found.model, "seconds": found.seconds, "samples": samples,
                       "first": [png(p) for p in self.session.pictures(first)] if first else []} | self._judged(pictures, whole)  # fmt: skip

    def _judged(self, pictures: np.ndarray, whole: bool = True) -> dict:
        """The mean of the answers, and the scores of the mean and, where there are several, of each."""
        mean = np.rint(pictures.astype(np.float32).mean(0)).astype(np.uint8)
        return {"mean": png(mean), "rows": self.session.rows([mean, *(pictures if len(pictures) > 1 else ())]) if whole else []}


def _short(values) -> list:
    return np.round(values.double().numpy(), 4).tolist()
