// The page of review: one region at a time. What is sent is on disk before the next region comes.
"use strict";

const byId = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const LONGEST_SECONDS = 300; // a longer time is a break
const POLL_MS = 10_000;
const PENDING_MS = 500; // until the figures may count the latest answers
const UNDONE = { answer: "undone" };

const nameField = byId("reviewer");
nameField.value = reviewerName();
let state = null; // as the server says
let queue = []; // places in the sample that are shown next
let now = null; // {place, region}: what is shown
let since = 0; // when it came
let busy = false; // keys and buttons do nothing: they would answer what nobody has seen
let turn = Promise.resolve(); // ends with all that was begun
let saves = 0; // what was sent and saved
let drawing = null; // the box that is dragged in place of a wrong one
const undos = []; // place and the steps that take back the own answer or correction there, the last one last
const loaded = new Map(); // place -> promise of the region, its image included

function say(text) {
  byId("status").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (byId("status").textContent = ""), Math.max(4000, 60 * text.length));
}
function setBusy(on) {
  busy = on;
  byId("asking").setAttribute("aria-busy", on);
}
function trouble(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

// The sample.
async function refresh() {
  const before = saves;
  const answer = await fetch(`/review/state.json?reviewer=${encodeURIComponent(nameField.value)}`).catch(() => null);
  if (!answer) { // an answer that was not saved has said so
    if (byId("problem").hidden) trouble("The server does not answer. What you have answered is saved.");
    return;
  }
  const told = await answer.json().catch(() => ({ error: answer.statusText }));
  if (!answer.ok) return trouble(told.error);
  trouble("");
  if (before !== saves) return; // it may not know the latest answer; that one asks again
  state = told;
  summarise();
  clearTimeout(refresh.later);
  if (state.pending) refresh.later = setTimeout(refresh, PENDING_MS);
}
function order() { // what nobody has answered first; a few are skipped so that two people do not meet
  const open = state.regions.map((one, place) => place).filter((place) => !state.regions[place].own);
  const new_ = open.filter((place) => !state.regions[place].answered.length);
  const others = open.filter((place) => state.regions[place].answered.length);
  const shift = hash(nameField.value) % 8;
  return [...new_.slice(shift), ...new_.slice(0, shift), ...others];
}
function hash(text) { return [...text].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 65_521, 7); }
function load(place) {
  if (!loaded.has(place)) {
    const { row, id } = state.regions[place];
    loaded.set(place, fetch(`/review/${row}/${id}.json`).then(async (answer) => {
      if (!answer.ok) throw new Error(`The region cannot be shown: ${answer.statusText}`);
      const region = await answer.json();
      const image = new Image();
      image.src = `/rows/${row}/image.jpg?side=1600`;
      region.failed = await image.decode().then(() => false, () => true);
      return { ...region, src: image.src };
    }));
    loaded.get(place).catch(() => loaded.delete(place));
  }
  return loaded.get(place);
}
async function next() {
  queue = order(); // others answer meanwhile
  if (!queue.length) return finish();
  await show(queue[0]);
}
async function show(place) {
  setBusy(true);
  try {
    const region = await load(place);
    now = { place, region };
    picture(region);
    since = performance.now();
    byId("done").hidden = true;
    byId("asking").hidden = false;
  } catch (error) { trouble(error.message); } finally { setBusy(false); }
  summarise();
  const rest = queue.filter((one) => one !== place);
  for (const one of rest.slice(0, 2)) load(one).catch(() => {});
  for (const one of loaded.keys()) if (loaded.size > 12 && one !== place && !rest.slice(0, 2).includes(one)) loaded.delete(one);
}
function finish() {
  now = null;
  byId("asking").hidden = true;
  byId("done").hidden = false;
  byId("done").querySelector("h1").textContent = state.regions.length
    ? `You have answered all ${state.regions.length.toLocaleString("en")} regions. Thank you.`
    : "The dataset has no regions to review.";
  byId("again").hidden = !state.regions.length;
  summarise();
}

