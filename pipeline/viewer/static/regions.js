// What is drawn over the images. Captions are the index: a phrase that is pointed at, pinned or stepped to shows its
// region alone. A view and a score choose what is drawn at rest.
"use strict";

const none = { drawn: [], words: [] };
const pinned = new Map(); // sample -> numbers of the regions that are drawn, and of those whose words are lit

// What of a region or phrase is drawn, and whose words are lit.
function numbersOf(element) {
  return (element.dataset.region ?? element.dataset.regions ?? "").split(" ").filter(Boolean);
}
function shares(numbers, element) { return numbersOf(element).some((number) => numbers.includes(number)); }
function target(sample, part) {
  const numbers = numbersOf(part);
  if (!part.matches(".region") || root.dataset.view !== "group") return { drawn: numbers, words: numbers };
  const group = all(sample, `.region[data-group="${part.dataset.group}"]`);
  return { drawn: group.filter((one) => one.matches(".lead")).flatMap(numbersOf), words: group.flatMap(numbersOf) };
}
function light(sample, { drawn, words }) {
  sample.classList.toggle("on", drawn.length > 0);
  const groups = new Set();
  for (const one of all(sample, ".region")) {
    const hit = shares(drawn, one);
    one.classList.toggle("hit", hit);
    if (hit && one.dataset.group) groups.add(one.dataset.group);
  }
  for (const one of all(sample, "[data-regions]")) {
    one.classList.toggle("hit", shares(words, one));
    one.classList.toggle("kin", groups.has(one.dataset.group));
  }
  drawLabels(sample);
  sample.dataset.drawn = drawn[0] ?? "";
  if (!drawn.length) sample.classList.remove("heated");
  if (drawn.length && shows("heat")) showHeat(sample, drawn[0]);
}
// Labels have one size on the screen, stand on their boxes or in them, within the picture, and never over one another.
const LABEL_PX = 12;
const EDGE_PX = 3; // of colour around the letters
const pen = document.createElement("canvas").getContext("2d");
pen.font = `600 ${LABEL_PX}px ${getComputedStyle(document.body).fontFamily}`;
function drawLabels(sample) { // those of what is drawn
  const svg = sample.querySelector(".picture svg");
  const scale = svg?.getScreenCTM()?.a;
  if (!scale) return;
  const placed = [];
  const pictured = svg.viewBox.baseVal;
  for (const region of all(sample, ".region").reverse()) { // small boxes first
    const label = sample.querySelector(`.label[data-region="${region.dataset.region}"]`);
    const drawn = getComputedStyle(region).display !== "none" && (!sample.matches(".on") || region.matches(".hit"));
    label.classList.toggle("drawn", drawn);
    if (!drawn) continue;
    const letters = pen.measureText(label.textContent).width;
    const shrunk = Math.min(1, (pictured.width * scale - 2 * EDGE_PX) / letters) / scale;
    const [width, height] = [(letters + 2 * EDGE_PX) * shrunk, (LABEL_PX * 1.1 + 2 * EDGE_PX) * shrunk];
    const box = region.querySelector(".box");
    const [left, top] = ["x", "y"].map((name) => Number(box.getAttribute(name)));
    const x = Math.max(0, Math.min(left, pictured.width - width));
    const lowest = Math.max(0, pictured.height - height);
    const overlaps = (y) => placed.some((other) => other.x < x + width && x < other.x + other.width
      && other.y < y + height && y < other.y + other.height);
    const first = Math.min(top < height ? Math.max(0, top) : top - height, lowest);
    let y = first;
    while (overlaps(y) && y < lowest) y = Math.min(lowest, y + height / 4);
    if (overlaps(y)) for (y = first; overlaps(y) && y > 0;) y = Math.max(0, y - height / 4);
    if (overlaps(y)) { label.classList.toggle("drawn", region.matches(".hit")); continue; } // there is no room
    label.setAttribute("font-size", LABEL_PX * shrunk);
    label.setAttribute("x", x + EDGE_PX * shrunk);
    label.setAttribute("y", y + (LABEL_PX * 0.9 + EDGE_PX) * shrunk);
    placed.push({ x, y, width, height });
  }
}
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => drawLabels(target.closest(".sample"))));
for (const picture of document.querySelectorAll(".sample .picture")) resized.observe(picture);
async function showHeat(sample, number) {
  const image = sample.querySelector(".heat");
  if (!image || !sample.querySelector(`[data-region="${number}"]`)) return;
  const address = `/rows/${sample.dataset.row}/heat/${number}.png`;
  sample.dataset.heat = address;
  const slow = setTimeout(() => say("computing the heat map…"), 300);
  const answer = await fetch(address);
  clearTimeout(slow);
  if (sample.dataset.heat !== address || !shows("heat")) return; // the pointer has moved on
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({ error: answer.statusText }));
    return say(`no heat map: ${problem.error}`);
  }
  say("");
  image.setAttribute("href", address);
  sample.classList.add("heated");
}

