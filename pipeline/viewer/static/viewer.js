// Images that are missing, marks, undo, keys and filters. What is drawn over the images is in regions.js.
"use strict";

const root = document.documentElement;
const samples = [...document.querySelectorAll(".sample")];
function all(sample, selector) { return [...sample.querySelectorAll(selector)]; }

function say(text, ...buttons) {
  const line = document.getElementById("status");
  line.replaceChildren(text, ...buttons);
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (line.textContent = ""), Math.max(buttons.length ? 10_000 : 4000, 60 * text.length));
}

// Choices are kept for the next page if the browser allows it.
const stored = {
  get(name) { try { return localStorage.getItem(name); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, value); } catch { /* private windows */ } },
};

// An image that cannot be loaded keeps its place, with the regions where they belong, and says why.
async function missed(image) {
  const picture = image.parentElement;
  picture.classList.add("missed");
  picture.style.aspectRatio = `${image.getAttribute("width")} / ${image.getAttribute("height")}`;
  const why = picture.appendChild(document.createElement("p"));
  const name = picture.closest(".sample").dataset.sample;
  why.textContent = name;
  const problem = await fetch(image.src).then((answer) => answer.json()).catch(() => ({ error: name }));
  why.textContent = problem.error;
}
for (const image of document.querySelectorAll(".picture img")) {
  if (image.complete && image.naturalWidth === 0) missed(image);
  else image.addEventListener("error", () => missed(image), { once: true });
}

// Changes are saved one after another, in the order of the keys, and undone in the reverse order.
let turn = Promise.resolve();
const undos = []; // functions that take back the changes of this page, that of the latest one last
function inTurn(change) { turn = turn.then(change).catch((error) => say(error.message)); }
function undoable(text, takeBack) {
  undos.push(takeBack);
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Undo" });
  button.addEventListener("click", undo);
  say(`${text} `, button);
}
function undo() {
  inTurn(async () => {
    if (!undos.length) return say("nothing to undo");
    say(await undos.at(-1)());
    undos.pop();
  });
}

// Marks. The same mark once more takes it away.
async function saveMark(chosen, value) {
  const answer = await fetch("/marks", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ sample_ids: chosen.map((sample) => sample.dataset.sample), mark: value }),
  });
  const problem = await answer.json().catch(() => ({ error: answer.statusText }));
  if (!answer.ok) throw new Error(problem.error);
  for (const sample of chosen) {
    sample.dataset.mark = value;
    sample.querySelector(".mark").textContent = value;
  }
  return `${chosen.length} ${value ? `marked ${value}` : "no longer marked"}`;
}
function mark(wanted) {
  const selected = samples.filter((sample) => sample.classList.contains("selected"));
  const chosen = selected.length ? selected : samples.filter((sample) => sample === focused());
  if (!chosen.length) return;
  inTurn(async () => {
    const before = Object.groupBy(chosen, (sample) => sample.dataset.mark);
    const text = await saveMark(chosen, before[wanted]?.length === chosen.length ? "" : wanted);
    for (const sample of selected) sample.classList.remove("selected");
    undoable(text, async () => {
      for (const [value, group] of Object.entries(before)) await saveMark(group, value);
      return "mark undone";
    });
  });
}
for (const button of document.querySelectorAll("[data-set]")) {
  button.addEventListener("click", () => mark(button.dataset.set));
}

// Keys.
function focused() {
  return document.activeElement?.closest?.(".sample") ?? (samples.length === 1 ? samples[0] : null);
}
function move(step) {
  const grid = document.querySelector(".grid");
  if (!grid) return follow(step < 0 ? "prev" : "next");
  const place = samples.indexOf(focused());
  const next = place < 0 ? samples[0] : samples[place + step];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); } else follow(step < 0 ? "prev" : "next");
}
function follow(rel) { document.querySelector(`a[rel=${rel}]`)?.click(); }
const keys = {
  ArrowRight: () => move(1), ArrowLeft: () => move(-1), j: () => move(1), k: () => move(-1),
  Enter: () => focused()?.querySelector("a.open")?.click(),
  Escape: () => {
    const sample = focused();
    if (sample && pins(sample).drawn.length) pin(sample, none);
    else document.getElementById("back")?.click();
  },
  n: () => step(1), p: () => step(-1), v: () => nextView(),
  f: () => focused() && unfold(focused()),
  g: () => mark("good"), b: () => mark("bad"), u: undo,
  x: () => focused()?.classList.toggle("selected"),
  "/": () => { const box = document.getElementById("show-filters"); if (box) box.checked = true; document.querySelector("[name=phrase]")?.focus(); },
  "1": () => switches[0]?.click(), "2": () => switches[1]?.click(), "3": () => switches[2]?.click(), "4": () => switches[3]?.click(),
  "[": () => follow("prev"), "]": () => follow("next"),
  "?": () => document.getElementById("help").showModal(),
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=checkbox], [type=radio], [type=range]), textarea, select, dialog[open]");
  if (event.key === "Escape" && typing && !typing.matches("dialog")) return typing.blur();
  if (event.key.startsWith("Arrow") && event.target.matches("[type=radio], [type=range]")) return;
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" && event.target.closest("a, button, label, summary")) return;
  const phrase = event.target.closest(".phrase");
  if (phrase && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    const act = event.key === "Enter" ? hold : press;
    return act(phrase.closest(".sample"), phrase, event.shiftKey);
  }
  const act = keys[event.key];
  if (act) { event.preventDefault(); act(); }
});
document.getElementById("help-button").addEventListener("click", keys["?"]);

// Filters: empty fields stay out of the address.
const form = document.querySelector("#filters form");
form?.addEventListener("submit", () => {
  for (const field of form.elements) {
    if (field.name && (field.value === "" || field.value === field.dataset.default)) field.disabled = true;
  }
});
if (form) { form.seed.dataset.default = "0"; form.sort.dataset.default = "dataset"; }
window.addEventListener("pageshow", () => { for (const field of form?.elements ?? []) field.disabled = false; });
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
    say("copied");
  });
}
if (samples.length === 1) samples[0].focus({ preventScroll: true });