// What is shown.
function picture(region) {
  const { width, height } = region;
  byId("phrase").textContent = region.phrase;
  const said = Object.assign(document.createElement("mark"), { textContent: region.caption[1] });
  byId("caption").replaceChildren(region.caption[0], said, region.caption[2]);
  byId("caption").scrollTop = said.offsetTop - byId("caption").offsetTop; // of a long one, the line with the phrase
  byId("image").src = region.src;
  byId("image").alt = region.caption.join("");
  byId("picture").classList.toggle("missed", region.failed);
  if (region.failed) say("The image cannot be loaded: phrasebox inspect --images DIR says where the images are");
  const drawing = byId("drawing");
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.classList.toggle("deleted", region.deleted);
  for (const path of drawing.querySelectorAll("path")) path.setAttribute("d", region.path);
  for (const rect of drawing.querySelectorAll(".shown rect")) {
    ["x", "y", "width", "height"].forEach((name, at) => rect.setAttribute(name, region.bbox[at]));
  }
  drawing.querySelector(".corrected")?.remove();
  if (region.corrected) {
    const [x, y, w, h] = region.corrected;
    draw(drawing, "rect", { class: "corrected", x, y, width: w, height: h });
  }
  const changed = region.deleted || region.corrected;
  byId("delete").querySelector("span").textContent = changed ? "Restore" : "Delete object";
  const gone = quoted(region.names.filter((name) => name.deleted));
  byId("correction").textContent = region.deleted ? `Deleted${gone && `, also as ${gone}`}: exports leave it out.` : region.corrected ? "The dashed box is the right one: exports take it, with a score of 1." : "";
  const own = state.regions[now.place].own?.answer;
  for (const button of all("[data-answer]")) button.setAttribute("aria-pressed", button.dataset.answer === own);
}

// What all answers say.
function summarise() {
  if (!state) return;
  const { regions } = state;
  const total = regions.length;
  const own = regions.filter((one) => one.own);
  byId("sofar").hidden = !total;
  byId("undo").disabled = !undos.length;
  const cells = byId("cells");
  cells.setAttribute("viewBox", `0 0 ${total} 10`);
  cells.setAttribute("preserveAspectRatio", "none");
  cells.replaceChildren();
  regions.forEach((one, place) => {
    const kind = place === now?.place ? "now" : one.own ? "own" : one.answered.length ? "other" : "open";
    draw(draw(cells, "rect", { class: kind, x: place, width: 1, height: 10 }), "title", {}, one.answered.join(", ") || "no answer yet");
  });
  cells.setAttribute("aria-label", `${own.length} of ${total} answered`);
  const counts = new Map();
  for (const one of regions) for (const name of one.answered) counts.set(name, (counts.get(name) ?? 0) + 1);
  const seconds = own.map((one) => one.own.seconds).filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  const median = seconds.length ? ` · ${seconds[Math.floor(seconds.length / 2)].toFixed(1)} s an answer` : "";
  const others = [...counts].filter(([name]) => name !== nameField.value).map(([name, count]) => `${name} ${count}`);
  const together = regions.filter((one) => one.answered.length).length;
  byId("progress").textContent = `${own.length} of ${total} by you${median}`
    + (others.length ? ` · ${together} by all (${others.slice(0, 5).join(", ")})` : "");
  const { figures } = state;
  byId("precision").replaceChildren();
  for (const { low, precision } of (figures.thresholds ?? []).filter((one) => one.low === 0 || one.low === 0.5)) {
    if (precision.value === null) continue;
    const range = `${precision.value.toFixed(2)} (${precision.low.toFixed(2)}–${precision.high.toFixed(2)})`;
    byId("precision").append(
      Object.assign(document.createElement("dt"), { textContent: low ? `right from score ${low.toFixed(1)}` : "right, of all regions" }),
      Object.assign(document.createElement("dd"), { textContent: `${range}, ${precision.n} answer${precision.n === 1 ? "" : "s"}` }),
    );
  }
  drawCurve((figures.curve ?? []).filter((one) => one.score !== null && one.precision.value !== null)
    .map((one) => ({ ...one.precision, score: one.score })));
  const notes = [];
  if (state.pending) notes.push("These figures do not count the latest answers yet.");
  if (!state.calibrated) notes.push("The scores of this dataset only rank: they claim no share.");
  if (state.margin) notes.push(`The scores of this dataset are estimated by a calibration of other models: they may be ${state.margin} too high.`);
  if (figures.note) notes.push(`${figures.note}.`);
  if (figures.counts?.elsewhere) notes.push(`${figures.counts.elsewhere} answers are about regions that are not in this dataset; they do not count.`);
  if (figures.counts?.damaged) notes.push(`${figures.counts.damaged} lines of the reviews cannot be read.`);
  byId("notes").textContent = notes.join(" ");
}
function drawCurve(points) {
  const svg = byId("curve");
  svg.replaceChildren();
  const x = (value) => 34 + 196 * value;
  const y = (value) => 186 - 176 * value;
  for (const value of [0, 0.25, 0.5, 0.75, 1]) {
    draw(svg, "path", { class: "grid", d: `M${x(0)} ${y(value)}H${x(1)}M${x(value)} ${y(0)}V${y(1)}` });
    draw(svg, "text", { x: x(0) - 5, y: y(value) + 4, "text-anchor": "end" }, value);
    draw(svg, "text", { x: x(value), y: y(0) + 14, "text-anchor": "middle" }, value);
  }
  draw(svg, "text", { x: x(0.5), y: y(0) + 27, "text-anchor": "middle" }, "score");
  draw(svg, "path", { class: "ideal", d: `M${x(0)} ${y(0)}L${x(1)} ${y(1)}` });
  if (points.length > 1) draw(svg, "path", { class: "line", d: `M${points.map((one) => `${x(one.score)} ${y(one.value)}`).join("L")}` });
  for (const one of points) {
    draw(svg, "path", { class: "whisker", d: `M${x(one.score)} ${y(one.low)}V${y(one.high)}` });
    const dot = draw(svg, "circle", { cx: x(one.score), cy: y(one.value), r: 4 });
    draw(dot, "title", {}, `score ${one.score.toFixed(2)}: ${one.value.toFixed(2)} right (${one.low.toFixed(2)}–${one.high.toFixed(2)}), ${one.n} answer${one.n === 1 ? "" : "s"}`);
  }
  if (!points.length) draw(svg, "text", { x: x(0.5), y: y(0.5), "text-anchor": "middle" }, state.pending ? "counting…" : "no answers yet");
}

