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
    const found = model.get("sensitivity");
    const text = (row) => [row.group, row.name, ...["skill", "skill_low", "skill_high"].map((key) => (row[key] === null ? "-" : row[key].toFixed(2)))];
    fill(chart, found.rows && [
      h("img", { src: source(found.picture), className: "lvm-chart", alt: `Skill of ${found.model} at ${found.task} under each change; the table has the numbers` }),
      h("details", {}, h("summary", {}, "The numbers"), h("table", {},
        h("tr", {}, ["change", "", "skill", "low", "high"].map((title) => h("th", { scope: "col" }, title))),
        found.rows.map((row) => h("tr", {}, text(row).map((value) => h("td", {}, value))))))]);
  }
  return { node, update };
}

const CELL = `from lvmlab.widgets.session import Session

session = Session()
print(session.replay(open("lvmlab-recipe.json").read()))  # says whether the answer is the same
pictures = session.pictures(session.found)  # uint8 (answers, 64, 64, 3)`;

function takePanel(studio) {
  const { model, act } = studio;
  const file = h("input", { type: "file", accept: ".json,application/json", className: "lvm-hidden", tabIndex: -1, "aria-hidden": "true", onchange: async () => {
    const chosen = file.files[0];
    file.value = "";
    if (chosen) act("open", {}, await chosen.arrayBuffer());
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
    fill(links, taken.recipe && [
      h("a", { href: source(taken.picture), download: "lvmlab-prompt.png", "data-key": "png" }, "Picture (PNG)"),
      h("a", { href: recipe, download: "lvmlab-recipe.json", "data-key": "recipe" }, "Recipe (JSON)")]);
  }
  return { node, update };
}