// Pinned regions stay when the pointer leaves.
function pins(sample) { return pinned.get(sample) ?? none; }
function pin(sample, wanted, beside = false) {
  const had = pins(sample);
  const same = wanted.words.length > 0 && wanted.words.every((number) => had.words.includes(number));
  const join = (name) => same ? had[name].filter((one) => !wanted[name].includes(one)) : [...had[name], ...wanted[name]];
  pinned.set(sample, beside ? { drawn: join("drawn"), words: join("words") } : wanted);
  for (const phrase of all(sample, ".phrase")) phrase.setAttribute("aria-pressed", shares(pins(sample).words, phrase));
  light(sample, pins(sample));
}
function hold(sample, part, beside) { pin(sample, target(sample, part), beside); }
function press(sample, part, beside) { // once more lets go
  const wanted = target(sample, part);
  const again = !beside && wanted.words.join() === pins(sample).words.join();
  pin(sample, again ? none : wanted, beside);
}
function pressPicture(sample, event) {
  const touched = document.elementsFromPoint(event.clientX, event.clientY).map((one) => one.closest(".region"));
  const under = [...new Set(touched)].filter((one) => one && sample.contains(one)); // by its box and its mask
  const lit = under.map((one) => target(sample, one).words.join()).indexOf(pins(sample).words.join());
  const next = under[event.shiftKey ? 0 : lit + 1];
  if (next) press(sample, next, event.shiftKey);
  else pin(sample, none);
}
function step(way) {
  const sample = focused() ?? samples[0];
  if (!sample) return;
  const drawn = all(sample, sample.matches(".unfolded") ? ".phrase" : ".phrase:not(.low)");
  const phrases = drawn.filter((one, at) => one.dataset.regions !== drawn[at - 1]?.dataset.regions);
  if (!phrases.length) return;
  const now = phrases.findIndex((one) => one === document.activeElement);
  const at = now < 0 ? (way > 0 ? 0 : phrases.length - 1) : (now + way + phrases.length) % phrases.length;
  choose(sample, phrases[at]);
  hold(sample, phrases[at]);
  const score = sample.querySelector(`.region[data-region="${numbersOf(phrases[at])[0]}"]`)?.dataset.score ?? "";
  document.getElementById("spoken").textContent = `phrase ${at + 1} of ${phrases.length}, score ${Number(score).toFixed(2)}`;
}
function choose(sample, phrase) { // the one of the sample's phrases that Tab comes to
  for (const other of all(sample, ".phrase")) other.tabIndex = other === phrase ? 0 : -1;
  current(sample, phrase.closest(".caption"));
  phrase.focus({ preventScroll: true });
  phrase.scrollIntoView({ block: "nearest" });
}
function current(sample, caption) {
  const captions = all(sample, ".caption");
  const number = String(captions.indexOf(caption));
  for (const one of captions) one.classList.toggle("current", one === caption);
  for (const one of all(sample, ".region")) one.classList.toggle("said", one.dataset.captions.split(" ").includes(number));
  drawLabels(sample);
}
for (const sample of samples) {
  sample.addEventListener("pointerover", (event) => {
    const part = event.target.closest("[data-region], [data-regions]");
    const caption = event.target.closest(".caption");
    if (caption) current(sample, caption);
    light(sample, part ? target(sample, part) : pins(sample));
  });
  sample.addEventListener("pointerleave", () => light(sample, pins(sample)));
  sample.addEventListener("mousedown", (event) => { // Shift would select text
    if (event.shiftKey && event.target.closest("[data-regions], .picture")) event.preventDefault();
  });
  sample.addEventListener("click", (event) => {
    const part = event.target.closest("[data-regions]");
    if (part) press(sample, part, event.shiftKey);
    else if (event.target.closest(".picture")) pressPicture(sample, event);
  });
  sample.addEventListener("dblclick", (event) => {
    if (!event.target.closest("[data-regions], .region")) sample.querySelector("a.open")?.click();
  });
}

