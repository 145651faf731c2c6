"use strict";
// Tables: a click on a heading sorts the arms by that column; changes against the baseline, yardsticks and
// runs that did not complete stay below, in their order.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows];
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x === "number" && typeof y === "number") return down ? y - x : x - y;
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        return (down ? -1 : 1) * x.localeCompare(y, "en", { numeric: true });
      };
      const movable = rows.filter((row) => row.className === "arm").sort(compare);
      const fixed = rows.filter((row) => row.className !== "arm");
      body.append(...movable, ...fixed);
    });
  });
}
// Tokens: what the router decided, shown on hover or tap. Only textContent is written, so that a token is always text.
const box = document.getElementById("tokens");
if (box) {
  const tip = document.getElementById("tip");
  const sites = JSON.parse(box.dataset.sites);
  const paths = JSON.parse(box.dataset.paths);
  const show = (event) => {
    const token = event.target.closest(".tok");
    if (!token) { tip.style.display = "none"; return; }
    const shares = token.dataset.p.split(" ");
    const choices = token.dataset.c.split(" ");
    const last = paths[paths.length - 1];
    tip.textContent = sites.map((site, i) => `${site}: ${paths[choices[i]]} (${last} ${shares[i]}%)`).join("\n");
    tip.style.display = "block";
    const [w, h] = [tip.offsetWidth, tip.offsetHeight];
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - w - 4))}px`;
    tip.style.top = `${event.clientY + 16 + h > innerHeight ? Math.max(4, event.clientY - h - 10) : event.clientY + 16}px`;
  };
  box.addEventListener("pointermove", show);
  box.addEventListener("click", show);
  box.addEventListener("pointerleave", () => { tip.style.display = "none"; });
}
