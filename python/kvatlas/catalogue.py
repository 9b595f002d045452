"""What there is: methods, models, GPUs, each as a record whose figures carry their source."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from html import escape
from typing import Any, Union

from . import _native

ModelLike = Union[str, "os.PathLike[str]", Mapping[str, Any], "Model"]
GpuLike = Union[str, "Gpu"]
MethodLike = Union[str, "Method"]


def _size(name: str, value: int | str) -> int:
    """Tokens as people write them: 32768, "32K", "1M"."""
    if isinstance(value, str):
        return _native.parse_size(name, value)
    try:
        size = value.__index__()
    except AttributeError:
        if not float(value).is_integer():
            raise ValueError(f"{name} is {value}, must be a whole number or a size like \"32K\"") from None
        size = int(value)
    if not -(2**63) <= size < 2**63:
        raise ValueError(f"{name} is {value}, must be below 2^63")
    return size


_MOST = 2**31 - 1


def _whole(name: str, value: Any, least: int = 1, most: int = _MOST) -> int:
    """A count: nothing is cut off, nothing wraps."""
    try:
        number = value.__index__()
    except (AttributeError, TypeError):
        number = int(value) if isinstance(value, float) and value.is_integer() else None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        raise ValueError(f"{name} is {value}, must be a whole number from {least} to {most}")
    return number


def _rows_html(title: str, rows: list[tuple[str, Any]]) -> str:
    body = "".join(f"<tr><th style='text-align:left'>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in rows)
    return f"<table><caption style='text-align:left'><b>{escape(title)}</b></caption>{body}</table>"


class Method:
    """A compression method, or a recipe of several: ``kivi:bits=2``, ``k=kivi:bits=2;v=kivi:bits=4``, ``vllm:fp8``.

    ``str(m)`` is the canonical spelling; equal spellings mean equal recipes.
    """

    def __init__(self, recipe: str) -> None:
        self.recipe: str = _native.canonical_recipe(recipe)

    @property
    def slug(self) -> str:
        """The method that the recipe is mainly about (that of its last rule)."""
        return _native.main_method(self.recipe)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Paper, claims, parameters with ranges, needs, kernels, serving limits, engines that offer it."""
        return _native.method_record(self.slug)

    @property
    def params(self) -> list[dict[str, Any]]:
        """Name, type, default, min, max, unit and meaning of each parameter."""
        return list(self.record["params"])

    @property
    def family(self) -> str:
        return str(self.record["family"])

    @property
    def deployable(self) -> list[dict[str, Any]]:
        """Engines that offer it today; empty: research only."""
        return list(self.record["deployable"])

    def with_params(self, **params: Any) -> Method:
        """The same method with other parameters: ``method("kivi").with_params(bits=2)``."""
        if ";" in self.recipe:
            raise ValueError(f"the recipe is \"{self.recipe}\", must be one method to take parameters")
        old = dict(p.split("=", 1) for p in self.recipe.partition(":")[2].split(",") if p)
        old.update({k: _spell(v) for k, v in params.items()})
        return Method(self.slug + (":" + ",".join(f"{k}={v}" for k, v in old.items()) if old else ""))

    def storage(self, model: ModelLike, context: int | str, *, generated: int | str = 0, batch: int = 1, shared_prefix: int | str = 0,
                plan: str = "ideal") -> dict[str, Any]:
        """What it stores on a model: see :func:`storage`."""
        return storage(self, model, context, generated=generated, batch=batch, shared_prefix=shared_prefix, plan=plan)

    def to_dict(self) -> dict[str, Any]:
        return {**self.record, "method": self.recipe}

    def __str__(self) -> str:
        return self.recipe

    def __repr__(self) -> str:
        return f"kvatlas.method({self.recipe!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and other.recipe == self.recipe

    def __hash__(self) -> int:
        return hash(self.recipe)

    def _repr_html_(self) -> str:
        r = self.record
        engines = ", ".join(f"{d['engine']} >= {d['min_version']}" for d in r["deployable"]) or "research only"
        params = ", ".join(f"{p['name']}={p['default']}" for p in r["params"]) or "none"
        return _rows_html(f"{r['name']} ({self.recipe})", [("family", r["family"]), ("paper", f"{r['paper']['title']}, {r['paper']['year']}"),
                                                           ("runs in", engines), ("parameters", params), ("needs", ", ".join(r["needs"]) or "nothing")])


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


