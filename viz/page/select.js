// Rows that the view asks for, in the order of rank: stored figures, chosen and sorted.

let rowsCache = null;

function configurationOf(m, model = state.model, gpu = state.gpu, scenario = state.scenario, plan = state.plan) {
  const found = index.configuration(model, gpu, scenario, plan, m);
  if (found !== undefined || m !== index.baseline) return found;
  // The plain cache has no released plan: its ideal one is the yardstick of both.
  return index.configuration(model, gpu, scenario, Math.max(0, D.plans.indexOf("ideal")), m);
}

function servedRow(i) {
  const s = D.served, cfg = s.configuration[i], m = D.configurations.method[cfg];
  return {
    kind: "served", i, cfg, m, feasible: s.feasible[i] === 1, why: D.sentences[s.why_not[i]], value: s.requests_per_s[i], low: s.low_requests_per_s[i], high: s.high_requests_per_s[i],
    gain: s.speedup[i], decode: s.speedup_decode_only[i], size: s.size_factor[i], cache: s.cache_bytes[i], peak: s.peak_bytes[i], step: s.step_s[i], ttft: s.ttft_s[i],
    tpot: s.tpot_s[i], prefill: s.prefill_s[i], flight: s.concurrency[i], tokens: s.tokens_per_s[i], energy: s.energy_j_per_token[i], usd: s.usd_per_mtok[i],
    bound: D.bounds[s.bound[i]], evidence: D.evidences[s.evidence[i]],
  };
}

function pointRow(i) {
  const p = D.points, cfg = p.configuration[i], m = D.configurations.method[cfg];
  return {
    kind: "point", i, cfg, m, feasible: p.fits[i] === 1, why: "", value: p.tokens_per_s[i], low: p.batch[i] / p.high_s[i], high: p.batch[i] / p.low_s[i], gain: p.throughput_gain[i],
    decode: p.speedup[i], size: p.size_factor[i], cache: p.cache_bytes[i], peak: p.peak_bytes[i], step: p.step_s[i], stepLow: p.low_s[i], stepHigh: p.high_s[i],
    parts: [p.attention_s[i], p.matrix_s[i], p.method_s[i], p.other_s[i]], read: p.cache_read_bytes[i], energy: p.energy_j[i] / p.batch[i], context: p.context[i], batch: p.batch[i],
    tokens: p.tokens_per_s[i], flight: p.batch[i], bound: D.bounds[p.bound[i]], evidence: D.evidences[p.evidence[i]],
  };
}

// The stored step of a configuration at a context: at a batch, or (batch 0) the fastest that fits.
function pointAt(cfg, context, batch) {
  if (cfg === undefined) return null;
  const [from, to] = index.pointsOf(cfg), p = D.points;
  let best = -1;
  for (let i = from; i < to; ++i) {
    if (p.context[i] !== context || p.fits[i] !== 1) continue;
    if (batch > 0) { if (p.batch[i] === batch) return i; continue; }
    if (best < 0 || p.tokens_per_s[i] > p.tokens_per_s[best]) best = i;
  }
  return best < 0 ? null : best;
}

const hatchedQuality = (row) => { const q = index.quality(D.models[D.configurations.model[row.cfg]].slug, D.methods[row.m].recipe); return q !== null && q.grade === "X"; };
// Where quality was judged on another model than the row's, its name: never a figure of another model without saying so.
const judgedOn = (q, slug) => (q.quality_model === slug ? "" : `judged on ${q.quality_model}`);
const isHatched = (row) => row.evidence === "uncalibrated_format" || hatchedQuality(row);

function passes(m) {
  const method = D.methods[m];
  if (m === index.baseline) return true;
  if (state.families && !state.families.has(method.family)) return false;
  if (state.deployable && method.deployable !== 1) return false;
  if (state.quality !== null) {
    const q = index.quality(D.models[state.model].slug, method.recipe);
    if (q === null || q.retained < state.quality) return false;
  }
  return true;
}
const passesEvidence = (row) => row.m === index.baseline || !state.evidences || state.evidences.has(row.evidence);

// One row a configuration that answers the question; what is infeasible comes with its sentence and no rank.
function rowOf(m) {
  const cfg = configurationOf(m);
  if (cfg === undefined) return null;
  const w = askWorkload();
  if (w !== null) { const i = index.served(w, cfg); return i === undefined ? null : servedRow(i); }
  const i = pointAt(cfg, askContext(), 0);
  return i === null ? null : pointRow(i);
}

