// Words and tables: the question and its answer, filters, "why not", the comparison, evidence.

const option = (value, text, chosen) => `<option value="${esc(value)}"${chosen ? " selected" : ""}>${esc(text)}</option>`;

function drawQuestion() {
  const asks = [
    ...D.workloads.map((w, i) => [`w${i}`, workloadText(w)]),
    ...index.contexts.map((c) => [`c${c}`, `decoding at ${tokens(c)} tokens of context (prefill excluded)`]),
  ];
  const pick = (id, label, options) => `<label class="pick"><span class="sr">${label}</span><select id="${id}" title="${label}">${options}</select></label>`;
  $("#question").innerHTML = `What should ${pick("pick-model", "model", D.models.map((m, i) => option(i, m.name, i === state.model)).join(""))} run on one ${pick("pick-gpu", "GPU",
    D.gpus.map((g, i) => option(i, g.identity === g.slug ? g.name : g.identity, i === state.gpu)).join(""))} for ${pick("pick-ask", "workload", asks.map(([v, t]) => option(v, t, v === state.ask)).join(""))}? <small>${esc(scenarioText(D.scenarios[state.scenario]))}${D.plans[state.plan] === "released" ? ", official code" : ""}</small>`;
  for (const [id, set] of [["pick-model", (v) => { state.model = Number(v); state.lit = null; }], ["pick-gpu", (v) => { state.gpu = Number(v); state.lit = null; }], ["pick-ask", (v) => { state.ask = v; state.lit = null; state.context = null; }]])
    $(`#${id}`).onchange = (e) => { set(e.target.value); changed("question"); $(`#${id}`)?.focus(); };
}

function intervalBar(r, most) {
  const at = (v) => `${Math.max(0, Math.min(100, (100 * v) / most)).toFixed(2)}%`;
  return `<span class="interval" aria-hidden="true"><i style="left:${at(r.low)};right:calc(100% - ${at(r.high)})"></i><b style="left:${at(r.value)}"></b></span>`;
}

function qualityText(r) {
  if (r.m === index.baseline) return "1";
  const slug = D.models[D.configurations.model[r.cfg]].slug, q = index.quality(slug, D.methods[r.m].recipe);
  return q ? `${num(q.retained, 4)} <small>${esc(gradeName(q.grade))}</small>${judgedOn(q, slug) ? `<small>${esc(judgedOn(q, slug))}</small>` : ""}` : '<small>unknown</small>';
}

const forgetText = { true: "forgets tokens", false: "keeps every token" };

function answerRow(r, most) {
  const slot = slotOf(r.m), q = questionRows(), forgets = q.forgets(r);
  return `<tr data-m="${r.m}" class="${slot === null ? "" : "lit"}"><td class="n">${r.rank}</td><th scope="row"><button class="name" data-do="lit" aria-pressed="${slot !== null}" title="colour or grey this series">${swatch(r.m, slot, isHatched(r))}<span>${esc(D.methods[r.m].recipe)}</span></button>
    <small>${forgets === null || r.m === index.baseline ? "" : forgetText[forgets]}</small></th>
    <td class="n big">${num(r.value)}</td><td class="wide">${intervalBar(r, most)}<small>${num(r.low)} – ${num(r.high)}</small></td><td class="n">${times(r.gain)}</td><td class="n">${times(r.decode)}</td><td class="n">${times(r.size)}</td>
    <td class="n">${gib(r.peak)}</td><td class="n">${r.kind === "served" ? ms(r.tpot) : ms(r.step)}</td><td>${qualityText(r)}</td><td><small>${esc(evidenceName(r.evidence))}</small></td>
    <td class="do"><button data-do="copy" title="copy the command line">copy</button><button data-do="a" title="pin as A">A</button><button data-do="b" title="pin as B">B</button></td></tr>`;
}

// Why the plain cache has no row: refused, without room, or never swept.
function plainWhyNot() {
  const cfg = index.baseline < 0 ? undefined : configurationOf(index.baseline);
  if (cfg === undefined) return "This file has no plain cache to compare with: the sweep did not name it.";
  const always = index.refused(cfg).find((r) => r.context === 0 || r.context === askContext());
  if (always) return `The plain cache cannot be: ${esc(always.sentence)}.`;
  const row = rowOf(index.baseline);
  if (row && !row.feasible) return `The plain cache does not fit${row.why ? `: ${esc(row.why)}` : ""}.`;
  if (!row && askContext() !== null) {
    const [from, to] = index.pointsOf(cfg), p = D.points;
    for (let i = from; i < to; ++i) if (p.context[i] === askContext()) return "The plain cache does not fit.";
  }
  return "The file has no row of the plain cache for this question.";
}

