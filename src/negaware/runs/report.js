// Curves and the browser of answers, from the JSON that the page carries. Model text is hostile: it only ever becomes
// text nodes and option values, never markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const root = document.documentElement;
  const PAGE = 20;

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  // A variant is drawn as the mean of its runs, before them as thin lines; a single run as itself.
  const variants = data.variants.map((variant, number) => ({ ...variant, runs: data.runs.filter((run) => run.variant === number) }));
  const curveOf = (variant) => variant.mean ?? variant.runs[0].series;
  const bandOf = (variant, chart) => variant.mean
    ? [variant.mean[chart.key + ":low"], variant.mean[chart.key + ":high"]]
    : [variant.runs[0].series[chart.low], variant.runs[0].series[chart.high]];
  const style = ({ look }) => ({
    color: look[root.dataset.theme],
    dash: look.dashes.map((length) => length + "px").join() || "solid",
    stroke: look.dashes.join(" "),
    symbol: look.symbol,
    glyph: look.glyph,
  });
  const fade = (color) => color + (variants.length > 4 ? "12" : "2e"); // many bands lie over each other
  const themeColor = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // Theme: the system's, until the button is pressed.
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const applyTheme = () => { root.dataset.theme = chosen ?? (system.matches ? "dark" : "light"); };
  applyTheme();

  // Curves
  const hidden = new Set();
  let axis = "step";
  const longest = Math.max(0, ...data.runs.flatMap((run) => run.series.seconds.filter((value) => value !== null)));
  const [unit, secondsPerUnit] = longest > 3 * 3600 ? ["hours", 3600] : longest > 300 ? ["minutes", 60] : ["seconds", 1];

  const points = (series, chart, [low, high] = []) => {
    const rows = [];
    series[chart.key].forEach((value, index) => {
      const seconds = series.seconds[index];
      if (value === null || (axis === "time" && seconds === null)) return;
      rows.push({
        x: axis === "step" ? series.step[index] : seconds / secondsPerUnit,
        y: value, low: low?.[index] ?? null, high: high?.[index] ?? null,
      });
    });
    return rows;
  };
  const shown = (chart, value) =>
    chart.percent ? (100 * value).toFixed(1) + "%" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));

  // Around few points Plotly's own range reaches far beyond what a share can be.
  const isShare = (chart) => chart.percent && data.runs.every((run) =>
    [chart.key, chart.low, chart.high].filter(Boolean).every((key) => run.series[key].every((value) => value === null || (value >= 0 && value <= 1))));

  // All the runs of a variant in one trace, with gaps between them: fifty traces a chart would be slow.
  const seeds = (variant, chart, look) => {
    const rows = variant.runs.flatMap((run) => [...points(run.series, chart), { x: null, y: null }]);
    return {
      type: "scatter", mode: "lines", name: `${variant.name}, seeds`, x: rows.map((row) => row.x), y: rows.map((row) => row.y),
      line: { color: look.color, width: 1 }, opacity: variants.length > 4 ? .22 : .45, hoverinfo: "skip", connectgaps: false,
    };
  };
  // Single runs lie lowest, then intervals, then means.
  const traces = (chart) => [0, 1, 2].flatMap((layer) => variants.flatMap((variant, number) => {
    if (hidden.has(number) || !variant.runs.length) return [];
    const look = style(variant);
    const rows = points(curveOf(variant), chart, bandOf(variant, chart));
    if (layer === 0) return variant.mean ? [seeds(variant, chart, look)] : [];
    if (!rows.length) return [];
    const line = {
      type: "scatter", mode: "lines+markers", name: variant.name, x: rows.map((row) => row.x), y: rows.map((row) => row.y),
      line: { color: look.color, dash: look.dash, width: 2 },
      marker: { symbol: look.symbol, size: 8, color: look.color, maxdisplayed: 14 }, cliponaxis: !isShare(chart),
      customdata: rows.map((row) => (row.low === null || row.high === null ? "" : ` [${shown(chart, row.low)}, ${shown(chart, row.high)}]`)),
      text: rows.map((row) => shown(chart, row.y)), hovertemplate: "%{text}%{customdata}",
    };
    const sure = rows.filter((row) => row.low !== null && row.high !== null);
    const edge = (part, extra) => ({
      type: "scatter", mode: "lines", x: sure.map((row) => row.x), y: sure.map((row) => row[part]), hoverinfo: "skip",
      name: `${variant.name}, ${part}`, line: { color: look.color, width: variant.mean ? 0 : .6, dash: look.dash }, ...extra,
    });
    const band = sure.length ? [edge("low", {}), edge("high", { fill: "tonexty", fillcolor: fade(look.color) })] : [];
    return layer === 1 ? band : [line];
  }));

  const layout = (chart) => ({
    margin: { l: 52, r: 12, t: 10, b: 40 }, showlegend: false, hovermode: "x unified",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: themeColor("--quiet"), activecolor: themeColor("--accent") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: themeColor("--ink"), family: "inherit", size: 12 },
    hoverlabel: { bgcolor: themeColor("--card"), bordercolor: themeColor("--line"), font: { color: themeColor("--ink") } },
    xaxis: { title: { text: axis === "step" ? "step" : `${unit} since the run started`, standoff: 6 }, gridcolor: themeColor("--grid"), zeroline: false, rangemode: "tozero",
      spikecolor: themeColor("--quiet"), spikethickness: -1, spikedash: "dot", unifiedhovertitle: { text: axis === "step" ? "step %{x}" : `%{x:.2~f} ${unit}` } },
    yaxis: { gridcolor: themeColor("--grid"), zerolinecolor: themeColor("--line"), tickformat: chart.percent ? ".0%" : "", automargin: true,
      ...(isShare(chart) && { autorangeoptions: { clipmin: 0, clipmax: 1 } }) },
  });
  const settings = {
    responsive: true, displaylogo: false, displayModeBar: "hover",
    modeBarButtons: [["zoom2d", "pan2d", "autoScale2d", "toImage"]],
  };

  const hasValues = (chart) => data.runs.some((run) => run.series[chart.key].some((value) => value !== null));
  const averaged = variants.some((variant) => variant.mean);
  const describe = (chart) => variants.flatMap((variant) => {
    const values = variant.runs.length ? curveOf(variant)[chart.key].filter((value) => value !== null) : [];
    if (!values.length) return [];
    const mark = variants.length > 1 ? `${variant.look.glyph} ${averaged ? variant.name + " " : ""}` : "";
    const first = shown(chart, values[0]);
    return [mark + (values.length > 1 ? `${first} → ${shown(chart, values[values.length - 1])}` : `${first} (one value)`)];
  }).join(" · ");

  const plots = [];
  for (const chart of data.charts) {
    const explanation = averaged ? chart.averaged || chart.explanation : chart.explanation;
    const caption = element("figcaption", {}, element("h3", {}, chart.title), element("p", {}, explanation));
    const figure = element("figure", { "data-key": chart.key }, caption);
    if (hasValues(chart)) {
      const summary = describe(chart);
      if (!averaged && data.runs.length <= 4) caption.append(element("p", { class: "last" }, summary));
      const plot = element("div", { class: "plot", role: "img", "aria-label": `${chart.title}, first to last: ${summary}` });
      figure.append(plot);
      plots.push([plot, chart]);
      const save = (format) => {
        const button = element("button", { type: "button", "data-format": format, "aria-label": `Save ${chart.title} as ${format.toUpperCase()}` }, `↓ ${format.toUpperCase()}`);
        button.addEventListener("click", () => Plotly.downloadImage(plot, { format, width: 900, height: 500, scale: 2, filename: chart.key.replaceAll("/", "-") }));
        return button;
      };
      caption.prepend(element("div", { class: "saves" }, save("png"), save("svg")));
    } else {
      figure.append(element("p", { class: "empty" }, `No values yet: no step logged ${chart.key}.`));
    }
    find("charts").append(figure);
  }
  const draw = () => plots.forEach(([plot, chart]) => Plotly.react(plot, traces(chart), layout(chart), settings));

  const swatch = (variant) => {
    const look = style(variant);
    const space = "http://www.w3.org/2000/svg";
    const picture = document.createElementNS(space, "svg");
    const line = document.createElementNS(space, "line");
    const mark = document.createElementNS(space, "text");
    for (const [name, value] of Object.entries({ x1: 0, y1: 7, x2: 46, y2: 7, stroke: look.color, "stroke-width": 2.5, "stroke-dasharray": look.stroke })) line.setAttribute(name, value);
    for (const [name, value] of Object.entries({ x: 23, y: 12, fill: look.color, "text-anchor": "middle", "font-size": 14 })) mark.setAttribute(name, value);
    mark.textContent = look.glyph;
    picture.setAttribute("class", "swatch");
    picture.setAttribute("aria-hidden", "true");
    picture.append(line, mark);
    return picture;
  };
  const drawLegend = () => {
    if (variants.length > 1) find("legend").replaceChildren(...variants.flatMap((variant, number) => {
      if (!variant.runs.length) return [];
      const button = element("button", { type: "button", "aria-pressed": String(!hidden.has(number)) }, swatch(variant), variant.name);
      button.addEventListener("click", () => {
        if (!hidden.delete(number)) hidden.add(number);
        button.setAttribute("aria-pressed", String(!hidden.has(number)));
        draw();
      });
      return [button];
    }));
    if (averaged) find("legend-note").textContent = "Thick: a variant's mean, with its 95% interval over three runs or more. Thin: each run. A click hides a variant.";
    document.querySelectorAll("[data-swatch]").forEach((place) => place.replaceChildren(swatch(variants[place.dataset.swatch])));
  };
  document.querySelectorAll('input[name="axis"]').forEach((input) => input.addEventListener("change", () => {
    axis = input.value;
    draw();
  }));

  // Answers
  const VERDICTS = { correct: "✓ correct", wrong: "✗ wrong", no_answer: "∅ no answer", timeout: "⏱ timeout", error: "⚠ error" };
  let page = 0;
  const option = (value, text) => element("option", { value }, text);
  const count = (key) => data.answers.reduce((counts, answer) => counts.set(answer[key], (counts.get(answer[key]) ?? 0) + 1), new Map());
  const reasons = count("reason");
  find("filter-run").append(option("", "all runs"), ...data.runs.map((run, number) => option(String(number), run.label)));
  find("filter-step").append(option("", "all steps"), ...[...count("step").keys()].sort((a, b) => a - b).map((step) => option(String(step), `step ${step}`)));
  find("filter-verdict").append(option("", "all verdicts"), ...[...reasons.keys()].sort().map((reason) => option(reason, `${VERDICTS[reason] ?? reason} (${reasons.get(reason).toLocaleString("en")})`)));

  const matching = () => {
    const [run, step, verdict] = ["run", "step", "verdict"].map((name) => find(`filter-${name}`).value);
    const text = find("filter-text").value.toLowerCase();
    return data.answers.filter((answer) =>
      (run === "" || answer.run === Number(run)) && (step === "" || answer.step === Number(step)) &&
      (verdict === "" || answer.reason === verdict) &&
      (text === "" || answer.answer.toLowerCase().includes(text) || data.questions[answer.question].toLowerCase().includes(text)));
  };
  const answerItem = (answer) => {
    const kind = answer.reason === "correct" || answer.reason === "wrong" ? answer.reason : "other";
    const head = element("div", { class: "head" },
      element("span", { class: `verdict ${kind}` }, VERDICTS[answer.reason] ?? answer.reason),
      element("span", {}, `step ${answer.step}`), element("span", {}, data.runs[answer.run].label));
    if (answer.pass_rate !== null) {
      const filled = element("i");
      filled.style.width = `${Math.round(100 * answer.pass_rate)}%`;
      head.append(element("span", {}, element("span", { class: "meter", "aria-hidden": "true" }, filled), `group's pass rate ${Math.round(100 * answer.pass_rate)}%`));
    }
    if (answer.num_tokens !== null) head.append(element("span", {}, `${answer.num_tokens} token${answer.num_tokens === 1 ? "" : "s"}`));
    if (answer.finish_reason === "length") head.append(element("span", {}, "cut off at the length limit"));
    if (answer.trained === false) head.append(element("span", {}, "not trained on"));
    const fields = element("dl");
    const field = (name, value, kindOfText) => fields.append(element("dt", {}, name), element("dd", { class: kindOfText, "data-field": name.toLowerCase() }, value));
    field("Question", data.questions[answer.question], "text");
    field("Answer", answer.answer === "" ? "(empty)" : answer.answer, "text");
    field("Extracted", answer.extracted ?? "(nothing)", "value");
    field("Gold", answer.gold, "value");
    return element("li", { class: kind }, head, fields);
  };
  const list = () => {
    const found = matching();
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const first = page * PAGE;
    find("answer-list").replaceChildren(...found.slice(first, first + PAGE).map(answerItem));
    const number = (value) => value.toLocaleString("en");
    find("count").textContent = found.length
      ? `${number(first + 1)}–${number(Math.min(first + PAGE, found.length))} of ${number(found.length)} answers, page ${number(page + 1)} of ${number(pages)}`
      : data.answers.length ? "No answer matches these filters." : "No sampled answers are kept.";
    for (const suffix of ["", "-below"]) {
      find("previous" + suffix).disabled = page === 0;
      find("next" + suffix).disabled = page >= pages - 1;
    }
  };
  const turn = (by, from) => { page += by; list(); if (from === "-below") find("answers").scrollIntoView(); };
  for (const suffix of ["", "-below"]) {
    find("previous" + suffix).addEventListener("click", () => turn(-1, suffix));
    find("next" + suffix).addEventListener("click", () => turn(1, suffix));
  }
  find("filters").addEventListener("input", () => { page = 0; list(); });
  find("filters").addEventListener("submit", (event) => event.preventDefault());

  const drawAll = () => { drawLegend(); draw(); };
  find("theme").addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    applyTheme();
    drawAll();
  });
  system.addEventListener("change", () => { applyTheme(); drawAll(); });
  drawAll();
  list();
})();
