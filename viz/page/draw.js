// The chart shell: theme, axes, hover card, keyboard, hatching, export. Plotly draws; what it shows comes from charts.js and steps.js.

const $ = (selector, root = document) => root.querySelector(selector);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (slot) => (slot === null ? css("--grey-mark") : css(`--s${slot}`));
const withAlpha = (hex, alpha) => `${hex}${Math.round(alpha * 255).toString(16).padStart(2, "0")}`;

const hasWebgl = (() => {
  try { const c = document.createElement("canvas"); return Boolean(c.getContext("webgl2") || c.getContext("webgl")); } catch { return false; }
})();

function say(text) {
  $("#live").textContent = text;
  const toast = $("#toast");
  toast.textContent = text;
  toast.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => toast.classList.remove("shown"), 2600);
}

async function copyText(text, what = copiedWords(text)) {
  let done = false;
  try { await navigator.clipboard.writeText(text); done = true; } catch {
    const area = document.createElement("textarea");
    area.value = text; area.style.position = "fixed"; area.style.opacity = "0";
    document.body.append(area); area.select();
    try { done = document.execCommand("copy"); } catch { done = false; }
    area.remove();
  }
  window.lastCopied = text;
  say(done ? `${what}: ${text}` : text);
}

// ---- axes ----

// Ticks at round numbers: as many as fit, from decades to tenths.
const TICK_STEPS = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9], Array.from({ length: 90 }, (_, k) => (10 + k) / 10)];
function logTicks(low, high, spell) {
  let best = [];
  for (const steps of TICK_STEPS) {
    const values = [];
    for (let e = Math.floor(Math.log10(low)) - 1; e <= Math.ceil(Math.log10(high)); ++e)
      for (const s of steps) { const v = Number((s * 10 ** e).toPrecision(3)); if (v >= low && v <= high) values.push(v); }
    if (values.length > 9) break;
    best = values;
    if (values.length >= 5) break;
  }
  return { tickvals: best, ticktext: best.map(spell) };
}
function doublingTicks(low, high, spell) {
  const values = [];
  for (let v = 2 ** Math.ceil(Math.log2(low) - 0.001); v <= high * 1.001; v *= 2) values.push(v);
  const stride = Math.ceil(values.length / 9);
  const kept = values.filter((_, i) => i % stride === 0);
  return { tickvals: kept, ticktext: kept.map(spell) };
}
function spanOf(values, pad = 0.06) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (v > 0 && Number.isFinite(v)) { if (v < low) low = v; if (v > high) high = v; }
  if (low > high) return [0.5, 2];
  if (low === high) { low /= 1.5; high *= 1.5; }
  const room = (high / low) ** pad;
  return [low / room, high * room];
}
function logAxis(values, ticks, spell, pad) {
  const [low, high] = spanOf(values, pad);
  return { type: "log", range: [Math.log10(low), Math.log10(high)], ...ticks(low, high, spell) };
}

function layoutOf(x, y, more = {}) {
  const axis = {
    gridcolor: css("--rule"), zeroline: false, showline: false, ticks: "", tickfont: { color: css("--muted"), size: 12 }, automargin: true, fixedrange: false, hoverformat: "~s",
  };
  return {
    font: { family: css("--font"), size: 12.5, color: css("--ink") }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 54, r: 20, t: 26, b: 46, pad: 4 }, showlegend: false, hovermode: "closest", hoverdistance: 24, dragmode: "zoom", autosize: true,
    xaxis: { ...axis, ...x }, yaxis: { ...axis, ...y }, ...more,
  };
}

// Titles of axes lie flat: the vertical one above its axis, the horizontal one under its right end.
function axisTitles(x, y) {
  const font = { color: css("--muted"), size: 12 };
  const flat = { xref: "paper", yref: "paper", showarrow: false, font };
  return [
    { ...flat, x: 0, y: 1, xanchor: "left", yanchor: "bottom", yshift: 8, xshift: -40, text: y },
    { ...flat, x: 1, y: 0, xanchor: "right", yanchor: "top", yshift: -28, text: x },
  ];
}