function drawAnswer() {
  const q = questionRows(), what = askWorkload() === null ? "tokens/s" : "requests/s";
  const model = D.models[state.model].name, gpu = D.gpus[state.gpu];
  const box = $("#answer"), table = $("#top");
  if (!q.rows.length) {
    box.innerHTML = filtersOn() ? '<p class="verdict">Nothing passes the filters.</p><p>The file may hold more: <button data-do="reset">Clear the filters</button></p>'
      : `<p class="verdict">Nothing in this file.</p><p>The store has no row of ${esc(model)} on ${esc(gpu.identity)} that fits and answers this.</p>`;
    table.innerHTML = "";
    if (filtersOn()) $('[data-do="reset"]', box).onclick = clearFilters;
    return;
  }
  const best = q.advised || q.plain || q.offered[0] || q.rows[0], offeredBest = D.methods[best.m].deployable === 1;
  const judged = D.quality.some((r) => r.model === D.models[state.model].slug && known(r.retained));
  let why;
  if (q.advised) why = index.quality(D.models[state.model].slug, D.methods[best.m].recipe) ? `The fastest that an engine offers among those whose quality was judged or that forget no token.` : `The fastest that an engine offers today${D.caches.model.length ? " among those that forget no token" : "; this store does not say which methods forget tokens"}. Nobody has judged its quality here: try it on your task first.`;
  else if (best === q.plain) why = `Nothing that an engine offers, keeps every token (or was judged) and pays ${filtersOn() ? "passes the filters" : "is in this file"}: stay with the plain cache, or look at the rows below.`;
  else if (!offeredBest) why = "Research only: no engine offers it today.";
  else why = q.forgets(best) ? "An engine offers it, but it forgets tokens and nobody has judged its quality here: it is not advised before you have." : "An engine offers it, but it pays little or nothing over the plain cache.";
  const bestQuality = best.m === index.baseline ? null : index.quality(D.models[state.model].slug, D.methods[best.m].recipe);
  if (bestQuality) why += ` It retains ${num(bestQuality.retained, 4)} of the plain cache's quality (${esc(gradeName(bestQuality.grade))} on ${esc(bestQuality.quality_model)}${judgedOn(bestQuality, D.models[state.model].slug) ? ", another model" : ""}).`;
  const runner = q.rows[0];
  if (runner !== best && runner.value > best.value * 1.02) why += ` ${esc(D.methods[runner.m].recipe)} would be ${times(runner.value / best.value)} as fast${D.methods[runner.m].deployable ? "" : ", in no engine"}${q.forgets(runner) ? ", but forgets tokens" : ""}.`;
  const facts = [[num(best.value), what, `80 %: ${num(best.low)} – ${num(best.high)}`], [times(best.gain), "over the plain cache", known(best.decode) ? `${best.kind === "served" ? "decode only" : "a step at the same batch"} ${times(best.decode)}` : ""], [times(best.size), "smaller cache", gib(best.cache)]];
  if (best.kind === "served") facts.push([ms(best.tpot), "per output token", `TTFT ${ms(best.ttft)}`], [gib(best.peak), "of GPU memory", known(best.flight) ? `${whole(best.flight)} in flight` : ""]);
  else facts.push([ms(best.step), "a decode step", `batch ${whole(best.batch)}`], [gib(best.peak), "of GPU memory", "prefill excluded"]);
  box.innerHTML = `<p class="verdict">${swatch(best.m, slotOf(best.m), isHatched(best))}${esc(D.methods[best.m].recipe)}</p><p class="why">${why}</p>
    <ul class="facts">${facts.map(([a, b, c]) => `<li><b>${a}</b><span>${b}</span><small>${c}</small></li>`).join("")}</ul>
    <p class="plain">${q.plain ? `The plain cache reaches ${num(q.plain.value)} ${what}; ${esc(boundName(q.plain.bound))} binds it.` : plainWhyNot()} ${judged ? "" : "Quality of every compressed row is unknown in this file."}</p>
    <p class="act"><button data-do="copy">Copy its command line</button> <button data-do="a">Pin as A</button></p>`;
  box.onclick = (e) => { const act = e.target.dataset && e.target.dataset.do; if (act === "copy") copyText(commandOf(best)); if (act === "a") pin("a", best); };

  const most = state.every ? 400 : 5, offered = q.offered.slice(0, most), research = q.research.slice(0, state.every ? 400 : 3);
  const scale = Math.max(...[...offered, ...research].map((r) => r.high || r.value));
  const head = ["#", "method", what, "80 % interval", "over plain", sameName(), "size", "peak", r0(q) === "served" ? "TPOT" : "step", "quality", "evidence", ""];
  table.innerHTML = `<table><caption class="sr">The best rows for the question</caption><thead><tr>${head.map((h, i) => `<th scope="col"${[0, 2, 4, 5, 6, 7, 8].includes(i) ? ' class="n"' : ""}>${h}</th>`).join("")}</tr></thead>
    <tbody><tr class="part"><th colspan="${head.length}" scope="colgroup">In engines today</th></tr>${offered.length ? offered.map((r) => answerRow(r, scale)).join("") : `<tr><td colspan="${head.length}">none ${filtersOn() ? "passes the filters" : "pays"}</td></tr>`}
    ${research.length ? `<tr class="part"><th colspan="${head.length}" scope="colgroup">Research, in no engine today</th></tr>${research.map((r) => answerRow(r, scale)).join("")}` : ""}</tbody></table>
    <p class="below"># is the rank among the ${q.rows.length} settings that answer, of ${D.methods.length} in the file; ${state.every ? "every setting is shown" : "one setting speaks for each method"}. <button data-do="every" aria-pressed="${state.every}">${state.every ? "Only the top" : "Show every setting"}</button></p>`;
  table.onclick = (e) => {
    const button = e.target.closest("button");
    if (!button) return;
    const tr = button.closest("tr");
    if (button.dataset.do === "every") { state.every = !state.every; changed("answer"); return; }
    const row = q.rows.find((r) => r.m === Number(tr.dataset.m));
    if (button.dataset.do === "lit") say(toggleLit(row.m));
    if (button.dataset.do === "copy") copyText(commandOf(row));
    if (button.dataset.do === "a" || button.dataset.do === "b") pin(button.dataset.do, row);
  };
}
const sameName = () => (askWorkload() === null ? "same batch" : "decode only");  // what a row's second ratio compares
const r0 = (q) => (q.rows.length ? q.rows[0].kind : "served");

