// Throughput against size, and against quality.

const valueName = () => (askWorkload() === null ? "tokens/s" : "requests/s");
const questionText = () => {
  const w = askWorkload();
  return w === null ? `decoding at ${tokens(askContext())} tokens of context, largest useful batch` : workloadText(D.workloads[w]);
};

// Marks of one lit series: the sure ones solid, the others hatched.
function marks(rows, slot, x, y, more = {}) {
  const line = { color: css("--surface"), width: 1.2 };
  const groups = [rows.filter((r) => !isHatched(r)), rows.filter(isHatched)];
  return groups.map((list, hatched) => ({
    type: "scatter", mode: "markers", x: list.map(x), y: list.map(y), rows: list, cliponaxis: false, ...(hatched ? { hatch: slot } : {}),
    marker: { color: colour(slot), symbol: list.map((r) => symbolOf(r.m)), size: more.size || 13, opacity: more.opacity ?? 1, line: hatched ? { color: colour(slot), width: 1.4 } : line },
  })).filter((t) => t.x.length);
}

// The grey rest: WebGL where there is any; without, one mark for each cell of a grid.
function cloud(rows, x, y) {
  let kept = rows;
  if (!hasWebgl && rows.length > 4000) {
    const cells = new Map();
    for (const r of rows) cells.set(`${Math.round(60 * Math.log(x(r)))}/${Math.round(60 * Math.log(y(r)))}`, r);
    kept = [...cells.values()];
  }
  const gl = hasWebgl && kept.length > 600;
  const size = kept.length > 20000 ? 4 : kept.length > 2000 ? 5 : 7;
  const groups = [[kept.filter((r) => !isHatched(r)), ""], [kept.filter(isHatched), "-open"]];
  return groups.filter(([list]) => list.length).map(([list, open]) => ({
    type: gl ? "scattergl" : "scatter", mode: "markers", x: list.map(x), y: list.map(y), rows: list,
    marker: { color: css("--grey-mark"), symbol: `circle${open}`, size, opacity: kept.length > 20000 ? 0.35 : kept.length > 2000 ? 0.5 : 0.8, line: { width: open ? 1 : 0, color: css("--grey-mark") } },
  }));
}

// Names beside marks, each at the first side where it touches no other name and no mark.
// Among free sides the one with the fewest of the `others` under it.
function markLabels(rows, x, y, xAxis, yAxis, width, height, others = []) {
  const plotW = width - 94, plotH = height - 92;
  const along = (axis, v) => (axis.type === "log" ? Math.log10(v) : v);
  const px = (r) => ((along(xAxis, x(r)) - xAxis.range[0]) / (xAxis.range[1] - xAxis.range[0])) * plotW;
  const py = (r) => plotH - ((along(yAxis, y(r)) - yAxis.range[0]) / (yAxis.range[1] - yAxis.range[0])) * plotH;
  const taken = rows.map((r) => [px(r) - 8, py(r) - 8, px(r) + 8, py(r) + 8]);
  const out = [];
  for (const r of rows) {
    const text = short(D.methods[r.m].recipe, 30), w = 6.6 * text.length + 4, h = 15;
    const sides = [["left", 12, 0], ["right", -12, 0], ["left", 10, -14], ["left", 10, 14], ["right", -10, -14], ["right", -10, 14], ["center", 0, -18], ["center", 0, 18]];
    let least = null;
    for (const [anchor, dx, dy] of sides) {
      const left = px(r) + dx - (anchor === "right" ? w : anchor === "center" ? w / 2 : 0), top = py(r) + dy - h / 2;
      const box = [left, top, left + w, top + h];
      const free = box[0] > -40 && box[2] < plotW + 16 && box[1] > -12 && box[3] < plotH && !taken.some((t) => box[0] < t[2] && box[2] > t[0] && box[1] < t[3] && box[3] > t[1]);
      if (!free) continue;
      const under = others.filter((o) => { const ox = px(o), oy = py(o); return ox > box[0] - 4 && ox < box[2] + 4 && oy > box[1] - 2 && oy < box[3] + 2; }).length;
      if (least === null || under < least.under) least = { under, box, anchor, dx, dy };
      if (under === 0) break;
    }
    if (least === null) continue;
    taken.push(least.box);
    out.push({ x: along(xAxis, x(r)), y: along(yAxis, y(r)), xshift: least.dx, yshift: -least.dy, text: esc(text), showarrow: false, xanchor: least.anchor, font: { color: css("--ink"), size: 12 }, bgcolor: withAlpha(css("--surface"), 0.65), borderpad: 0 });
  }
  return out;
}

