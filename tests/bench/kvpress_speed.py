"""Compressing a prompt's cache: our time over kvpress' on the same queries, keys and values (float32, one layer, 32 query and 8 kv heads of 128),
turn by turn in one process on one core, medians of processor time, so that ratios stand on a machine that others use. Prints a Markdown table.

    KVATLAS_PYTHONPATH=build/release/python python tests/bench/kvpress_speed.py [--tokens 8192 32768] [--turns 5] [--only NAME...]

Timed are scoring, choice and compaction: end_prefill() of ours, compress() of theirs; projections, RoPE of keys and the prompt's attention are
done before on both sides. Where ours can be asked only at a token (trigger=every_step), the time of that token in a cache that drops nothing is taken off. A method of ours that can
neither be asked then nor be loaded in mid-prompt needs the prompt's whole attention before each turn: LONGEST tokens at most. What is kept is
compared too. Presses whose work we do while the prompt runs (moments of queries, sums of attention) are left out. Needs torch and kvpress.
"""
from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
if path := os.environ.get("KVATLAS_PYTHONPATH"):
    sys.path.insert(0, path)
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before anybody counts the cores
import kvatlas  # noqa: E402
import kvpress  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from kvpress_bridge import ROPE_BASE, Problem, rows_of  # noqa: E402

Q_HEADS, KV_HEADS, DIM, FED, LONGEST = 32, 8, 128, 96, 8192
WINDOW = "observation_window=64,kernel=5,pooling=avg,pool_first=true,window_reduce=mean"


def finch() -> Any:
    press = kvpress.FinchPress(0.75, rerotate_keys=False)
    press.window_size = 64
    return press


def qfilter(problem: Problem) -> Any:
    press = kvpress.QFilterPress(0.75)
    press.q_filters = problem.keys[:, :, 0].clone()
    return press


# What is done: the press, our setting where {kept} tokens of a head stay. A quarter stays.
METHODS = {
    "streaming_llm": ("compaction", lambda p: kvpress.StreamingLLMPress(0.75), "streaming_llm:sinks=4,recent_window={recent},positions=true"),
    "knorm": ("selection", lambda p: kvpress.KnormPress(0.75), "knorm:trigger=every_step,budget={kept}"),
    "keydiff": ("selection", lambda p: kvpress.KeyDiffPress(0.75), "keydiff:trigger=every_step,budget={kept}"),
    "qfilter": ("selection", qfilter, "qfilter:trigger=every_step,budget={kept}"),
    "cur": ("selection", lambda p: kvpress.CURPress(0.75), "cur:budget={kept}"),
    "lagkv": ("selection", lambda p: kvpress.LagKVPress(0.75, cross_scoring=True), "lagkv:budget={kept},ranked=false"),
    "chunk(keydiff)": ("selection", lambda p: kvpress.ChunkPress(kvpress.KeyDiffPress(0.75)), "chunk:compression_ratio=0.75,score=keydiff"),
    "block(keydiff)": ("selection", lambda p: kvpress.BlockPress(kvpress.KeyDiffPress(0.75), block_size=1024), "block:budget={kept},block_size=1024,score=keydiff"),
    "key_rerotation(keydiff)": ("selection, rotation", lambda p: kvpress.KeyRerotationPress(kvpress.KeyDiffPress(0.75)), "key_rerotation:budget={kept},score=keydiff"),
    "tova": ("one query", lambda p: kvpress.TOVAPress(0.75), "tova:trigger=prompt,recent_window=1,budget={kept}"),
    "snapkv": ("64 queries", lambda p: kvpress.SnapKVPress(0.75), "snapkv:budget={kept}," + WINDOW),
    "finch": ("64 queries", lambda p: finch(), "finch:rerotate=false,budget={kept},observation_window=64"),
    "adakv(snapkv)": ("64 queries", lambda p: kvpress.AdaKVPress(kvpress.SnapKVPress(0.75)), "adakv:allocation=kvpress,budget={kept},score=snapkv," + WINDOW),
    "criticalkv(snapkv)": ("64 queries, output projection", lambda p: kvpress.CriticalKVPress(kvpress.SnapKVPress(0.75)), "criticalkv:counts_window=true,budget={kept},score=snapkv," + WINDOW),
    "chunkkv(snapkv)": ("64 queries", lambda p: kvpress.ChunkKVPress(kvpress.SnapKVPress(0.75)), "chunkkv:budget={kept},score=snapkv," + WINDOW),
}


