"""The prompt studio as it is used: its notebook in a real JupyterLab in a real Chromium.

Pictures of both themes go to runs/screenshots (LVMLAB_SCREENSHOTS names another folder). With
LVMLAB_BROWSER=required a missing browser is a
failure, not a skip.
"""

import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = next(ROOT.glob("notebooks/07_prompt_studio.ipynb"), None)
SHOTS = Path(os.environ.get("LVMLAB_SCREENSHOTS") or ROOT / "runs" / "screenshots")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [
    *(
        ["no Chromium is installed: apt-get install -y --no-install-recommends chromium"]
        if CHROMIUM is None
        else []
    ),
    *(
        ["playwright is not installed: pip install -e '.[browser]'"]
        if importlib.util.find_spec("pytest_playwright") is None
        else []
    ),
    *(["the notebook is in a checkout, which this is not"] if NOTEBOOK is None else []),
]
REQUIRED = os.environ.get("LVMLAB_BROWSER") == "required"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING) and not REQUIRED, reason="; ".join(MISSING)),
]
WAIT = 300_000  # ms: CI's machines may be slow; nothing here waits longer than it must

READY = """async () => {
    const until = async (what) => { while (!what()) await new Promise((next) => setTimeout(next, 100)); };
    await until(() => window.jupyterapp?.shell.currentWidget?.sessionContext);
    const widget = window.jupyterapp.shell.currentWidget;
    await widget.context.ready;
    await widget.sessionContext.ready;
    await until(() => widget.sessionContext.session?.kernel);
    await widget.sessionContext.session.kernel.info;
}"""
RAN = """() => {
    const cells = window.jupyterapp.shell.currentWidget.context.model.cells;
    return [...cells].filter((cell) => cell.type === 'code').every((cell) => cell.executionCount && cell.executionState !== 'running');
}"""
ERRORS = """() => [...window.jupyterapp.shell.currentWidget.context.model.cells].filter((cell) => cell.type === 'code')
    .flatMap((cell) => cell.outputs.toJSON()).filter((output) => output.output_type === 'error').map((output) => output.evalue)"""


