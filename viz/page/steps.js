// Decode steps: throughput and its parts, memory limits, where a method starts to pay, and the bytes of a value.

const stepContext = () => state.context ?? (askContext() !== null ? askContext() : index.contexts.filter((c) => c <= (askWorkload() === null ? Infinity : D.workloads[askWorkload()].prompt)).pop() ?? index.contexts[0]);
const stepBatch = () => state.batch;
const batchText = () => (state.batch === 0 ? "the fastest batch that fits" : `batch ${state.batch}`);
const noSteps = "The store holds no decode steps of this model and GPU: its sweep named no contexts.";

// Stored points of a configuration, as rows, in the order of the store (context, then batch).
function rowsOf(m, keep) {
  const cfg = configurationOf(m);
  if (cfg === undefined) return [];
  const [from, to] = index.pointsOf(cfg), p = D.points, out = [];
  for (let i = from; i < to; ++i) if (p.fits[i] === 1 && keep(p.context[i], p.batch[i])) out.push(pointRow(i));
  return out;
}
const fastestByContext = (m) => index.contexts.map((c) => { const cfg = configurationOf(m), i = cfg === undefined ? null : pointAt(cfg, c, stepBatch()); return i === null || i === undefined ? null : pointRow(i); }).filter(Boolean);

// Every other method as one grey trace: lines parted by gaps.
function greyLines(lines, x, y) {
  const xs = [], ys = [], rows = [];
  for (const line of lines) { for (const r of line) { xs.push(x(r)); ys.push(y(r)); rows.push(r); } xs.push(null); ys.push(null); rows.push(undefined); }
  return { type: "scatter", mode: "lines", x: xs, y: ys, rows, line: { color: css("--grey-line"), width: 1 }, connectgaps: false };
}
function lineTrace(rows, slot, x, y) {
  const sure = !rows.some(isHatched);
  return { type: "scatter", mode: "lines+markers", x: rows.map(x), y: rows.map(y), rows, line: { color: colour(slot), width: 2, dash: sure ? "solid" : "4px,3px" }, marker: { color: sure ? colour(slot) : css("--surface"), size: 6, symbol: rows.map((r) => symbolOf(r.m)), line: { color: colour(slot), width: 1.5 } } };
}

function lineChart({ title, note, rowsOfMethod, x, y, xAxis, yAxis, xTitle, yTitle, height = 360, shapes = [], empty = noSteps, atLeast = 4 }) {
  const lit = litSeries().map((s) => ({ ...s, rows: rowsOfMethod(s.m) })).filter((s) => s.rows.length);
  const isLit = new Set(lit.map((s) => s.m));
  const others = D.methods.map((_, m) => m).filter((m) => passes(m) && !isLit.has(m)).map(rowsOfMethod).filter((l) => l.length > 1);
  if (!lit.length && !others.length) return { title, empty };
  // The scale is that of the series in colour: a grey line far off may leave the picture.
  const every = [...lit.map((s) => s.rows), ...others].flat(), scaled = lit.length ? lit.flatMap((s) => s.rows) : every;
  const xa = xAxis(every.map(x)), ya = yAxis(widened(scaled.map(y), atLeast));
  const labels = endLabels(lit.map((s) => ({ text: D.methods[s.m].recipe, colour: colour(s.slot), y: y(s.rows[s.rows.length - 1]) })), ya, height);
  return {
    title, note, height, rows: lit.flatMap((s) => s.rows), traces: [greyLines(others, x, y), ...lit.map((s) => lineTrace(s.rows, s.slot, x, y))],
    layout: layoutOf(xa, ya, { shapes, margin: { l: 54, r: 168, t: 26, b: 46, pad: 4 }, annotations: [...axisTitles(xTitle, yTitle), ...labels] }),
    table: { columns: ["method", "context", "batch", "tokens/s", "step ms", "low ms", "high ms", "speedup", "cache GiB", "evidence"], rows: lit.flatMap((s) => s.rows).map(stepCells) },
  };
}
// Values that span at least a factor, so that near-equal lines do not look far apart.
function widened(values, factor) {
  const [low, high] = spanOf(values, 0), lack = Math.sqrt(Math.max(1, factor / (high / low)));
  return [low / lack, high * lack];
}
const stepCells = (r) => [D.methods[r.m].recipe, r.context, r.batch, r.value, 1e3 * r.step, 1e3 * r.stepLow, 1e3 * r.stepHigh, r.decode, r.cache / 2 ** 30, evidenceName(r.evidence)];
const log2Axis = (values) => logAxis(values, doublingTicks, tokens, 0.03);
const log10Axis = (values) => logAxis(values, logTicks, (v) => num(v));