class Ours:
    """A cache that holds a long prompt, mostly without having attended to it: the state after a short one, grown by rows of the long one; the last
    token is fed."""

    def __init__(self, problem: Problem, setting: str) -> None:
        self.problem, self.at_a_token = problem, "every_step" in setting
        self.whole = not self.at_a_token and setting.split(":")[0] in ("cur", "lagkv", "chunk", "block", "key_rerotation")
        # Scores of rows alone: as many query heads as kv heads serve for the attention that is not timed.
        self.q = problem.q[::Q_HEADS // KV_HEADS] if self.whole else problem.q
        shape = kvatlas.Shape(layers=1, q_heads=len(self.q), kv_heads=KV_HEADS, head_dim=DIM, dtype="f32", rope_base=ROPE_BASE)
        trained = {"layer0.filters": problem.keys[0, :, 0]} if setting.startswith("qfilter") else {"layer0.w_o": problem.w_o} if setting.startswith("criticalkv") else None
        self.open = lambda: kvatlas.Cache(setting, shape, trained=trained)
        self.idle = lambda: kvatlas.Cache(setting, shape, trained=trained, budget=problem.tokens)
        if self.whole:
            return
        n, keys = problem.tokens, problem.keys[0].numpy()
        short = self.open()
        self.feed(short, n - 1 - FED, n - 1)
        self.state = dict(short.buffers())
        for h in range(KV_HEADS):
            self.state[f"layer0/k_rows/head{h}"] = keys[h, :n - 1].tobytes()
            self.state[f"layer0/v_rows/head{h}"] = problem.v[h, :n - 1].tobytes()

    def feed(self, cache: kvatlas.Cache, first: int, end: int) -> None:
        cache.forward(0, *(np.ascontiguousarray(x[:, first:end]) for x in (self.q, self.problem.k, self.problem.v)), np.arange(first, end))

    def seconds(self) -> float:
        """Of scoring, choice and compaction."""
        return -(self.timed(self.idle) if self.at_a_token else 0.0) + self.timed(self.open)

    def timed(self, open_cache: Callable[[], kvatlas.Cache]) -> float:
        n = self.problem.tokens
        self.cache = open_cache()
        if not self.whole:
            self.cache.load(self.state)
        started = time.process_time()
        self.feed(self.cache, 0 if self.whole else n - 1, n)
        if not self.at_a_token:
            started = time.process_time()
            self.cache.end_prefill()
        return time.process_time() - started

    def kept(self) -> list[list[int]]:
        return rows_of(self.problem.v, [b.view(np.float32).reshape(-1, DIM) for name, b in self.cache.buffers().items() if "/v_rows/" in name])


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768])
    words.add_argument("--turns", type=int, default=5)
    words.add_argument("--only", nargs="*", default=list(METHODS))
    asked = words.parse_args()
    torch.set_num_threads(1)
    print(f"| method | what is done | {' | '.join(f'{n:,} tokens: ours / theirs | same tokens kept' for n in asked.tokens)} |")
    print("|---" * (2 + 2 * len(asked.tokens)) + "|")
    problems = [Problem(np.random.default_rng(1), Q_HEADS, KV_HEADS, n, DIM) for n in asked.tokens]
    for name in asked.only:
        what, press_of, setting = METHODS[name]
        cells = []
        for problem in problems:
            press, kept = press_of(problem), problem.tokens // 4
            ours = Ours(problem, setting.format(kept=kept, recent=kept - 4))
            if ours.whole and problem.tokens > LONGEST:
                cells.append("- | -")
                continue
            mine, theirs = [], []
            for _ in range(asked.turns + 1):  # the first turn warms up
                mine.append(ours.seconds())
                keys = problem.keys.clone()
                started = time.process_time()
                problem.compress(press, keys=keys)
                theirs.append(time.process_time() - started)
            same = sum(len(set(a) & set(b)) for a, b in zip(ours.kept(), problem.kept(press))) / sum(map(len, ours.kept()))
            cells.append(f"{statistics.median(mine[1:]) / statistics.median(theirs[1:]):.2f} | {100 * same:.2f} %")
            print(f"{name} {problem.tokens}: {1e3 * statistics.median(mine[1:]):.1f} ms, {1e3 * statistics.median(theirs[1:]):.1f} ms", file=sys.stderr)
        print(f"| `{name}` | {what} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
