// Corrections: delete a region, or drag its box. The page of review draws a new box, that of a sample edits it.
"use strict";

function reviewerName() {
  const kept = read("phrasebox-reviewer");
  if (kept) return kept;
  const name = `reviewer-${Math.random().toString(36).slice(2, 6)}`;
  write("phrasebox-reviewer", name);
  return name;
}
function read(name) { try { return localStorage.getItem(name); } catch { return read[name] ?? null; } }
function write(name, value) { read[name] = value; try { localStorage.setItem(name, value); } catch { /* private windows */ } }

// Resolves with the number of regions that are `saved` when the server has it on disk.
// Throws the reason otherwise.
async function sendReview(body) {
  let answer;
  try {
    answer = await fetch("/review", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch { throw new Error("The server does not answer, so this is not saved"); }
  const told = await answer.json().catch(() => ({ error: answer.statusText }));
  if (!answer.ok) throw new Error(`Not saved: ${told.error}`);
  return told;
}
function regionsInWords(count) { return `${count} region${count === 1 ? "" : "s"}`; }
function quoted(names) { return names.map((name) => `“${name.phrase}”`).join(", "); }

const SVG = "http://www.w3.org/2000/svg";
function draw(parent, name, attributes, text) {
  const made = parent.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const SMALLEST_DRAG_PX = 6; // of the screen; a shorter side is a click

// A box in an SVG whose viewBox is the image in pixels. Eight handles resize it, its inside moves it.
class BoxEditor {
  constructor(svg, box) {
    this.svg = svg;
    this.box = [...box];
    this.group = draw(svg, "g", { class: "editor" });
    this.shade = draw(this.group, "path", { class: "shade", "fill-rule": "evenodd" });
    this.halo = draw(this.group, "rect", { class: "edge halo" });
    this.edge = draw(this.group, "rect", { class: "edge" });
    this.handles = [];
    for (const [x, y] of [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [1, 2], [0, 2], [0, 1]]) {
      const hold = draw(this.group, "circle", { class: "hold" });
      const dot = draw(this.group, "circle", { class: `dot at-${x}${y}` });
      this.handles.push({ x, y, dot, hold });
      this.#drag(hold, x, y);
    }
    this.#drag(this.edge, 1, 1);
    svg.classList.add("editing");
    this.redraw = () => this.#place();
    addEventListener("resize", this.redraw);
    this.#place();
  }
  close() {
    removeEventListener("resize", this.redraw);
    this.svg.classList.remove("editing");
    this.group.remove();
  }
  nudge(dx, dy, corner) {
    const { width, height } = this.svg.viewBox.baseVal;
    const step = Math.max(1, Math.round(Math.max(width, height) / 200));
    this.#change(this.box, corner ? 2 : 1, corner ? 2 : 1, dx * step, dy * step);
  }
  // A side that is dragged is that of column x and row y, 0 or 2; 1 and 1 moves the whole box.
  #change([left, top, w, h], x, y, dx, dy) {
    const { width, height } = this.svg.viewBox.baseVal;
    const limit = (value, low, high) => Math.max(low, Math.min(high, value));
    let [right, bottom] = [left + w, top + h];
    if (x === 1 && y === 1) {
      [dx, dy] = [limit(dx, -left, width - right), limit(dy, -top, height - bottom)];
      [left, right, top, bottom] = [left + dx, right + dx, top + dy, bottom + dy];
    }
    if (x === 0) left = limit(left + dx, 0, right - 1);
    if (x === 2) right = limit(right + dx, left + 1, width);
    if (y === 0) top = limit(top + dy, 0, bottom - 1);
    if (y === 2) bottom = limit(bottom + dy, top + 1, height);
    [left, top, right, bottom] = [left, top, right, bottom].map(Math.round);
    this.box = [left, top, Math.max(1, right - left), Math.max(1, bottom - top)];
    this.#place();
  }
  #drag(part, x, y) {
    part.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      event.stopPropagation();
      const matrix = this.svg.getScreenCTM().inverse();
      const at = (one) => new DOMPoint(one.clientX, one.clientY).matrixTransform(matrix);
      const start = at(event);
      const first = [...this.box];
      const move = (moved) => { const now = at(moved); this.#change(first, x, y, now.x - start.x, now.y - start.y); };
      part.setPointerCapture(event.pointerId);
      part.addEventListener("pointermove", move);
      for (const end of ["pointerup", "pointercancel"]) {
        part.addEventListener(end, () => part.removeEventListener("pointermove", move), { once: true });
      }
    });
  }
  #place() {
    const [left, top, w, h] = this.box;
    const { width, height } = this.svg.viewBox.baseVal;
    const px = 1 / this.svg.getScreenCTM().a; // of the screen, in those of the image
    for (const one of [this.edge, this.halo]) {
      for (const [name, value] of Object.entries({ x: left, y: top, width: w, height: h })) one.setAttribute(name, value);
    }
    this.shade.setAttribute("d", `M0 0H${width}V${height}H0ZM${left} ${top}H${left + w}V${top + h}H${left}Z`);
    for (const { x, y, dot, hold } of this.handles) {
      // The middles of short sides would lie upon the corners.
      const crowded = (x === 1 && w < 60 * px) || (y === 1 && h < 60 * px);
      for (const [circle, radius] of [[dot, 6], [hold, 20]]) {
        circle.setAttribute("cx", left + (w * x) / 2);
        circle.setAttribute("cy", top + (h * y) / 2);
        circle.setAttribute("r", radius * px);
        circle.style.display = crowded ? "none" : "";
      }
    }
  }
}