// Names at the right end of lines. Those that would touch stand as a block around their mean.
function endLabels(series, axis, height) {
  const [low, high] = axis.range;
  const log = axis.type === "log", plot = height - 72, gap = 15;
  const place = (v) => ((log ? Math.log10(v) : v) - low) / (high - low) * plot;
  let blocks = series.map((s) => ({ list: [s], at: place(s.y) })).sort((a, b) => a.at - b.at);
  for (let moved = true; moved;) {
    moved = false;
    for (const b of blocks) b.at = Math.max((b.list.length - 1) * gap / 2, Math.min(b.at, plot - (b.list.length - 1) * gap / 2));
    for (let i = 1; i < blocks.length; ++i) {
      const a = blocks[i - 1], b = blocks[i], room = (a.list.length + b.list.length) * gap / 2;
      if (b.at - a.at >= room) continue;
      const n = a.list.length + b.list.length;
      blocks.splice(i - 1, 2, { list: [...a.list, ...b.list], at: (a.at * a.list.length + b.at * b.list.length) / n });
      moved = true;
      break;
    }
  }
  const placed = blocks.flatMap((b) => b.list.map((s, k) => ({ ...s, at: b.at + (k - (b.list.length - 1) / 2) * gap })));
  return placed.map((s) => ({
    xref: "paper", yref: "paper", x: 1, xanchor: "left", xshift: 8, y: s.at / plot, yanchor: "middle", showarrow: false, text: esc(short(s.text)), font: { color: s.colour, size: 12 }, align: "left",
  }));
}
const short = (text, most = 24) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// ---- the hover card ----

function cardOf(row, extra = []) {
  const c = D.configurations, method = D.methods[row.m], model = D.models[c.model[row.cfg]], gpu = D.gpus[c.gpu[row.cfg]];
  const q = index.quality(model.slug, method.recipe);
  const lines = [];
  const line = (name, value) => lines.push(`<dt>${esc(name)}</dt><dd>${value}</dd>`);
  if (row.kind === "served") {
    line("requests/s", `<b>${num(row.value)}</b> <span>80 %: ${num(row.low)} – ${num(row.high)}</span>`);
    line("over plain", `${times(row.gain)} <span>decode only ${times(row.decode)}</span>`);
    line("TTFT, TPOT", `${ms(row.ttft)}, ${ms(row.tpot)} <span>${known(row.flight) ? `${whole(row.flight)} in flight` : ""}</span>`);
  } else {
    line("tokens/s", `<b>${num(row.value)}</b> <span>80 %: ${num(row.low)} – ${num(row.high)}</span>`);
    line("step", `${ms(row.step)} <span>${times(row.decode)} the plain cache's speed at this batch</span>`);
    line("at", `${tokens(row.context)} context, batch ${whole(row.batch)}`);
  }
  line("cache", `${gib(row.cache)} <span>${times(row.size)} smaller</span>`);
  line("peak of a GPU", gib(row.peak));
  line("bound by", esc(boundName(row.bound)));
  line("quality", q ? `${num(q.retained, 4)} ${esc(gradeName(q.grade))} on ${esc(q.quality_model)}${judgedOn(q, model.slug) ? ", another model" : ""}` : "unknown");
  line("evidence", esc(evidenceName(row.evidence)));
  for (const [name, value] of extra) line(name, value);
  const params = Object.entries(method.params).map(([k, v]) => `${k} ${v}`).join(", ");
  const slot = slotOf(row.m);
  return `<h4>${swatch(row.m, slot, isHatched(row))} ${esc(method.recipe)}</h4><p>${esc(model.name)} on ${esc(gpu.identity)} · ${esc(method.family.replace("_", " "))}${method.deployable ? "" : " · research only"}</p>
    <dl>${lines.join("")}</dl>${params ? `<p class="params">${esc(params)}</p>` : ""}<p class="from">computed by kvatlas ${esc(D.meta.code_version)} · click copies the command line</p>`;
}

function showCard(html, x, y) {
  const card = $("#card");
  card.innerHTML = html;
  card.hidden = false;
  const w = card.offsetWidth, h = card.offsetHeight;
  card.style.left = `${Math.max(8, Math.min(x + 16, innerWidth - w - 8))}px`;
  card.style.top = `${Math.max(8, Math.min(y + 16 + h > innerHeight ? y - h - 16 : y + 16, innerHeight - h - 8))}px`;
}
function hideCard() { $("#card").hidden = true; }

// ---- the chart ----

const charts = new Map();

// define(id, {title, build}) : build() gives {traces, layout, height, rows, table, note, empty}
// traces   Plotly's; a trace may carry `rows`: what each of its points is, and `hatch`: the slot whose marks are hatched
// rows     every row that the keyboard walks through
function defineChart(id, definition) { charts.set(id, { id, ...definition, dirty: true, visible: false, traces: [], at: -1 }); }

function redraw(what) {
  for (const chart of charts.values()) {
    chart.dirty = true;
    if (chart.visible) draw(chart);
  }
}

