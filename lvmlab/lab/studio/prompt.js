// The prompt: which one is drawn, the strip of its pictures, and what can be done with the chosen one.

const LARGEST = 6e6; // bytes: what a message to the kernel may hold

function promptPart(studio) {
  const { model, ui, act } = studio;
  const choices = model.get("choices");
  const task = choice(choices.tasks.map((name) => [name, name]), { onchange: draw, "data-key": "task" });
  const index = number(0, 0, 9999, 1, { onchange: draw, "data-key": "index" });
  const examples = number(3, 1, 7, 1, { onchange: draw, "data-key": "examples" });
  const seed = number(0, 0, 9999, 1, { "data-key": "shuffle-seed" });
  const [foreground, background] = ["foreground", "background"].map((name) => h("input", { type: "color", "aria-label": `${name} of the labels` }));
  const rgb = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
  const hex = (colour) => `#${colour.map((c) => c.toString(16).padStart(2, "0")).join("")}`;
  const recolour = (colours) => act("recolour", { foreground: colours[0], background: colours[1] });
  const strip = h("div", { className: "lvm-strip", role: "group", "aria-label": "The prompt: example pairs, then the query" });
  const tools = h("div", { className: "lvm-bar lvm-tools", role: "toolbar", "aria-label": "What to do with the chosen picture" });
  const upload = h("input", { type: "file", accept: "image/*", className: "lvm-hidden", tabIndex: -1, "aria-hidden": "true", onchange: () => {
    put(upload.files[0], ui.at, ui.side);
    upload.value = "";
  } });
  const dialog = h("dialog", { className: "lvm-paint", "aria-label": "Paint" });
  const node = h("section", { "aria-label": "Prompt" },
    h("div", { className: "lvm-bar" },
      field("Task", task), field("Prompt", index, "Which of mini-world's val prompts"), field("Examples", examples),
      button("Shuffle", shuffle, { "data-key": "shuffle" }), field("seed", seed),
      h("span", { className: "lvm-field", title: "The labels' two colours" }, foreground, " on ", background),
      button("Recolour", () => recolour([rgb(foreground.value), rgb(background.value)]), { "data-key": "recolour" }),
      button("Pink on black", () => recolour(choices.paper), { title: "The colours of DeLVM's paper", "data-key": "paper" })),
    strip, tools, upload, dialog);

  function draw() {
    act("draw", { task: task.value, index: Number(index.value), examples: Number(examples.value) });
  }

  async function put(file, at, side) {
    if (!file) return;
    if (file.size > LARGEST) studio.fail(`${file.name} is larger than ${LARGEST / 1e6} MB: make it smaller, the studio needs a few dozen pixels a side.`);
    else act("put", { at, side }, await file.arrayBuffer());
  }

  function name(at, side) {
    const count = model.get("prompt").examples.length;
    return at === count ? (side === "image" ? "Query" : "Answer") : `Example ${at + 1}, ${side}`;
  }

  function slot(base64, at, side, heat) {
    const chosen = ui.at === at && ui.side === side;
    return h("button", {
      type: "button", className: "lvm-slot", "aria-label": name(at, side), "aria-pressed": String(chosen), "data-key": `slot-${at}-${side}`,
      onclick: () => { Object.assign(ui, { at, side }); update(); },
      onkeydown: (event) => walk(event, at, side),
      ondragover: (event) => event.preventDefault(),
      ondrop: (event) => {
        event.preventDefault();
        event.stopPropagation();
        Object.assign(ui, { at, side });
        put(event.dataTransfer.files[0], at, side);
      },
    }, picture(base64, "", { grid: model.get("prompt").grid, heat }));
  }

  // Arrow keys go from picture to picture.
  function walk(event, at, side) {
    const step = { ArrowLeft: [-1, side], ArrowRight: [1, side], ArrowUp: [0, "image"], ArrowDown: [0, "label"] }[event.key];
    if (!step) return;
    event.preventDefault();
    strip.querySelector(`[data-key="slot-${at + step[0]}-${step[1]}"]`)?.focus();
  }

  function arrange(change, swapped = []) {
    const order = [...model.get("prompt").examples.keys()];
    change(order);
    act("arrange", { order, swapped });
  }

  function shuffle() {
    const draw = chance(Number(seed.value));
    arrange((order) => {
      for (let i = order.length - 1; i > 0; i--) {
        const j = Math.floor(draw() * (i + 1));
        [order[i], order[j]] = [order[j], order[i]];
      }
    });
  }

  function move(by) {
    const count = model.get("prompt").examples.length, to = (ui.at + by + count) % count;
    const from = ui.at;
    ui.at = to;
    arrange((order) => order.splice(to, 0, ...order.splice(from, 1)));
  }

  function update() {
    const prompt = model.get("prompt"), count = prompt.examples.length;
    if (ui.at > count) Object.assign(ui, { at: count, side: "image" });
    task.value = prompt.task;
    examples.value = count;
    if (prompt.colours) [foreground.value, background.value] = prompt.colours.map(hex);
    for (const control of node.querySelectorAll('[type="color"], [data-key="recolour"], [data-key="paper"]')) control.disabled = !prompt.colours;
    const answer = model.get("answer"), heat = studio.heat();
    const column = (title, ...parts) => h("div", { className: "lvm-column" }, h("span", { className: "lvm-title" }, title), ...parts);
    const columns = prompt.examples.map((pair, at) => column(`${at + 1}`, slot(pair[0], at, "image", heat(2 * at)), slot(pair[1], at, "label", heat(2 * at + 1))));
    columns.push(column("query", slot(prompt.query, count, "image", heat(2 * count)),
      picture(answer.mean, answer.mean ? "The answer" : "No answer yet", { grid: prompt.grid, done: answer.mean ? answer.done : undefined, heat: heat(2 * count + 1) })));
    columns.push(column("truth", h("span", { className: "lvm-picture" }), picture(prompt.truth, prompt.truth ? "The true label" : "The truth is not known")));
    const add = button("+", () => arrange((order) => order.push(count)), { "aria-label": "Add an example", title: "Add an example", className: "lvm-add", disabled: count >= 7, "data-key": "add" });
    columns.splice(count, 0, add);
    fill(strip, columns);
    const example = ui.at < count;
    fill(tools, h("strong", {}, name(ui.at, ui.side)),
      example && [
        button("◀ Left", () => move(-1), { "data-key": "left", "aria-label": "Move the example left" }),
        button("Right ▶", () => move(1), { "data-key": "right", "aria-label": "Move the example right" }),
        button("Swap", () => arrange(() => {}, [ui.at]), { "data-key": "swap", "aria-label": "Swap image and label" }),
        button("Remove", () => arrange((order) => order.splice(ui.at, 1)), { "data-key": "remove", disabled: count < 2, "aria-label": "Remove the example" }),
      ],
      button("Paint…", () => paint(dialog, studio, ui.at, ui.side, ui.at < count ? prompt.examples[ui.at][ui.side === "image" ? 0 : 1] : prompt.query, prompt.colours && prompt.colours.map(hex)), { "data-key": "paint" }),
      button("Upload…", () => upload.click(), { "data-key": "upload" }),
      h("span", { className: "lvm-hint" }, "or drop, or paste, a picture onto it"));
  }

  node.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) put(file, ui.at, ui.side);
  });
  return { node, update };
}