// ---- filters and the legend ----

const filtersOn = () => Boolean(state.families || state.evidences || state.deployable || state.quality !== null);
function clearFilters() { state.families = null; state.evidences = null; state.deployable = false; state.quality = null; changed("filters"); }

function drawFilters() {
  const families = [...new Set(D.methods.map((m) => m.family))].filter((f) => f !== "baseline").sort();
  const evidences = D.evidences.filter(Boolean);
  const chip = (group, value, text, on, title = "") => `<button class="chip" data-group="${group}" data-value="${esc(value)}" aria-pressed="${on}" title="${esc(title)}">${esc(text)}</button>`;
  const fields = [];
  fields.push(`<fieldset><legend>family</legend>${families.map((f) => chip("families", f, f.replace("_", " "), !state.families || state.families.has(f))).join("")}</fieldset>`);
  fields.push(`<fieldset><legend>evidence of the timing</legend>${evidences.map((e) => chip("evidences", e, evidenceName(e), !state.evidences || state.evidences.has(e), EVIDENCE[e] ? EVIDENCE[e][1] : "")).join("")}</fieldset>`);
  fields.push(`<fieldset><legend>only</legend>${chip("deployable", "1", "offered by an engine", state.deployable)}</fieldset>`);
  fields.push(`<fieldset><legend>quality</legend><select id="pick-quality" aria-label="quality">${option("", "known or not", state.quality === null)}${[[0, "known, on whichever model"], [0.9, "at least 0.9 retained"], [0.95, "at least 0.95"], [0.99, "at least 0.99"]].map(([v, t]) => option(v, t, state.quality === v)).join("")}</select></fieldset>`);
  if (D.scenarios.length > 1) fields.push(`<fieldset><legend>scenario</legend><select id="pick-scenario" aria-label="scenario">${D.scenarios.map((s, i) => option(i, scenarioText(s), i === state.scenario)).join("")}</select></fieldset>`);
  if (D.plans.length > 1) fields.push(`<fieldset><legend>kernels</legend><select id="pick-plan" aria-label="kernels">${D.plans.map((p, i) => option(i, p === "ideal" ? "well written (ideal)" : p === "released" ? "official code (released)" : p, i === state.plan)).join("")}</select></fieldset>`);
  fields.push(`<button class="quiet" id="clear" ${filtersOn() ? "" : "disabled"}>clear</button>`);
  const box = $("#filters");
  box.innerHTML = fields.join("");
  box.onclick = (e) => {
    const b = e.target.closest(".chip");
    if (!b) return;
    const { group, value } = b.dataset;
    if (group === "deployable") state[group] = !state[group];
    else {
      const all = group === "families" ? families : evidences;
      // The first click on one of many picks it alone; further clicks add and remove.
      if (!state[group]) state[group] = new Set([value]);
      else if (state[group].has(value)) state[group].delete(value);
      else state[group].add(value);
      if (state[group].size === 0 || state[group].size === all.length) state[group] = null;
    }
    changed("filters");
    const again = [...box.querySelectorAll(".chip")].find((c) => c.dataset.group === group && c.dataset.value === value);
    if (again) again.focus();
  };
  $("#pick-quality").onchange = (e) => { state.quality = e.target.value === "" ? null : Number(e.target.value); changed("filters"); $("#pick-quality").focus(); };
  $("#clear").onclick = clearFilters;
  if ($("#pick-scenario")) $("#pick-scenario").onchange = (e) => { state.scenario = Number(e.target.value); changed("question"); };
  if ($("#pick-plan")) $("#pick-plan").onchange = (e) => { state.plan = Number(e.target.value); changed("question"); };
}