function draw(chart) {
  if (!chart.dirty || !window.Plotly) return;
  chart.dirty = false;
  const figure = $(`#${chart.id}`), plot = $(".plot", figure), sentence = $(".sentence", figure);
  const built = chart.build();
  $("h3 span", figure).textContent = built.title || "";
  sentence.innerHTML = esc(built.empty || built.note || "").replace(/`([^`]+)`/g, "<code>$1</code>");
  figure.classList.toggle("empty", Boolean(built.empty));
  plot.hidden = Boolean(built.empty);
  fillTable(figure, built);
  chart.built = built;
  chart.at = -1;
  if (built.empty) { if (chart.drawn) Plotly.purge(plot); chart.drawn = false; plot.removeAttribute("role"); return; }
  plot.style.height = `${built.height || 380}px`;
  chart.traces = built.traces;
  const traces = built.traces.map(({ rows, hatch, ...t }, i) => ({ hoverinfo: "none", uid: hatch === undefined ? `t${i}` : `hatch${hatch}x${i}`, ...t }));
  const layout = { ...built.layout, height: built.height || 380 };
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-roledescription", "chart");
  plot.setAttribute("aria-label", `${built.title || chart.title}. ${built.rows ? `${built.rows.length} points in colour; arrow keys walk through them, Enter copies a command line. ` : "Arrow keys walk through its marks. "}${built.note || ""}`);
  const first = !chart.drawn;
  Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: true, doubleClick: "reset", scrollZoom: false });
  chart.drawn = true;
  if (first) listen(chart, plot);
  if (!chart.wired) { chart.wired = true; keys(chart, plot); }
  hatch(plot);
}

// A chart's table: rows, or how many there are and each when asked for.
const MOST_ROWS = 400;
function tableOf(table) {
  const count = table.rows ? table.rows.length : table.count;
  const first = (most) => (table.rows ? table.rows.slice(0, most) : Array.from({ length: Math.min(most, count) }, (_, k) => table.row(k)));
  return { count, first };
}

function fillTable(figure, built) {
  const table = $("table", figure);
  if (!table) return;
  const all = built.table ? tableOf(built.table) : { count: 0 }, rows = built.table ? all.first(MOST_ROWS) : [];
  table.innerHTML = built.table ? `<thead><tr>${built.table.columns.map((c) => `<th scope="col">${esc(c)}</th>`).join("")}</tr></thead><tbody>${rows.map((r) =>
    `<tr>${r.map((v) => `<td>${esc(typeof v === "number" ? num(v, 4) : v ?? "–")}</td>`).join("")}</tr>`).join("")}</tbody>` : "";
  $("details", figure).hidden = rows.length === 0;
  $("summary", figure).textContent = all.count > rows.length ? `as a table: the first ${whole(rows.length)} of ${whole(all.count)} rows, the CSV has all` : "as a table";
}

// Marks of unsure figures: Plotly has no hatched marks, so their fill is set to a pattern of the page.
function hatch(plot) {
  for (const trace of plot.querySelectorAll(".scatterlayer .trace")) {
    const slot = /tracehatch(\d+)x/.exec(trace.getAttribute("class") || "");
    if (slot) for (const mark of trace.querySelectorAll(".point")) mark.style.fill = `url(#hatch-${slot[1]})`;
  }
}

function listen(chart, plot) {
  const rowAt = (event) => { const p = event.points[0]; return (chart.traces[p.curveNumber].rows || [])[p.pointNumber]; };
  plot.on("plotly_hover", (event) => {
    const row = rowAt(event);
    if (!row) return hideCard();
    const at = event.event || { clientX: 100, clientY: 100 };
    showCard(row.html ? row.html() : cardOf(row, row.extra), at.clientX, at.clientY);
    chart.hovered = row;
  });
  plot.on("plotly_unhover", () => { chart.hovered = null; hideCard(); });
  plot.on("plotly_click", (event) => { const row = rowAt(event); if (row && row.cfg !== undefined) select(row); });
  plot.on("plotly_afterplot", () => hatch(plot));
}

// What the arrow keys walk through: the rows that the chart names, or else those of its marks.
function walked(chart) {
  if (chart.built.empty) return [];
  if (chart.built.rows && chart.built.rows.length) return chart.built.rows;
  return [...new Set(chart.built.traces.flatMap((t) => (t.rows ? Array.from({ length: t.rows.length }, (_, i) => t.rows[i]) : [])))].filter(Boolean);
}
function saidOf(row) {
  if (row.html) { const box = document.createElement("template"); box.innerHTML = row.html().replace(/<\/(h4|p|dt|dd)>/g, "$& "); return box.content.textContent.replace(/\s+/g, " ").trim(); }
  return `${D.methods[row.m].recipe}: ${row.kind === "served" ? `${num(row.value)} requests per second` : `${num(row.value)} tokens per second at ${tokens(row.context)} context, batch ${row.batch}`}, ${num(row.size)} times smaller cache, ${evidenceName(row.evidence)}`;
}