// A picture painted by hand: with the pointer, or with arrow keys and space.
function paint(dialog, studio, at, side, base64, colours) {
  const back = document.activeElement, size = 64, scale = 5, brush = { x: 32, y: 32 };
  const canvas = h("canvas", { width: size, height: size, tabIndex: 0, className: "lvm-canvas", role: "application",
    "aria-label": "Canvas: arrow keys move the brush, space paints, shift with space fills" });
  const pen = canvas.getContext("2d"), cursor = h("i", { className: "lvm-cursor" });
  const ink = h("input", { type: "color", value: (colours || ["#ffb6cb"])[0], "aria-label": "colour" });
  const width = number(6, 1, 32, 1), image = new Image();
  image.onload = () => pen.drawImage(image, 0, 0, size, size);
  image.src = source(base64);
  const place = () => {
    const w = Number(width.value);
    cursor.style.cssText = `left:${(brush.x - w / 2) * scale}px;top:${(brush.y - w / 2) * scale}px;width:${w * scale}px;height:${w * scale}px`;
  };
  const dab = () => {
    pen.fillStyle = ink.value;
    pen.fillRect(Math.round(brush.x - width.value / 2), Math.round(brush.y - width.value / 2), Number(width.value), Number(width.value));
  };
  const fillAll = () => { pen.fillStyle = ink.value; pen.fillRect(0, 0, size, size); };
  const follow = (event) => {
    const box = canvas.getBoundingClientRect();
    Object.assign(brush, { x: ((event.clientX - box.left) / box.width) * size, y: ((event.clientY - box.top) / box.height) * size });
    place();
    if (event.buttons) dab();
  };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); follow(event); });
  canvas.addEventListener("pointermove", follow);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] }[event.key];
    if (step) Object.assign(brush, { x: Math.min(64, Math.max(0, brush.x + step[0])), y: Math.min(64, Math.max(0, brush.y + step[1])) });
    else if (event.key === " ") (event.shiftKey ? fillAll : dab)();
    else return;
    event.preventDefault();
    place();
  });
  width.addEventListener("input", place);
  const close = () => { dialog.close(); back?.focus(); };
  const use = () => canvas.toBlob(async (blob) => { close(); studio.act("put", { at, side }, await blob.arrayBuffer()); });
  fill(dialog,
    h("div", { className: "lvm-bar" },
      (colours || []).map((colour, i) => button("", () => { ink.value = colour; }, { className: "lvm-swatch", style: `background:${colour}`, "aria-label": ["foreground", "background"][i] })),
      field("Colour", ink), field("Brush", width), button("Fill", fillAll)),
    h("div", { className: "lvm-easel" }, canvas, cursor),
    h("div", { className: "lvm-bar" }, button("Use it", use, { className: "lvm-primary" }), button("Cancel", close)));
  dialog.oncancel = () => back?.focus();
  place();
  dialog.showModal();
  canvas.focus();
}
