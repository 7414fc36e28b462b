"use strict";
// Sorting, searching, and the lines of "Use this model". Without it all is there, in one order.
document.documentElement.classList.add("scripted");

const value = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent.trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return /^[-+]?[\d.,]/.test(text) && !Number.isNaN(number) ? number : text.toLowerCase();
};

const order = (table, column, down) => {
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
  const rank = (x) => (x === "–" || x === "" ? 2 : typeof x === "number" ? 0 : 1);
  rows.sort(([a], [b]) => {
    if (rank(a) !== rank(b)) return rank(a) - rank(b);
    const sign = a < b ? -1 : a > b ? 1 : 0;
    return down ? -sign : sign;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((cell, i) => {
    if (i === column) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
};

document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((cell, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => order(table, i, cell.getAttribute("aria-sort") === "ascending"));
  });
  const tools = document.querySelector(`[data-for="${table.id}"]`);
  if (!tools) return;
  const search = tools.querySelector("input"), by = tools.querySelector("select"), count = tools.querySelector("output");
  heads.forEach((cell, i) => {
    const name = cell.textContent.trim();
    by.add(new Option(name, `${i} up`));
    by.add(new Option(`${name}, largest first`, `${i} down`));
  });
  by.addEventListener("change", () => {
    const [column, way] = by.value.split(" ");
    if (way) order(table, Number(column), way === "down");
  });
  const find = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${table.tBodies[0].rows.length}`;
  };
  search.addEventListener("input", find);
  find();
});

const chosen = document.getElementById("model");
if (chosen) chosen.addEventListener("input", () => {
  document.querySelectorAll(".device-name").forEach((place) => { place.textContent = chosen.value; });
});