defineChart("by-context", {
  title: "Tokens per second by context",
  build: () => lineChart({ title: `Tokens/s by context, ${batchText()}`, note: "Decoding only, prefill excluded. Dashed: a format that nobody timed. Grey: every other method.", rowsOfMethod: fastestByContext, x: (r) => r.context, y: (r) => r.value, xAxis: log2Axis, yAxis: log10Axis, xTitle: "context, tokens", yTitle: "tokens/s" }),
});

defineChart("by-batch", {
  title: "Tokens per second by batch",
  build: () => lineChart({ title: `Tokens/s by batch, ${tokens(stepContext() ?? 0)} tokens of context`, note: sweptToLimit() ? "Lines end where memory does." : "Lines end with the sweep's batches, or where memory does.", rowsOfMethod: (m) => rowsOf(m, (c) => c === stepContext()), x: (r) => r.batch, y: (r) => r.value, xAxis: log2Axis, yAxis: log10Axis, xTitle: "batch, sequences", yTitle: "tokens/s" }),
});

const PARTS = [["attention", "--p0"], ["matrix products", "--p1"], ["the method's own work", "--p2"], ["the rest", "--p3"]];
defineChart("parts", {
  title: "Where a step's time goes",
  build() {
    const rows = litSeries().map((s) => { const cfg = configurationOf(s.m), i = cfg === undefined ? null : pointAt(cfg, stepContext(), stepBatch()); return i === null || i === undefined ? null : pointRow(i); }).filter(Boolean);
    const title = `Step time at ${tokens(stepContext() ?? 0)} tokens of context, ${batchText()}`;
    if (!rows.length) return { title, empty: index.contexts.length ? `No method in colour has a stored step at ${tokens(stepContext())} tokens of context and ${batchText()}.` : noSteps };
    rows.reverse();
    const names = rows.map((r) => esc(short(D.methods[r.m].recipe, 30)) + (state.batch === 0 ? ` (${r.batch})` : ""));
    const traces = PARTS.map(([name, paint], k) => ({
      type: "bar", orientation: "h", name, x: rows.map((r) => 1e3 * r.parts[k]), y: names, rows, width: 0.62,
      marker: { color: css(paint), line: { color: css("--surface"), width: 1 }, pattern: { shape: rows.map((r) => (r.evidence === "uncalibrated_format" && k !== 1 && k !== 3 ? "/" : "")), fillmode: "overlay", size: 6, solidity: 0.22, fgcolor: css("--surface") } },
    }));
    traces.push({ type: "scatter", mode: "markers", x: rows.map((r) => 1e3 * r.step), y: names, rows, marker: { size: 1, color: css("--ink") }, error_x: { type: "data", symmetric: false, array: rows.map((r) => 1e3 * (r.stepHigh - r.step)), arrayminus: rows.map((r) => 1e3 * (r.step - r.stepLow)), color: css("--ink"), thickness: 1.2, width: 4 } });
    const height = 100 + 34 * rows.length;
    return {
      title, note: "Whiskers: 80 % interval of the whole step. Hatched: parts whose format nobody timed. Other batches: the control above.", height, traces, rows: [...rows].reverse(),
      legend: PARTS,
      layout: layoutOf({ rangemode: "tozero" }, { type: "category", gridcolor: "rgba(0,0,0,0)" }, { barmode: "stack", margin: { l: 200, r: 24, t: 12, b: 46 }, annotations: axisTitles("milliseconds", "").slice(0, 1).concat(axisTitles("milliseconds of one decode step", "").slice(1)) }),
      table: { columns: ["method", "batch", ...PARTS.map((p) => `${p[0]} ms`), "step ms", "low ms", "high ms"], rows: rows.map((r) => [D.methods[r.m].recipe, r.batch, ...r.parts.map((s) => 1e3 * s), 1e3 * r.step, 1e3 * r.stepLow, 1e3 * r.stepHigh]) },
    };
  },
});