// Boxes, masks, labels, heat map.
function remember(box, name) {
  const kept = stored.get(`phrasebox-${name}`);
  if (kept !== null) box.checked = kept === "1";
  box.addEventListener("change", () => stored.set(`phrasebox-${name}`, box.checked ? "1" : "0"));
}
const switches = [...document.querySelectorAll("[data-show]")];
for (const box of switches) {
  const name = box.dataset.show;
  remember(box, `shows-${name}`);
  const apply = () => {
    root.classList.toggle(`no-${name}`, !box.checked);
    if (name !== "heat") return;
    if (!box.checked) return samples.forEach((sample) => sample.classList.remove("heated"));
    const first = document.querySelector(".sample.full");
    const part = first?.querySelector(".phrase");
    if (part && !pins(first).drawn.length) hold(first, part);
    else for (const sample of samples) if (sample.dataset.drawn) showHeat(sample, sample.dataset.drawn);
  };
  box.addEventListener("change", apply);
  apply();
}
function shows(name) { return switches.some((box) => box.dataset.show === name && box.checked); }

// Which regions are drawn: by object, by caption, or all; from which score; and up to which size.
const views = [...document.querySelectorAll("[name=view]")];
function view(name) {
  root.dataset.view = name;
  stored.set("phrasebox-view", name);
  for (const sample of samples) pin(sample, none);
  fold();
}
for (const radio of views) {
  if (stored.get("phrasebox-view") === radio.value) radio.checked = true;
  if (radio.checked) root.dataset.view = radio.value;
  radio.addEventListener("change", () => view(radio.value));
}
function nextView() {
  const at = (views.findIndex((radio) => radio.checked) + 1) % views.length;
  views[at]?.click();
}
const foldBox = document.getElementById("fold");
const smallBox = document.getElementById("small");
function fold() { // in the view by object, a phrase is as likely as the likeliest of its object
  const least = Number(foldBox.value);
  document.querySelector(".fold output").textContent = least.toFixed(2);
  count(least);
  for (const sample of samples) {
    const folded = new Set();
    const large = new Set(); // of the folded ones
    const likely = new Set();
    for (const one of all(sample, "[data-score]")) {
      const hidden = smallBox.checked && one.matches(".large");
      const low = hidden || Number(one.dataset.score) < least;
      one.classList.toggle("folded", low);
      if (low && one.dataset.region) folded.add(one.dataset.region);
      if (hidden && one.dataset.region) large.add(one.dataset.region);
      if (!low && root.dataset.view === "group") likely.add(one.dataset.group);
    }
    for (const one of all(sample, ".phrase")) {
      const low = numbersOf(one).every((number) => folded.has(number)) && !likely.has(one.dataset.group);
      one.classList.toggle("low", low);
    }
    const drawn = all(sample, ".region").filter((one) => one.matches(".sought, :not(.folded)"));
    sample.classList.toggle("bare", folded.size > 0 && !drawn.length);
    for (const button of all(sample, ".unfold")) {
      button.hidden = !folded.size;
      const low = folded.size - large.size;
      button.textContent = [low && `${low} below ${least.toFixed(2)}`, large.size && `${large.size} larger`].filter(Boolean).join(", ");
    }
    drawLabels(sample);
  }
}
function count(least) { // what is exported is what is counted
  const counts = document.getElementById("regions")?.dataset;
  if (counts) {
    const [all_, small] = [counts.all, counts.small].map((text) => text.split(" "))
      .map((numbers) => Number(numbers[Math.round(least * (numbers.length - 1))]));
    for (const one of document.querySelectorAll(".counted")) one.textContent = (smallBox.checked ? small : all_).toLocaleString("en");
    const larger = document.getElementById("larger");
    larger.hidden = !smallBox.checked || all_ === small;
    larger.textContent = `, ${(all_ - small).toLocaleString("en")} larger hidden`;
  }
  const option = document.querySelector(".command .least");
  const score = Math.max(least, Number(option?.dataset.least));
  if (option) option.textContent = (score ? ` --min-score ${score}` : "") + (smallBox.checked ? ` --max-area ${smallBox.value}` : "");
}
function unfold(sample) { // one image whatever the score, until again
  const now = sample.classList.toggle("unfolded");
  for (const button of all(sample, ".unfold")) button.setAttribute("aria-pressed", now);
  drawLabels(sample);
}
for (const button of document.querySelectorAll(".unfold")) {
  button.addEventListener("click", () => unfold(button.closest(".sample")));
}
if (foldBox) {
  const name = `phrasebox-fold-${document.body.dataset.name}-${foldBox.defaultValue}`;
  foldBox.value = stored.get(name) ?? foldBox.value;
  foldBox.addEventListener("input", () => { fold(); stored.set(name, foldBox.value); });
  remember(smallBox, "small");
  smallBox.addEventListener("change", fold);
  fold();
}