function drawLegend() {
  const lit = litSeries(), used = new Set(lit.map((s) => D.methods[s.m].family));
  const anyHatched = questionRows().rows.some(isHatched);
  $("#legend").innerHTML = `${lit.map((s) => { const r = questionRows().rows.find((x) => x.m === s.m); return `<button class="series" data-m="${s.m}" aria-pressed="true" title="${s.slot === 0 ? "always drawn" : "grey this series"}">${swatch(s.m, s.slot, r ? isHatched(r) : false)}${esc(D.methods[s.m].recipe)}</button>`; }).join("")}
    <label class="add"><span class="sr">colour another series</span><input id="add" list="recipes" placeholder="colour another…" autocomplete="off"></label>
    <span class="key">${[...used].map((f) => `<span><svg class="swatch" viewBox="-8 -8 16 16" aria-hidden="true">${(SHAPES[f] || SHAPES.baseline)[1] === "circle" ? '<circle r="5"/>' : `<path d="${SHAPES[f][1]}"/>`}</svg>${esc(f.replace("_", " "))}</span>`).join("")}${anyHatched ? '<span><svg class="swatch" viewBox="-8 -8 16 16" aria-hidden="true"><rect x="-6" y="-6" width="12" height="12" fill="url(#hatch-key)"/></svg>hatched: format never timed, or quality by proxy</span>' : ""}</span>`;
  $("#legend").onclick = (e) => { const b = e.target.closest(".series"); if (b) say(toggleLit(Number(b.dataset.m))); };
  $("#add").onchange = (e) => { const m = index.recipes.get(e.target.value.trim()); if (m !== undefined) say(toggleLit(m)); else if (e.target.value) say(`The store has no ${e.target.value}`); e.target.value = ""; };
}

// ---- why not ----

const qualitySaid = (recipe) => { const slug = D.models[state.model].slug, q = index.quality(slug, recipe); return [num(q.retained, 4), judgedOn(q, slug)].filter(Boolean).join(", "); };

