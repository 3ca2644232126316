"use strict";
(() => {
  const body = document.querySelector("#cases tbody");
  const rows = [...body.rows];
  const text = document.getElementById("find"), decision = document.getElementById("decision");
  const status = document.getElementById("told");

  function filter() {
    const query = text.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const matches = row.textContent.toLowerCase().includes(query) &&
        (decision.value === "" || row.dataset.decision === decision.value);
      row.hidden = !matches;
      shown += matches;
    }
    status.textContent = `${shown} of ${rows.length} cases shown`;
  }

  function sort(button) {
    const head = button.closest("th"), column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    document.querySelectorAll("#cases th").forEach((th) => th.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent.trim();
    const numeric = head.dataset.kind === "number";
    rows.sort((a, b) => {
      const x = key(a), y = key(b);
      if (numeric) {  // cases without a number come last in both directions
        if (x === "" || y === "") return (x === "") - (y === "");
        return up ? x - y : y - x;
      }
      return up ? x.localeCompare(y) : y.localeCompare(x);
    });
    body.append(...rows);
  }

  text.addEventListener("input", filter);
  decision.addEventListener("change", filter);
  document.querySelectorAll("#cases th button").forEach((button) => {
    button.addEventListener("click", () => sort(button));
  });
  filter();
})();
