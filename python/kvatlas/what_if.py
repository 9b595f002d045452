"""What if: predictions for deployments that need not exist, one at a time in full or a million at a time as columns."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Union

import numpy as np

from . import _native
from .catalogue import Gpu, GpuLike, MethodLike, Model, ModelLike, _MOST, _size, _whole
from .results import Breakeven, Recommendations, Served, Simulation, SimulationTable

SloLike = Union[str, Mapping[str, float], None]

_CONFIGURATION = ("model", "gpu", "method", "weights", "tp", "pp", "dp", "ep", "engine", "gpu_memory_utilization", "chunk", "plan")


def _slo(slo: SloLike) -> tuple[float | None, float | None]:
    """(TTFT, TPOT) limits in ms."""
    if slo is None:
        return None, None
    if isinstance(slo, str):
        return _native.parse_slo(slo)
    unknown = set(slo) - {"ttft_ms", "tpot_ms"}
    if unknown:
        raise ValueError(f"slo has {', '.join(sorted(unknown))}, must have ttft_ms, tpot_ms or both")
    return slo.get("ttft_ms"), slo.get("tpot_ms")


def _deployment(model: ModelLike, gpu: GpuLike, method: MethodLike, weights: str, tp: int, pp: int, dp: int, ep: int, engine: str | None,
                gpu_memory_utilization: float, chunk: int | str, plan: str) -> _native.DeploymentHandle:
    return _native.DeploymentHandle(Model(model)._handle, str(gpu), str(method), str(weights), _whole("tp", tp), _whole("pp", pp), _whole("dp", dp), _whole("ep", ep), engine or "",
                                    float(gpu_memory_utilization), _size("chunk", chunk), str(plan))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray, range)) or (hasattr(value, "__array__") and not isinstance(value, (np.generic, Model, Gpu)))


def _objects(value: Any) -> np.ndarray:
    """An axis of models, GPUs, texts ... : NumPy must not look into them."""
    if isinstance(value, np.ndarray):
        return value.astype(object)
    if not _is_list(value):
        out = np.empty((), dtype=object)
        out[()] = value
        return out
    values = [_objects(v) for v in value]
    if any(v.shape != values[0].shape for v in values):
        raise ValueError("a nested list has parts of different lengths, must be a rectangle")
    return np.stack(values) if values else np.empty(0, dtype=object)


def _numbers(name: str, value: Any, dtype: Any) -> np.ndarray:
    """An axis of numbers; sizes may be texts ("32K")."""
    if value is None:
        return np.array(np.nan)
    if dtype is np.int64:
        if isinstance(value, str):
            return np.array(_size(name, value), dtype=np.int64)
        array = np.asarray(value)
        if array.dtype.kind in "UO":  # texts, or numbers that no integer type holds
            return np.array([_size(name, v) for v in array.reshape(-1)], dtype=np.int64).reshape(array.shape)
        if array.dtype.kind == "f" and array.size and not np.all(np.mod(array, 1) == 0):
            raise ValueError(f"{name} is {array.reshape(-1)[np.mod(array.reshape(-1), 1) != 0][0]}, must be a whole number")
        if array.dtype.kind not in "iuf":
            raise ValueError(f"{name} is an array of {array.dtype}, must be whole numbers")
        beyond = (array >= 2.0**63) if array.dtype.kind == "f" else (array > np.uint64(2**63 - 1)) if array.dtype.kind == "u" else np.zeros(array.shape, dtype=bool)
        if np.any(beyond):
            raise ValueError(f"{name} is {array[beyond].reshape(-1)[0]}, must be below 2^63")
        return array.astype(np.int64)
    return np.asarray(value, dtype=dtype)


def _counts(name: str, array: np.ndarray) -> np.ndarray:
    """An axis of counts, NaN where there is none: whole, and no larger than what they are counted in."""
    given = array[~np.isnan(array)] if array.dtype.kind == "f" else array.reshape(-1)
    wrong = given[(given < 1) | (given > _MOST) | (np.mod(given, 1) != 0)]
    if wrong.size:
        raise ValueError(f"{name} is {wrong[0]:{'g' if wrong.dtype.kind == 'f' else 'd'}}, must be a whole number from 1 to {_MOST}")
    return array


def _threads(threads: int | None) -> int:
    if threads is not None:
        return _whole("threads", threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def simulate(model: Any, gpu: Any, method: Any = "full", *, context: Any = None, batch: Any = None, prompt: Any = None, output: Any = None,
             prefix_hit: Any = None, turns: Any = None, rate: Any = None, concurrency: Any = None, slo: SloLike = None, weights: Any = "bf16",
             tp: Any = 1, pp: Any = 1, dp: Any = 1, ep: Any = 1, engine: Any = None, gpu_memory_utilization: Any = 0.9, chunk: Any = 8192,
             plan: Any = "ideal", threads: int | None = None) -> Any:
    """Predicts deployments. Scalars give one :class:`Simulation` in full; any list or array gives a :class:`SimulationTable`.

    Every argument but ``slo`` and ``threads`` may be a list or array; all are broadcast against each other like NumPy arrays, so
    ``context=np.arange(1, 101)[:, None] * 1024, batch=np.arange(1, 65)`` is a table of shape (100, 64).

    model       slug, path of a config.json, or :class:`Model`
    gpu         slug, alias, text with changes, or :class:`Gpu`
    method      recipe or :class:`Method`
    context     tokens in the cache of each sequence; with ``batch`` sequences (default 1): one decode step, prefill excluded
    prompt, output    tokens of a request: a whole workload, prefill included; then optionally ``prefix_hit`` (share of the
                prompt, 0 to 1), ``turns``, ``rate`` (requests/s) or ``concurrency`` (requests in flight), ``slo``
                ("ttft_ms=2000,tpot_ms=50" or a dict)
    weights     weight format; tp, pp, dp, ep: ranks; engine: engine profile; gpu_memory_utilization: share of memory;
    chunk       tokens of one prefill chunk; plan: "ideal" (well written kernels) or "released" (the official code's)
    threads     of a table; default: one a core

    What cannot be raises for scalars (NotImplementedError: the method cannot serve this model) and is NaN with a sentence in
    ``why_not`` in tables. Not fitting into memory is an answer: ``fits`` or ``feasible`` is False.
    """
    configuration = dict(zip(_CONFIGURATION, (model, gpu, method, weights, tp, pp, dp, ep, engine, gpu_memory_utilization, chunk, plan)))
    microscope = context is not None
    if microscope and (prompt is not None or output is not None):
        raise ValueError("give context (one decode step) or prompt and output (a workload), not both")
    if not microscope and (prompt is None or output is None):
        raise ValueError("needs a workload (prompt and output) or one decode step (context and batch)")
    workload_only = {"prefix_hit": prefix_hit, "turns": turns, "rate": rate, "concurrency": concurrency, "slo": slo}
    if microscope:
        for name, value in workload_only.items():
            if value is not None:
                raise ValueError(f"{name} is part of a workload (prompt, output), not of one decode step (context)")
        numbers = {"context": _numbers("context", context, np.int64), "batch": _counts("batch", _numbers("batch", 1 if batch is None else batch, np.int64))}
    else:
        if batch is not None:
            raise ValueError("batch is part of one decode step (context), not of a workload (prompt, output), which has concurrency")
        numbers = {"prompt": _numbers("prompt", prompt, np.int64), "output": _numbers("output", output, np.int64),
                   "prefix_hit": _numbers("prefix_hit", 0.0 if prefix_hit is None else prefix_hit, np.float64),
                   "turns": _counts("turns", _numbers("turns", 1 if turns is None else turns, np.int64)),
                   "rate": _numbers("rate", rate, np.float64), "concurrency_asked": _counts("concurrency", _numbers("concurrency", concurrency, np.float64))}
    limits = _slo(slo)
    given = (context, batch) if microscope else (prompt, output, prefix_hit, turns, rate, concurrency)
    if not any(_is_list(v) for v in (*configuration.values(), *given)):
        deployment = _deployment(**configuration)
        if microscope:
            return Simulation(deployment.step(int(numbers["context"]), int(numbers["batch"])))
        return Simulation(deployment.workload(_workload(numbers, (), limits)))
    return _table(configuration, numbers, microscope, limits, _threads(threads))


def _workload(numbers: dict[str, np.ndarray], at: tuple[Any, ...], limits: tuple[float | None, float | None]) -> _native.Workload:
    n = {k: v[at] for k, v in numbers.items()}
    rate, flight = float(n["rate"]), float(n["concurrency_asked"])
    return _native.Workload(int(n["prompt"]), int(n["output"]), float(n["prefix_hit"]), int(n["turns"]), None if np.isnan(rate) else rate,
                            None if np.isnan(flight) else int(flight), *limits)


def _key(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, type(None))) else (type(value).__name__, str(value)) if not isinstance(value, Model) else id(value)


class _Configurations:
    """Distinct deployments of broadcast axes, prepared once each, and which of them each point has."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        axes = {name: _objects(value) for name, value in configuration.items()}
        self.axes = axes
        shape = np.broadcast_shapes(*(a.shape for a in axes.values()))
        code = np.zeros(shape, dtype=np.int64)
        values: list[list[Any]] = []
        for array in axes.values():
            places: dict[Any, int] = {}
            kept: list[Any] = []
            codes = np.empty(array.shape, dtype=np.int64)
            flat = codes.reshape(-1)
            for i, value in enumerate(array.reshape(-1)):
                place = places.setdefault(_key(value), len(places))
                if place == len(kept):
                    kept.append(value)
                flat[i] = place
            code = code * len(kept) + codes if kept else code
            values.append(kept)
        distinct, inverse = np.unique(code, return_inverse=True)
        self.deployments: list[_native.DeploymentHandle] = []
        loaded: dict[Any, Model] = {}
        for number in distinct.tolist():
            chosen = dict(zip(axes, self._row(number, values)))
            key = _key(chosen["model"])
            chosen["model"] = loaded.setdefault(key, Model(chosen["model"]))
            self.deployments.append(_deployment(**chosen))
        self.sentences = [d.why_not() for d in self.deployments]
        self.evaluators: list[_native.EvaluatorHandle] = []
        places_of: list[int] = []
        for d, sentence in zip(self.deployments, self.sentences):
            places_of.append(-1 if sentence else len(self.evaluators))
            if not sentence:
                self.evaluators.append(_native.EvaluatorHandle(d))
        self.which_deployment = inverse.reshape(shape)
        self.which = np.array(places_of, dtype=np.int32)[self.which_deployment] if places_of else np.zeros(shape, dtype=np.int32)
        # Deployments that differ in method and plan alone share their plain cache.
        self._plain_keys = [tuple(_key(a) for name, a in zip(axes, self._row(n, values)) if name not in ("method", "plan")) for n, s in zip(distinct.tolist(), self.sentences) if not s]
        self._plain_ready = False

    @staticmethod
    def _row(number: int, values: list[list[Any]]) -> list[Any]:
        parts = []
        for kept in reversed(values):
            number, place = divmod(number, len(kept))
            parts.append(kept[place])
        return parts[::-1]

    def add_plain(self) -> None:
        if self._plain_ready:
            return
        first: dict[tuple[Any, ...], _native.EvaluatorHandle] = {}
        for key, evaluator in zip(self._plain_keys, self.evaluators):
            if key in first:
                evaluator.share_plain(first[key])
            else:
                evaluator.add_plain()
                first[key] = evaluator
        self._plain_ready = True


def _table(configuration: dict[str, Any], numbers: dict[str, np.ndarray], microscope: bool, limits: tuple[float | None, float | None], threads: int) -> SimulationTable:
    configurations = _Configurations(configuration)
    shape = np.broadcast_shapes(configurations.which.shape, *(a.shape for a in numbers.values()))

    def flat(array: np.ndarray, dtype: Any) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(array, shape), dtype=dtype).reshape(-1)

    which = flat(configurations.which, np.int32)
    shown = {name: _shown(name, axis) for name, axis in configurations.axes.items() if name in ("model", "gpu", "method") or axis.shape}
    axes = {**shown, **{k: v for k, v in numbers.items() if k != "concurrency_asked" and not (v.shape == () and np.isnan(float(v)))}}
    codes = {"bound_by": _native.bound_names(), "evidence": _native.evidence_names()}
    sentences: dict[int, str] = {}
    if microscope:
        context, batch = flat(numbers["context"], np.int64), flat(numbers["batch"], np.int64)
        columns = _native.steps(configurations.evaluators, which, context, batch, threads)
        columns["fits"] = columns["fits"].view(np.bool_)
        ratios: dict[str, np.ndarray] = {}

        def ratio(name: str) -> np.ndarray:
            if not ratios:
                configurations.add_plain()
                ratios.update(_native.step_ratios(configurations.evaluators, which, context, batch, threads))
            return ratios["size_factor"] if name == "size_factor" else ratios["plain_step_ms"] / columns["step_ms"]

        lazy: dict[str, Callable[[], np.ndarray]] = {name: partial(ratio, name) for name in ("size_factor", "speedup_decode_only")}
    else:
        configurations.add_plain()
        columns, sentences = _native.workloads(configurations.evaluators, which, flat(numbers["prompt"], np.int64), flat(numbers["output"], np.int64),
                                               flat(numbers["prefix_hit"], np.float64), flat(numbers["turns"], np.int64), flat(numbers["rate"], np.float64),
                                               flat(numbers["concurrency_asked"], np.float64),
                                               np.full(which.size, np.nan if limits[0] is None else limits[0]),
                                               np.full(which.size, np.nan if limits[1] is None else limits[1]), threads)
        columns["feasible"] = columns["feasible"].view(np.bool_)
        lazy = {}

    def why_not() -> dict[int, str]:
        deployments = flat(configurations.which_deployment, np.int64)
        out = dict(sentences)
        for place in np.flatnonzero(which < 0).tolist():
            out[place] = str(configurations.sentences[deployments[place]])
        if microscope:
            for place in np.flatnonzero((which >= 0) & ~columns["fits"]).tolist():
                out[place] = f"{columns['peak_bytes'][place] / 2**30:.2f} GiB are needed on one GPU, more than fit"
        return out

    def one(place: int) -> Simulation:
        deployment = configurations.deployments[int(flat(configurations.which_deployment, np.int64)[place])]
        if microscope:
            return Simulation(deployment.step(int(context[place]), int(batch[place])))
        at = {k: np.broadcast_to(v, shape).reshape(-1) for k, v in numbers.items()}
        return Simulation(deployment.workload(_workload(at, (place,), limits)))

    return SimulationTable(shape, axes, columns, codes, why_not, lazy, one)