function frontTrace(rows, x, y) {
  const front = frontOf(rows.filter((r) => x(r) > 0 && y(r) > 0).map((r) => ({ x: x(r), y: y(r) })));
  if (front.length < 2) return [];
  return [{ type: "scatter", mode: "lines", x: front.map((p) => p.x), y: front.map((p) => p.y), line: { color: css("--muted"), width: 1.2, shape: "vh", dash: "dot" } }];
}

// Every drawn decode step of the pair, or of the file. Columns are read once and rows are made when asked for.
function stepsInScope() {
  const p = D.points, c = D.configurations, rows = [], pair = state.scope === "pair";
  for (let i = 0; i < p.configuration.length; ++i) {
    const cfg = p.configuration[i];
    if (p.fits[i] !== 1) continue;
    if (pair && (c.model[cfg] !== state.model || c.gpu[cfg] !== state.gpu || c.scenario[cfg] !== state.scenario)) continue;
    if (!passes(c.method[cfg])) continue;
    if (state.evidences && !state.evidences.has(D.evidences[p.evidence[i]])) continue;
    rows.push(i);
  }
  return rows;
}

// A list that makes the row of a point when it is asked for: 100,000 rows are never built at once.
const lazyRows = (places) => new Proxy(places, { get: (list, at) => (typeof at === "string" && /^\d+$/.test(at) ? (list[at] === undefined ? undefined : pointRow(list[at])) : Reflect.get(list, at)) });

function stepsCloud() {
  const p = D.points, places = stepsInScope();
  const thin = new Map();
  let kept = places;
  if (!hasWebgl && places.length > 4000) {
    for (const i of places) thin.set(`${Math.round(50 * Math.log(p.size_factor[i]))}/${Math.round(25 * Math.log(p.tokens_per_s[i]))}`, i);
    kept = [...thin.values()];
  }
  const rows = lazyRows(kept);
  const x = new Float32Array(kept.length), y = new Float32Array(kept.length);
  kept.forEach((i, k) => { x[k] = p.size_factor[i]; y[k] = p.tokens_per_s[i]; });
  return { places, x, y, trace: { type: hasWebgl ? "scattergl" : "scatter", mode: "markers", x, y, rows, marker: { color: css("--grey-mark"), size: kept.length > 20000 ? 3.5 : 5, opacity: kept.length > 20000 ? 0.35 : 0.55 } } };
}

const rowColumns = () => ["rank", "method", valueName(), "low 80 %", "high 80 %", "over plain", "size factor", "peak GiB", "bound by", "evidence"];
const rowCells = (r) => [r.rank, D.methods[r.m].recipe, r.value, r.low, r.high, r.gain, r.size, r.peak / 2 ** 30, boundName(r.bound), evidenceName(r.evidence)];

const stepColumns = ["method", "model", "GPU", "context", "batch", "tokens/s", "low 80 %", "high 80 %", "size factor", "peak GiB", "bound by", "evidence"];
const pointCells = (r) => { const c = D.configurations; return [D.methods[r.m].recipe, D.models[c.model[r.cfg]].slug, D.gpus[c.gpu[r.cfg]].identity, r.context, r.batch, r.value, r.low, r.high, r.size, r.peak / 2 ** 30, boundName(r.bound), evidenceName(r.evidence)]; };

// The bottom of the picture: what is in colour, and all but the slowest twentieth of the rest.
function lowest(rows, inColour) {
  const values = rows.map((r) => r.value).sort((a, b) => a - b);
  return Math.min(values[Math.floor(values.length / 20)], ...inColour.map((r) => r.low));
}

