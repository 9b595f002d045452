"""Trains the embedded model on the CPU; stops and resumes at any time.

    python corpus.py --out DIR/corpus
    python train.py --dir DIR --steps 6000              (writes DIR/checkpoint.pt, log.csv, probes.csv; run again to go on)
    python train.py --dir DIR --steps 6000 --decay 800  (the last 800 of 6000 steps lower the learning rate to zero)

The rate is constant before the decay, so `--steps` may grow from one run to the next. Matrices are stepped by Muon
(orthogonalised momentum, https://kellerjordan.github.io/posts/muon/), everything else by AdamW. Short contexts come
first: copying heads form there, at a fraction of the price, and later stages stretch them.
"""
import argparse
import os
import pathlib
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F

import evaluate
import model
import tasks

# From step, context, documents a batch, share of plain text, of repeated strings; records are the rest: each batch has 4,096 bytes.
STAGES = ((0, 128, 32, 0.2, 0.5), (700, 256, 16, 0.25, 0.3), (1100, 512, 8, 0.3, 0.15), (1500, 1024, 4, 0.35, 0.1), (1900, 2048, 2, 0.5, 0.05),
          (2300, 2048, 2, 0.75, 0.02), (3000, 2048, 2, 0.6, 0.02))
ANSWER_WEIGHT = 4.0
MUON_RATE, ADAM_RATE, EMBEDDING_RATE, WEIGHT_DECAY = 0.02, 3e-3, 6e-3, 0.05