function whyNot(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return "";
  const hits = D.methods.map((method, m) => ({ method, m })).filter(({ method }) => method.recipe.toLowerCase().includes(wanted) || method.slug === wanted);
  if (!hits.length) return `<p>This store has no setting that matches <b>${esc(text)}</b>: its sweep did not name it. <code>kvatlas methods</code> lists what there is.</p>`;
  hits.sort((a, b) => (a.method.recipe === wanted ? -1 : b.method.recipe === wanted ? 1 : a.m - b.m));
  const q = questionRows(), lines = [];
  for (const { method, m } of hits.slice(0, 12)) {
    const cfg = configurationOf(m), reasons = [];
    if (!passes(m)) reasons.push(state.families && !state.families.has(method.family) ? `the filter leaves out the family ${method.family.replace("_", " ")}` : state.deployable && !method.deployable ? "the filter asks for what an engine offers; this is research only" : index.quality(D.models[state.model].slug, method.recipe) === null ? "the filter asks for known quality; none is known" : `the filter asks for quality of ${num(state.quality)}; ${qualitySaid(method.recipe)} is known`);
    if (cfg === undefined) reasons.push("the sweep did not evaluate it for this model, GPU and scenario");
    else {
      const refused = index.refused(cfg), always = refused.find((r) => r.context === 0);
      const asked = askContext(), here = asked === null ? null : refused.find((r) => r.context === asked);
      if (always) reasons.push(`it cannot be: ${always.sentence}`);
      else if (here) reasons.push(here.sentence);
      const row = rowOf(m);
      if (!always && !here) {
        if (!row) reasons.push("the store has no row of it for this question");
        else if (!row.feasible) reasons.push(row.why || "it does not fit");
        else if (!passesEvidence(row)) reasons.push(`the filter leaves out ${evidenceName(row.evidence)} timings`);
        else if (q.rows.length) {
          const ranked = q.rows.find((r) => r.m === m), first = q.rows[0];
          if (ranked && ranked.m === first.m) reasons.push(`nothing speaks against its speed: it is the first of ${q.rows.length}`);
          else if (ranked) reasons.push(`it is number ${ranked.rank} of ${q.rows.length}: ${num(ranked.value)} against ${num(first.value)} ${valueName()} of ${D.methods[first.m].recipe}; ${boundName(row.bound)} binds it`);
          if (known(row.gain) && row.gain < 1.02 && m !== index.baseline) reasons.push(`it does not pay: ${times(row.gain)} of the plain cache`);
          const c = cacheOf(m);
          if (c && c.forgets) reasons.push("it forgets tokens, so it is not advised before its quality was judged");
          if (!method.deployable) reasons.push("no engine offers it today");
        }
      }
    }
    lines.push(`<li><button class="name" data-m="${m}">${swatch(m, slotOf(m), false)}<span>${esc(method.recipe)}</span></button> ${reasons.map(esc).join("; ")}.</li>`);
  }
  const more = hits.length > 12 ? `<p>${hits.length - 12} more settings match.</p>` : "";
  return `<ul>${lines.join("")}</ul>${more}`;
}
function drawWhyNot() {
  const box = $("#why-answer"), input = $("#why-input");
  if (document.activeElement !== input) input.value = state.search;
  box.innerHTML = state.search ? whyNot(state.search) : `<p class="hint">Type a method, for example ${["gear", "snapkv", "kivi"].filter((s) => D.methods.some((m) => m.slug === s)).map((s) => `<button data-why="${s}">${s}</button>`).join(" ")}.</p>`;
  box.onclick = (e) => {
    const b = e.target.closest("button");
    if (!b) return;
    if (b.dataset.why) { state.search = b.dataset.why; input.value = b.dataset.why; changed("why"); }
    if (b.dataset.m) say(toggleLit(Number(b.dataset.m)));
  };
}

// ---- compare ----

function pin(which, row) {
  const c = D.configurations;
  state[which] = { m: row.m, model: c.model[row.cfg], gpu: c.gpu[row.cfg], scenario: c.scenario[row.cfg], plan: c.plan[row.cfg] };
  changed("pins");
  say(`${which.toUpperCase()}: ${D.methods[row.m].recipe} on ${D.gpus[c.gpu[row.cfg]].identity}`);
}