// A new box in such an SVG, by one drag from corner to corner; `done` takes it.
class BoxDrawing {
  constructor(svg, done) {
    const gone = new AbortController();
    const on = (kind, act) => svg.addEventListener(kind, act, { signal: gone.signal });
    this.close = () => { gone.abort(); this.#clear(); svg.classList.remove("editing", "blank"); };
    svg.classList.add("editing", "blank");
    on("pointerdown", (event) => {
      if (event.button !== 0 || !event.isPrimary) return;
      event.preventDefault();
      svg.setPointerCapture(event.pointerId);
      this.#clear();
      this.start = this.#at(svg, event);
      this.group = draw(svg, "g", { class: "editor" });
      for (const kind of ["edge halo", "edge"]) draw(this.group, "rect", { class: kind });
    });
    on("pointermove", (event) => {
      if (!this.start || !event.isPrimary) return;
      const box = this.#box(this.#at(svg, event));
      for (const rect of this.group.children) {
        ["x", "y", "width", "height"].forEach((name, place) => rect.setAttribute(name, box[place]));
      }
    });
    on("pointerup", (event) => {
      if (!this.start || !event.isPrimary) return;
      const box = this.#box(this.#at(svg, event));
      this.#clear();
      if (Math.min(box[2], box[3]) * svg.getScreenCTM().a >= SMALLEST_DRAG_PX) done(box);
    });
    on("pointercancel", () => this.#clear());
  }
  #clear() { this.group?.remove(); this.start = null; }
  #at(svg, event) { // in the image
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const { width, height } = svg.viewBox.baseVal;
    return [Math.round(Math.max(0, Math.min(width, x))), Math.round(Math.max(0, Math.min(height, y)))];
  }
  #box([x, y]) {
    const [left, top] = this.start;
    return [Math.min(left, x), Math.min(top, y), Math.abs(x - left), Math.abs(y - top)];
  }
}

