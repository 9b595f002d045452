// What the reader has chosen. It lives in the address, so a link shows the same view.

const LIT = 8;              // series in colour, the plain cache among them
const BASE_SLOT = 0;        // the plain cache's place

const state = {
  model: 0, gpu: 0, ask: "", scenario: 0, plan: 0,
  families: null, evidences: null, deployable: false, quality: null,   // null: all; quality: the least share retained, 0: any that is known
  lit: null,                // null: chosen by rank; otherwise recipes by place, with holes
  a: null, b: null,         // pinned configurations
  scope: "ask", context: null, batch: 1, claims: "all", search: "", theme: "",
  every: false,             // every setting of a method in the answer's table
};

const listeners = [];
const changed = (...what) => { rowsCache = null; for (const f of listeners) f(new Set(what)); writeAddress(); };

const askWorkload = () => (state.ask.startsWith("w") ? Number(state.ask.slice(1)) : null);
const askContext = () => (state.ask.startsWith("c") ? Number(state.ask.slice(1)) : null);

const scenarioText = (s) => [s.weights, s.engine, s.tp > 1 ? `tp ${s.tp}` : "", s.pp > 1 ? `pp ${s.pp}` : "", s.dp > 1 ? `dp ${s.dp}` : "", s.ep > 1 ? `ep ${s.ep}` : "",
  s.chunk !== 8192 ? `chunk ${s.chunk}` : "", s.gpu_memory_utilization !== 0.9 ? `${s.gpu_memory_utilization} of memory` : "",
  ...Object.entries(s).filter(([k, v]) => !(k in DEFAULTS) || (k === "arithmetic" && v !== "float")).map(([k, v]) => `${k.replace(/_/g, " ")} ${v}`)].filter(Boolean).join(", ");

// Names in the address are parted by @ and ~, so those in a name are written as %40 and %7E.
const packName = (name) => String(name).replace(/[%@~]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
const unpackName = (name) => name.replace(/%(25|40|7E)/g, (_, code) => String.fromCharCode(parseInt(code, 16)));

// A pin keeps its scenario and plan: it stays what it was when the page's question changes.
function pinText(pin) { return pin === null ? "" : [D.methods[pin.m].recipe, D.models[pin.model].identity, D.gpus[pin.gpu].identity, scenarioText(D.scenarios[pin.scenario]), D.plans[pin.plan]].map(packName).join("@"); }
function pinOf(text) {
  const [recipe, model, gpu, scenario, plan] = (text || "").split("@").map(unpackName);
  const place = (list, name, otherwise) => (name === undefined ? otherwise : list.indexOf(name));  // short addresses: the page's own
  const pin = {
    m: index.recipes.get(recipe), model: D.models.findIndex((x) => x.identity === model), gpu: D.gpus.findIndex((x) => x.identity === gpu),
    scenario: place(D.scenarios.map(scenarioText), scenario, state.scenario), plan: place(D.plans, plan, state.plan),
  };
  return pin.m === undefined || [pin.model, pin.gpu, pin.scenario, pin.plan].some((at) => at < 0) ? null : pin;
}

function askText() {
  const w = askWorkload();
  return w === null ? state.ask : `w:${D.workloads[w].key.slice(0, 8).toLowerCase()}`;
}

function addressOf() {
  const q = new URLSearchParams();
  q.set("model", D.models[state.model].identity);
  q.set("gpu", D.gpus[state.gpu].identity);
  q.set("ask", askText());
  if (D.scenarios.length > 1) q.set("scenario", scenarioText(D.scenarios[state.scenario]));
  if (D.plans.length > 1) q.set("plan", D.plans[state.plan]);
  if (state.families) q.set("family", [...state.families].map(packName).join("~"));
  if (state.evidences) q.set("evidence", [...state.evidences].map(packName).join("~"));
  if (state.deployable) q.set("deployable", "1");
  if (state.quality !== null) q.set("quality", state.quality);
  if (state.lit) q.set("lit", state.lit.map((m) => (m === null ? "" : packName(D.methods[m].recipe))).join("~"));
  if (state.a) q.set("a", pinText(state.a));
  if (state.b) q.set("b", pinText(state.b));
  if (state.scope !== "ask") q.set("scope", state.scope);
  if (state.context !== null) q.set("context", state.context);
  if (state.batch !== 1) q.set("batch", state.batch);
  if (state.claims !== "all") q.set("claims", state.claims);
  if (state.search) q.set("why", state.search);
  if (state.every) q.set("every", "1");
  if (state.theme) q.set("theme", state.theme);
  return q.toString();
}

let writing = 0;
function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    try { history.replaceState(null, "", `#${addressOf()}`); } catch { location.hash = addressOf(); }
  }, 60);
}