// What is said.
async function send(place, what) {
  const { row, id } = state.regions[place];
  await sendReview({ row, annotation_id: id, reviewer: nameField.value, ...what });
  saves += 1;
}
// One thing at a time: the next comes when this one is saved. An undo waits for what was begun before it.
function begin(act) { turn = act === undo ? turn.then(undo) : Promise.all([turn, act()]); }
async function attempt(act) {
  if (busy || !state) return;
  if (!nameField.value.trim()) { nameField.focus(); return say("First say who you are"); }
  setBusy(true);
  try {
    await act();
    trouble("");
  } catch (error) { trouble(error.message); } finally { setBusy(false); }
}
async function answer(value, box) {
  if (!now || drawing) return;
  const { place, region } = now;
  let saved = false;
  await attempt(async () => {
    const seconds = Math.round((performance.now() - since) / 10) / 100;
    const moved = box ? { action: "box", box_xywh_px: box } : {};
    await send(place, { answer: value, ...moved, ...(seconds < LONGEST_SECONDS ? { seconds } : {}) });
    saved = true;
    if (box || region.corrected) loaded.delete(place); // an answer takes the box of the one before
    const one = state.regions[place];
    one.own = { answer: value, seconds: seconds < LONGEST_SECONDS ? seconds : null };
    if (!one.answered.includes(nameField.value)) one.answered.push(nameField.value);
    state.pending = true;
    const earlier = undos.findIndex((undo) => undo.place === place && undo.steps[0] === UNDONE);
    if (earlier >= 0) undos.splice(earlier, 1);
    undos.push({ place, steps: [UNDONE, box && correctionOf(region)].filter(Boolean) });
  });
  if (!saved) return;
  await next();
  refresh();
}
async function undo() {
  if (!undos.length || drawing) return;
  const { place, steps } = undos.at(-1);
  let saved = false;
  await attempt(async () => {
    for (const what of steps) await send(place, what);
    saved = true;
  });
  if (!saved) return;
  undos.pop();
  loaded.delete(place);
  if (steps[0] === UNDONE) {
    const one = state.regions[place];
    one.own = null;
    one.answered = one.answered.filter((name) => name !== nameField.value);
    state.pending = true;
    queue = [place, ...queue.filter((other) => other !== place)];
  }
  await show(place);
  refresh();
}
async function correct(place, changes, steps, text) { // steps take the changes back
  let saved = false;
  await attempt(async () => {
    loaded.delete(place); // the first may be saved and the next not
    for (const what of changes) await send(place, what);
    undos.push({ place, steps });
    saved = true;
  });
  if (!saved) return;
  say(text);
  await show(place);
}
function correctionOf(region) { // what brings its present correction back
  if (region.deleted) return { action: "delete" };
  return region.corrected ? { action: "box", box_xywh_px: region.corrected } : null;
}
function remove() {
  if (!now || drawing) return;
  const { place, region } = now;
  if (region.corrected) return correct(place, [{ action: "undone" }], [correctionOf(region)], "");
  const names = region.names.filter((name) => name.deleted === region.deleted);
  const act = (action) => [{ action }, ...names.map(({ id }) => ({ annotation_id: id, action }))];
  const [changes, steps] = region.deleted ? [act("undone"), act("delete")] : [act("delete"), act("undone")];
  const text = region.deleted ? "" : `deleted: ${quoted([region, ...names])}. Undo restores ${names.length ? "them" : "it"}`;
  return correct(place, changes, steps, text);
}
function move() { // one drag, and the region is wrong
  if (!now || drawing || busy) return;
  drawing = new BoxDrawing(byId("drawing"), (box) => { stopDrawing(); begin(() => answer("wrong", box)); });
  setDrawing(true);
}
function stopDrawing() {
  drawing?.close();
  drawing = null;
  setDrawing(false);
}
function setDrawing(on) {
  for (const id of ["delete", "move", "undo"]) byId(id).hidden = on;
  for (const id of ["drag", "cancel"]) byId(id).hidden = !on;
  for (const button of all("[data-answer]")) button.disabled = on;
}
function go(step) {
  if (!state || busy || drawing) return;
  const from = now ? now.place : step > 0 ? -1 : state.regions.length;
  const place = from + step;
  if (place >= 0 && place < state.regions.length) return show(place);
}

