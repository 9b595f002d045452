"""Checking a kernel: small cases of every method, and a comparison that says where the first bit differs and how far the rest is."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Union

import numpy as np

from . import _native
from .arrays import bf16_to_f32, f32_to_bf16, to_bytes
from .cache import Buffers, BufferInfo, Cache, Shape
from .catalogue import Method, MethodLike

CaseLike = Union[int, str, "os.PathLike[str]", "Case"]
_BUILT_IN = 3


@dataclass(frozen=True)
class Case:
    """Inputs of a method, and what the reference makes of them.

    method      with the parameters of this case
    kind        "cache"; "group" (two sequences share their prompt), "conversion" (weights) and "speculation" (a draft and a target model that
                are tables): what their arrays are stands in ``order``
    inputs      q [layers, q_heads, tokens, k_dim] and k [layers, kv_heads, tokens, k_dim] before RoPE, v [layers, kv_heads, tokens, v_dim];
                float32, to be rounded to ``dtype`` first
    prompt, chunk, decode    tokens of the prompt, of one piece of it, and tokens that follow one by one; token i is at position i
    outputs     out [layers, q_heads, tokens, v_dim] float32
    stages      the packed buffers after the "prompt" and at the "end"
    order       the order of work, in words
    """

    name: str
    kind: str
    method: Method
    shape: dict[str, Any]
    prompt: int
    chunk: int
    decode: int
    order: str
    inputs: dict[str, np.ndarray]
    trained: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    stages: dict[str, Buffers]

    @property
    def dtype(self) -> str:
        return str(self.shape["dtype"])

    def open_shape(self) -> Shape:
        """The shape as :class:`Cache` takes it."""
        s, rope = self.shape, self.shape["rope"]
        return Shape(layers=s["layers"], q_heads=s["q_heads"], kv_heads=s["kv_heads"], head_dim=s["k_dim"], v_dim=s["v_dim"], dtype=s["dtype"],
                     rope_base=rope["base"] if rope["rotary_dim"] else None, rotary_dim=rope["rotary_dim"], interleaved=rope["layout"] == "interleaved")

    def open_cache(self) -> Cache:
        """An empty cache of this case, told of its prompt's length where the method listens."""
        cache = Cache(self.method, self.open_shape(), trained=self.trained or None)
        if "prompt_length" in cache.method.record["events"]:
            with contextlib.suppress(NotImplementedError):  # some settings do without
                cache.notify("prompt_length", last=self.prompt)
        return cache

    def __repr__(self) -> str:
        return f"Case({self.name!r}, {str(self.method)!r}, {self.kind}, {self.prompt} + {self.decode} tokens, {self.dtype})"


def _case(raw: dict[str, Any]) -> Case:
    d = raw["description"]
    stages = {name: Buffers({n: b[0] for n, b in buffers.items()}, {n: BufferInfo(b[1], b[2], b[3], b[0].nbytes) for n, b in buffers.items()})
              for name, buffers in raw["stages"]}
    return Case(name=d["case"], kind=d["kind"], method=Method(d["method"]), shape=d["shape"], prompt=d["prompt"], chunk=d["chunk"], decode=d["decode"],
                order=d["order"], inputs=raw["inputs"], trained=raw["trained"], outputs=raw["outputs"], stages=stages)


def cases(method: MethodLike) -> list[Case]:
    """The built-in cases of a method: the same on every machine."""
    return [_case(raw) for raw in _native.vector_cases(Method(str(method)).slug, _BUILT_IN)]


def case(method: MethodLike, which: CaseLike = 0) -> Case:
    """A case by number, by name ("case1"), or from a folder that ``kvatlas vectors`` wrote."""
    if isinstance(which, Case):
        return which
    if not isinstance(which, int) and os.path.isdir(which):
        return _case(_native.read_case(os.fspath(which)))
    available = cases(method)
    for i, c in enumerate(available):
        if which in (i, c.name):
            return c
    raise ValueError(f"case is {which!r}, must be a folder of a case, or one of {', '.join(c.name for c in available)}")


_find = case


def write_vectors(method: MethodLike, folder: str | os.PathLike[str], cases: int = _BUILT_IN) -> list[str]:
    """Writes cases as files, each into FOLDER/METHOD/CASE: case.json and .npy arrays; returns the folders."""
    return _native.write_vectors(Method(str(method)).slug, os.fspath(folder), cases)


def _ordered(values: np.ndarray) -> np.ndarray:
    """float32 or float16 as integers in the order of the numbers, so that neighbours differ by 1; -0 and +0 are equal."""
    if values.dtype == np.float16:
        bits = values.view(np.int16).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