def stage(step, stages):
    """The stage of a step; once the last stage is reached every third batch is one of an earlier one."""
    reached = [s for s in stages if step >= s[0]]
    return reached[step // 3 % len(reached)] if step % 3 == 2 and len(reached) > 2 else reached[-1]


def batch(step, seed, text, stages, rank=0, processes=1):
    """This process' documents of batch `step`, each drawn from its own generator: a resumed run sees what an unbroken one
    would, and the whole batch is the same for any number of processes."""
    _, context, count, plain, repeated = stage(step, stages)
    mine = range(rank, count, processes)
    tokens = np.full((len(mine), context + 1), model.BOS, np.int64)
    weight = np.ones((len(mine), context), np.float32)
    for row, document in enumerate(mine):
        tokens[row, 1:], weight[row] = tasks.document(np.random.default_rng((seed, step, document)), text, context - 1, plain, repeated, ANSWER_WEIGHT)
    return torch.from_numpy(tokens), torch.from_numpy(weight)


def orthogonalise(g, steps=5):
    """Newton-Schulz iteration towards the nearest orthogonal matrix, on a stack of matrices."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x.shape[-2] <= x.shape[-1]
    x = (x if wide else x.mT).bfloat16()
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x if wide else x.mT).float()


class Optimizer:
    """Muon for the matrices of the layers (stacked by shape), AdamW for embedding and norms."""

    def __init__(self, weights):
        self.weights = weights
        self.stacks = {}
        for name, w in weights.items():
            if ".layers." in name and w.ndim == 2:
                self.stacks.setdefault(tuple(w.shape), []).append(name)
        self.rest = [n for n, w in weights.items() if ".layers." not in n or w.ndim == 1]
        self.momentum = {shape: torch.zeros(len(names), *shape) for shape, names in self.stacks.items()}
        self.first = {n: torch.zeros_like(weights[n]) for n in self.rest}
        self.second = {n: torch.zeros_like(weights[n]) for n in self.rest}

    def state(self):
        return {"momentum": self.momentum, "first": self.first, "second": self.second}

    def load(self, state):
        self.momentum, self.first, self.second = state["momentum"], state["first"], state["second"]

    @torch.no_grad()
    def step(self, number, factor):
        mu = min(0.95, 0.85 + number / 3000)
        for shape, names in self.stacks.items():
            g = torch.stack([self.weights[n].grad for n in names])
            m = self.momentum[shape].mul_(mu).add_(g, alpha=1 - mu)
            update = orthogonalise(g.lerp(m, mu)) * max(1.0, shape[0] / shape[1]) ** 0.5
            for n, u in zip(names, update):
                self.weights[n].mul_(1 - MUON_RATE * factor * WEIGHT_DECAY).add_(u, alpha=-MUON_RATE * factor)
        b1, b2 = 0.9, 0.99
        for n in self.rest:
            g = self.weights[n].grad
            m, v = self.first[n].lerp_(g, 1 - b1), self.second[n].lerp_(g * g, 1 - b2)
            rate = (EMBEDDING_RATE if "embed" in n else ADAM_RATE) * factor
            self.weights[n].sub_(rate * (m / (1 - b1 ** (number + 1))) / ((v / (1 - b2 ** (number + 1))).sqrt() + 1e-10))


def factor(step, steps, decay):
    """Share of the full rate: 100 steps up, flat, straight down over the last `decay` steps."""
    return min((step + 1) / 100, 1.0, (steps - step) / decay if decay else 1.0)


def objective(weights, c, tables, tokens, weight):
    """Weighted loss; beside it, for the log, the mean over plain text and over answers."""
    logits = model.forward(weights, c, tokens[:, :-1], tables, torch.bfloat16)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    flat = weight.flatten()
    plain, answer = (flat == 1).float(), (flat == ANSWER_WEIGHT).float()
    return (loss * flat).sum() / flat.sum(), (loss * plain).sum() / (plain.sum() + 1e-6), (loss * answer).sum() / (answer.sum() + 1e-6)


def share(weights, figures, processes):
    """Means of the gradients and of the figures over all processes."""
    if processes > 1:
        flat = torch.cat([w.grad.flatten() for w in weights.values()] + [torch.tensor(figures)])
        torch.distributed.all_reduce(flat)
        flat /= processes
        at = 0
        for w in weights.values():
            w.grad.copy_(flat[at : at + w.numel()].view_as(w))
            at += w.numel()
        figures = flat[at:].tolist()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--decay", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="each has one thread and a part of every batch (1 or 2)")
    parser.add_argument("--save-seconds", type=float, default=180)
    parser.add_argument("--compile", action="store_true", help="a quarter faster, half a minute of compilation for each context")
    args = parser.parse_args()
    if args.processes == 1:
        work(0, args, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (args, f"file://{folder}/meeting"), args.processes)


def work(rank, args, meeting):
    # One thread a process: on shared cores two threads of one process would wait for each other in every operation.
    torch.set_num_threads(1)
    parent = os.getppid()
    if args.processes > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.processes)
    text = (args.dir / "corpus/train.txt").read_bytes()
    held_out = np.frombuffer((args.dir / "corpus/heldout.txt").read_bytes(), np.uint8)
    c = model.CONFIG
    tables = model.rope_tables(c, c["max_position_embeddings"])
    weights = {n: w.requires_grad_() for n, w in model.initial(c, args.seed).items()}
    optimizer = Optimizer(weights)
    begin, spent, seen = 0, 0.0, 0
    checkpoint = args.dir / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        with torch.no_grad():
            for n, w in saved["weights"].items():
                weights[n].copy_(w)
        optimizer.load(saved["optimizer"])
        begin, spent, seen = saved["step"], saved["cpu_seconds"], saved["tokens"]
    if args.decay and rank == 0:  # a decay that was cut short may be resumed; one that is begun afresh keeps the checkpoint before it
        before = args.dir / "before_decay.pt"
        if checkpoint.exists() and not before.exists():
            os.link(checkpoint, before)

    run = torch.compile(objective, dynamic=False) if args.compile else objective

    def save(step):
        data = {"weights": {n: w.detach() for n, w in weights.items()}, "optimizer": optimizer.state(), "step": step,
                "cpu_seconds": cpu_seconds, "tokens": seen, "config": c}
        torch.save(data, checkpoint.with_suffix(".new"))
        os.replace(checkpoint.with_suffix(".new"), checkpoint)

    def held_out_bits():
        """Bits a byte of 32 held-out pieces of 512 bytes, each begun afresh."""
        pieces = held_out[: len(held_out) // 512 * 512].reshape(-1, 512)[:: len(held_out) // 512 // 32][:32].astype(np.int64)
        tokens = torch.from_numpy(np.concatenate((np.full((len(pieces), 1), model.BOS), pieces), 1))
        with torch.no_grad():
            logits = model.forward(weights, c, tokens[:, :-1], tables, torch.bfloat16)
            return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item() / np.log(2)

    def write_probe(step):
        """When do copying heads, sinks and outlying key channels appear?"""
        row = evaluate.probe({n: w.detach() for n, w in weights.items()}, c, held_out.tobytes(), min(512, max(s[1] for s in STAGES)))
        probes = args.dir / "probes.csv"
        lines = [] if probes.exists() else [",".join(["step", *row])]
        lines.append(",".join([str(step), *(f"{v:.4g}" for v in row.values())]))
        with probes.open("a") as file:
            file.write("\n".join(lines) + "\n")

    log = args.dir / "log.csv"
    if rank == 0 and not log.exists():
        log.write_text("step,tokens,context,loss,text_bits,answer_nats,held_out_bits,rate_factor,cpu_seconds,wall_seconds_of_run\n")
    last_save = began = time.time()
    sums, counted, cpu_seconds = np.zeros(3), 0, spent
    for step in range(begin, args.steps):
        if args.processes > 1 and os.getppid() != parent:
            return  # the starting process was ended: no orphan writes into a later run's files
        rate = factor(step, args.steps, args.decay)
        tokens, weight = batch(step, args.seed, text, STAGES, rank, args.processes)
        losses = run(weights, c, tables, tokens, weight)
        losses[0].backward()
        *losses, own = share(weights, [*(v.item() for v in losses), time.process_time()], args.processes)
        cpu_seconds = spent + own * args.processes
        if not np.isfinite(losses[0]):
            raise SystemExit(f"the loss of step {step} is {losses[0]}: nothing was stepped, the checkpoint before it stands")
        optimizer.step(step, rate)
        for w in weights.values():
            w.grad = None
        sums += losses
        counted += 1
        seen += weight.numel() * args.processes
        if rank != 0:
            continue
        done, last = step + 1, step + 1 == args.steps
        if done % 50 == 0 or last:
            mean = sums / counted
            bits = f"{held_out_bits():.4f}" if done % 200 == 0 or last else ""
            with log.open("a") as file:
                file.write(f"{done},{seen},{weight.shape[1]},{mean[0]:.4f},{mean[1] / np.log(2):.4f},{mean[2]:.4f},{bits},{rate:.3f},"
                           f"{cpu_seconds:.0f},{time.time() - began:.0f}\n")
            sums, counted = np.zeros(3), 0
        if done % 500 == 0 or last:
            write_probe(done)
        if time.time() - last_save > args.save_seconds or last:
            save(done)
            last_save = time.time()


if __name__ == "__main__":
    main()
