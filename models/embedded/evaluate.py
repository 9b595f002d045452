"""Measures the embedded model: held-out text against a 5-gram, retrieval tasks with full and with windowed attention,
attention sinks, key channels, retrieval heads.

    python evaluate.py --dir DIR [--weights checkpoint.pt | MODEL_FOLDER] [--window 512] [--cases 200] [--json FILE]
"""
import argparse
import json
import pathlib
import struct

import numpy as np
import torch
import torch.nn.functional as F

import model
import ngram
import tasks

SINKS = 4


def load(path):
    """Weights of a checkpoint, or of an exported folder."""
    if path.is_dir():
        data = (path / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        config = json.loads((path / "config.json").read_text())
        weights = {}
        for name, t in header.items():
            if name != "__metadata__":
                begin, end = t["data_offsets"]
                weights[name] = torch.from_numpy(np.frombuffer(data[8 + size + begin : 8 + size + end], "<f2").astype(np.float32).reshape(t["shape"]))
        return weights, config, {}
    saved = torch.load(path, weights_only=True)
    return saved["weights"], saved["config"], {k: saved[k] for k in ("step", "tokens", "cpu_seconds")}


class Model:
    def __init__(self, weights, config, dtype=torch.float32):
        self.weights, self.config, self.dtype = weights, config, dtype
        self.tables = model.rope_tables(config, 8192)

    @torch.no_grad()
    def logits(self, data, mask=None, tap=None):
        tokens = torch.tensor([[model.BOS, *data]])
        return model.forward(self.weights, self.config, tokens, self.tables, self.dtype, mask, tap)[0]


def held_out(m, baseline, text, context, limit):
    """Bits a byte of both models on the same bytes: pieces of `context`, each begun afresh, its first bytes left out."""
    skip = baseline.order - 1
    ours = theirs = count = 0
    starts = range(0, len(text) - context, context)
    for start in starts[:: max(1, len(text) // limit)]:  # spread over all works
        piece = text[start : start + context]
        log_p = F.log_softmax(m.logits(piece[:-1]), -1)[torch.arange(len(piece)), torch.tensor(list(piece))]
        ours -= log_p[skip:].sum().item() / np.log(2)
        theirs -= np.log2(baseline.probabilities(piece)).sum()
        count += len(piece) - skip
    return {"bytes": count, "model_bits": float(ours / count), "ngram_bits": float(theirs / count)}


def mask_of(kind, length, prompt, window):
    """prompt: tokens before those that see a cut cache. None is full attention.
    window: every token sees the sinks and the newest `window` tokens only; cut: the prompt is read with full attention,
    then all but its sinks and its newest `window` tokens are dropped (protocol A)."""
    if kind == "full":
        return None
    at = torch.arange(length)
    causal = at[None, :] <= at[:, None]
    if kind == "window":
        return causal & ((at[None, :] < SINKS) | (at[:, None] - at[None, :] < window))
    kept = (at < SINKS) | (at >= prompt - window)
    return causal & (kept[None, :] | (at[:, None] < prompt))


def answer(m, case, kind, window, question_first):
    """Whether every byte of the answer is the likeliest one, and the mean likelihood in nats."""
    data = case.context + case.question + case.answer
    # Token 256 shifts everything by one. The cut comes after the question, or before it.
    prompt = 1 + len(case.context) + (len(case.question) if question_first else 0)
    logits = m.logits(data[:-1], mask_of(kind, len(data), prompt, window))
    log_p = F.log_softmax(logits[-len(case.answer) :], -1)
    wanted = torch.tensor(list(case.answer))
    return bool((log_p.argmax(-1) == wanted).all()), log_p[torch.arange(len(wanted)), wanted].mean().item()


def interval(hits, cases):
    """Wilson's 95% interval of a share."""
    z, p = 1.96, hits / cases
    mid, half = (p + z * z / 2 / cases) / (1 + z * z / cases), z * np.sqrt(p * (1 - p) / cases + z * z / 4 / cases**2) / (1 + z * z / cases)
    return [round(float(mid - half), 4), round(float(mid + half), 4)]


def run_tasks(m, text, names, context, window, cases, kinds):
    rows = []
    for name in names:
        for kind in kinds:
            results = []
            for seed in range(cases):
                case = tasks.case(name, np.random.default_rng((7, seed)), text, context)
                results.append(answer(m, case, kind.split("+")[0], window, kind.endswith("+question")))
            hits = sum(r[0] for r in results)
            rows.append({"task": name, "attention": kind, "context": context, "window": window, "cases": cases, "exact": hits / cases,
                         "interval": interval(hits, cases), "log_likelihood": float(np.mean([r[1] for r in results]))})
            print(rows[-1], flush=True)
    return rows


def attention_weights(q, k):
    """[heads, context, context] in float32, of one sequence."""
    group = q.shape[1] // k.shape[1]
    scores = q[0].float() @ k[0].float().repeat_interleave(group, 0).mT / q.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


def inner_life(m, text, context, pieces=8):
    """Sink mass of every head (attention that queries from position 64 on pay to the first token and to the first four);
    ratio of the largest to the median key and value channel (mean magnitude over tokens) of every layer and kv head."""
    layers = m.config["num_hidden_layers"]
    first, four, keys, values = ([[] for _ in range(layers)] for _ in range(4))

    def tap(i, q, k, v):
        weights = attention_weights(q, k)[:, 64:]
        first[i].append(weights[..., 0].mean(-1))
        four[i].append(weights[..., :SINKS].sum(-1).mean(-1))
        keys[i].append(k[0].abs().mean(1))
        values[i].append(v[0].abs().mean(1))

    for n in range(pieces):
        start = n * (len(text) - context) // pieces
        m.logits(text[start : start + context - 1], tap=tap)

    def ratio(x):
        return (x.amax(-1) / x.median(-1).values).tolist()

    return {"sink_mass_first_token": [torch.stack(x).mean(0).tolist() for x in first],
            "sink_mass_first_four": [torch.stack(x).mean(0).tolist() for x in four],
            "uniform_mass_first_token": float(np.mean([1 / (t + 1) for t in range(64, context)])),
            "key_channel_ratio": [ratio(torch.stack(x).mean(0)) for x in keys],
            "value_channel_ratio": [ratio(torch.stack(x).mean(0)) for x in values]}


def retrieval_heads(m, text, context, cases):
    """Share of answer bytes that a head copies: the byte it attends to most is the very byte of the record (Wu et al. 2024)."""
    hits = torch.zeros(m.config["num_hidden_layers"], m.config["num_attention_heads"])
    count = 0
    for seed in range(cases):
        case = tasks.case(("passkey", "multi_needle")[seed % 2], np.random.default_rng((11, seed)), text, context)
        data = case.context + case.question + case.answer
        rows = torch.arange(len(case.answer)) + len(case.context) + len(case.question)  # the token before each answer byte
        wanted = torch.arange(case.source[0], case.source[1]) + 1

        def tap(i, q, k, v, rows=rows, wanted=wanted):
            scores = q[0, :, rows] @ k[0].repeat_interleave(q.shape[1] // k.shape[1], 0).mT  # their order needs no softmax
            seen = torch.arange(scores.shape[-1]) <= rows[:, None]
            hits[i] += (scores.masked_fill(~seen, -torch.inf).argmax(-1) == wanted).float().sum(-1)

        m.logits(data[:-1], tap=tap)
        count += len(case.answer)
    return (hits / count).tolist()


def probe(weights, config, text, context, cases=24):
    """A cheap look at a training run: passkey (exact share), and the strongest head or channel of each phenomenon."""
    m = Model(weights, config, torch.bfloat16)
    hits = sum(answer(m, tasks.case("passkey", np.random.default_rng((13, seed)), text, context), "full", 0, True)[0] for seed in range(cases))
    inner = inner_life(m, text, context, pieces=2)
    return {"context": context, "passkey": hits / cases, "sink_mass": np.max(inner["sink_mass_first_token"]),
            "key_channel_ratio": np.max(inner["key_channel_ratio"]), "value_channel_ratio": np.max(inner["value_channel_ratio"]),
            "retrieval_head": np.max(retrieval_heads(m, text, context, 8))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="folder with corpus/ and checkpoint.pt")
    parser.add_argument("--weights", type=pathlib.Path)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--tasks", default="passkey,multi_needle,kv_lookup,copy,few_shot")
    parser.add_argument("--text-bytes", type=int, default=1 << 17, help="held-out bytes to score")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16: faster, log-likelihoods differ in the third digit")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights, config, state = load(args.weights or args.dir / "checkpoint.pt")
    m = Model(weights, config, torch.bfloat16 if args.bf16 else torch.float32)
    train, text = (args.dir / "corpus/train.txt").read_bytes(), (args.dir / "corpus/heldout.txt").read_bytes()
    context = 4 * args.window
    report = {**state, "parameters": sum(w.numel() for w in weights.values())}
    report["held_out"] = held_out(m, ngram.Ngram(train), text, context, args.text_bytes)
    print(report["held_out"], flush=True)
    report["inner"] = inner_life(m, text, min(context, 1024))
    report["retrieval_heads"] = retrieval_heads(m, text, context, 40)
    print(json.dumps(report["inner"]), json.dumps(report["retrieval_heads"]), flush=True)
    report["tasks"] = run_tasks(m, text, ["passkey"], context, args.window, args.cases, ["full", "window", "cut", "cut+question"])
    others = [t for t in args.tasks.split(",") if t != "passkey"]
    report["tasks"] += run_tasks(m, text, others, context, args.window, args.cases // 4, ["full", "cut"])
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