const sweptToLimit = () => D.meta.runs.length > 0 && D.meta.runs.every((r) => JSON.stringify(r.spec.batches ?? "to_memory_limit").includes("to_memory_limit"));
// One method's step, part by part, along contexts or batches: pinned A, or the first in colour.
function partsAlong(title, rows, place, axisName) {
  const m = mapMethod();
  if (m < 0 || !rows.length) return { title, empty: m < 0 ? "No method is in colour." : noSteps };
  const at = rows.map((_, i) => i);
  const traces = PARTS.map(([name, paint], k) => ({ type: "bar", name, x: at, y: rows.map((r) => 1e3 * r.parts[k]), rows, width: 0.7, marker: { color: css(paint), line: { color: css("--surface"), width: 1 } } }));
  traces.push({ type: "scatter", mode: "markers", x: at, y: rows.map((r) => 1e3 * r.step), rows, marker: { size: 1, color: css("--ink") }, error_y: { type: "data", symmetric: false, array: rows.map((r) => 1e3 * (r.stepHigh - r.step)), arrayminus: rows.map((r) => 1e3 * (r.step - r.stepLow)), color: css("--muted"), thickness: 1, width: 3 } });
  const stride = Math.ceil(rows.length / 10), ticks = at.filter((i) => i % stride === 0);
  return {
    title, note: rows.some(isHatched) ? "Nobody timed this format: whiskers are wide. Pin a configuration as A to see its parts." : "Whiskers: 80 % interval of the whole step. Pin a configuration as A to see its parts.", height: 320, traces, rows, legend: PARTS,
    layout: layoutOf({ tickvals: ticks, ticktext: ticks.map((i) => place(rows[i])), gridcolor: "rgba(0,0,0,0)" }, { rangemode: "tozero" }, { barmode: "stack", annotations: axisTitles(axisName, "milliseconds of one decode step") }),
    table: { columns: ["context", "batch", ...PARTS.map((p) => `${p[0]} ms`), "step ms", "low ms", "high ms"], rows: rows.map((r) => [r.context, r.batch, ...r.parts.map((t) => 1e3 * t), 1e3 * r.step, 1e3 * r.stepLow, 1e3 * r.stepHigh]) },
  };
}
const mapName = () => (mapMethod() < 0 ? "a method" : D.methods[mapMethod()].recipe);
defineChart("parts-context", {
  title: "Parts of a step by context",
  build: () => partsAlong(`${mapName()}: a step by context, ${batchText()}`, mapMethod() < 0 ? [] : fastestByContext(mapMethod()), (r) => tokens(r.context), "context, tokens"),
});
defineChart("parts-batch", {
  title: "Parts of a step by batch",
  build: () => partsAlong(`${mapName()}: a step by batch, ${tokens(stepContext() ?? 0)} tokens of context`, mapMethod() < 0 ? [] : rowsOf(mapMethod(), (c) => c === stepContext()), (r) => whole(r.batch), "batch, sequences"),
});

function largestByContext(m) {
  const best = new Map();
  for (const r of rowsOf(m, () => true)) if (!best.has(r.context) || r.batch > best.get(r.context).batch) best.set(r.context, r);
  return [...best.values()];
}
defineChart("memory", {
  title: "Memory limit",
  build() {
    const toLimit = sweptToLimit();
    return lineChart({
      title: `Largest batch ${toLimit ? "that fits" : "of the sweep that fits"} ${D.gpus[state.gpu].identity}`, note: toLimit ? "Sequences of that context whose cache, weights and workspace fit one GPU's memory." : "The sweep named its batches, so a line may end at the sweep's largest batch and not at the memory.",
      rowsOfMethod: largestByContext, x: (r) => r.context, y: (r) => r.batch, xAxis: log2Axis, yAxis: (v) => logAxis(v, doublingTicks, (n) => whole(n)), xTitle: "context, tokens", yTitle: "sequences",
    });
  },
});

const overOne = () => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: css("--ink"), width: 1, dash: "dot" } });
defineChart("pays", {
  title: "Where it starts to pay",
  build: () => {
    const batch = state.batch || 1;
    return lineChart({
      title: `Step time of the plain cache over the method's, batch ${batch}`, note: "Above the dotted line the method is faster than the plain cache at the same context and batch. Lines end where the plain cache no longer fits.",
      rowsOfMethod: (m) => rowsOf(m, (c, b) => b === batch).filter((r) => known(r.decode)), x: (r) => r.context, y: (r) => r.decode, xAxis: log2Axis, yAxis: (v) => logAxis([...v, 1], logTicks, (n) => `${num(n)}×`), xTitle: "context, tokens", yTitle: "speedup of a step", shapes: [overOne()], atLeast: 1.6,
      empty: `No stored step of batch ${batch} has the plain cache beside it.`,
    });
  },
});

