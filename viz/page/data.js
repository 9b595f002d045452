// Unpacks the store's figures and answers look-ups on them. Nothing is computed here that the store does not hold.

const ARRAYS = { f: Float32Array, I: Uint32Array, H: Uint16Array, B: Uint8Array };

function bytesOf(base64) {
  const text = atob(base64);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; ++i) out[i] = text.charCodeAt(i);
  return out;
}

async function inflate(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Bytes of a column travel plane by plane; here they come together again.
function columnOf(blob, code, at, length) {
  const Type = ARRAYS[code], width = Type.BYTES_PER_ELEMENT;
  const raw = new Uint8Array(length * width);
  for (let plane = 0; plane < width; ++plane)
    for (let i = 0, from = at + plane * length; i < length; ++i) raw[i * width + plane] = blob[from + i];
  return new Type(raw.buffer);
}

async function loadData(base64) {
  const blob = await inflate(base64);
  const length = new DataView(blob.buffer).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(blob.subarray(4, 4 + length)));
  const body = blob.subarray(4 + length);
  for (const [table, columns] of Object.entries(data.columns)) {
    data[table] = {};
    for (const [name, [code, at, count]] of Object.entries(columns)) data[table][name] = columnOf(body, code, at, count);
  }
  return data;
}

let D = null;         // the data
let index = null;     // look-ups

function buildIndex() {
  const c = D.configurations, n = c.model.length;
  const byName = new Map();
  const nameOf = (model, gpu, scenario, plan, method) => `${model}/${gpu}/${scenario}/${plan}/${method}`;
  for (let i = 0; i < n; ++i) byName.set(nameOf(c.model[i], c.gpu[i], c.scenario[i], c.plan[i], c.method[i]), i);

  // Points are ordered by configuration, context, batch.
  const first = new Uint32Array(n + 1), p = D.points;
  for (let i = 0; i < p.configuration.length; ++i) ++first[p.configuration[i] + 1];
  for (let i = 0; i < n; ++i) first[i + 1] += first[i];

  const served = new Map();
  for (let i = 0; i < D.served.configuration.length; ++i) served.set(`${D.served.workload[i]}/${D.served.configuration[i]}`, i);

  const refused = new Map();
  for (let i = 0; i < D.infeasible.configuration.length; ++i) {
    const cfg = D.infeasible.configuration[i];
    if (!refused.has(cfg)) refused.set(cfg, []);
    refused.get(cfg).push({ context: D.infeasible.context[i], sentence: D.sentences[D.infeasible.sentence[i]] });
  }

  const caches = new Map(), ledgers = new Map();
  const place = (model, method, context) => `${model}/${method}/${context}`;
  for (let i = 0; i < D.caches.model.length; ++i)
    caches.set(place(D.caches.model[i], D.caches.method[i], D.caches.context[i]), { bits: D.caches.bits_per_value[i], forgets: D.caches.forgets[i] === 1 });
  const l = D.ledgers;
  for (let i = 0; i < l.model.length; ++i) {
    const key = place(l.model[i], l.method[i], l.context[i]);
    if (!ledgers.has(key)) ledgers.set(key, []);
    ledgers.get(key).push({ component: D.components[l.component[i]], kind: D.kind_of_component[l.component[i]], side: ["both", "keys", "values"][l.side[i]], bytes: l.bytes[i], bits: l.bits_per_value[i] });
  }

  const quality = new Map();
  for (const q of D.quality) {
    const key = `${q.model}/${q.recipe}`;
    if (!quality.has(key)) quality.set(key, []);
    quality.get(key).push(q);
  }

  index = {
    baseline: D.methods.findIndex((m) => m.recipe === "full"),
    recipes: new Map(D.methods.map((m, i) => [m.recipe, i])),
    contexts: [...new Set(p.context)].sort((a, b) => a - b),
    ledgerContexts: [...new Set(D.ledgers.context)].sort((a, b) => a - b),
    cacheContexts: [...new Set(D.caches.context)].sort((a, b) => a - b),
    configuration: (model, gpu, scenario, plan, method) => byName.get(nameOf(model, gpu, scenario, plan, method)),
    pointsOf: (cfg) => [first[cfg], first[cfg + 1]],
    served: (workload, cfg) => served.get(`${workload}/${cfg}`),
    refused: (cfg) => refused.get(cfg) || [],
    cache: (model, method, context) => caches.get(place(model, method, context)),
    ledger: (model, method, context) => ledgers.get(place(model, method, context)),
    // Judged on this model before others; then the strongest grade counts, and within it the worst figure.
    quality(model, recipe) {
      const list = quality.get(`${model}/${recipe}`) || [];
      for (const own of [true, false])
        for (const grade of "MPCFX") {
          let worst = null;
          for (const q of list)
            if ((q.quality_model === model) === own && q.grade === grade && known(q.retained) && (!worst || q.retained < worst.retained)) worst = q;
          if (worst) return worst;
        }
      return null;
    },
  };
}
