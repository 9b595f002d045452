// Opens the page: words first, charts as they come into view.

function chartFrame(id) {
  return `<figure class="chart" id="${id}"><header><h3><span></span></h3><div class="tools"><button data-png title="save as PNG">PNG</button><button data-svg title="save as SVG">SVG</button><button data-csv title="save the figures as CSV">CSV</button></div></header>
    <ul class="parts"></ul><div class="plot"></div><figcaption class="sentence"></figcaption><details><summary>as a table</summary><div class="scroll"><table></table></div></details></figure>`;
}

function drawPatterns() {
  const pattern = (name, paint) => `<pattern id="hatch-${name}" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="5" height="5" style="fill:var(--surface)"/><path d="M0 0V5" style="stroke:${paint}" stroke-width="4.4"/></pattern>`;
  $("#patterns").innerHTML = `<defs>${Array.from({ length: LIT }, (_, i) => pattern(i, `var(--s${i})`)).join("")}${pattern("key", "var(--ink)")}</defs>`;
}

function drawTheme() {
  if (state.theme) document.documentElement.dataset.theme = state.theme;
  else delete document.documentElement.dataset.theme;
  const dark = css("--dark") === "1";
  $("#theme").textContent = dark ? "light" : "dark";
  $("#theme").setAttribute("aria-label", `switch to ${dark ? "light" : "dark"} colours`);
  document.querySelector('meta[name="color-scheme"]').content = dark ? "dark" : "light";
}

function drawControls() {
  const contexts = index.contexts, at = stepContext();
  const cfgs = litSeries().map((s) => configurationOf(s.m)).filter((c) => c !== undefined);
  const batches = new Set();
  for (const cfg of cfgs) { const [from, to] = index.pointsOf(cfg); for (let i = from; i < to; ++i) if ((D.points.batch[i] & (D.points.batch[i] - 1)) === 0) batches.add(D.points.batch[i]); }
  const box = $("#step-controls");
  box.hidden = contexts.length === 0;
  box.innerHTML = `<label>context <select id="pick-context">${contexts.map((c) => option(c, tokens(c), c === at)).join("")}</select></label>
    <label>batch <select id="pick-batch">${[...batches].sort((a, b) => a - b).map((b) => option(b, whole(b), b === state.batch)).join("")}${option(0, "the fastest that fits", state.batch === 0)}</select></label>`;
  $("#pick-context").onchange = (e) => { state.context = Number(e.target.value); changed("steps"); $("#pick-context").focus(); };
  $("#pick-batch").onchange = (e) => { state.batch = Number(e.target.value); changed("steps"); $("#pick-batch").focus(); };
}

function drawScope() {
  const box = $("#scope");
  const modes = [["ask", "this question"], ["pair", "every step of this model and GPU"], ["all", "everything in the file"]];
  box.innerHTML = D.points.context.length ? modes.map(([v, t]) => `<button class="chip" data-scope="${v}" aria-pressed="${state.scope === v}">${t}</button>`).join("") : "";
  box.onclick = (e) => { const b = e.target.closest("[data-scope]"); if (b) { state.scope = b.dataset.scope; changed("scope"); box.querySelector(`[data-scope="${state.scope}"]`).focus(); } };
}

function coverageOfFile() {
  const runs = D.validation.filter((r) => r.kind.startsWith("e2e_") && r.gpu === "*" && r.profile === "*" && r.subset === "all");
  const off = runs.filter((r) => farOff(r.coverage_80));
  return off.length ? `; of measured runs of whole models they hold ${[...new Set(off.map((r) => percent(r.coverage_80)))].join(", ")}, see the errors above` : "";
}

function drawAbout() {
  const m = D.meta;
  const runs = m.runs.map((r) => `<li>${esc(r.spec.name || "a sweep without a name")}${r.spec.comment ? `: ${esc(r.spec.comment)}` : ""} <small>${whole(r.points)} points, ${whole(r.infeasible)} infeasible, ${esc(r.state)}, shard ${esc(r.shard)}, kvatlas ${esc(r.code_version)}</small></li>`).join("");
  $("#about-box").innerHTML = `<p>Drawn from <b>${esc(m.db)}</b> (store version ${m.schema}, written by kvatlas ${esc(m.code_version)}): ${whole(m.points_total)} decode steps and ${whole(m.workload_rows)} served workloads of ${D.methods.length} settings, ${D.models.length} models, ${D.gpus.length} GPUs. ${m.thinned ? esc(m.thinned) : "Every one is drawn."}</p>
    <ul>${runs}</ul>
    <p>Times are computed by a calibrated model of kernels; intervals are meant to hold the truth in 80 % of cases${coverageOfFile()}. Bytes are counted by each method's ledger formula. Quality is what the store's quality table says, never assumed. This page selects and sorts stored figures and sets them side by side; what it computes itself is ratios of two of them (B over A, ours over published, one method over another), tokens/s at the ends of a step's interval, and units.</p>
    <dl class="glossary">${Object.values(EVIDENCE).map(([a, b]) => `<dt>${a}</dt><dd>${b}</dd>`).join("")}<dt>proxy quality</dt><dd>an error of attention or a small test stands in for a task</dd></dl>
    <p>Models: ${D.models.map((x) => `${esc(x.name)} <small>${esc(x.source)}</small>`).join("; ")}.</p>`;
}

