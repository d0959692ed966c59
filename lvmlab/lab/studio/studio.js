// The studio: its parts, its tabs, and the way between them and the kernel.

function render({ model, el }) {
  const ui = { at: 0, side: "label", sample: 0, place: undefined, layer: "all", head: "all", tab: "answers", first: "", sent: false, fault: "" };
  const studio = { model, ui, parts: {}, act, fail, heat, sums };
  const parts = Object.assign(studio.parts, { answer: answerPart(studio), prompt: promptPart(studio), answers: answersPanel(studio), inside: insidePanel(studio),
    compare: comparePanel(studio), sensitivity: sensitivityPanel(studio), take: takePanel(studio) });
  const names = { answers: "Answer", inside: "Inside", compare: "Compare", sensitivity: "Sensitivity", take: "Take away" };

  // Python does one thing after another.
  function act(name, given = {}, buffer = undefined) {
    Object.assign(ui, { fault: "", sent: name !== "stop" });
    parts.answer.status();
    model.send({ do: name, ...given }, undefined, buffer ? [new DataView(buffer)] : undefined);
  }

  function fail(sentence) {
    ui.fault = sentence;
    parts.answer.status();
  }

  // Attention as the Inside tab has it chosen: one weight for each token before the place; undefined where none is shown.
  function weights() {
    const looked = model.get("inside");
    if (!looked.heads || ui.tab !== "inside") return undefined;
    if (ui.layer === "all") return looked.rolled;
    const heads = looked.heads[Number(ui.layer)];
    return ui.head === "all" ? heads[0].map((_, i) => heads.reduce((sum, row) => sum + row[i], 0) / heads.length) : heads[Number(ui.head)];
  }

  // Of the picture at a place in the prompt, in 0..1: the brightest are the top hundredth, for one token can hold most of the weight; square
  // roots, so that what is little shows beside what is much.
  function heat() {
    const found = weights(), n = model.get("prompt").grid ** 2;
    const most = found && Math.max([...found].sort((a, b) => b - a)[Math.floor(found.length / 100)], 1e-9);
    return (at) => found && Array.from({ length: n }, (_, i) => Math.sqrt(Math.min(1, (found[at * n + i] || 0) / most)));
  }

  function sums() {
    const found = weights() || [], n = model.get("prompt").grid ** 2;
    return Array.from({ length: 2 * model.get("prompt").examples.length + 2 }, (_, at) => found.slice(at * n, (at + 1) * n).reduce((a, b) => a + b, 0));
  }

  const tabs = h("div", { className: "lvm-tabs", role: "tablist", "aria-label": "Views" }), panels = h("div", {});
  const number = `lvm${Math.random().toString(36).slice(2)}`; // ids of this view alone: a widget can be shown twice
  for (const [key, name] of Object.entries(names)) {
    const tab = button(name, () => show(key), { role: "tab", id: `${number}-${key}-tab`, "aria-controls": `${number}-${key}`, "data-key": `tab-${key}` });
    tab.addEventListener("keydown", (event) => {
      const keys = Object.keys(names), step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) show(keys[(keys.indexOf(key) + step + keys.length) % keys.length], true);
    });
    tabs.append(tab);
    Object.assign(parts[key].node, { id: `${number}-${key}`, role: "tabpanel" });
    parts[key].node.setAttribute("aria-labelledby", `${number}-${key}-tab`);
    panels.append(parts[key].node);
  }

  function show(key, focus = false) {
    ui.tab = key;
    for (const name of Object.keys(names)) {
      const tab = tabs.querySelector(`[data-key="tab-${name}"]`);
      tab.setAttribute("aria-selected", String(name === key));
      tab.tabIndex = name === key ? 0 : -1;
      parts[name].node.hidden = name !== key;
      if (name === key && focus) tab.focus();
    }
    parts[key].update();
    parts.prompt.update();
  }

  // Shortcuts of the notebook must not act on keys that are meant for the studio.
  const root = h("div", { className: "lvm-studio", role: "region", "aria-label": "Prompt studio", "data-lm-suppress-shortcuts": "true" },
    parts.prompt.node, parts.answer.node, tabs, panels);
  el.append(root);
  const heard = {
    "change:prompt": () => { ui.place = undefined; parts.prompt.update(); parts[ui.tab].update(); },
    "change:answer": () => { parts.prompt.update(); parts[ui.tab].update(); },
    "change:inside": () => { parts.prompt.update(); parts.inside.update(); },
    "change:compare": parts.compare.update,
    "change:sensitivity": parts.sensitivity.update,
    "change:taken": parts.take.update,
    "change:status": () => { ui.sent = false; parts.answer.status(); },
  };
  for (const [event, listener] of Object.entries(heard)) model.on(event, listener);
  show("answers");
  parts.answer.status();
  return () => { for (const [event, listener] of Object.entries(heard)) model.off(event, listener); };
}

export default { render };