def _shown(name: str, axis: np.ndarray) -> np.ndarray:
    """Axes of objects as the texts that people know them by."""
    out = np.empty(axis.shape, dtype=object)
    flat, source = out.reshape(-1), axis.reshape(-1)
    for i, value in enumerate(source):
        flat[i] = value if isinstance(value, (str, int, float, type(None))) else str(value)
    return flat.reshape(axis.shape)


def breakeven(model: ModelLike, gpu: GpuLike, method: MethodLike, *, against: MethodLike = "full", context: int | str = 32768, batch: int = 1,
              output: int | str | None = None, max_context: int | str = 1 << 20, max_batch: int = 1024, weights: str = "bf16", tp: int = 1, pp: int = 1,
              dp: int | None = None, ep: int = 1, engine: str | None = None, gpu_memory_utilization: float | None = None, chunk: int | str | None = None,
              plan: str = "ideal") -> Breakeven:
    """Where a method starts to pay: context and batch (tokens, sequences) from which it stays ahead, bandwidth (GB/s) of equality.

    Without ``output`` one decode step is compared; with it whole workloads: prompts of ``context``, so many output tokens, and then
    also ``dp`` (1), ``gpu_memory_utilization`` (0.9) and ``chunk`` (8192) matter.
    """
    if output is None:
        _refuse({"chunk": chunk, "gpu_memory_utilization": gpu_memory_utilization, "dp": dp}, "changes no single decode step, needs output")
    deployment = _deployment(model, gpu, method, weights, tp, pp, 1 if dp is None else dp, ep, engine, 0.9 if gpu_memory_utilization is None else gpu_memory_utilization,
                             8192 if chunk is None else chunk, plan)
    at, sequences = _size("context", context), _whole("batch", batch)
    return Breakeven(deployment.breakeven(str(against), at, sequences, None if output is None else _size("output", output), max(_size("max_context", max_context), at),
                                          max(_whole("max_batch", max_batch), sequences)))


