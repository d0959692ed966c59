// Compare, Sensitivity, Take away.

function comparePanel(studio) {
  const { model, act } = studio;
  const boxes = model.get("choices").models.map((name) => h("input", { type: "checkbox", checked: true, value: name, "data-key": `compare-${name}` }));
  const other = h("input", { type: "text", placeholder: "a checkpoint's folder", size: 24, "data-key": "checkpoint" });
  const table = h("div", {});
  const run = () => act("contrast", { models: [...boxes.filter((box) => box.checked).map((box) => box.value), ...(other.value ? [other.value] : [])], ...studio.parts.answer.options() });
  const node = h("div", { className: "lvm-panel" },
    h("div", { className: "lvm-bar" }, boxes.map((box) => field(box.value, box)), field("and", other), button("Compare", run, { className: "lvm-primary", "data-key": "compare" }),
      h("span", { className: "lvm-hint" }, "the same prompt, seed and settings")), table);
  function update() {
    const rows = model.get("compare").rows || [], { grid } = model.get("prompt");
    fill(table, rows.length > 0 && h("div", { className: "lvm-cards" }, rows.map((row) => h("figure", { className: "lvm-card" }, picture(row.mean, `The answer of ${row.model}`, { grid }),
      h("figcaption", {}, h("strong", {}, row.model), h("span", {}, ` ${row.seconds.toFixed(2)} s`), row.rows[0] ? h("span", {}, ` ${scored(row.rows[0])}`) : "")))));
  }
  return { node, update };
}

function sensitivityPanel(studio) {
  const { model, act } = studio;
  const prompts = number(16, 4, 200, 4, { "data-key": "prompts" }), chart = h("div", {});
  const run = () => act("vary", { model: studio.parts.answer.who.value, prompts: Number(prompts.value) });
  const node = h("div", { className: "lvm-panel" },
    h("div", { className: "lvm-bar" }, field("Prompts", prompts), button("Measure", run, { className: "lvm-primary", "data-key": "measure" }),
      h("span", { className: "lvm-hint" }, "this task's val prompts, four sampled answers each, changed in one way at a time; about a minute")), chart);
  function update() {
    const rows = model.get("sensitivity").rows || [];
    const text = (row) => [row.group, row.name, ...["skill", "skill_low", "skill_high"].map((key) => (row[key] === null ? "-" : row[key].toFixed(2)))];
    fill(chart, rows.length > 0 && [
      h("p", {}, `Skill of ${rows[0].model} at ${rows[0].task} with 95 % intervals over sources, ${rows[0].prompts} prompts; 0 is the best floor, 1 the ceiling.`),
      intervals(rows.filter((row) => row.skill !== null)),
      h("details", {}, h("summary", {}, "The numbers"), h("table", {},
        h("tr", {}, ["change", "", "skill", "low", "high"].map((title) => h("th", { scope: "col" }, title))),
        rows.map((row) => h("tr", {}, text(row).map((value) => h("td", {}, value))))))]);
  }
  return { node, update };
}

// Rows {group, name, skill, skill_low, skill_high} as dots with intervals, in the theme's own colours; the first is the plain prompt, a band.
function intervals(rows) {
  const left = 150, width = 640, line = 17, height = rows.length * line + 26;
  const low = Math.min(0, ...rows.map((row) => row.skill_low)), high = Math.max(0.2, ...rows.map((row) => row.skill_high));
  const x = (value) => left + ((value - low) / (high - low)) * (width - left - 12);
  const step = high - low > 2.5 ? 1 : high - low > 1.2 ? 0.5 : 0.2, ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(i * step);
  const bottom = height - 22, chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "lvm-chart", role: "img",
    "aria-label": "Skill under each change, with intervals; the table below has the numbers" });
  if (rows.length) chart.append(svg("rect", { x: x(rows[0].skill_low), y: 0, width: x(rows[0].skill_high) - x(rows[0].skill_low), height: bottom, class: "lvm-band" }));
  for (const tick of ticks) {
    chart.append(svg("line", { x1: x(tick), x2: x(tick), y1: 0, y2: bottom, class: Math.abs(tick) < 1e-9 ? "lvm-zero" : "lvm-tick" }),
      svg("text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, tick.toFixed(1)));
  }
  rows.forEach((row, i) => {
    const y = i * line + line / 2;
    chart.append(svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, `${row.group}: ${row.name}`),
      svg("line", { x1: x(row.skill_low), x2: x(row.skill_high), y1: y, y2: y, class: "lvm-interval" }), svg("circle", { cx: x(row.skill), cy: y, r: 4, class: "lvm-dot" }));
  });
  return chart;
}

