// Numbers, names and command lines as people read them.

const GRADES = { M: "measured", P: "published", C: "captured", F: "family", X: "proxy" };
const EVIDENCE = {
  fitted: ["fitted", "GPU and kernel were fitted to published timings"],
  extrapolated: ["extrapolated", "the kernel was fitted, this shape lies outside what was timed"],
  other_gpu: ["other GPU", "kernels were timed on other GPUs only"],
  uncalibrated_format: ["uncalibrated format", "nobody has timed this number format: the interval spans ideal and released kernels"],
};
const BOUNDS = { memory: "memory bandwidth", memory_capacity: "memory capacity", tensor: "tensor cores", vector: "vector units", unpack: "unpacking", latency: "latency" };
const gradeName = (grade) => GRADES[grade] || grade || "no grade";
const evidenceName = (e) => (EVIDENCE[e] ? EVIDENCE[e][0] : e || "unknown");
const boundName = (b) => BOUNDS[b] || b || "unknown";

const known = (x) => x !== null && x !== undefined && !Number.isNaN(x);

function num(x, digits = 3) {
  if (!known(x)) return "–";
  if (typeof x !== "number") return esc(x);  // a damaged store: never markup
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e15 || size < 1e-6) return x.toExponential(digits - 1);
  const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return x.toLocaleString("en", { maximumFractionDigits: Math.min(decimals, 8) });
}
const times = (x) => (known(x) ? `${num(x)}×` : "–");
const share = (x) => (known(x) ? `${num(100 * x, 3)} %` : "–");
const ms = (seconds) => (!known(seconds) ? "–" : seconds >= 1 ? `${num(seconds)} s` : `${num(1000 * seconds)} ms`);
const gib = (bytes) => (known(bytes) ? (bytes < 2 ** 30 ? `${num(bytes / 2 ** 20)} MiB` : `${num(bytes / 2 ** 30)} GiB`) : "–");
const tokens = (n) => (n >= 1048576 && n % 1048576 === 0 ? `${n / 1048576}M` : n >= 1024 && n % 1024 === 0 ? `${n / 1024}K` : whole(n));
const whole = (n) => (typeof n === "number" ? n.toLocaleString("en") : esc(n));

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const esc = (text) => String(text).replace(/[&<>"']/g, (c) => escapes[c]);
const quoted = (text) => (/^[\w.:=,\/+-]+$/.test(text) ? text : `'${String(text).replace(/'/g, "'\\''")}'`);

function workloadText(w) {
  let text = `${whole(w.prompt)} prompt + ${whole(w.output)} output tokens`;
  if (w.prefix_hit) text += `, ${share(w.prefix_hit)} of the prompt cached`;
  if (w.turns > 1) text += `, ${w.turns} turns`;
  if (w.rate) text += `, ${num(w.rate)} requests/s offered`;
  if (w.concurrency) text += `, ${w.concurrency} in flight`;
  if (w.slo_ttft_s) text += `, TTFT ≤ ${num(1000 * w.slo_ttft_s)} ms`;
  if (w.slo_tpot_s) text += `, TPOT ≤ ${num(1000 * w.slo_tpot_s)} ms`;
  return text;
}

// What is not said takes the command line's default.
const DEFAULTS = { weights: "bf16", engine: "vllm", tp: 1, pp: 1, dp: 1, ep: 1, chunk: 8192, gpu_memory_utilization: 0.9, arithmetic: "float" };

// A shipped model by its name, an imported one by the file it was read from, where the store says which: else the reader has to.
function modelWord(model) {
  if (model.identity === model.slug) return model.slug;
  const file = /^config file (.+)$/.exec(model.source);
  return file ? file[1] : `path/to/${model.slug}/config.json`;
}

function copiedWords(command) {
  const missing = /--model '?path\/to\/(.+?)\/config\.json/.exec(command);
  return missing ? `Command line copied (the store does not say where the config.json of ${missing[1]} lies: put that in)` : "Command line copied";
}

// The command that gives a row's figures again.
function commandOf(row) {
  const c = D.configurations, model = D.models[c.model[row.cfg]], gpu = D.gpus[c.gpu[row.cfg]];
  const words = ["kvatlas", "simulate", "--model", modelWord(model), "--gpu", gpu.identity, "--method", D.methods[row.m].recipe];
  if (row.kind === "served") {
    const w = D.workloads[D.served.workload[row.i]];
    words.push("--prompt", w.prompt, "--output", w.output);
    if (w.prefix_hit) words.push("--prefix-hit", w.prefix_hit);
    if (w.turns > 1) words.push("--turns", w.turns);
    if (w.rate) words.push("--rate", w.rate);
    if (w.concurrency) words.push("--concurrency", w.concurrency);
    const slo = [w.slo_ttft_s ? `ttft_ms=${+(1000 * w.slo_ttft_s).toFixed(6)}` : "", w.slo_tpot_s ? `tpot_ms=${+(1000 * w.slo_tpot_s).toFixed(6)}` : ""].filter(Boolean);
    if (slo.length) words.push("--slo", slo.join(","));
  } else {
    words.push("--context", row.context, "--batch", row.batch);
  }
  const scenario = D.scenarios[c.scenario[row.cfg]];
  for (const [key, value] of Object.entries(scenario))
    if (known(value) && value !== DEFAULTS[key]) words.push(`--${key.replace(/_/g, "-")}`, value);
  if (D.plans[c.plan[row.cfg]] !== "ideal") words.push("--plan", D.plans[c.plan[row.cfg]]);
  return words.map((w) => quoted(String(w))).join(" ");
}

// Marks: a shape for each family; hatched where quality is a proxy or the format was never timed.
const SHAPES = {
  baseline: ["circle", "circle"], quantization: ["square", "M-5-5H5V5H-5Z"], eviction: ["diamond", "M0-6.5L6.5 0L0 6.5L-6.5 0Z"],
  retrieval: ["triangle-up", "M0-6.5L6 5H-6Z"], coding: ["pentagon", "M0-6.5L6.2-2L3.8 5.3H-3.8L-6.2-2Z"], merging: ["hexagon", "M3-5.4L6 0L3 5.4H-3L-6 0L-3-5.4Z"],
  transform: ["triangle-down", "M0 6.5L6-5H-6Z"], lowrank: ["cross", "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z"], architecture: ["x", "M-5-3L-3-5L0-2L3-5L5-3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z"],
  sparse_prefill: ["star", "M0-7L2-2L7-2L3 1.5L4.5 6.5L0 3.5L-4.5 6.5L-3 1.5L-7-2L-2-2Z"], speculation: ["hourglass", "M-5-6H5L-5 6H5Z"], serving: ["bowtie", "M-6-5V5L6-5V5Z"],
};
const symbolOf = (m) => (SHAPES[D.methods[m].family] || ["circle"])[0];

function swatch(m, slot, hatched) {
  const shape = (SHAPES[D.methods[m].family] || ["circle", "circle"])[1];
  const paint = slot === null ? 'class="grey"' : `style="--c:var(--s${slot})" ${hatched ? `fill="url(#hatch-${slot})"` : 'class="solid"'}`;
  const body = shape === "circle" ? `<circle r="5.2" ${paint}/>` : `<path d="${shape}" ${paint}/>`;
  return `<svg class="swatch" viewBox="-8 -8 16 16" aria-hidden="true">${body}</svg>`;
}