function drawCompare() {
  const box = $("#compare-table"), pins = [state.a, state.b];
  if (pins.every((p) => !p)) { box.innerHTML = '<p class="hint">Pin two configurations with the buttons A and B of any row, or of a point after a click.</p>'; return; }
  const w = askWorkload();
  const sides = pins.map((p) => {
    if (!p) return null;
    const cfg = configurationOf(p.m, p.model, p.gpu, p.scenario, p.plan);
    const i = cfg === undefined || w === null ? undefined : index.served(w, cfg);
    const stepAt = cfg === undefined ? null : pointAt(cfg, stepContext(), stepBatch());
    return { p, cfg, served: i === undefined ? null : servedRow(i), step: stepAt === null || stepAt === undefined ? null : pointRow(stepAt), cache: index.cache(p.model, p.m, storedContext(index.cacheContexts)), q: index.quality(D.models[p.model].slug, D.methods[p.m].recipe) };
  });
  const line = (name, get, spell, ratio = true) => {
    const values = sides.map((s) => (s ? get(s) : null)).map((v) => (v === false || v === undefined ? null : v));
    const both = ratio && values.every((v) => typeof v === "number" && known(v) && v !== 0);
    return `<tr><th scope="row">${name}</th>${values.map((v) => `<td>${v === null || v === undefined || Number.isNaN(v) ? "–" : spell(v)}</td>`).join("")}<td class="n">${both ? times(values[1] / values[0]) : ""}</td></tr>`;
  };
  const part = (name) => `<tr class="part"><th colspan="4" scope="colgroup">${name}</th></tr>`;
  const text = (v) => esc(v), at = index.contexts.length ? `one decode step, ${tokens(stepContext())} tokens, ${batchText()}` : "one decode step";
  const hatchedSide = (s) => [s.served, s.step].some((r) => r && isHatched(r));
  const head = sides.map((s, k) => `<th scope="col">${"AB"[k]} ${s ? `${swatch(s.p.m, slotOf(s.p.m), hatchedSide(s))} ${esc(D.methods[s.p.m].recipe)}<button data-unpin="${"ab"[k]}" aria-label="unpin ${"AB"[k]}">×</button><small>${esc(D.models[s.p.model].name)} on ${esc(D.gpus[s.p.gpu].identity)}${D.scenarios.length > 1 ? `, ${esc(scenarioText(D.scenarios[s.p.scenario]))}` : ""}${D.plans.length > 1 ? `, ${esc(D.plans[s.p.plan])}` : ""}</small>` : "<small>not pinned</small>"}</th>`).join("");
  const rows = [
    part("bytes"), line("bits of one value", (s) => s.cache && s.cache.bits, (v) => num(v, 4)), line("cache of one step's batch", (s) => s.step && s.step.cache, gib), line("read a step", (s) => s.step && s.step.read, gib), line("peak of one GPU", (s) => s.step && s.step.peak, gib), line("size factor", (s) => (s.step || s.served || {}).size, times),
    part(at), line("step", (s) => s.step && s.step.step, ms), line("80 % interval", (s) => s.step && `${ms(s.step.stepLow)} – ${ms(s.step.stepHigh)}`, text, false),
    ...PARTS.map(([name], k) => line(name, (s) => s.step && s.step.parts[k], ms)), line("tokens/s", (s) => s.step && s.step.value, (v) => num(v)), line("energy a token (assumed power)", (s) => s.step && s.step.energy, (v) => `${num(v)} J`),
    ...(w === null ? [] : [part(`workload: ${esc(workloadText(D.workloads[w]))}`), line("requests/s", (s) => s.served && s.served.feasible ? s.served.value : null, (v) => num(v)), line("80 % interval", (s) => s.served && s.served.feasible && `${num(s.served.low)} – ${num(s.served.high)}`, text, false),
      line("TTFT", (s) => s.served && s.served.ttft, ms), line("TPOT", (s) => s.served && s.served.tpot, ms), line("in flight", (s) => s.served && s.served.flight, whole), line("cost of a million tokens", (s) => s.served && s.served.usd, (v) => `${num(v)} USD`),
      line("why not", (s) => (s.served && !s.served.feasible ? s.served.why : null), text, false)]),
    part("risk"), line("tokens", (s) => s.cache && forgetText[s.cache.forgets], text, false), line("quality", (s) => (s.p.m === index.baseline ? "the plain cache's own" : s.q ? `${num(s.q.retained, 4)}, ${gradeName(s.q.grade)} on ${s.q.quality_model} (${s.q.source})` : "unknown: nobody judged it"), text, false),
    line("timing evidence", (s) => { const r = s.served && s.served.feasible ? s.served : s.step; return r ? (EVIDENCE[r.evidence] ? `${EVIDENCE[r.evidence][0]}: ${EVIDENCE[r.evidence][1]}` : r.evidence) : null; }, text, false),
    line("bound by", (s) => { const r = s.served && s.served.feasible ? s.served : s.step; return r && boundName(r.bound); }, text, false), line("in engines", (s) => (D.methods[s.p.m].deployable ? "yes" : "no: research only"), text, false),
    line("cannot be", (s) => (s.cfg === undefined ? "the sweep did not evaluate it in this scenario" : (index.refused(s.cfg).find((r) => r.context === 0) || {}).sentence ?? null), text, false),
    part("again"), line("command line", (s) => { const r = s.served && s.served.feasible ? s.served : s.step; return r ? commandOf(r) : null; }, (v) => `<code>${esc(v)}</code> <button data-copy="${esc(v)}">copy</button>`, false),
  ];
  box.innerHTML = `<table><thead><tr><th></th>${head}<th class="n">B over A</th></tr></thead><tbody>${rows.join("")}</tbody></table>`;
  box.onclick = (e) => {
    const b = e.target.closest("button");
    if (b && b.dataset.unpin) { state[b.dataset.unpin] = null; changed("pins"); }
    if (b && b.dataset.copy) copyText(b.dataset.copy);
  };
}