// Plotly drops its own listeners when a plot is emptied; those of the keyboard stay, so they are set once.
function keys(chart, plot) {
  plot.tabIndex = 0;
  plot.addEventListener("keydown", (event) => {
    const rows = (chart.built.walked = chart.built.walked || walked(chart));
    if (!rows.length) return;
    if (["ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "Home", "End"].includes(event.key)) {
      event.preventDefault();
      const step = event.key === "ArrowRight" || event.key === "ArrowDown" ? 1 : -1;
      chart.at = event.key === "Home" ? 0 : event.key === "End" ? rows.length - 1 : (chart.at + step + rows.length) % rows.length;
      const row = rows[chart.at], box = plot.getBoundingClientRect();
      showCard(row.html ? row.html() : cardOf(row, row.extra), box.left + 60, box.top + 40);
      $("#live").textContent = `${saidOf(row)}. ${chart.at + 1} of ${rows.length}`;
    } else if (event.key === "Enter" && chart.at >= 0) {
      event.preventDefault();
      if (rows[chart.at].cfg !== undefined) select(rows[chart.at]);
    } else if (event.key === "Escape") { hideCard(); chart.at = -1; }
  });
  plot.addEventListener("blur", hideCard);
}

// A chosen point: its command is copied, and the bar below offers what else can be done with it.
function select(row) {
  copyText(commandOf(row));
  const bar = $("#chosen");
  bar.innerHTML = `<span>${swatch(row.m, slotOf(row.m), isHatched(row))} <b>${esc(D.methods[row.m].recipe)}</b> <code>${esc(commandOf(row))}</code></span>
    <button data-do="copy">Copy</button><button data-do="a">Pin as A</button><button data-do="b">Pin as B</button>
    <button data-do="lit">${slotOf(row.m) === null ? "Colour it" : "Grey it"}</button><button data-do="close" aria-label="close">×</button>`;
  bar.hidden = false;
  bar.onclick = (event) => {
    const what = event.target.dataset && event.target.dataset.do;
    if (what === "copy") copyText(commandOf(row));
    if (what === "a" || what === "b") pin(what, row);
    if (what === "lit") say(toggleLit(row.m));
    if (what === "close" || what === "lit") bar.hidden = true;
  };
}

// ---- export ----

async function svgOf(chart) {
  const plot = $(".plot", $(`#${chart.id}`)), width = Math.max(640, plot.clientWidth), height = plot.clientHeight;
  const url = await Plotly.toImage(plot, { format: "svg", width, height });
  const svg = new DOMParser().parseFromString(decodeURIComponent(url.slice(url.indexOf(",") + 1)), "image/svg+xml").documentElement;
  const background = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [k, v] of [["width", width], ["height", height], ["fill", css("--surface")]]) background.setAttribute(k, v);
  svg.prepend(background);
  const defs = document.createElementNS("http://www.w3.org/2000/svg", "defs");
  for (const pattern of document.querySelectorAll("#patterns pattern")) defs.append(patternCopy(pattern));
  svg.prepend(defs);
  hatch(svg);
  return { text: new XMLSerializer().serializeToString(svg), width, height };
}
// Patterns of the page take their colours from variables, which a file of its own does not have.
function patternCopy(pattern) {
  const copy = pattern.cloneNode(true), slot = pattern.id.split("-")[1];
  const [ground, line] = copy.querySelectorAll("rect, path");
  ground.setAttribute("fill", css("--surface"));
  line.setAttribute("stroke", css(`--s${slot}`));
  copy.removeAttribute("style");
  return copy;
}
function save(blob, name) {
  const a = document.createElement("a");
  a.href = URL.createObjectURL(blob);
  a.download = name;
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 5000);
}
async function exportChart(chart, format) {
  const { text, width, height } = await svgOf(chart);
  const svg = new Blob([text], { type: "image/svg+xml" });
  if (format === "svg") return save(svg, `kvatlas-${chart.id}.svg`);
  const image = new Image();
  image.src = URL.createObjectURL(svg);
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = 2 * width; canvas.height = 2 * height;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(image.src);
  canvas.toBlob((blob) => save(blob, `kvatlas-${chart.id}.png`), "image/png");
}
const csvCell = (v) => (v === null || v === undefined || Number.isNaN(v) ? "" : /[",\n]/.test(String(v)) ? `"${String(v).replace(/"/g, '""')}"` : String(v));
function exportCsv(columns, rows, name) {
  save(new Blob([[columns, ...rows].map((r) => r.map(csvCell).join(",")).join("\n") + "\n"], { type: "text/csv" }), name);
}
