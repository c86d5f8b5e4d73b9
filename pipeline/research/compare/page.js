"use strict";
const order = document.getElementById("order");
const filter = document.getElementById("filter");
const count = document.getElementById("count");

const number = (name, sign) => (a, b) => sign * (Number(a.dataset[name]) - Number(b.dataset[name]));
const orders = {
  disagreement: number("disagreement", -1),
  agreement: number("disagreement", 1),
  hits: number("hits", 1),
  sample: number("sample", 1),
  phrase: (a, b) => a.dataset.phrase.localeCompare(b.dataset.phrase),
};

function arrange() {
  const wanted = filter.value.trim().toLowerCase();
  let shown = 0, all = 0;
  for (const list of document.querySelectorAll(".questions")) {
    const articles = [...list.children].sort((a, b) => orders[order.value](a, b) || orders.sample(a, b));
    for (const article of articles) {
      const fits = `${article.dataset.phrase} ${article.dataset.name}`.toLowerCase().includes(wanted);
      article.hidden = !fits;
      shown += fits;
      all += 1;
    }
    list.replaceChildren(...articles);
  }
  count.textContent = shown === all ? `${all} pictures` : `${shown} of ${all} pictures`;
}

order.addEventListener("change", arrange);
filter.addEventListener("input", arrange);
document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["boxes", "heat"]) {
  const box = document.getElementById(name);
  const apply = () => document.body.classList.toggle(`no-${name}`, !box.checked);
  box.addEventListener("change", apply);
  apply();
}
arrange();