// ---- evidence ----

const percent = (x) => (known(x) ? `${num(100 * x, 3)} %` : "–");
function drawValidation() {
  const box = $("#validation");
  if (!D.validation.length) { box.innerHTML = '<p class="hint">The store holds no validation: <code>kvatlas validate --db FILE</code> puts it there.</p>'; return; }
  const names = Object.fromEntries(KERNELS.map(([k, n]) => [k, n]));
  const isRun = (r) => r.kind.startsWith("e2e_"), gpu = (r) => (r.gpu === "*" ? "all" : r.gpu);
  const errors = [["timings", 1], ["median error", 1], ["mean error", 1], ["p90", 1], ["bias", 1], ["inside 80 %", 1], ["max(bytes, operations) over peak: mean error", 1]];
  const cells = (r) => [[r.rows, whole(r.rows)], [r.median_ape, percent(r.median_ape)], [r.mean_ape, percent(r.mean_ape)], [r.p90_ape, percent(r.p90_ape)], [r.bias, percent(r.bias)],
    [r.coverage_80, farOff(r.coverage_80) ? `<b class="off" title="far from 80 %">${percent(r.coverage_80)}</b>` : percent(r.coverage_80)], [r.roofline_mean_ape, percent(r.roofline_mean_ape)]];
  const kernels = D.validation.filter((r) => !isRun(r) && r.profile === "*" && r.kv_dtype === "*" && (r.subset === "cold" || (r.subset === "overhead" && r.gpu === "*")));
  const runs = D.validation.filter((r) => isRun(r) && r.subset === "all");
  const figureOf = (r) => ({ e2e_ttft: "time to the first token", e2e_tpot: "time per output token", e2e_total: "whole request", e2e_prefill: "prefill", e2e_decode_step: "decode step" }[r.kind] || r.kind.replace(/^e2e_/, "").replace(/_/g, " "));
  const runOf = (r) => { const cut = r.profile.indexOf(":"); return r.profile === "*" ? ["all", "all"] : cut < 0 ? [r.profile, "–"] : [r.profile.slice(0, cut), r.profile.slice(cut + 1)]; };
  box.innerHTML = (kernels.length ? `<p class="hint">Kernels. ${coverageSentence(kernels.filter((r) => r.gpu === "*"), (r) => `${names[r.kind] || r.kind} (${r.subset})`)}</p>${sortable("validation-table", [["kernel", 0], ["GPU", 0], ["rows of", 0], ...errors], kernels.map((r) => [names[r.kind] || r.kind, gpu(r), r.subset, ...cells(r)]))}` : '<p class="hint">The store holds no errors of kernels.</p>') +
    (runs.length ? `<h4>Runs of whole models</h4><p class="hint">${coverageSentence(runs.filter((r) => r.gpu === "*" && r.profile === "*"), figureOf)}</p>${sortable("runs-table", [["figure", 0], ["GPU", 0], ["engine", 0], ["model", 0], ...errors], runs.map((r) => [figureOf(r), gpu(r), ...runOf(r), ...cells(r)]))}` : '<h4>Runs of whole models</h4><p class="hint">The store holds none: <code>kvatlas validate --db FILE</code> on a folder with <code>e2e_static.csv</code> and <code>e2e_serving.csv</code> puts them there.</p>');
}
// An 80 % interval that holds fewer than 65 % or more than 95 % of what was measured is not what its name says.
const farOff = (share) => known(share) && (share < 0.65 || share > 0.95);
function coverageSentence(rows, name) {
  const off = rows.filter((r) => farOff(r.coverage_80));
  const list = (some) => some.map((r) => `${esc(name(r))} ${percent(r.coverage_80)}`).join(", ");
  if (!rows.length) return "";
  if (!off.length) return `The 80 % interval holds: ${list(rows)}.`;
  const narrow = off.filter((r) => r.coverage_80 < 0.8).length;
  return `<b class="off">The 80 % interval is ${narrow === off.length ? "too narrow" : narrow ? "off" : "too wide"} here: it held ${list(off)} of the measured values.</b>${off.length < rows.length ? ` The others: ${list(rows.filter((r) => !off.includes(r)))}.` : ""} Read figures of such kind as rougher than their interval says.`;
}