def _refuse(arguments: Mapping[str, Any], sentence: str) -> None:
    """A value that would change nothing is an error, not a silence."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} {sentence}")


def recommend(model: ModelLike, gpu: GpuLike, *, prompt: int | str, output: int | str, methods: Sequence[MethodLike] | None = None, prefix_hit: float = 0.0,
              turns: int = 1, rate: float | None = None, concurrency: int | None = None, slo: SloLike = None, memory_gib: float | None = None,
              min_quality: float | None = None, quality_evidence: str = "m,p", db: str | os.PathLike[str] | None = None, deployable: str | None = None,
              weights: str = "bf16", tp: int = 1, pp: int = 1, dp: int = 1, ep: int = 1, engine: str | None = None, gpu_memory_utilization: float = 0.9,
              chunk: int | str = 8192, plan: str = "ideal") -> Recommendations:
    """What to run for a workload, ranked by requests/s within its SLO, prefill included; what is excluded, and why.

    prompt, output    tokens of a request
    methods           candidates (lists and ranges allowed: "snapkv:budget=512..4096x2"); default: every method, several settings
    memory_gib        highest memory of one GPU; min_quality: retained share of the plain cache's quality (0 to 1)
    quality_evidence  accepted grades of evidence; db: store whose quality table is the evidence
    deployable        engine that must offer the method today
    """
    deployment = _deployment(model, gpu, "full", weights, tp, pp, dp, ep, engine, gpu_memory_utilization, chunk, plan)
    workload = _native.Workload(_size("prompt", prompt), _size("output", output), prefix_hit, _whole("turns", turns), rate,
                                None if concurrency is None else _whole("concurrency", concurrency), *_slo(slo))
    candidates = [str(m) for m in methods] if methods is not None else []
    return Recommendations(deployment.recommend(workload, candidates, memory_gib, min_quality, quality_evidence, None if db is None else os.fspath(db), deployable))


def serve(model: ModelLike, gpu: GpuLike, method: MethodLike = "full", *, prompt: int | str | None = None, output: int | str | None = None,
          rate: float | None = None, concurrency: int | None = None, trace: str | os.PathLike[str] | None = None, speed: float | None = None,
          requests: int | None = None, spread: float | None = None, prefix_hit: float | None = None, turns: int | None = None, warm: bool | None = None,
          seed: int | None = None, slo: SloLike = None, max_num_seqs: int = 256, disaggregated: bool = False, prefill_replicas: int | None = None,
          decode_replicas: int | None = None,
          weights: str = "bf16", tp: int = 1, pp: int = 1, dp: int = 1, ep: int = 1, engine: str | None = None, gpu_memory_utilization: float = 0.9,
          chunk: int | str = 8192, plan: str = "ideal") -> Served:
    """A serving engine simulated event by event.

    trace       arrivals and lengths of a file (Azure LLM CSV, Mooncake JSON lines), ``speed`` times as fast, ``requests`` of it (default: all); or
    prompt, output    tokens of each of ``requests`` (default 1000), uniform within ``spread`` (0) of the mean, with Poisson
                arrivals of ``rate`` a second, or ``concurrency`` users in a closed loop; then also ``prefix_hit`` (0, share of the prompt),
                ``turns`` (1), ``warm`` (False: the prefix cache is empty at the start) and ``seed`` (1)
    disaggregated     prompts and decoding on ``prefill_replicas`` and ``decode_replicas`` (1 each) of their own
    """
    if not disaggregated:
        _refuse({"prefill_replicas": prefill_replicas, "decode_replicas": decode_replicas}, "needs disaggregated")
    elif _whole("dp", dp) > 1:
        raise ValueError("dp contradicts disaggregated, which takes prefill_replicas and decode_replicas")
    deployment = _deployment(model, gpu, method, weights, tp, pp, dp, ep, engine, gpu_memory_utilization, chunk, plan)
    stream: dict[str, Any] = {} if requests is None else {"requests": _whole("requests", requests, 1, 50_000_000)}
    if trace is not None:
        _refuse({"prompt": prompt, "output": output, "rate": rate, "concurrency": concurrency, "prefix_hit": prefix_hit, "turns": turns, "spread": spread, "seed": seed,
                 "warm": warm}, "contradicts trace, which has its own arrivals and lengths")
        stream.update(trace=os.fspath(trace), speed=1.0 if speed is None else float(speed))
    else:
        _refuse({"speed": speed}, "belongs to trace")
        if prompt is None or output is None:
            raise ValueError("prompt and output are needed without a trace")
        if (rate is None) == (concurrency is None):
            raise ValueError("give one of rate (Poisson arrivals) or concurrency (closed loop)")
        stream.update(prompt=_size("prompt", prompt), output=_size("output", output), spread=0.0 if spread is None else float(spread),
                      prefix_hit=0.0 if prefix_hit is None else float(prefix_hit), turns=1 if turns is None else _whole("turns", turns), warm=bool(warm),
                      seed=1 if seed is None else _whole("seed", seed, 0, 2**32 - 1))
        if rate is not None:
            stream["rate"] = float(rate)
        else:
            stream["concurrency"] = _whole("concurrency", concurrency)
    return Served(deployment.serve(_native.Slo(*_slo(slo)), stream, _whole("max_num_seqs", max_num_seqs), disaggregated,
                                   1 if prefill_replicas is None else _whole("prefill_replicas", prefill_replicas, 1, 1024),
                                   1 if decode_replicas is None else _whole("decode_replicas", decode_replicas, 1, 1024)))
