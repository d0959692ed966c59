// Inside: where the answer was sure, what else could stand at a place, where the model looked, and another token there.

function insidePanel(studio) {
  const { model, ui, act } = studio;
  const overlay = choice([["entropy", "entropy"], ["p", "probability"], ["", "nothing"]], { onchange: () => update(), "data-key": "overlay" });
  const sample = h("select", { onchange: () => { ui.sample = Number(sample.value); update(); }, "data-key": "sample" });
  const layer = h("select", { onchange: attend, "data-key": "layer" }), head = h("select", { onchange: attend, "data-key": "head" });
  const map = h("div", { className: "lvm-map", role: "group" }), legend = h("div", { className: "lvm-legend" });
  const place = h("div", { className: "lvm-place", "aria-live": "polite" });
  const shares = h("p", { className: "lvm-hint" }), versions = h("div", { className: "lvm-cards" });
  const node = h("div", { className: "lvm-panel lvm-inside" },
    h("div", {}, h("div", { className: "lvm-bar" }, field("Laid over", overlay), field("Answer", sample)), map, legend),
    h("div", { className: "lvm-wide" }, place,
      h("div", { className: "lvm-bar" }, field("Attention of layer", layer), field("head", head)), shares, versions));

  function attend() {
    Object.assign(ui, { layer: layer.value, head: head.value });
    update();
    studio.parts.prompt.update();
  }

  function cell(i, found, grid, most) {
    const value = { entropy: () => found.entropy[i] / most, p: () => 1 - found.p[i] }[overlay.value];
    const label = `Row ${Math.floor(i / grid) + 1}, column ${(i % grid) + 1}: code ${found.codes[i]}, probability ${percent(found.p[i])}, entropy ${found.entropy[i].toFixed(2)} nats`;
    return h("button", { type: "button", className: "lvm-cell", "aria-label": label, title: label, "aria-pressed": String(ui.place === i), "data-key": `cell-${i}`,
      tabIndex: i === (ui.place ?? 0) ? 0 : -1, style: value ? `background:${shade(value(), 0.72)}` : "", onkeydown: (event) => walk(event, i, grid),
      onclick: () => { ui.place = i; act("look", { sample: ui.sample, place: i }); update(); } });
  }

  function walk(event, i, grid) {
    const to = { ArrowLeft: i - 1, ArrowRight: i + 1, ArrowUp: i - grid, ArrowDown: i + grid }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    map.querySelector(`[data-key="cell-${to}"]`)?.focus();
  }

  function update() {
    const answer = model.get("answer"), looked = model.get("inside"), { grid } = model.get("prompt");
    if (!answer.samples) {
      for (const box of [map, legend, place, versions, shares]) fill(box);
      return fill(place, h("p", { className: "lvm-hint" }, "There is no answer to look into yet: press Answer, then click one of its tokens here."));
    }
    ui.sample = Math.min(ui.sample, answer.samples.length - 1);
    fill(sample, answer.samples.map((_, i) => h("option", { value: i, selected: i === ui.sample }, `${i + 1}`)));
    const found = answer.samples[ui.sample], most = Math.max(1, ...found.entropy);
    map.setAttribute("aria-label", "The answer's tokens; arrow keys go from one to the next");
    fill(map, picture(found.picture, "", { grid, done: answer.done }), found.codes.map((_, i) => cell(i, found, grid, most)));
    map.style.setProperty("--grid", grid);
    const ends = { entropy: ["0", `${most.toFixed(1)} nats`], p: ["probability 1", "0"] }[overlay.value];
    fill(legend, ends && [ends[0], h("i", { style: `background:linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map((v) => shade(v)).join(",")})` }), ends[1]]);
    here(looked, answer);
    const first = answer.first && ui.first;
    fill(versions, first && [
      h("figure", { className: "lvm-card" }, picture(first, "The first answer", { grid }), h("figcaption", {}, "first answer")),
      h("figure", { className: "lvm-card" }, picture(found.picture, "With your token", { grid, done: answer.done }), h("figcaption", {}, "with your token")),
      button("Back to the first", () => act("back"), { "data-key": "back" })]);
  }

  // The answer as it is now is the first one, unless a token was chosen in it already.
  function choose(place, code) {
    const answer = model.get("answer");
    if (!answer.first) ui.first = answer.samples[ui.sample].picture;
    act("choose", { sample: ui.sample, place, code });
    ui.sample = 0;
  }

  function here(looked, answer) {
    const asked = looked.heads && looked.sample === ui.sample;
    layer.disabled = head.disabled = !asked;
    if (!asked) {
      fill(shares);
      return fill(place, h("p", { className: "lvm-hint" }, "Click a token: what else could stand there, and where the model looked to predict it."));
    }
    const grid = model.get("prompt").grid, at = looked.place;
    fill(place,
      h("p", {}, h("strong", {}, `Row ${Math.floor(at / grid) + 1}, column ${(at % grid) + 1}`), `: what could stand there. Press one, and the rest is written again after it.`),
      h("div", { className: "lvm-cards" }, looked.alternatives.map(({ code, p, picture: base64 }) => button([picture(base64, "", { grid: 3 }), h("span", {}, percent(p))],
        () => choose(at, code),
        { className: "lvm-code", "aria-label": `Code ${code}, probability ${percent(p)}`, "aria-pressed": String(code === answer.samples[ui.sample].codes[at]), "data-key": `code-${code}` }))));
    const names = (count, text) => Array.from({ length: count }, (_, i) => [String(i), `${i + 1} ${text}`.trim()]);
    const keep = (select, options, value) => { fill(select, options.map(([v, t]) => h("option", { value: v, selected: v === value }, t))); };
    keep(layer, [["all", "all, rolled up"], ...names(looked.heads.length, "")], ui.layer);
    keep(head, [["all", "mean of all"], ...names(looked.heads[0].length, "")], ui.head);
    head.disabled = ui.layer === "all";
    const count = model.get("prompt").examples.length, sums = studio.sums(), total = sums.reduce((a, b) => a + b, 0) || 1;
    const part = (which) => percent(sums.filter((_, i) => which(i)).reduce((a, b) => a + b, 0) / total);
    fill(shares, `In the prompt above, what it looked at stays bright: the examples' images ${part((i) => i < 2 * count && i % 2 === 0)}, their labels `,
      `${part((i) => i < 2 * count && i % 2 === 1)}, the query ${part((i) => i === 2 * count)}, its own answer ${part((i) => i === 2 * count + 1)}.`);
  }

  return { node, update };
}