function questionRows() {
  if (rowsCache) return rowsCache;
  const rows = [];
  for (let m = 0; m < D.methods.length; ++m) {
    if (!passes(m)) continue;
    const row = rowOf(m);
    if (row && row.feasible && known(row.value) && passesEvidence(row)) rows.push(row);
  }
  rows.sort((a, b) => b.value - a.value || a.m - b.m);
  rows.forEach((r, k) => { r.rank = k + 1; });
  const plain = rows.find((r) => r.m === index.baseline) || null;
  // As `kvatlas recommend`: the first setting by order of the store that pays speaks for its method, unless one was judged.
  const speaks = new Map();
  const slugOf = (r) => D.methods[r.m].slug;
  const worthwhile = (r) => r.m === index.baseline || !known(r.gain) || r.gain >= 1.02;
  const judged = (r) => index.quality(D.models[state.model].slug, D.methods[r.m].recipe) !== null;
  for (const r of rows) if (judged(r) && worthwhile(r) && !speaks.has(slugOf(r))) speaks.set(slugOf(r), r);
  for (const r of [...rows].sort((a, b) => a.m - b.m)) if (worthwhile(r) && !speaks.has(slugOf(r))) speaks.set(slugOf(r), r);
  const speakers = rows.filter((r) => speaks.get(slugOf(r)) === r);
  const list = state.every ? rows.filter(worthwhile) : speakers;
  const forgets = (r) => { const c = cacheOf(r.m); return c ? c.forgets : null; };
  const offered = list.filter((r) => D.methods[r.m].deployable === 1), research = list.filter((r) => D.methods[r.m].deployable !== 1);
  const advised = offered.find((r) => r.m !== index.baseline && (judged(r) || forgets(r) === false || D.caches.model.length === 0)) || null;
  rowsCache = { rows, plain, offered, research, advised, forgets };
  return rowsCache;
}

// The stored context that belongs to the question: the nearest at or below it. Ledgers stand at fewer contexts than their sums.
function storedContext(list) {
  const w = askWorkload(), want = w === null ? askContext() : D.workloads[w].prompt + D.workloads[w].output;
  return list.filter((c) => c <= want).pop() ?? list[0] ?? null;
}
const ledgerContext = () => storedContext(index.ledgerContexts);
const cacheOf = (m) => index.cache(state.model, m, storedContext(index.cacheContexts));

// Series in colour: slot 0 the plain cache, then those that the reader chose, or the first by rank.
function litSeries() {
  if (rowsCache && rowsCache.lit) return rowsCache.lit;
  const q = questionRows();
  let chosen = state.lit;
  if (chosen === null) {
    chosen = [];
    const add = (r) => { if (r && r.m !== index.baseline && !chosen.includes(r.m) && chosen.length < LIT - 1) chosen.push(r.m); };
    add(q.advised);
    q.offered.slice(0, 5).forEach(add);
    q.research.slice(0, 3).forEach(add);
    // Without anything offered, the table's first rows.
    if (chosen.length === 0) q.rows.slice(0, LIT - 1).forEach(add);
  }
  const lit = [];
  if (index.baseline >= 0) lit.push({ m: index.baseline, slot: BASE_SLOT });
  chosen.forEach((m, k) => { if (m !== null && m !== index.baseline && passes(m)) lit.push({ m, slot: k + 1 }); });
  rowsCache.lit = lit;
  return lit;
}
const slotOf = (m) => { const s = litSeries().find((x) => x.m === m); return s ? s.slot : null; };

// Lights or unlights a series; the ninth takes the place of the oldest.
function toggleLit(m) {
  if (m === index.baseline) return "The plain cache is always drawn";
  const now = new Array(LIT - 1).fill(null);
  for (const s of litSeries()) if (s.slot > 0) now[s.slot - 1] = s.m;
  const at = now.indexOf(m);
  let said;
  if (at >= 0) { now[at] = null; said = `${D.methods[m].recipe} is grey again`; }
  else {
    let free = now.indexOf(null);
    said = `${D.methods[m].recipe} is in colour`;
    if (free < 0) { free = toggleLit.next = ((toggleLit.next ?? -1) + 1) % (LIT - 1); said += `, in place of ${D.methods[now[free]].recipe}`; }
    now[free] = m;
  }
  state.lit = now;
  changed("lit");
  return said;
}

// Points that no other beats in both figures (larger is better), from the largest x.
function frontOf(points) {
  const sorted = [...points].sort((a, b) => b.x - a.x || b.y - a.y), front = [];
  let best = -Infinity;
  for (const p of sorted) if (p.y > best) { best = p.y; front.push(p); }
  return front;
}