// Keys, buttons, touch.
const keys = {
  r: () => answer("right"), w: () => answer("wrong"), a: () => answer("absent"), c: () => answer("unsure"),
  u: undo, Backspace: undo, d: remove, m: move, Escape: stopDrawing,
  ArrowLeft: () => go(-1), ArrowRight: () => go(1),
  " ": () => alone(true), "?": () => byId("help").showModal(),
};
function alone(on) { byId("drawing").classList.toggle("alone", on && !drawing); }
addEventListener("keydown", (event) => {
  if (event.target.closest("input, dialog[open]")) { if (event.key === "Enter") event.target.blur(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("summary, a, button") && [" ", "Enter"].includes(event.key)) return;
  const act = keys[event.key];
  if (!act || event.repeat) return; // a key that is held answers once
  event.preventDefault();
  begin(act);
});
addEventListener("keyup", (event) => { if (event.key === " ") alone(false); });
byId("picture").addEventListener("pointerdown", (event) => { if (event.button === 0) alone(true); });
for (const kind of ["pointerup", "pointercancel", "pointerleave"]) byId("picture").addEventListener(kind, () => alone(false));
byId("picture").addEventListener("contextmenu", (event) => event.preventDefault()); // a long touch
for (const button of all("[data-answer]")) {
  button.addEventListener("click", () => { button.blur(); begin(() => answer(button.dataset.answer)); });
}
for (const [id, act] of Object.entries({ undo, delete: remove, move, cancel: stopDrawing })) {
  byId(id).addEventListener("click", () => { byId(id).blur(); begin(act); });
}
byId("help-button").addEventListener("click", keys["?"]);
byId("again").addEventListener("click", () => begin(() => show(0)));
byId("cells").addEventListener("click", (event) => {
  const box = byId("cells").getBoundingClientRect();
  const place = Math.min(state.regions.length - 1, Math.floor(((event.clientX - box.left) / box.width) * state.regions.length));
  if (!drawing && !busy) begin(() => show(place));
});
nameField.addEventListener("change", async () => {
  nameField.value = nameField.value.trim();
  write("phrasebox-reviewer", nameField.value);
  if (nameField.value) await start();
});
setInterval(() => { if (!document.hidden && !busy && state) refresh(); }, POLL_MS);

async function start() {
  stopDrawing();
  await refresh();
  if (!state) return;
  const own = state.regions.map((one, place) => ({ place, time: one.own?.time })).filter((one) => one.time);
  own.sort((a, b) => (a.time < b.time ? -1 : 1));
  undos.splice(0, undos.length, ...own.map(({ place }) => ({ place, steps: [UNDONE] })));
  await next();
}
start();