const VERDICTS = { reproduced: "reproduced", reproduced_if: "reproduced if", consistent: "consistent", not_reproduced: "not reproduced", undetermined: "undetermined" };
function drawClaims() {
  const box = $("#claims-box");
  if (!D.claims.length) { box.innerHTML = '<p class="hint">The store holds no claims: <code>kvatlas claims --db FILE</code> puts what papers publish beside ours there.</p>'; return; }
  const counts = {};
  for (const c of D.claims) counts[c.verdict] = (counts[c.verdict] || 0) + 1;
  const list = D.claims.filter((c) => state.claims === "all" || c.verdict === state.claims);
  box.innerHTML = `<div class="chips">${["all", ...Object.keys(VERDICTS)].filter((v) => v === "all" || counts[v]).map((v) => `<button class="chip" data-verdict="${v}" aria-pressed="${state.claims === v}">${v === "all" ? `all ${D.claims.length}` : `${VERDICTS[v]} ${counts[v]}`}</button>`).join("")}</div>` +
    sortable("claims-table", [["method", 0], ["claim", 0], ["published", 1], ["ours", 1], ["ours / published", 1], ["verdict", 0], ["setup and source", 0]],
      list.map((c) => { const ratio = known(c.published) && known(c.ours) && c.published ? c.ours / c.published : null; return [c.method, c.metric.replace(/_/g, " "), [c.published, `${num(c.published)} ${esc(c.unit || "")}`], [c.ours, known(c.ours) ? num(c.ours) : "–"], [ratio, known(ratio) ? times(ratio) : "–"],
        [c.verdict, `<span class="verdict-${VERDICTS[c.verdict] ? c.verdict : "undetermined"}">${VERDICTS[c.verdict] || esc(c.verdict)}</span>${c.change ? `<small>${esc(c.change)}</small>` : ""}`], [c.setup, `${esc(c.setup)}<small>${esc(c.source)} · ${esc(c.why)}</small>`]]; }));
  box.onclick = (e) => { const b = e.target.closest("[data-verdict]"); if (b) { state.claims = b.dataset.verdict; changed("claims"); } };
}

// A table that sorts by its heads: cells are text, or [value, html].
function sortable(id, columns, rows) {
  sortable.tables = sortable.tables || {};
  const t = (sortable.tables[id] = { columns, rows, by: sortable.tables[id] ? sortable.tables[id].by : null, down: sortable.tables[id] ? sortable.tables[id].down : false });
  return `<div class="scroll" tabindex="0" role="region" aria-label="table, scrolls"><table id="${id}" class="sortable">${sortedBody(t)}</table></div>`;
}
function sortedBody(t) {
  const value = (cell) => (Array.isArray(cell) ? cell[0] : cell);
  const rows = t.by === null ? t.rows : [...t.rows].sort((a, b) => {
    const x = value(a[t.by]), y = value(b[t.by]);
    if (!known(x) || !known(y)) return known(x) ? -1 : known(y) ? 1 : 0;
    const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
    return t.down ? -order : order;
  });
  return `<thead><tr>${t.columns.map(([name, n], i) => `<th scope="col"${n ? ' class="n"' : ""} aria-sort="${t.by === i ? (t.down ? "descending" : "ascending") : "none"}"><button data-sort="${i}">${name}</button></th>`).join("")}</tr></thead>
    <tbody>${rows.map((r) => `<tr>${r.map((cell, i) => `<td${t.columns[i][1] ? ' class="n"' : ""}>${Array.isArray(cell) ? cell[1] : esc(cell)}</td>`).join("")}</tr>`).join("")}</tbody>`;
}
document.addEventListener("click", (e) => {
  const b = e.target.closest && e.target.closest("[data-sort]");
  const table = b && b.closest("table.sortable");
  if (!table || !sortable.tables || !sortable.tables[table.id]) return;
  const t = sortable.tables[table.id], i = Number(b.dataset.sort);
  t.down = t.by === i ? !t.down : t.columns[i][1] === 1;
  t.by = i;
  table.innerHTML = sortedBody(t);
  table.querySelector(`[data-sort="${i}"]`).focus();
  say(`Sorted by ${t.columns[i][0]}, ${t.down ? "largest" : "smallest"} first`);
});