// The page of a sample: what is pinned is corrected. `inTurn`, `undoable`, `pins` and such are those of the other scripts.
if (document.querySelector(".correcting")) {
  const byId = (id) => document.getElementById(id);
  const sample = document.querySelector(".sample.full");
  const buttons = { delete: byId("delete"), move: byId("move") };
  let editor = null;
  const chosen = () => regionOf(pins(sample).drawn[0]);
  const regionOf = (number) => sample.querySelector(`.region[data-region="${number}"]`);
  const boxOf = (region) => {
    const box = region.querySelector(".box");
    return ["x", "y", "width", "height"].map((name) => Number(box.getAttribute(name)));
  };
  const asItIs = (region) => { // what brings the region's present state back
    if (region.matches(".deleted")) return { action: "delete" };
    return region.matches(".corrected") ? { action: "box", box_xywh_px: boxOf(region) } : { action: "undone" };
  };
  const show = () => {
    const region = chosen();
    for (const button of Object.values(buttons)) { button.disabled = !region; button.hidden = editor !== null; }
    byId("save").hidden = byId("cancel").hidden = editor === null;
    byId("correction").hidden = editor !== null || region !== null;
    const kind = root.dataset.view === "all" ? "region" : "object";
    buttons.delete.querySelector("span").textContent = `${region?.matches(".deleted, .corrected") ? "restore" : "delete"} ${kind}`;
  };
  // In the view of all regions one is deleted, in the others an object: its region under all names for this box.
  const alike = (region) => [region.dataset.group, region.querySelector(".mask").getAttribute("d"), ...boxOf(region)].join();
  const wholeOf = (region) => root.dataset.view === "all" ? [region]
    : [region, ...all(sample, ".region").filter((one) => one !== region && alike(one) === alike(region))];
  const phraseOf = (region) => ({ phrase: sample.querySelector(`tr[data-regions="${region.dataset.region}"] .name`).textContent });
  const save = async (changes) => { // pairs of a region's number and what is to be saved
    const row = Number(sample.dataset.row);
    let count = 0;
    try {
      for (const [number, what] of changes) {
        const annotation_id = Number(regionOf(number).dataset.annotation);
        count += (await sendReview({ row, annotation_id, reviewer: reviewerName(), ...what })).saved;
      }
    } catch (error) { // the first may be saved and the next not
      await renew().catch(() => {});
      throw error;
    }
    await renew();
    const { action } = changes[0][1];
    const names = action === "delete" ? `: ${quoted(changes.map(([number]) => phraseOf(regionOf(number))))}` : "";
    return `${regionsInWords(count)} ${{ delete: "deleted", box: "moved", undone: "restored" }[action]}${names}`;
  };
  const renew = async () => {
    stop();
    const page = await fetch(location.href).then((answer) => answer.text()); // other phrases may share the region
    const fresh = new DOMParser().parseFromString(page, "text/html");
    for (const part of [".picture svg", "table"]) sample.querySelector(part).replaceWith(fresh.querySelector(part));
    current(sample, sample.querySelector(".caption.current"));
    fold();
    light(sample, pins(sample));
    show();
  };
  const change = (number, changesOf) => inTurn(async () => {
    const changes = changesOf(regionOf(number)).map(([region, what]) => [region.dataset.region, what]);
    const before = changes.map(([changed]) => [changed, asItIs(regionOf(changed))]);
    undoable(await save(changes), () => save(before));
  });
  const stop = () => { editor?.close(); editor = null; show(); };
  const acts = {
    d: () => {
      if (!chosen() || editor) return;
      change(chosen().dataset.region, (region) => {
        if (region.matches(".corrected")) return [[region, { action: "undone" }]]; // a box is that of all names
        const same = wholeOf(region).filter((one) => one.matches(".deleted") === region.matches(".deleted"));
        return same.map((one) => [one, { action: region.matches(".deleted") ? "undone" : "delete" }]);
      });
    },
    m: () => {
      if (!chosen() || editor) return;
      editor = new BoxEditor(sample.querySelector(".picture svg"), boxOf(chosen()));
      show();
    },
    Enter: () => {
      const box = editor.box;
      if (box.join() === boxOf(chosen()).join()) return stop(); // nobody has moved it
      change(chosen().dataset.region, (region) => [[region, { action: "box", box_xywh_px: box }]]);
    },
    Escape: () => stop(),
  };
  buttons.delete.addEventListener("click", () => acts.d());
  buttons.move.addEventListener("click", () => acts.m());
  byId("save").addEventListener("click", () => acts.Enter());
  byId("cancel").addEventListener("click", () => acts.Escape());
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select, dialog[open]")) return;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (editor && way) editor.nudge(...way, event.shiftKey);
    else if (editor && ["Enter", "Escape"].includes(event.key)) acts[event.key]();
    else if (!editor && ["d", "m"].includes(event.key)) acts[event.key]();
    else if (!editor) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
  for (const kind of ["click", "change", "keyup"]) document.addEventListener(kind, show);
  sample.querySelector(".picture").addEventListener("click", (event) => { if (editor) event.stopPropagation(); }, true);
  show();
}