@dataclass(frozen=True)
class Difference:
    """One array compared. ``ulp`` counts elements by their distance in units of the last place: 0, 1, 2, 3-4, 5-8, ..., NaN."""

    stage: str
    name: str
    elements: int
    different: int
    first: tuple[int, ...] | None = None
    expected: float | int | None = None
    got: float | int | None = None
    max_ulp: int = 0
    max_abs: float = 0.0
    ulp: dict[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def equal(self) -> bool:
        return self.different == 0 and not self.note

    def __str__(self) -> str:
        if self.note:
            return f"{self.stage}/{self.name}: {self.note}"
        if self.equal:
            return f"{self.stage}/{self.name}: {self.elements:,} elements, all bits equal"
        distance = f", at most {self.max_ulp:,} ULP, {self.max_abs:.3g} absolute" if self.ulp else ""
        return (f"{self.stage}/{self.name}: {self.different:,} of {self.elements:,} elements differ{distance}; first at {list(self.first or ())}: "
                f"{self.expected} expected, {self.got} found")


def _take(array: Any) -> tuple[np.ndarray, bool]:
    """The array, and whether its 16-bit words are bf16 patterns."""
    if not isinstance(array, np.ndarray) and hasattr(array, "__dlpack__"):
        return _native.from_dlpack(array)
    taken = np.asarray(array)
    return (taken.view(np.uint16), True) if taken.dtype.name == "bfloat16" else (taken, False)


def _rounded(array: np.ndarray) -> np.ndarray:
    """NumPy's default float type, and wider ones, as the references' float32."""
    if array.dtype.kind != "f" or array.dtype.itemsize <= 4:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _as_type_of(other: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Whole numbers of a list as the other array's type, where it holds them all."""
    if whole.dtype.kind not in "iu" or other.dtype.kind not in "iuf":
        return whole
    taken = whole.astype(other.dtype)
    return taken if np.array_equal(taken, whole) else whole


def compare(expected: Any, got: Any, *, stage: str = "", name: str = "array", bf16: bool = False) -> Difference:
    """Compares two arrays bit by bit; float arrays also by distance in ULP. A result in fp16 or bf16 is compared with the
    expected values rounded to that type; ``bf16`` says that uint16 words are bfloat16 patterns. float64 and lists are first rounded
    to float32, the type of every reference; a list of whole numbers takes the type of what it is compared with."""
    have, is_bf16 = _take(got)
    want = _rounded(np.asarray(expected))
    have = _rounded(have)
    if isinstance(got, (list, tuple)):
        have = _as_type_of(want, have)
    if isinstance(expected, (list, tuple)):
        want = _as_type_of(have, want)
    is_bf16 = is_bf16 or bf16
    if want.shape != have.shape:
        return Difference(stage, name, want.size, want.size, note=f"has shape {list(have.shape)}, must have {list(want.shape)}")
    if want.dtype == np.float32 and is_bf16:
        patterns = np.ascontiguousarray(have).view(np.uint16)
        want, have = bf16_to_f32(f32_to_bf16(want)), bf16_to_f32(patterns)
        step = 16  # one unit of bf16 in float32's last place, as a power of two
    else:
        step = 0
        if want.dtype.kind == "f" and have.dtype == np.float16:
            want = want.astype(np.float16)
        elif want.dtype.kind == "f" and have.dtype.kind == "f":
            have = have.astype(want.dtype) if have.dtype != want.dtype else have
        elif want.dtype != have.dtype:
            return Difference(stage, name, want.size, want.size, note=f"is an array of {have.dtype}, must be {want.dtype}")
    want, have = np.ascontiguousarray(want), np.ascontiguousarray(have)
    if want.dtype.kind == "f":
        unequal = want.view(f"u{want.itemsize}") != have.view(f"u{have.itemsize}")
    else:
        unequal = want != have
    different = int(np.count_nonzero(unequal))
    if different == 0:
        return Difference(stage, name, want.size, 0)
    first = tuple(int(i) for i in np.unravel_index(int(np.argmax(unequal)), want.shape))
    histogram: dict[str, int] = {}
    max_ulp, max_abs = 0, 0.0
    if want.dtype.kind == "f":
        bad = np.isnan(want) | np.isnan(have)
        distance = np.abs(_ordered(want) - _ordered(have))[~bad] >> step
        edges = [0, 1, 2, 4, 8, 16, 64, 256, 4096, np.iinfo(np.int64).max]
        labels = ["0", "1", "2", "3-4", "5-8", "9-16", "17-64", "65-256", "257-4096", "more"]
        counts = np.bincount(np.searchsorted(edges, distance, side="left"), minlength=len(labels))
        histogram = {label: int(n) for label, n in zip(labels, counts) if n}
        if bad.any():
            histogram["NaN"] = int(bad.sum())
        max_ulp = int(distance.max()) if distance.size else 0
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.abs(want.astype(np.float64) - have.astype(np.float64))[~bad]
        max_abs = float(finite.max()) if finite.size else 0.0
    return Difference(stage, name, want.size, different, first, want[first].item(), have[first].item(), max_ulp, max_abs, histogram)


@dataclass(frozen=True)
class Check:
    """What a comparison found, in the order in which a kernel works: the first difference is where to look."""

    case: Case
    differences: list[Difference]
    not_given: list[str]

    @property
    def equal(self) -> bool:
        """Every array that was given has the reference's bits, and at least one was."""
        return bool(self.differences) and all(d.equal for d in self.differences)

    @property
    def first(self) -> Difference | None:
        """The first array that differs, by stage: buffers after the prompt, outputs of the prompt, outputs of decoding, buffers at the end."""
        return next((d for d in self.differences if not d.equal), None)

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        lines = [f"{self.case!r}: {'every bit equal' if self.equal else 'NOT equal'}"]
        lines += [f"  {d}" for d in self.differences]
        first = self.first
        if first is not None and first.ulp:
            lines.append(f"  ULP of {first.stage}/{first.name}: " + ", ".join(f"{k}: {n:,}" for k, n in first.ulp.items()))
        if self.not_given:
            lines.append(f"  not given: {', '.join(self.not_given)}")
        return "\n".join(lines)

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        return {"case": self.case.name, "method": str(self.case.method), "equal": self.equal, "differences": [vars(d) for d in self.differences],
                "not_given": self.not_given}

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def check(method: MethodLike, outputs: Any, case: CaseLike = 0) -> Check:
    """Compares what your kernel made of a case's inputs with the reference, bit by bit.

    outputs   the array ``out`` [layers, q_heads, tokens, v_dim], or of the decode steps alone [layers, q_heads, decode, v_dim]; or a
              mapping with any of: "out", "decode" (decode steps alone), "prompt" (mapping buffer name -> bytes after the prompt),
              "end" (the same at the end); for a conversion of weights, its tensors by name; for speculation any of "out", "fed",
              "emitted", "prompt", "end". NumPy, or anything with DLPack
    case      number, name, folder written by ``kvatlas vectors``, or a :class:`Case`
    """
    wanted = _find(method, case)
    given = dict(outputs) if isinstance(outputs, Mapping) else {"out": outputs}
    given = {name: np.asarray(array) if isinstance(array, (list, tuple)) else array for name, array in given.items()}
    found: list[Difference] = []
    missing: list[str] = []
    if wanted.kind == "conversion":
        _known(given, set(wanted.outputs))
        for name, array in wanted.outputs.items():
            found.append(compare(array, given[name], stage="weights", name=name)) if name in given else missing.append(name)
        return Check(wanted, found, missing)
    table = wanted.kind == "speculation"
    _known(given, {*wanted.outputs, *wanted.stages, *(() if table else ("decode",))})
    out = wanted.outputs["out"]
    steps = out.shape[2] - wanted.prompt
    if not table and "out" in given and "decode" not in given and getattr(given["out"], "shape", None) == (*out.shape[:2], steps, out.shape[3]):
        given["decode"] = given.pop("out")

    def buffers(stage: str) -> None:
        if stage not in given:
            missing.append(f"buffers of stage {stage}")
            return
        mine = given[stage]
        for name, expected in wanted.stages[stage].items():
            if name not in mine:
                missing.append(f"{stage}/{name}")
                continue
            found.append(compare(expected, to_bytes(mine[name]), stage=stage, name=name))
        for name in mine:
            if name not in wanted.stages[stage]:
                raise ValueError(f"buffer {name!r} is not part of stage {stage}, must be one of {', '.join(wanted.stages[stage])}")

    buffers("prompt")
    if table:
        for name in ("fed", "out", "emitted"):
            found.append(compare(wanted.outputs[name], given[name], stage="verifying", name=name)) if name in given else missing.append(name)
    elif "out" in given:
        mine, bf16 = _take(given["out"])
        if mine.shape != out.shape:
            found.append(compare(out, mine, stage="attention", name="out", bf16=bf16))
        else:
            n = wanted.prompt
            found.append(compare(out[:, :, :n], mine[:, :, :n], stage="attention of the prompt", name="out", bf16=bf16))
            found.append(compare(out[:, :, n:], mine[:, :, n:], stage="attention of decoding", name="out", bf16=bf16))
    if "decode" in given:
        found.append(compare(out[:, :, wanted.prompt :], given["decode"], stage="attention of decoding", name="decode"))
    if not table and "out" not in given and "decode" not in given:
        missing.append("out")
    buffers("end")
    if not found:
        raise ValueError(f"outputs holds nothing to compare, must hold any of out, decode, {', '.join(wanted.stages)}")
    return Check(wanted, found, missing)


def _known(given: Mapping[str, Any], names: set[str]) -> None:
    unknown = sorted(set(given) - names)
    if unknown:
        raise ValueError(f"outputs has {', '.join(unknown)}, must have any of {', '.join(sorted(names))}")