const CELL = `from lvmlab.lab.studio.session import Session

session = Session()
*_, answer = session.replay(open("lvmlab-recipe.json").read())
print(answer.message)  # whether the answer is the same
pictures = session.pictures(answer)  # uint8 (answers, 64, 64, 3)`;

function takePanel(studio) {
  const { model, act } = studio;
  const file = h("input", { type: "file", accept: ".json,application/json", className: "lvm-hidden", tabIndex: -1, "aria-hidden": "true", onchange: async () => {
    const chosen = file.files[0];
    file.value = "";
    if (chosen) act("replay", {}, await chosen.arrayBuffer());
  } });
  const links = h("span", { className: "lvm-bar" });
  const copy = button("Copy the cell", async () => {
    await navigator.clipboard.writeText(CELL);
    copy.textContent = "Copied";
  }, { "data-key": "copy" });
  const node = h("div", { className: "lvm-panel" },
    h("div", { className: "lvm-bar" }, button("Take away", () => act("take"), { className: "lvm-primary", "data-key": "take" }), links,
      button("Open a recipe…", () => file.click(), { "data-key": "open" }), file),
    h("p", { className: "lvm-hint" }, "The recipe holds every picture, the model's name and the settings. This cell does it again, and says whether the answer is the same:"),
    h("pre", { tabIndex: 0, "aria-label": "The cell that does it again" }, CELL), copy);
  function update() {
    const taken = model.get("taken");
    const recipe = taken.recipe && URL.createObjectURL(new Blob([taken.recipe], { type: "application/json" }));
    const png = h("a", { download: "lvmlab-prompt.png", "data-key": "png" }, "Picture (PNG)");
    fill(links, taken.recipe && [png, h("a", { href: recipe, download: "lvmlab-recipe.json", "data-key": "recipe" }, "Recipe (JSON)")]);
    if (taken.recipe && model.get("answer").samples) poster(model.get("prompt"), model.get("answer")).then((url) => { png.href = url; });
  }
  return { node, update };
}

// The prompt, its answers and the truth as one PNG on white.
async function poster(prompt, answer) {
  const side = 128, gap = 6, top = 22;
  const columns = [...prompt.examples.map((pair, i) => [`example ${i + 1}`, ...pair]), ["query and answer", prompt.query, answer.mean]];
  if (answer.samples.length > 1) answer.samples.forEach((sample, i) => columns.push([`answer ${i + 1}`, "", sample.picture]));
  if (prompt.truth) columns.push(["truth", "", prompt.truth]);
  const canvas = h("canvas", { width: columns.length * (side + gap) + gap, height: top + 2 * (side + gap) });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#111";
  pen.font = "13px sans-serif";
  pen.imageSmoothingEnabled = false;
  for (const [i, [title, ...pictures]] of columns.entries()) {
    pen.fillText(title, gap + i * (side + gap), 15);
    for (const [row, base64] of pictures.entries()) {
      if (!base64) continue;
      const image = new Image();
      image.src = source(base64);
      await image.decode();
      pen.drawImage(image, gap + i * (side + gap), top + row * (side + gap), side, side);
    }
  }
  return canvas.toDataURL("image/png");
}