@pytest.fixture(scope="session")
def browser_type_launch_args():
    return {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab of its own, started in a clean folder that holds the notebook and the
    picture it shows.
    """
    if MISSING:
        pytest.fail("; ".join(MISSING))
    folder, settings = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("settings")
    for name in ("notebooks", "assets"):
        (folder / name).mkdir()
    shutil.copy(NOTEBOOK, folder / "notebooks" / "studio.ipynb")
    shutil.copy(ROOT / "assets" / "studio.webp", folder / "assets")
    quiet = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
    ]
    command += [
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--ServerApp.disable_check_xsrf=True",
        "--LabApp.expose_app_in_browser=True",
    ]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(settings), "LVMLAB_SCALE": "smoke", "PYTHONPATH": path}
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, (folder / "lab.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module")
def page(lab, browser):
    """The notebook after all its cells ran; what went wrong in the browser's console is in
    ``page.complaints``.
    """
    page = browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True).new_page()
    page.set_default_timeout(WAIT)
    page.complaints = []
    page.on(
        "console", lambda message: page.complaints.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: page.complaints.append(error.stack))
    page.goto(f"{lab}/lab/tree/notebooks/studio.ipynb?reset")
    page.evaluate(READY)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".lvm-studio", timeout=WAIT)
    page.wait_for_function(RAN, timeout=WAIT, polling=500)
    assert page.evaluate(ERRORS) == []
    yield page
    page.context.close()


@pytest.fixture
def studio(page):
    return Studio(page)


class Studio:
    """The studio on the page, as a hand has it."""

    def __init__(self, page):
        self.page, self.root = page, page.locator(".lvm-studio").first

    def part(self, key):
        return self.root.locator(f'[data-key="{key}"]')

    def idle(self):
        """Until nothing is computed any more."""
        self.page.wait_for_function(
            "document.querySelector('.lvm-studio').getAttribute('aria-busy') === 'false'", timeout=WAIT
        )
        return self

    def becomes(self, what):
        """Whether it holds, at once or after a while: a browser reads files and draws when it likes."""
        for _ in range(WAIT // 100):
            if what():
                return True
            self.page.wait_for_timeout(100)
        return False

    def press(self, key):
        self.part(key).click()
        return self.idle()

    def choose(self, key, value):
        self.part(key).select_option(value)
        return self.idle()

    def set(self, key, value):
        self.part(key).fill(str(value))
        self.part(key).press("Tab")
        return self.idle()

    @property
    def said(self):
        return self.root.get_by_role("status").inner_text()

    @property
    def error(self):
        return self.root.get_by_role("alert").inner_text()

    def picture(self, index):
        """The image shown under the query, or in the strip: its source."""
        return self.root.locator(".lvm-strip img").nth(index).get_attribute("src")

    def answer(self):
        return self.root.get_by_alt_text("The answer", exact=True).get_attribute("src")

    def shot(self, name):
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.root.evaluate("(node) => node.scrollIntoView({ block: 'start' })")
        self.page.screenshot(path=SHOTS / f"{name}.png")


def png(colour):
    file = io.BytesIO()
    Image.fromarray(np.full((50, 80, 3), colour, np.uint8)).save(file, format="PNG")
    return {"name": "mine.png", "mimeType": "image/png", "buffer": file.getvalue()}


def test_a_prompt_is_chosen_and_edited(studio):
    studio.choose("task", "derain").choose("task", "segmentation").set("index", 2).set("examples", 4)
    assert studio.root.locator(".lvm-column").count() == 6 and studio.error == ""
    first, second = studio.picture(0), studio.picture(2)
    studio.press("slot-0-image").press("right")
    assert studio.picture(2) == first and studio.picture(0) == second
    studio.press("swap")
    assert studio.picture(3) == first
    studio.press("remove").press("add")
    assert studio.root.locator(".lvm-column").count() == 6
    label = studio.picture(1)
    studio.press("paper")
    assert studio.picture(1) != label and studio.error == ""


def test_it_answers_stops_and_answers_again(studio):
    studio.choose("model", "mini-teacher").choose("how", "sample").set(
        "answers", 8
    )  # long enough to be stopped
    studio.part("answer").click()
    studio.page.wait_for_function("document.querySelector('.lvm-studio .lvm-cover') !== null", timeout=WAIT)
    studio.part("stop").click()
    studio.idle()
    assert studio.said.startswith("Stopped after"), studio.said
    studio.choose("how", "greedy").choose("model", "mini-student").press("answer")
    greedy = studio.answer()
    assert (
        "mini-student answered in" in studio.said
        and studio.root.locator(".lvm-strip .lvm-cover").count() == 0
    )
    studio.choose("how", "sample").set("answers", 3).press("answer").press("tab-answers")
    assert studio.answer() != greedy and studio.root.locator(".lvm-card:visible").count() == 4
    assert (
        "skill" in studio.root.locator(".lvm-panel:visible").inner_text()
        and "ceiling" in studio.root.locator(".lvm-panel:visible").inner_text()
    )


def test_a_token_is_clicked_and_overridden(studio):
    studio.choose("how", "greedy").press("answer").press("tab-inside").press("cell-20")
    codes = studio.root.locator(".lvm-code:visible")
    assert (
        codes.count() == 8
        and codes.first.get_attribute("aria-pressed") == "true"
        and "looked at" in studio.root.inner_text()
    )
    assert studio.root.locator(".lvm-strip canvas").count() == 10, (
        "attention lies over every picture of the prompt and the answer"
    )
    first = studio.answer()
    codes.nth(5).click()
    studio.idle()
    assert studio.root.get_by_text("with your token").is_visible() and studio.answer() != first
    studio.press("cell-20").choose("layer", "0").choose("head", "1")
    studio.press("back")
    assert studio.answer() == first


def test_models_are_compared(studio):
    studio.press("tab-compare").press("compare")
    shown = studio.root.locator(".lvm-panel:visible")
    assert shown.locator("figure").count() == shown.locator('input[type="checkbox"]').count() >= 2
    assert all(name in shown.inner_text() for name in ("mini-teacher", "mini-student", " s ", "skill"))
    studio.set("checkpoint", "nowhere/at-all/x").press("compare")
    assert "no model 'nowhere/at-all/x'" in studio.error
    studio.set("checkpoint", "")


def test_what_the_answer_hangs_on_is_measured_and_can_be_stopped(studio):
    studio.choose("task", "motion").choose("model", "mini-student").press("tab-sensitivity").set("prompts", 4)
    studio.press("measure")
    chart = studio.root.locator("svg.lvm-chart")
    assert chart.locator("circle").count() == 6 and "number: 7" in chart.text_content() and studio.error == ""
    studio.shot("studio-light-sensitivity")
    studio.set("prompts", 40).part("measure").click()
    studio.page.wait_for_function(
        "document.querySelector('.lvm-studio').getAttribute('aria-busy') === 'true'", timeout=WAIT
    )
    studio.part("stop").click()
    assert studio.idle().said.startswith("Stopped after") and chart.locator("circle").count() < 6


def test_a_picture_is_uploaded_dropped_pasted_and_a_bad_one_refused(studio):
    studio.press("slot-0-image")
    before = studio.picture(0)
    for file, fine in (
        (png((10, 200, 30)), True),
        ({"name": "bad.png", "mimeType": "image/png", "buffer": b"no picture"}, False),
    ):
        with studio.page.expect_file_chooser() as chooser:
            studio.part("upload").click()
        chooser.value.set_files(file)
        assert (
            studio.becomes(lambda: studio.picture(0) != before)
            if fine
            else studio.becomes(lambda: studio.error != "")
        )
        assert (studio.idle().error == "") == fine, studio.error
    assert studio.picture(0) != before and "convert it to PNG or JPEG" in studio.error
    uploaded = studio.picture(0)
    data = studio.page.evaluate_handle("""async () => {
        const canvas = new OffscreenCanvas(20, 20);
        canvas.getContext('2d').fillRect(0, 0, 20, 20);
        const data = new DataTransfer();
        data.items.add(new File([await canvas.convertToBlob()], 'black.png', { type: 'image/png' }));
        return data;
    }""")
    studio.part("slot-0-image").dispatch_event("drop", {"dataTransfer": data})
    assert studio.becomes(lambda: studio.picture(0) != uploaded) and studio.idle().error == ""
    label = studio.press("slot-0-label").picture(1)
    paste = "(node, data) => node.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }))"
    studio.part("slot-0-label").evaluate(paste, data)
    assert (
        studio.becomes(lambda: studio.picture(1) != label)
        and studio.idle().error == ""
        and studio.picture(1) == studio.picture(0)
    )


def test_a_label_is_painted_by_keyboard(studio):
    studio.press("slot-0-label")
    before = studio.picture(1)
    studio.part("paint").press("Enter")
    canvas = studio.root.locator("canvas.lvm-canvas")
    canvas.press("Shift+Space")
    canvas.press("ArrowLeft")
    studio.root.get_by_role("button", name="Use it").press("Enter")
    assert studio.becomes(lambda: studio.picture(1) != before) and studio.idle().error == ""


def test_what_is_taken_away_comes_back(studio, tmp_path):
    studio.choose("how", "greedy").press("answer").press("tab-take").press("take")
    answer = studio.answer()
    for key in ("png", "recipe"):
        with studio.page.expect_download() as download:
            studio.part(key).click()
        download.value.save_as(tmp_path / key)
    assert (
        Image.open(tmp_path / "png").size[1] > 200
        and json.loads((tmp_path / "recipe").read_text())["model"] == "mini-student"
    )
    studio.choose("task", "pose")
    with studio.page.expect_file_chooser() as chooser:
        studio.part("open").click()
    chooser.value.set_files(
        {"name": "r.json", "mimeType": "application/json", "buffer": (tmp_path / "recipe").read_bytes()}
    )
    studio.page.get_by_text("The same answer as in the recipe").first.wait_for()
    assert studio.idle().answer() == answer


def test_it_goes_by_keyboard_and_every_control_has_a_name(studio):
    studio.choose("task", "segmentation").press("answer")
    studio.part("tab-answers").focus()
    studio.page.keyboard.press("ArrowRight")
    assert studio.part("tab-inside").get_attribute("aria-selected") == "true"
    studio.part("cell-0").focus()
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        studio.page.keyboard.press(key)
    studio.idle()
    assert (
        studio.part("cell-9").get_attribute("aria-pressed") == "true"
        and studio.root.locator(".lvm-code:visible").count() == 8
    )
    nameless = studio.root.evaluate("""(root) => [...root.querySelectorAll('button, input, select, canvas[tabindex]')].filter((node) =>
        !node.closest('[hidden]') && !node.getAttribute('aria-hidden') && !(node.getAttribute('aria-label') || node.innerText || node.labels?.length))
        .map((node) => node.outerHTML)""")
    assert nameless == []


def test_it_fits_the_screen_in_both_themes(studio):
    studio.set("examples", 7).choose("model", "mini-teacher").press("answer").press("cell-27")
    try:
        for theme in ("Light", "Dark"):
            studio.page.evaluate(
                f"window.jupyterapp.commands.execute('apputils:change-theme', "
                f"{{ theme: 'JupyterLab {theme}' }})"
            )
            studio.page.wait_for_selector(
                f'body[data-jp-theme-light="{str(theme == "Light").lower()}"]', state="attached"
            )
            studio.page.wait_for_timeout(500)
            for tab in ("inside", "answers", "compare", "take"):
                studio.press(f"tab-{tab}").shot(f"studio-{theme.lower()}-{tab}")
            contrast = studio.root.evaluate("""(root) => {
                const grey = (colour) => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
                const style = getComputedStyle(root);
                return Math.abs(grey(style.color) - grey(style.backgroundColor));
            }""")
            assert contrast > 120
    finally:
        studio.page.evaluate(
            "window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Light' })"
        )
    studio.press("tab-inside")
    box = studio.root.bounding_box()
    assert box["width"] <= 1280 and box["height"] <= 640
    wide = studio.root.evaluate("""(root) => [...root.querySelectorAll('div, section, p, button')].filter((node) =>
        node.clientWidth && node.scrollWidth > node.clientWidth + 1).map((node) => node.className)""")
    assert wide == []


def test_the_console_held_no_error(page):
    assert page.complaints == []
