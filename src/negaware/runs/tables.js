// Tables that sort and are saved as they stand, and the page's figures as tidy CSV. What a run or a user named is only
// ever text: it is escaped for the format that it goes to.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const save = (name, text, type) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: type + ";charset=utf-8" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  const button = (text, label, clicked) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    if (label) made.setAttribute("aria-label", label);
    made.addEventListener("click", clicked);
    return made;
  };

  // What a cell is sorted by: a time, or the figure that it begins with. Cells without one go last, either way.
  const figure = (text) => {
    if (/^\d+(:\d\d)+$/.test(text)) return text.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);
    const found = /^[^\w+−-]{0,2}([+−-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)/i.exec(text);
    return found ? Number(found[1].replaceAll(",", "").replace("−", "-")) : null;
  };
  const compare = (first, second) => first.localeCompare(second, "en", { numeric: true });
  const texts = (row) => [...row.cells].map((cell) => cell.dataset.text ?? cell.textContent);

  const csv = (rows) => rows.map((row) => row.map((cell) => {
    const text = String(cell ?? "");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }).join(",") + "\n").join("");
  const markdown = (rows) => {
    const clean = (text) => text.replaceAll("|", "\\|").replace(/[\r\n]+/g, " ");
    const line = (cells) => `| ${cells.join(" | ")} |\n`;
    const [head, ...body] = rows.map((row) => row.map(clean));
    return line(head) + line(head.map((_, place) => (place ? "---:" : "---"))) + body.map(line).join("");
  };
  const LATEX = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "–": "--", "−": "$-$",
    "<": "\\textless{}", ">": "\\textgreater{}", "[": "{[}", "]": "{]}", // \\ would take a bracket for its own
  };
  const latex = (rows) => {
    const clean = (text) => text.replace(/[\r\n]+/g, " ").replace(/[\\~^–−<>[\]&%$#_{}]/g, (char) => LATEX[char] ?? "\\" + char);
    const line = (cells) => `${cells.join(" & ")} \\\\\n`;
    const [head, ...body] = rows.map((row) => row.map(clean));
    const columns = "l" + "r".repeat(head.length - 1);
    return `\\begin{tabular}{${columns}}\n\\hline\n${line(head)}\\hline\n${body.map(line).join("")}\\hline\n\\end{tabular}\n`;
  };

  document.querySelectorAll("table.sortable").forEach((table, number) => {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    [...body.rows].forEach((row, place) => {
      row.dataset.place = place;
      const [first] = row.cells;
      first.dataset.text = first.textContent;
      const variant = data.variants.findIndex(({ name }) => name === first.textContent);
      if (variant < 0 || table.classList.contains("runs")) return;
      const swatch = document.createElement("span");
      swatch.dataset.swatch = variant;
      first.prepend(swatch);
    });
    heads.forEach((head, column) => {
      const name = head.textContent;
      head.dataset.text = name;
      head.setAttribute("aria-sort", "none");
      head.replaceChildren(button(name, "", () => {
        // Figures: the largest first; names: from A. The third click gives the first order back.
        const cells = new Map([...body.rows].map((row) => [row, texts(row)[column]]));
        const numeric = column > 0 && [...cells.values()].some((text) => figure(text) !== null);
        const order = numeric ? ["none", "descending", "ascending"] : ["none", "ascending", "descending"];
        const next = order[(order.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
        heads.forEach((other) => other.setAttribute("aria-sort", other === head ? next : "none"));
        const sign = next === "descending" ? -1 : 1;
        body.append(...[...body.rows].sort((one, other) => {
          const given = one.dataset.place - other.dataset.place;
          if (next === "none") return given;
          if (!numeric) return sign * compare(cells.get(one), cells.get(other)) || given;
          const [first, second] = [figure(cells.get(one)), figure(cells.get(other))];
          if (first === null || second === null) return (first === null) - (second === null) || given;
          return sign * (first - second) || given;
        }));
      }));
    });
    const name = `table-${number + 1}`;
    const title = table.caption.textContent;
    const rows = () => [heads.map((head) => head.dataset.text), ...[...body.rows].map(texts)];
    const exports = document.createElement("span");
    exports.className = "saves";
    exports.append(
      button("↓ CSV", `Save ${title} as CSV`, () => save(`${name}.csv`, csv(rows()), "text/csv")),
      button("↓ Markdown", `Save ${title} as Markdown`, () => save(`${name}.md`, markdown(rows()), "text/markdown")),
      button("↓ LaTeX", `Save ${title} as LaTeX`, () => save(`${name}.tex`, latex(rows()), "application/x-tex")),
    );
    table.caption.append(exports);
  });

  document.getElementById("export-figures").addEventListener("click", () => {
    const rows = [["study", "variant", "seed", "step", "measure", "value", "low", "high"]];
    for (const run of data.runs) for (const { key, low, high } of data.charts) run.series[key].forEach((value, index) => {
      const [step, ...ends] = ["step", low, high].map((name) => run.series[name]?.[index]);
      if (value !== null) rows.push([data.study, data.variants[run.variant].name, run.seed, step, key, value, ...ends]);
    });
    save("figures.csv", csv(rows), "text/csv");
  });
})();