function readAddress() {
  const q = new URLSearchParams(location.hash.slice(1));
  const find = (list, text, otherwise) => { const at = list.findIndex((x) => x === text); return at < 0 ? otherwise : at; };
  const start = firstQuestion();
  state.model = find(D.models.map((m) => m.identity), q.get("model"), start.model);
  state.gpu = find(D.gpus.map((g) => g.identity), q.get("gpu"), start.gpu);
  state.scenario = find(D.scenarios.map(scenarioText), q.get("scenario"), start.scenario);
  state.plan = find(D.plans, q.get("plan"), start.plan);
  const ask = q.get("ask") || "", workload = D.workloads.findIndex((w) => ask === `w:${w.key.slice(0, 8).toLowerCase()}`);
  state.ask = workload >= 0 ? `w${workload}` : /^c\d+$/.test(ask) && index.contexts.includes(Number(ask.slice(1))) ? ask : start.ask;
  const set = (name) => (q.get(name) === null ? null : new Set(q.get(name).split("~").filter(Boolean).map(unpackName)));
  state.families = set("family");
  state.evidences = set("evidence");
  state.deployable = q.get("deployable") === "1";
  state.quality = q.get("quality") === null || !(Number(q.get("quality")) >= 0) ? null : Number(q.get("quality"));
  state.lit = q.get("lit") === null ? null : q.get("lit").split("~").slice(0, LIT - 1).map((r) => index.recipes.get(unpackName(r)) ?? null);
  state.a = pinOf(q.get("a"));
  state.b = pinOf(q.get("b"));
  state.scope = ["ask", "pair", "all"].includes(q.get("scope")) ? q.get("scope") : "ask";
  state.context = q.get("context") === null || !index.contexts.includes(Number(q.get("context"))) ? null : Number(q.get("context"));
  state.batch = Math.max(0, Number(q.get("batch") ?? 1) || 0);
  state.claims = q.get("claims") || "all";
  state.search = q.get("why") || "";
  state.every = q.get("every") === "1";
  state.theme = ["light", "dark"].includes(q.get("theme")) ? q.get("theme") : "";
}

// The question that the page opens on: of the longest prompts the one that an offered method serves with the largest gain.
function firstQuestion() {
  const c = D.configurations, s = D.served;
  const ideal = Math.max(0, D.plans.indexOf("ideal"));
  let best = -1;
  for (let i = 0; i < s.configuration.length; ++i) {
    const m = D.methods[c.method[s.configuration[i]]];
    if (s.feasible[i] !== 1 || m.deployable !== 1 || !known(s.speedup[i])) continue;
    if (c.plan[s.configuration[i]] !== ideal || c.model[s.configuration[i]] !== 0 || c.scenario[s.configuration[i]] !== 0) continue;
    const prompt = (k) => D.workloads[s.workload[k]].prompt;
    if (best < 0 || prompt(i) > prompt(best) || (prompt(i) === prompt(best) && s.speedup[i] > s.speedup[best])) best = i;
  }
  if (best >= 0) return { model: 0, gpu: c.gpu[s.configuration[best]], ask: `w${s.workload[best]}`, scenario: 0, plan: ideal };
  const contexts = index.contexts, middle = contexts.includes(32768) ? 32768 : contexts[Math.floor(contexts.length / 2)];
  if (D.workloads.length && !contexts.length) return { model: 0, gpu: 0, ask: "w0", scenario: 0, plan: ideal };
  // The first model and GPU of which a step fits.
  const p = D.points, at = p.configuration.findIndex((cfg, i) => p.context[i] === middle && p.fits[i] === 1 && c.scenario[cfg] === 0 && c.plan[cfg] === ideal);
  const cfg = at < 0 ? null : p.configuration[at];
  return { model: cfg === null ? 0 : c.model[cfg], gpu: cfg === null ? 0 : c.gpu[cfg], ask: `c${middle ?? 0}`, scenario: 0, plan: ideal };
}