class Model:
    """A transformer: what it caches, which matrices a token meets, and where the figures come from."""

    def __init__(self, source: ModelLike) -> None:
        if isinstance(source, Model):
            self._handle: _native.ModelHandle = source._handle
        elif isinstance(source, Mapping):
            self._handle = _native.import_config(json.dumps(dict(source)), "config")
        else:
            path = os.fspath(source)
            if not path.endswith(".json") and os.path.isdir(path) and os.path.exists(os.path.join(path, "config.json")):
                path = os.path.join(path, "config.json")
            self._handle = _native.load_model(path)

    @property
    def slug(self) -> str:
        return self._handle.slug

    @property
    def name(self) -> str:
        return self._handle.name

    @property
    def warnings(self) -> list[str]:
        """What the import did not understand or had to assume; empty for shipped models."""
        return self._handle.warnings

    @cached_property
    def record(self) -> dict[str, Any]:
        """Layers, widths, parameters, cache bytes; each figure with provenance and source."""
        return self._handle.record()

    @property
    def parameters(self) -> int:
        return int(self.record["parameters"]["value"])

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one more token once every window is full."""
        return int(self.record["kv_bytes_per_token"]["value"])

    def to_dict(self) -> dict[str, Any]:
        return dict(self.record)

    def __str__(self) -> str:
        return self.slug

    def __repr__(self) -> str:
        return f"kvatlas.model({self.slug!r})"

    def _repr_html_(self) -> str:
        r = self.record
        return _rows_html(self.name, [("slug", self.slug), ("parameters", f"{self.parameters:,}"), ("layers", r["layers"]["value"]),
                                      ("cache bytes per token", f"{self.kv_bytes_per_token:,}"), ("source", r["source"])])


class Gpu:
    """A GPU; every figure with its source. ``replace`` makes a what-if copy."""

    def __init__(self, spec: GpuLike) -> None:
        self.spec: str = spec.spec if isinstance(spec, Gpu) else _native.canonical_gpu(spec)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Figures by name, each {value, unit, source, provenance}; unknown ones are None."""
        return _native.gpu_record(self.spec)

    @property
    def slug(self) -> str:
        return self.spec.partition(":")[0]

    @property
    def name(self) -> str:
        return str(self.record["name"])

    def replace(self, **figures: str | float) -> Gpu:
        """A copy with changed figures: ``gpu("h100-sxm").replace(hbm_bandwidth="6.7TB/s", l2="100MiB")``.

        A text carries its unit; a number is in base units (bytes, bytes/s, FLOP/s, seconds, hertz, watts).
        """
        known = _native.gpu_figures()
        changes = dict(c.split("=", 1) for c in self.spec.partition(":")[2].split(",") if c)
        for name, value in figures.items():
            key, unit = known.get(name, (name, ""))
            changes[key] = value if isinstance(value, str) else f"{float(value)!r}{unit}"
        return Gpu(self.slug + (":" + ",".join(f"{k}={v}" for k, v in changes.items()) if changes else ""))

    def to_dict(self) -> dict[str, Any]:
        return dict(self.record)

    def __str__(self) -> str:
        return self.spec

    def __repr__(self) -> str:
        return f"kvatlas.gpu({self.spec!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gpu) and other.spec == self.spec

    def __hash__(self) -> int:
        return hash(self.spec)

    def _repr_html_(self) -> str:
        figures = self.record.get("figures", self.record)
        rows = [(k, f"{v['value']:.6g} {v.get('unit') or ''} ({v['source']})") for k, v in figures.items()
                if isinstance(v, dict) and isinstance(v.get("value"), (int, float))]
        return _rows_html(f"{self.name} ({self.spec})", rows)


def methods(family: str | None = None) -> list[Method]:
    """Every method of the registry at its defaults, by family and slug."""
    out = [Method(slug) for slug in _native.method_slugs()]
    if family is None:
        return out
    kept = [m for m in out if m.family == family]
    if not kept:
        raise ValueError(f"family is \"{family}\", must be one of {', '.join(dict.fromkeys(m.family for m in out))}")
    return kept


def presets() -> list[dict[str, Any]]:
    """Recipes named after deployments: name, method, source."""
    return _native.presets()


def models() -> list[Model]:
    """Every shipped model, by slug."""
    return [Model(slug) for slug in _native.model_slugs()]


def gpus() -> list[Gpu]:
    """Every shipped GPU, by slug."""
    return [Gpu(slug) for slug in _native.gpu_slugs()]


def method(recipe: MethodLike, **params: Any) -> Method:
    """A method by slug or recipe: ``method("kivi", bits=2)``, ``method("k=kivi:bits=2;v=kivi:bits=4")``."""
    m = recipe if isinstance(recipe, Method) else Method(recipe)
    return m.with_params(**params) if params else m


def model(source: ModelLike) -> Model:
    """A shipped model by slug or alias, or the import of a Hugging Face config.json (path, folder, or the dict itself)."""
    return source if isinstance(source, Model) else Model(source)


def gpu(spec: GpuLike) -> Gpu:
    """A GPU by slug or alias, also with changes: ``gpu("h100-sxm:hbm_bandwidth=6.7TB/s")``."""
    return spec if isinstance(spec, Gpu) else Gpu(spec)


def storage(method: MethodLike, model: ModelLike, context: int | str, *, generated: int | str = 0, batch: int = 1,
            shared_prefix: int | str = 0, plan: str = "ideal") -> dict[str, Any]:
    """What a recipe stores on a model, without opening a cache.

    context        tokens of the prompt; generated: tokens after it; batch: equal sequences; shared_prefix: tokens they share
    returns        ledger [{component, side, scope, bytes, bits_per_value}], total_bytes, peak_bytes, dense_bytes, bits_per_value,
                   bits {kind: bits of one original value}, size_factor, plan and prefill_plan [{kernel, stage, reads_bytes,
                   writes_bytes, flops, launches}], formulas; why_not and None where the recipe cannot serve the model
    """
    if plan not in ("ideal", "released"):
        raise ValueError(f"plan is \"{plan}\", must be ideal or released")
    return Model(model)._handle.storage(str(method), _size("context", context), _size("generated", generated), _whole("batch", batch),
                                        _size("shared_prefix", shared_prefix), plan == "released")


__all__ = ["Gpu", "Method", "Model", "gpu", "gpus", "method", "methods", "model", "models", "presets", "storage"]