defineChart("tradeoff", {
  title: "Throughput against size",
  build() {
    const q = questionRows(), lit = litSeries(), width = $("#tradeoff .plot").clientWidth || 700, height = 460;
    const size = (r) => r.size, value = (r) => r.value;
    const inColour = lit.map((s) => q.rows.find((r) => r.m === s.m)).filter(Boolean);
    if (state.scope !== "ask" && D.points.context.length) {
      const steps = stepsCloud(), mine = new Map();
      for (const i of steps.places) { const m = D.configurations.method[D.points.configuration[i]]; const s = slotOf(m); if (s !== null) { if (!mine.has(s)) mine.set(s, []); mine.get(s).push(i); } }
      const x = logAxis(steps.x, doublingTicks, (v) => `${num(v)}×`), y = logAxis(steps.y, logTicks, (v) => num(v));
      const p = D.points;
      const coloured = [...mine].map(([slot, list]) => {
        const rows = lazyRows(list);
        return { type: hasWebgl ? "scattergl" : "scatter", mode: "markers", x: list.map((i) => p.size_factor[i]), y: list.map((i) => p.tokens_per_s[i]), rows, marker: { color: colour(slot), size: 5, opacity: 0.9 } };
      });
      return {
        title: `${whole(steps.places.length)} decode steps ${state.scope === "pair" ? `of ${D.models[state.model].name} on ${D.gpus[state.gpu].identity}` : "of every model and GPU"}`,
        note: `Every context and batch that the page carries; prefill excluded.${steps.x.length < steps.places.length ? ` Without WebGL one mark stands for its neighbours: ${whole(steps.x.length)} marks.` : ""}${D.meta.thinned ? ` ${D.meta.thinned}` : ""}`,
        height, traces: [steps.trace, ...coloured], layout: layoutOf(x, y, { annotations: axisTitles("size factor: plain cache over stored cache", "tokens/s, decoding only") }),
        rows: lazyRows([...mine.values()].flat()), table: { columns: stepColumns, count: steps.places.length, row: (k) => pointCells(pointRow(steps.places[k])) },
      };
    }
    if (!q.rows.length) return { title: "Throughput against size", empty: `Nothing in the store answers this question: ${questionText()}.` };
    const rest = q.rows.filter((r) => slotOf(r.m) === null);
    const slugs = new Map();
    for (const s of lit) if (!slugs.has(D.methods[s.m].slug)) slugs.set(D.methods[s.m].slug, s.slot);
    const siblings = rest.filter((r) => slugs.has(D.methods[r.m].slug)), grey = rest.filter((r) => !slugs.has(D.methods[r.m].slug));
    const x = logAxis(q.rows.map(size), doublingTicks, (v) => `${num(v)}×`, 0.08), bottom = lowest(q.rows, inColour);
    const y = logAxis([...q.rows.map(value), ...inColour.flatMap((r) => [r.low, r.high])].filter((v) => v >= bottom), logTicks, (v) => num(v), 0.05);
    const below = q.rows.filter((r) => r.value < bottom).length;
    const traces = [...cloud(grey, size, value), ...frontTrace(q.rows, size, value)];
    for (const [slug, slot] of slugs) traces.push(...marks(siblings.filter((r) => D.methods[r.m].slug === slug), slot, size, value, { size: 8, opacity: 0.45 }));
    for (const r of inColour) {
      traces.push({ type: "scatter", mode: "lines", x: [r.size, r.size], y: [r.low, r.high], line: { color: withAlpha(colour(slotOf(r.m)), 0.4), width: 2 } });
    }
    for (const r of inColour) traces.push(...marks([r], slotOf(r.m), size, value));
    const labels = markLabels(inColour, size, value, x, y, width, height, [...siblings, ...grey]);
    const hatchedCount = q.rows.filter(isHatched).length;
    return {
      title: `${valueName()} against size factor`,
      note: `${q.rows.length} settings for ${questionText()}. Whiskers: 80 % interval. Dotted: not beaten in both. ${hatchedCount ? `Hatched or hollow: ${hatchedCount} whose format nobody timed or whose quality is a proxy.` : ""}${below ? ` ${below} slower ones lie below the picture; the table has them.` : ""}`,
      height, traces, layout: layoutOf(x, y, { annotations: [...axisTitles("size factor: plain cache over stored cache", `${valueName()}${askWorkload() === null ? ", decoding only" : ""}`), ...labels] }),
      rows: [...inColour].sort((a, b) => a.size - b.size), table: { columns: rowColumns(), rows: q.rows.map(rowCells) },
    };
  },
});

