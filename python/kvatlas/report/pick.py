"""The question that page and figures open on, and its rows in the order of rank: stored figures, chosen and sorted."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

LIT = 8  # series in colour, the plain cache among them

# What components of a ledger are, for stacked bars: the table of reference/components.cpp, which a test holds against this one;
# a component that a newer program wrote and this table lacks is drawn as state.
KINDS = ("codes", "scales and zeros", "codebooks", "indices", "newest tokens, plain", "plain rows", "state")
_COMPONENTS = (
    "codes blocks streams coefficients indices signs outlier_signs trits low_rank",
    "scales absmax global_scale tensor_scale factors balancer norms outlier_norms residual_norms radii ranges thresholds zeros minima",
    "codebook codebooks cdf basis",
    "index labels channels lengths page_max page_min summaries tree positions bitmaps offsets outlier_channels important salient order header",
    "residual edge_rows",
    "rows thin_rows shared_rows sink_rows sinks values outliers partial mean",
    "state clock cursor limit share dropped mass queries query_moments window_queries last_seen interval history poison")
_KIND_OF = {name: kind for kind, names in enumerate(_COMPONENTS) for name in names.split()}


def kind_of(component: str) -> int:
    """The place in KINDS of a ledger's component."""
    return _KIND_OF.get(component, len(KINDS) - 1)


def workload_text(w: Dict[str, Any]) -> str:
    text = f"{w['prompt']:,} prompt + {w['output']:,} output tokens"
    if w["slo_tpot_s"]:
        text += f", TPOT <= {1000 * w['slo_tpot_s']:g} ms"
    return text


def tokens_text(n: int) -> str:
    return f"{n // 1024}K" if n >= 1024 and n % 1024 == 0 else f"{n:,}"


def _ideal(data: Dict[str, Any]) -> int:
    return data["plans"].index("ideal") if "ideal" in data["plans"] else 0


def _served(data: Dict[str, Any]) -> Optional[Tuple[int, int, int]]:
    """(model, gpu, workload): of the longest prompts the one that an offered method serves with the largest gain."""
    served, c, best = data["served"], data["configurations"], None
    for i, cfg in enumerate(served["configuration"]):
        gain = served["speedup"][i]
        if not served["feasible"][i] or gain is None or not data["methods"][c["method"][cfg]]["deployable"]:
            continue
        if c["plan"][cfg] != _ideal(data) or c["model"][cfg] != 0 or c["scenario"][cfg] != 0:
            continue
        rank = (data["workloads"][served["workload"][i]]["prompt"], gain)
        if best is None or rank > best[0]:
            best = (rank, c["gpu"][cfg], served["workload"][i])
    return None if best is None else (0, best[1], best[2])


