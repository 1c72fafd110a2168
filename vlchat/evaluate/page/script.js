"use strict";
// Shows, hides and orders what stands on the page. It reads attributes and texts and writes none of them as markup.
for (const box of document.querySelectorAll("[data-cards]")) {
  const cards = [...box.querySelectorAll(".card")];
  const tools = box.querySelector(".tools");
  const field = (name) => tools.querySelector(`[name="${name}"]`);
  const told = box.querySelector("[data-told]");
  const update = () => {
    const words = field("words").value.toLowerCase().trim();
    const shown = field("shown").value;
    let count = 0;
    for (const card of cards) {
      const fits = (!words || card.textContent.toLowerCase().includes(words)) &&
        (!shown || card.dataset.group === shown || [...card.querySelectorAll(".tags li")].some((tag) => tag.dataset.slice === shown));
      card.hidden = !fits;
      count += fits;
    }
    const order = field("order").value;
    const key = (card) => (order === "sure" || order === "unsure" ? Number(card.dataset.confidence) : Number(card.dataset.place));
    const sign = order === "sure" ? -1 : 1;
    const list = box.querySelector(".cards");
    list.append(...[...cards].sort((a, b) => sign * (key(a) - key(b))));
    told.textContent = `${count} of ${cards.length} shown`;
  };
  tools.hidden = false;
  tools.addEventListener("input", update);
  update();
}
for (const table of document.querySelectorAll("table[data-sort]")) {
  for (const head of table.tHead.rows[0].cells) {
    if (head.dataset.fixed !== undefined) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const column = head.cellIndex;
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        const [p, q] = [Number(x), Number(y)];
        return x !== "" && y !== "" && !Number.isNaN(p) && !Number.isNaN(q) ? p - q : x.localeCompare(y);
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].sort(compare);
      if (down) rows.reverse();
      body.append(...rows);
    });
  }
}
for (const box of document.querySelectorAll("[data-filter]")) {
  const field = box.querySelector("input");
  const rows = [...box.querySelectorAll("tbody tr")];
  box.querySelector(".tools").hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().trim();
    for (const row of rows) row.hidden = Boolean(words) && !row.textContent.toLowerCase().includes(words);
  });
}
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