// The method of the break-even map: pinned A, or the first in colour.
const mapMethod = () => (state.a && passes(state.a.m) ? state.a.m : (litSeries().find((s) => s.slot > 0) || { m: -1 }).m);
defineChart("pays-map", {
  title: "Break-even by context and batch",
  build() {
    const m = mapMethod();
    if (m < 0) return { title: "Break-even by context and batch", empty: "No method is in colour." };
    const rows = rowsOf(m, (c, b) => (b & (b - 1)) === 0).filter((r) => known(r.decode));
    const title = `${D.methods[m].recipe}: speedup of a step by context and batch`;
    if (!rows.length) return { title, empty: `No stored step of ${D.methods[m].recipe} has the plain cache beside it.` };
    const xs = [...new Set(rows.map((r) => r.context))].sort((a, b) => a - b), ys = [...new Set(rows.map((r) => r.batch))].sort((a, b) => a - b);
    const at = new Map(rows.map((r) => [`${r.context}/${r.batch}`, r]));
    const z = ys.map((b) => xs.map((c) => { const r = at.get(`${c}/${b}`); return r ? Math.log2(r.decode) : null; }));
    const most = Math.max(1, ...rows.map((r) => Math.abs(Math.log2(r.decode))));
    const cell = ys.map((b) => xs.map((c) => { const r = at.get(`${c}/${b}`); return r ? times(r.decode) : ""; }));
    const scale = [[0, css("--cold")], [0.5, css("--even")], [1, css("--warm")]];
    const trace = { type: "heatmap", x: xs.map((_, i) => i), y: ys.map((_, j) => j), z, zmin: -most, zmax: most, colorscale: scale, showscale: false, xgap: 2, ygap: 2, hoverongaps: false };
    const notes = [];
    if (xs.length <= 14) cell.forEach((line, j) => line.forEach((text, i) => { if (text) notes.push({ x: i, y: j, text, showarrow: false, font: { size: 11, color: css("--ink") } }); }));
    return {
      title, note: "Blue pays, red costs, full colour at a factor of two; empty cells: the plain cache does not fit or the store has no such step. Pin a configuration as A to see its map.", height: 110 + 25 * Math.max(4, ys.length), traces: [trace], rows,
      layout: layoutOf({ tickvals: xs.map((_, i) => i), ticktext: xs.map(tokens), gridcolor: "rgba(0,0,0,0)" }, { tickvals: ys.map((_, j) => j), ticktext: ys.map(whole), gridcolor: "rgba(0,0,0,0)" }, { annotations: [...axisTitles("context, tokens", "batch"), ...notes] }),
      table: { columns: ["context", "batch", "speedup", "step ms", "evidence"], rows: rows.map((r) => [r.context, r.batch, r.decode, 1e3 * r.step, evidenceName(r.evidence)]) },
    };
  },
});

// ---- bytes ----

// D.kinds names what components are; the page gives each a colour.
const kinds = () => D.kinds.map((name, k) => [name, `--k${k}`]);
defineChart("ledger", {
  title: "Bits of one value",
  build() {
    const context = ledgerContext();
    if (context === null) return { title: "Bits of one original value, by what is stored", empty: "The store holds no byte ledgers: it was written before version 3. Sweep again into a new file, or ask `kvatlas show METHOD`." };
    const rows = litSeries().map((s) => ({ m: s.m, entries: index.ledger(state.model, s.m, context), cache: index.cache(state.model, s.m, context) })).filter((r) => r.entries);
    const title = `Bits of one original value at ${tokens(context)} tokens, by what is stored`;
    if (!rows.length) return { title, empty: "No method in colour can hold this model's cache." };
    rows.sort((a, b) => a.cache.bits - b.cache.bits);
    const names = rows.map((r) => esc(short(D.methods[r.m].recipe, 30)));
    const bits = (r, k) => r.entries.filter((e) => e.kind === k).reduce((sum, e) => sum + e.bits, 0);
    const card = (r) => ({ html: () => `<h4>${swatch(r.m, slotOf(r.m), false)} ${esc(D.methods[r.m].recipe)}</h4><p>${num(r.cache.bits, 4)} bits a value, ${tokens(context)} tokens</p><dl>${r.entries.map((e) => `<dt>${esc(e.component)}${e.side === "both" ? "" : `, ${e.side}`}</dt><dd>${num(e.bits, 3)} bits <span>${gib(e.bytes)}</span></dd>`).join("")}</dl><p class="from">counted by the method's ledger formula</p>` });
    const traces = kinds().map(([name, paint], k) => ({ type: "bar", orientation: "h", name, x: rows.map((r) => bits(r, k)), y: names, rows: rows.map(card), width: 0.62, marker: { color: css(paint), line: { color: css("--surface"), width: 1 } } })).filter((t) => t.x.some((v) => v > 0));
    const totals = rows.map((r, i) => ({ x: r.cache.bits, y: names[i], text: `${num(r.cache.bits, 3)}`, showarrow: false, xanchor: "left", xshift: 6, font: { color: css("--ink"), size: 12 } }));
    return {
      title, note: "All layers, one sequence, scales and newest tokens included. The plain cache in bf16 takes 16 bits.", height: 100 + 34 * rows.length, traces, legend: kinds().filter((_, k) => rows.some((r) => bits(r, k) > 0)),
      layout: layoutOf({ rangemode: "tozero" }, { type: "category", gridcolor: "rgba(0,0,0,0)" }, { barmode: "stack", margin: { l: 200, r: 48, t: 12, b: 46 }, annotations: [...axisTitles("bits a value", "").slice(1), ...totals] }),
      table: { columns: ["method", "component", "side", "bytes", "bits a value"], rows: rows.flatMap((r) => r.entries.map((e) => [D.methods[r.m].recipe, e.component, e.side, e.bytes, e.bits])) },
    };
  },
});