defineChart("quality", {
  title: "Quality",
  build() {
    const slug = D.models[state.model].slug, q = questionRows();
    const all = D.quality.filter((r) => r.model === slug && known(r.retained));
    if (!all.length) {
      const others = [...new Set(D.quality.filter((r) => known(r.retained)).map((r) => r.model))];
      return { title: "Quality", empty: `The store holds no quality figure for ${D.models[state.model].name}${others.length ? ` (it has some for ${others.join(", ")})` : ""}. Until \`kvatlas evaluate\` or \`kvatlas import\` puts one there, a fast method is only fast: judge it on your task.` };
    }
    const joined = q.rows.map((r) => ({ r, q: index.quality(slug, D.methods[r.m].recipe) })).filter((p) => p.q);
    const same = joined.filter((p) => p.q.quality_model === slug);
    if (same.length) {
      // The plain cache is what quality is counted against: 1 by definition.
      const x = (r) => (r.m === index.baseline ? 1 : index.quality(slug, D.methods[r.m].recipe).retained), value = (r) => r.value;
      const rows = [...(q.plain ? [q.plain] : []), ...same.map((p) => p.r)], lit = rows.filter((r) => slotOf(r.m) !== null), grey = rows.filter((r) => slotOf(r.m) === null);
      const values = rows.map(x), low = Math.min(...values, 0.95), high = Math.max(...values, 1);
      const y = logAxis(rows.map(value), logTicks, (v) => num(v), 0.1), xAxis = { range: [low - 0.04 * (high - low), high + 0.06 * (high - low)] };
      const traces = [...cloud(grey, x, value), ...lit.flatMap((r) => marks([r], slotOf(r.m), x, value))];
      const front = frontOf(rows.map((r) => ({ x: x(r), y: r.value })));
      traces.unshift({ type: "scatter", mode: "lines", x: front.map((p) => p.x), y: front.map((p) => p.y), line: { color: css("--muted"), width: 1.2, dash: "dot", shape: "vh" } });
      return {
        title: `${valueName()} against retained quality, both of ${D.models[state.model].name}`, note: `${same.length} settings whose quality was judged on this model.${joined.length > same.length ? ` ${joined.length - same.length} more were judged on other models only and are left out.` : ""} Hatched: proxy quality or an uncalibrated format.`, height: 380, traces,
        layout: layoutOf(xAxis, y, { annotations: [...axisTitles("retained quality (1 = the plain cache's)", valueName()), ...markLabels(lit, x, value, xAxis, y, $("#quality").clientWidth || 700, 380)] }), rows: lit,
        table: { columns: ["method", valueName(), "retained", "grade", "metric", "value", "n", "judged on", "source"], rows: same.map((p) => [D.methods[p.r.m].recipe, p.r.value, p.q.retained, gradeName(p.q.grade), p.q.metric, p.q.value, p.q.n, p.q.quality_model, p.q.source]) },
      };
    }
    // Judged on another model: a panel of its own, not joined with this model's speed.
    const others = all.filter((r) => r.quality_model !== slug).sort((a, b) => b.retained - a.retained), list = others.slice(0, 24).reverse();
    // The store's interval is that of the metric's value: it is drawn only where that value is what stands on the axis.
    const drawn = (r) => Math.abs(r.value - r.retained) < 1e-12;
    const side = (r, end) => (drawn(r) && known(r[end]) ? Math.abs(r[end] - r.value) : 0);
    const anyInterval = list.some((r) => side(r, "ci95_high") > 0 || side(r, "ci95_low") > 0);
    const place = (r) => index.recipes.get(r.recipe);
    const slot = (r) => (place(r) === undefined ? null : slotOf(place(r)));
    const traces = [false, true].map((hatched) => {
      const part = list.filter((r) => (r.grade === "X") === hatched);
      return { type: "scatter", mode: "markers", x: part.map((r) => r.retained), y: part.map((r) => esc(short(r.recipe, 34))), error_x: { type: "data", symmetric: false, array: part.map((r) => side(r, "ci95_high")), arrayminus: part.map((r) => side(r, "ci95_low")), color: css("--muted"), thickness: 1, width: 0 },
        rows: part.map((r) => ({ html: () => qualityCard(r) })), marker: { size: 11, symbol: hatched ? "circle-open" : "circle", color: part.map((r) => colour(slot(r))), line: { width: hatched ? 2 : 0 } } };
    });
    return {
      title: `Retained quality, judged on ${[...new Set(list.map((r) => r.quality_model))].join(", ")}`,
      note: `Not joined with the speed of ${D.models[state.model].name}: another model was judged.${others.length > list.length ? ` The ${list.length} best of ${others.length} figures are drawn; the table has them all.` : ""}${anyInterval ? " Whiskers: 95 % interval, where the store has it of the drawn figure." : ""} Hollow: proxy quality.`, height: 120 + 22 * list.length, traces,
      layout: layoutOf({}, { type: "category", gridcolor: "rgba(0,0,0,0)" }, { margin: { l: 220, r: 20, t: 26, b: 46 }, annotations: axisTitles("retained quality (1 = the plain cache's)", "").slice(1) }),
      table: { columns: ["method", "retained", "grade", "metric", "value", "judged on", "source"], rows: others.map((r) => [r.recipe, r.retained, gradeName(r.grade), r.metric, r.value, r.quality_model, r.source]) },
    };
  },
});
const qualityCard = (q) => `<h4>${esc(q.recipe)}</h4><dl><dt>retained</dt><dd><b>${num(q.retained, 4)}</b></dd><dt>${esc(q.metric)}</dt><dd>${num(q.value, 4)}${known(q.ci95_low) && known(q.ci95_high) ? ` <span>95 %: ${num(q.ci95_low, 4)} – ${num(q.ci95_high, 4)}</span>` : ""}</dd><dt>grade</dt><dd>${esc(gradeName(q.grade))}</dd><dt>judged on</dt><dd>${esc(q.quality_model)}</dd><dt>protocol</dt><dd>${esc(q.protocol)}</dd></dl><p class="from">${esc(q.provenance)}: ${esc(q.source)}</p>`;
