// How to answer, the answer's progress, and the panel of answers with their scores.

function answerPart(studio) {
  const { model, ui, act } = studio;
  const who = choice(model.get("choices").models.map((name) => [name, name]), { "data-key": "model" });
  const how = choice([["greedy", "greedy"], ["sample", "sampled"]], { onchange: allow, "data-key": "how" });
  const temperature = number(1, 0.05, 5, 0.05, { "data-key": "temperature" });
  const topK = number("", 1, 8192, 1, { placeholder: "all", "data-key": "top-k" });
  const topP = number("", 0.01, 1, 0.01, { placeholder: "1", "data-key": "top-p" });
  const answers = number(4, 1, 16, 1, { "data-key": "answers" });
  const seed = number(0, 0, 99999, 1, { "data-key": "seed" });
  const constrained = h("input", { type: "checkbox", "data-key": "constrained" });
  const go = button("Answer", () => act("answer", { model: who.value, ...options() }), { className: "lvm-primary", "data-key": "answer" });
  const stop = button("Stop", () => act("stop"), { disabled: true, "data-key": "stop" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const message = h("span", { role: "status" });
  const error = h("p", { role: "alert", className: "lvm-error" });
  const node = h("section", { "aria-label": "Answer" },
    h("div", { className: "lvm-bar" }, field("Model", who), field("Decoding", how), field("Temperature", temperature), field("Top-k", topK), field("Top-p", topP),
      field("Answers", answers), field("Seed", seed)),
    h("div", { className: "lvm-bar" }, go, stop, field("Labels' codes only", constrained, "Only codes that occur in the prompt's labels may be written"),
      bar, message), error);

  function allow() {
    for (const control of [temperature, topK, topP, answers, seed]) control.disabled = how.value === "greedy";
  }

  function options() {
    const common = { constrained: constrained.checked };
    if (how.value === "greedy") return common;
    const drawn = { sample: true, temperature: Number(temperature.value), answers: Number(answers.value), seed: Number(seed.value) };
    return { ...common, ...drawn, ...(topK.value ? { top_k: Number(topK.value) } : {}), ...(topP.value ? { top_p: Number(topP.value) } : {}) };
  }

  // Where the kernel is slow to say so, the press itself shows.
  function status() {
    const now = model.get("status"), busy = Boolean(now.busy) || ui.sent;
    bar.hidden = !busy;
    if (now.of) bar.value = now.done / now.of;
    else bar.removeAttribute("value");
    stop.disabled = !busy;
    const text = now.busy ? `${now.message || "Working"}…` : now.message || "";
    if (message.textContent !== text) message.textContent = text;
    if (error.textContent !== (ui.fault || now.error || "")) error.textContent = ui.fault || now.error || "";
    node.closest(".lvm-studio")?.setAttribute("aria-busy", String(busy));
  }

  allow();
  return { node, status, options, who };
}

function answersPanel(studio) {
  const node = h("div", { className: "lvm-panel" });
  function update() {
    const answer = studio.model.get("answer"), { grid } = studio.model.get("prompt");
    if (!answer.samples) return fill(node, h("p", { className: "lvm-hint" }, "Press Answer. The answer appears under the query, token by token."));
    const many = answer.samples.length > 1;
    const shown = (base64, name, row) => h("figure", { className: "lvm-card" }, picture(base64, name, { grid, done: answer.done }),
      h("figcaption", {}, h("strong", {}, name), row ? h("span", {}, ` ${row.metric} ${row.score.toFixed(2)}${row.skill === null ? "" : `, skill ${row.skill.toFixed(2)}`}`) : ""));
    fill(node,
      h("div", { className: "lvm-cards" }, shown(answer.mean, many ? "mean" : "answer", answer.rows[0]),
        many && answer.samples.map((sample, i) => shown(sample.picture, `${i + 1}`, answer.rows[i + 1]))),
      h("p", {}, `${answer.model}, ${answer.done} of ${answer.of} tokens in ${answer.seconds.toFixed(2)} s. `, scored(answer.rows[0])),
      answer.rows[0] && h("p", { className: "lvm-hint" }, "Skill 0 is the best answer that needs no model, 1 the truth after the tokenizer's round trip."));
  }
  return { node, update };
}