// ---- evidence ----

const KERNELS = [["decode_attention", "decode attention", 1], ["prefill_attention", "prompt attention", 3], ["gemm", "matrix products", 2]];
defineChart("measured", {
  title: "Predicted against measured",
  build() {
    const rows = D.measurements.filter((m) => known(m.predicted) && m.predicted > 0 && m.value > 0 && KERNELS.some(([kind]) => kind === m.kind));
    const title = "Predicted against measured kernel times";
    if (!rows.length) return { title, empty: "The store holds no measurements: `kvatlas validate --db FILE` puts predictions beside measured timings there." };
    const us = (s) => 1e6 * s;
    const all = rows.flatMap((m) => [us(m.value), us(m.predicted)]), axis = () => logAxis(all, logTicks, (v) => (v >= 1000 ? `${num(v / 1000)} ms` : `${num(v)} µs`), 0.04);
    const [low, high] = spanOf(all, 0.04);
    const traces = [{ type: "scatter", mode: "lines", x: [low, high], y: [low, high], line: { color: css("--muted"), width: 1, dash: "dot" } }];
    for (const [kind, name, slot] of KERNELS) {
      const part = rows.filter((m) => m.kind === kind);
      traces.push({ type: hasWebgl && part.length > 1500 ? "scattergl" : "scatter", mode: "markers", name, x: part.map((m) => us(m.value)), y: part.map((m) => us(m.predicted)), marker: { size: 6, color: colour(slot), opacity: 0.65, line: { width: 0 } },
        rows: part.map((m) => ({ html: () => `<h4>${esc(m.gpu)}</h4><p>${esc(name)}: ${esc(m.setup)}</p><dl><dt>measured</dt><dd><b>${num(us(m.value))} µs</b></dd><dt>predicted</dt><dd>${num(us(m.predicted))} µs <span>80 %: ${num(us(m.low))} – ${num(us(m.high))}</span></dd><dt>kernel</dt><dd>${esc(m.profile)}</dd></dl><p class="from">${esc(m.provenance)}: ${esc(m.source)}</p>` })) });
    }
    return {
      title, note: `${D.meta.measurements_total > rows.length ? `${whole(rows.length)} of ${whole(D.meta.measurements_total)} timings of kernels, as many of each kernel and GPU as there are` : `${whole(rows.length)} timings of kernels`} (${[...new Set(rows.map((m) => m.source))].slice(0, 3).join(", ")}); on the dotted line a prediction is exact.${D.validation.some((r) => r.kind.startsWith("e2e_")) ? " Runs of whole models: the second table below." : " Runs of whole models are not in this store."}`, height: 400, traces, legend: KERNELS.map(([, name, slot]) => [name, `--s${slot}`]), layout: layoutOf(axis(), axis(), { annotations: axisTitles("measured", "predicted") }),
      table: { columns: ["kind", "gpu", "kernel", "setup", "measured µs", "predicted µs"], rows: rows.map((m) => [m.kind, m.gpu, m.profile, m.setup, us(m.value), us(m.predicted)]) },
    };
  },
});
