// What all parts of the studio share: making elements, keeping the focus, pictures with something laid over them.

function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && key !== "list") node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

// New content; whatever had the focus and comes back under the same data-key has it again.
function fill(box, ...children) {
  const key = box.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  box.replaceChildren(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  if (key) box.querySelector(`[data-key="${key}"]`)?.focus({ preventScroll: true });
}

const source = (base64) => `data:image/png;base64,${base64}`;
const percent = (p) => (p >= 0.995 ? "100 %" : p >= 0.1 ? `${Math.round(100 * p)} %` : `${(100 * p).toPrecision(2)} %`);

function button(text, onclick, props = {}) {
  return h("button", { type: "button", onclick, ...props }, text);
}

function field(text, control, title) {
  return h("label", { className: "lvm-field", title }, h("span", {}, text), control);
}

function number(value, min, max, step, props = {}) {
  return h("input", { type: "number", value, min, max, step, ...props });
}

function choice(options, props = {}) {
  return h("select", props, options.map(([value, text]) => h("option", { value }, text)));
}

// From dark blue (0) over green to yellow (1): read in both themes, and by the colour-blind (the ends of viridis).
function shade(value, alpha = 1) {
  const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const at = Math.min(Math.max(value, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const mixed = stops[low].map((c, i) => Math.round(c + (stops[low + 1][i] - c) * (at - low)));
  return `rgba(${mixed.join(",")},${alpha})`;
}

// A picture; `done` covers what is not written yet, where `heat` (grid * grid values in 0..1) is low it is dark.
function picture(base64, alt, { grid = 8, done = grid * grid, heat } = {}) {
  const box = h("span", { className: "lvm-picture" });
  box.append(base64 ? h("img", { src: source(base64), alt, draggable: false }) : h("span", { className: "lvm-empty", role: "img", "aria-label": alt }));
  if (done < grid * grid) {
    const row = Math.floor(done / grid), side = 100 / grid;
    const cover = (top, left, height) => h("i", { className: "lvm-cover", style: `top:${top}%;left:${left}%;right:0;height:${height}%` });
    box.append(cover(row * side, (done % grid) * side, side), cover((row + 1) * side, 0, 100 - (row + 1) * side));
  }
  if (heat) {
    const canvas = h("canvas", { width: grid, height: grid, className: "lvm-heat" });
    const pen = canvas.getContext("2d");
    heat.forEach((value, i) => {
      pen.fillStyle = `rgba(0, 0, 0, ${0.75 * (1 - value)})`;
      pen.fillRect(i % grid, Math.floor(i / grid), 1, 1);
    });
    box.append(canvas);
  }
  return box;
}

// The scores of an answer as a sentence; nothing where the truth is not known.
function scored(row) {
  if (!row) return "";
  const best = `${row.metric} ${row.score.toFixed(2)}, ceiling ${row.ceiling.toFixed(2)}, best floor ${row.floors[row.best_floor].toFixed(2)}`;
  const marks = Object.entries(row.landmarks).map(([name, score]) => `, ${name} ${score.toFixed(2)}`).join("");
  return `${best} (${row.best_floor})${marks}${row.skill === null ? "" : `: skill ${row.skill.toFixed(2)}`}`;
}

// Numbers in [0, 1) from a seed (mulberry32), so that a shuffle can be had again.
function chance(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function svg(tag, props, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(props)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