def opening(data: Dict[str, Any], model: Optional[int] = None, gpu: Optional[int] = None) -> Optional[Dict[str, Any]]:
    """{question, metric, model, gpu, workload or context, rows}; None when the store has no row that answers it.

    rows   one a setting: method (place), recipe, family, deployable, value, low, high, gain over the plain cache, size_factor, evidence, forgets
           (None: the store does not say), judged (its quality is known), best first
    """
    c, methods = data["configurations"], data["methods"]
    picked = _served(data)
    rows: List[Dict[str, Any]] = []

    def add(cfg: int, value: float, low: float, high: float, gain: Optional[float], size: float, evidence: int) -> None:
        if value is None or low is None or high is None or size is None:
            return  # a row without its figures has no rank
        m = methods[c["method"][cfg]]
        rows.append({"method": c["method"][cfg], "configuration": cfg, "recipe": m["recipe"], "slug": m["slug"], "family": m["family"], "deployable": m["deployable"],
                     "value": value, "low": low, "high": high, "gain": gain, "size_factor": size, "evidence": data["evidences"][evidence]})

    if picked is not None:
        at_model, at_gpu, workload = picked
        at_model, at_gpu = at_model if model is None else model, at_gpu if gpu is None else gpu
        served = data["served"]
        for i, cfg in enumerate(served["configuration"]):
            if served["workload"][i] == workload and served["feasible"][i] and (c["model"][cfg], c["gpu"][cfg], c["scenario"][cfg], c["plan"][cfg]) == (at_model, at_gpu, 0, _ideal(data)):
                add(cfg, served["requests_per_s"][i], served["low_requests_per_s"][i], served["high_requests_per_s"][i], served["speedup"][i], served["size_factor"][i], served["evidence"][i])
        what = workload_text(data["workloads"][workload])
        view: Dict[str, Any] = {"metric": "requests/s", "workload": workload, "context": None}
    elif data["points"]["configuration"]:
        p = data["points"]
        contexts = sorted(set(p["context"]))
        context = 32768 if 32768 in contexts else contexts[len(contexts) // 2]
        # The first model and GPU of which a step fits.
        fits = ((c["model"][cfg], c["gpu"][cfg]) for i, cfg in enumerate(p["configuration"])
                if p["context"][i] == context and p["fits"][i] and (c["scenario"][cfg], c["plan"][cfg]) == (0, _ideal(data)))
        at_model, at_gpu = next(fits, (0, 0))
        at_model, at_gpu = at_model if model is None else model, at_gpu if gpu is None else gpu
        best: Dict[int, int] = {}
        for i, cfg in enumerate(p["configuration"]):
            if p["context"][i] == context and p["fits"][i] and (c["model"][cfg], c["gpu"][cfg], c["scenario"][cfg], c["plan"][cfg]) == (at_model, at_gpu, 0, _ideal(data)):
                if cfg not in best or p["tokens_per_s"][i] > p["tokens_per_s"][best[cfg]]:
                    best[cfg] = i
        for cfg, i in best.items():
            add(cfg, p["tokens_per_s"][i], p["batch"][i] / p["high_s"][i], p["batch"][i] / p["low_s"][i], p["throughput_gain"][i], p["size_factor"][i], p["evidence"][i])
        what = f"decoding at {tokens_text(context)} tokens of context (prefill excluded)"
        view = {"metric": "tokens/s", "workload": None, "context": context}
    if not rows:
        return None
    wanted = view["context"] or data["workloads"][view["workload"]]["prompt"] + data["workloads"][view["workload"]]["output"]
    contexts = sorted(set(data["caches"]["context"]))
    ledger_context = max((n for n in contexts if n <= wanted), default=contexts[0] if contexts else None)
    forgets = {m: f for k, m, n, f in zip(*(data["caches"][name] for name in ("model", "method", "context", "forgets"))) if k == at_model and n == ledger_context}
    judged = strongest(data["quality"], data["models"][at_model]["slug"])
    for r in rows:
        r["forgets"], r["judged"] = forgets.get(r["method"]), r["recipe"] in judged
    rows.sort(key=lambda r: (-r["value"], r["method"]))
    view.update(question=f"What should {data['models'][at_model]['name']} run on one {data['gpus'][at_gpu]['name']} for {what}?", model=at_model, gpu=at_gpu, rows=rows)
    return view


GRADES = ("M", "P", "C", "F", "X")  # from the strongest to the weakest


def strongest(quality: List[Dict[str, Any]], model: str) -> Dict[str, Dict[str, Any]]:
    """The figure that counts for each recipe on a model: judged on this model before others, then the strongest grade, then the worst figure."""
    best: Dict[str, Tuple[Tuple[bool, int, float], Dict[str, Any]]] = {}
    for q in quality:
        if q["model"] != model or q["retained"] is None or q["grade"] not in GRADES:
            continue
        rank = (q["quality_model"] != model, GRADES.index(q["grade"]), q["retained"])
        if q["recipe"] not in best or rank < best[q["recipe"]][0]:
            best[q["recipe"]] = (rank, q)
    return {recipe: q for recipe, (_, q) in best.items()}


def speakers(view: Dict[str, Any]) -> List[Dict[str, Any]]:
    """One row a method that pays, as `kvatlas recommend` chooses it: the fastest that was judged, else the first setting of the store."""
    pays = [r for r in view["rows"] if r["recipe"] == "full" or r["gain"] is None or r["gain"] >= 1.02]
    chosen: Dict[str, Dict[str, Any]] = {}
    for r in [r for r in pays if r["judged"]] + sorted(pays, key=lambda r: int(r["method"])):
        chosen.setdefault(r["slug"], r)
    return [r for r in pays if chosen[r["slug"]] is r]


def advised(view: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """What to run: the first that an engine offers and that was judged or forgets no token; None when nothing is."""
    known = any(r["forgets"] is not None for r in view["rows"])
    return next((r for r in speakers(view) if r["deployable"] and r["recipe"] != "full" and (r["judged"] or r["forgets"] == 0 or not known)), None)


def lit(view: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Rows in colour, as on the page: the plain cache, what is advised, then up to five that an engine offers and three of research."""
    ranked = speakers(view)
    best = advised(view)
    chosen = [r for r in view["rows"] if r["recipe"] == "full"]
    for r in ([best] if best else []) + [r for r in ranked if r["deployable"]][:5] + [r for r in ranked if not r["deployable"]][:3]:
        if r not in chosen and len(chosen) < LIT:
            chosen.append(r)
    return chosen if len(chosen) > 1 else chosen + view["rows"][:LIT - 1]