const draws = {
  question: drawQuestion, theme: drawTheme, answer: drawAnswer, filters: drawFilters, legend: drawLegend, why: drawWhyNot, compare: drawCompare, validation: drawValidation, claims: drawClaims, rows: drawRows, controls: drawControls, scope: drawScope, about: drawAbout,
};

function drawAll(what) {
  const only = (...names) => what && [...what].every((w) => names.includes(w));
  if (only("why")) return drawWhyNot();
  if (only("claims")) return drawClaims();
  if (only("pins")) { drawCompare(); for (const id of ["pays-map", "parts-context", "parts-batch"]) redrawOne(id); return; }
  drawTheme();
  for (const name of ["question", "filters", "answer", "legend", "scope", "controls", "why", "compare"]) draws[name]();
  if (seen.has("rows")) drawRows();
  if (what && (what.has("question") || what.has("filters"))) $("#live").textContent = `Answer: ${$("#answer .verdict").textContent}. ${questionRows().rows.length} settings.`;
  redraw();
  drawKeys();
}
function redrawOne(id) { const chart = charts.get(id); chart.dirty = true; if (chart.visible) draw(chart); }

// Colour keys of stacked bars.
function drawKeys() {
  for (const chart of charts.values()) {
    const list = $(".parts", $(`#${chart.id}`));
    const legend = chart.built && !chart.built.empty && chart.built.legend;
    list.innerHTML = legend ? legend.map(([name, paint]) => `<li><i style="background:var(${paint})"></i>${name}</li>`).join("") : "";
  }
}

const seen = new Set();
function watch() {
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const chart = charts.get(entry.target.id);
      if (chart) { chart.visible = entry.isIntersecting; if (entry.isIntersecting && chart.dirty) { draw(chart); drawKeys(); } }
      else if (entry.isIntersecting && !seen.has(entry.target.id)) { seen.add(entry.target.id); draws[entry.target.id](); }
    }
  }, { rootMargin: "300px 0px" });
  for (const id of charts.keys()) observer.observe($(`#${id}`));
  for (const id of ["rows"]) observer.observe($(`#${id}`));
}

function wire() {
  $("#theme").onclick = () => { state.theme = css("--dark") === "1" ? "light" : "dark"; changed("theme"); };
  $("#link").onclick = () => { history.replaceState(null, "", `#${addressOf()}`); copyText(location.href, "Link copied"); };
  // The address holds the view, so links within the page scroll and leave it alone.
  for (const a of document.querySelectorAll('[data-jump], .skip')) a.onclick = (e) => {
    e.preventDefault();
    const to = $(a.getAttribute("href"));
    to.tabIndex = -1;
    to.focus({ preventScroll: true });
    to.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  };
  $("#why-input").oninput = (e) => { state.search = e.target.value; changed("why"); };
  $("#recipes").innerHTML = D.methods.map((m) => `<option value="${esc(m.recipe)}">`).join("");
  document.addEventListener("keydown", (e) => { if (e.key === "Escape") { hideCard(); $("#chosen").hidden = true; } if (e.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) { e.preventDefault(); $("#why-input").focus(); } });
  for (const chart of charts.values()) {
    const figure = $(`#${chart.id}`);
    $("[data-png]", figure).onclick = () => exportChart(chart, "png");
    $("[data-svg]", figure).onclick = () => exportChart(chart, "svg");
    $("[data-csv]", figure).onclick = () => chart.built && chart.built.table && exportCsv(chart.built.table.columns, tableOf(chart.built.table).first(Infinity), `kvatlas-${chart.id}.csv`);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (!state.theme) drawAll(); });
  addEventListener("hashchange", () => { if (location.hash.slice(1) !== addressOf()) { readAddress(); rowsCache = null; drawAll(); } });
  addEventListener("resize", () => { clearTimeout(wire.timer); wire.timer = setTimeout(() => redrawOne("tradeoff"), 200); });
  listeners.push(drawAll);
}

async function open() {
  const started = performance.now();
  try {
    D = await loadData($("#data").textContent.trim());
    buildIndex();
    readAddress();
    for (const slot of document.querySelectorAll("[data-chart]")) slot.outerHTML = chartFrame(slot.dataset.chart);
    drawPatterns();
    wire();
    for (const name of Object.keys(draws)) if (name !== "rows") draws[name]();
    document.body.classList.add("open");
    window.wordsAfterMs = performance.now() - started;
    // The answer is painted before the plotting library is unpacked.
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(await inflate($("#plotly").textContent.trim()));
    document.head.append(script);
    $("#plotly").remove();
    $("#data").remove();
    const first = charts.get("tradeoff");
    first.visible = true;
    draw(first);
    drawKeys();
    watch();
    window.opened = performance.now();
  } catch (error) {
    $("#broken").hidden = false;
    $("#broken").textContent = typeof DecompressionStream === "undefined" ? "This page needs a browser of 2023 or newer (DecompressionStream)." : `This page could not be opened: ${error.message}`;
    throw error;
  }
}
open();
