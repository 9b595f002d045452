"""The page's figures for papers and the README, drawn by matplotlib as SVG and PNG from what `reader.read` returned."""

from __future__ import annotations

import contextlib
import math
import os
import textwrap
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple, Union

from .errors import StoreError
from .pick import KINDS, lit, opening, strongest, tokens_text, workload_text

COLOURS = ("#1c1c1a", "#2a78d6", "#e0622c", "#189a6b", "#d99000", "#d6608f", "#4a3aa7", "#00838f")
MARKERS = {"baseline": "o", "quantization": "s", "eviction": "D", "retrieval": "^", "coding": "p", "merging": "h", "transform": "v", "lowrank": "P",
           "architecture": "X", "sparse_prefill": "*", "speculation": "8", "serving": "<"}
INK, MUTED, RULE, GREY, SURFACE = "#1c1c1a", "#6a6963", "#eae9e3", "#c4c3bb", "#fcfcfa"
PARTS = (("attention", "attention_s", "#5a8fd0"), ("matrix products", "matrix_s", "#c9c7be"), ("the method's own work", "method_s", "#e3a05f"), ("the rest", "other_s", "#e4e2da"))
KIND_COLOURS = ("#4f86c6", "#8fb8e3", "#6aa887", "#e3a05f", "#b9a3d6", "#c9c7be", "#d98f9f")  # as KINDS
UNCALIBRATED = "uncalibrated_format"


def _pyplot() -> Any:
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise StoreError("figures need matplotlib: pip install matplotlib, or apt-get install python3-matplotlib") from None
    plt.rcParams.update({
        "font.family": "sans-serif", "font.sans-serif": ["Inter", "Liberation Sans", "DejaVu Sans"], "font.size": 9.5, "axes.edgecolor": RULE, "axes.linewidth": 0.8,
        "axes.labelcolor": MUTED, "text.color": INK, "xtick.color": MUTED, "ytick.color": MUTED, "axes.facecolor": SURFACE, "figure.facecolor": SURFACE, "axes.grid": True,
        "grid.color": RULE, "grid.linewidth": 0.8, "axes.axisbelow": True, "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
        "hatch.linewidth": 1.1, "svg.fonttype": "none", "svg.hashsalt": "kvatlas", "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.spines.bottom": False, "legend.frameon": False})
    return plt


def _number(value: float) -> str:
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(decimals, 8)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _log_axis(axis: Any, spell: Callable[[float], str], base: int) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    low, high = axis.get_view_interval()
    near = base == 10 and high / max(low, 1e-300) < 15
    axis.set_major_locator(LogLocator(base=base, subs=(1.0,) if base == 2 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if near else (1.0, 3.0), numticks=16))
    axis.set_major_formatter(FuncFormatter(lambda v, _: spell(v)))
    axis.set_minor_formatter(NullFormatter())


class _View:
    """What the figures share: the opening question, its rows, the series in colour, and look-ups of points."""

    def __init__(self, data: Dict[str, Any]):
        view = opening(data)
        if view is None:
            raise StoreError("the store holds no prediction that fits, so there is nothing to draw")
        self.data, self.view, self.lit = data, view, lit(view)
        self.colour = {r["configuration"]: COLOURS[i] for i, r in enumerate(self.lit)}
        p = data["points"]
        self.first: Dict[int, Tuple[int, int]] = {}
        start = 0
        configurations: Sequence[int] = p["configuration"]
        for i in range(1, len(configurations) + 1):
            if i == len(configurations) or configurations[i] != configurations[start]:
                self.first[configurations[start]] = (start, i)
                start = i
        contexts = sorted(set(p["context"]))
        prompt = data["workloads"][view["workload"]]["prompt"] if view["workload"] is not None else view["context"]
        self.context: Optional[int] = max((c for c in contexts if c <= prompt), default=contexts[0] if contexts else None)

    def points(self, configuration: int) -> Iterable[int]:
        start, end = self.first.get(configuration, (0, 0))
        return (i for i in range(start, end) if self.data["points"]["fits"][i])

    def subtitle(self) -> str:
        v = self.view
        return f"{self.data['models'][v['model']]['name']} on {self.data['gpus'][v['gpu']]['name']}"

    def question(self) -> str:
        v = self.view
        return workload_text(self.data["workloads"][v["workload"]]) if v["workload"] is not None else f"decoding at {tokens_text(v['context'])} tokens of context"


def _mark(ax: Any, x: float, y: float, row: Dict[str, Any], colour: str) -> None:
    """One mark; hatched where nobody timed the format."""
    collection = ax.scatter([x], [y], s=62, marker=MARKERS.get(row["family"], "o"), zorder=5, linewidths=1.0, edgecolors=colour if row["evidence"] == UNCALIBRATED else SURFACE,
                            facecolors=SURFACE if row["evidence"] == UNCALIBRATED else colour)
    if row["evidence"] == UNCALIBRATED:
        collection.set_hatch("//////")


def _end_labels(ax: Any, labels: List[Tuple[float, str, str]]) -> None:
    """Names right of the axes, moved apart where they would touch."""
    low, high = (math.log10(v) for v in ax.get_ylim())
    places = sorted(((math.log10(y) - low) / (high - low), name, colour) for y, name, colour in labels)
    at: List[float] = []
    for y, _, _ in places:
        at.append(max(y, at[-1] + 0.05) if at else y)
    overflow = (at[-1] - 1.0) if at else 0.0
    if overflow > 0:
        limit = 1.0
        for i in range(len(at) - 1, -1, -1):
            at[i] = min(at[i], limit)
            limit = at[i] - 0.05
    for y, (_, name, colour) in zip(at, places):
        ax.annotate(name, (1.0, y), xycoords="axes fraction", xytext=(8, 0), textcoords="offset points", va="center", color=colour, fontsize=8.5)


def _name_marks(ax: Any, marks: List[Tuple[float, float, str]]) -> None:
    """Names beside marks, each at the first side where it touches no other name and no mark."""
    ax.figure.canvas.draw()
    pixels = ax.transData.transform([(x, y) for x, y, _ in marks])
    scale = ax.figure.dpi / 72
    taken = [(x - 7 * scale, y - 7 * scale, x + 7 * scale, y + 7 * scale) for x, y in pixels]
    for (x, y, name), (px, py) in zip(marks, pixels):
        width, height = 5.0 * len(name) * scale, 10 * scale
        for anchor, dx, dy in (("left", 8, 0), ("right", -8, 0), ("left", 7, 9), ("right", -7, 9), ("left", 7, -9), ("right", -7, -9), ("center", 0, 13), ("center", 0, -13)):
            left = px + dx * scale - (width if anchor == "right" else width / 2 if anchor == "center" else 0)
            box = (left, py + dy * scale - height / 2, left + width, py + dy * scale + height / 2)
            if all(box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in taken):
                taken.append(box)
                ax.annotate(name, (x, y), xytext=(dx, dy), textcoords="offset points", ha=anchor, va="center", fontsize=8.5, zorder=6)
                break


def _finish(ax: Any, title: str, subtitle: str, x: str, y: str) -> None:
    # A line that is wider than the axes would widen the picture by an empty margin.
    width = ax.figure.get_figwidth() * ax.get_position().width
    lines = textwrap.wrap(subtitle.replace(" %", "\u00a0%"), max(30, int(15 * width)), break_long_words=False, break_on_hyphens=False)
    ax.set_title(title, pad=12 + 12 * len(lines))
    ax.text(0, 1.025, "\n".join(lines), transform=ax.transAxes, color=MUTED, fontsize=8.5, va="bottom")
    ax.set_xlabel(x, loc="right", fontsize=8.5)
    ax.set_ylabel(y, loc="top", fontsize=8.5)


def tradeoff(data: Dict[str, Any], plt: Any) -> Any:
    """Requests/s (or tokens/s) against size factor: every setting grey, the first in colour with their intervals."""
    v = _View(data)
    figure, ax = plt.subplots(figsize=(7.6, 4.4))
    grey = [r for r in v.view["rows"] if r["configuration"] not in v.colour]
    for hatched in (False, True):
        part = [r for r in grey if (r["evidence"] == UNCALIBRATED) == hatched]
        ax.scatter([r["size_factor"] for r in part], [r["value"] for r in part], s=16, facecolors="none" if hatched else GREY, edgecolors=GREY, linewidths=0.8, zorder=2)
    best, front = -math.inf, []
    for r in sorted(v.view["rows"], key=lambda r: (-r["size_factor"], -r["value"])):
        if r["value"] > best:
            best = r["value"]
            front.append(r)
    ax.step([r["size_factor"] for r in front], [r["value"] for r in front], where="pre", color=MUTED, linewidth=0.9, linestyle=":", zorder=3)
    for r in v.lit:
        colour = v.colour[r["configuration"]]
        ax.plot([r["size_factor"]] * 2, [r["low"], r["high"]], color=colour, alpha=0.4, linewidth=1.6, zorder=4)
        _mark(ax, r["size_factor"], r["value"], r, colour)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    # The bottom of the picture: what is in colour, and all but the slowest twentieth of the rest.
    values = sorted(r["value"] for r in v.view["rows"])
    ax.set_ylim(bottom=0.93 * min(values[len(values) // 20], *(r["low"] for r in v.lit)))
    _name_marks(ax, [(r["size_factor"], r["value"], r["recipe"]) for r in v.lit])
    _log_axis(ax.xaxis, lambda x: f"{_number(x)}x", 2)
    _log_axis(ax.yaxis, _number, 10)
    _finish(ax, f"{v.view['metric'].capitalize()} against size", f"{v.subtitle()}, {v.question()}; whiskers 80 % interval, hatched: format never timed", "size factor: plain cache over stored cache", v.view["metric"])
    return figure


def _lines(v: _View, ax: Any, rows: Callable[[int], List[int]], x: str, y: Callable[[int], Optional[float]], low_factor: float) -> None:
    p = v.data["points"]
    labels: List[Tuple[float, str, str]] = []
    values: List[float] = []

    def line(configuration: int) -> Tuple[List[float], List[float]]:
        found = [(p[x][i], y(i)) for i in rows(configuration)]
        kept = [(place, value) for place, value in found if value is not None and value > 0]
        return [k[0] for k in kept], [k[1] for k in kept]

    for r in v.view["rows"]:
        if r["configuration"] not in v.colour:
            ax.plot(*line(r["configuration"]), color=RULE, linewidth=0.8, zorder=1)
    for r in v.lit:
        xs, ys = line(r["configuration"])
        if not xs:
            continue
        colour, unsure = v.colour[r["configuration"]], r["evidence"] == UNCALIBRATED
        ax.plot(xs, ys, color=colour, linewidth=1.6, linestyle=(0, (3, 1.6)) if unsure else "-", marker=MARKERS.get(r["family"], "o"), markersize=4.5,
                markerfacecolor=SURFACE if unsure else colour, zorder=3)
        values += ys
        labels.append((ys[-1], r["recipe"], colour))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    if values:
        low, high = min(values), max(values)
        lack = math.sqrt(max(1.0, low_factor / (high / low))) * 1.12
        ax.set_ylim(low / lack, high * lack)
        _end_labels(ax, labels)
    _log_axis(ax.xaxis, lambda n: tokens_text(int(round(n))), 2)
    _log_axis(ax.yaxis, _number, 10)


def throughput(data: Dict[str, Any], plt: Any) -> Any:
    """Tokens/s by context at batch 1, and by batch at the question's context."""
    v = _View(data)
    p = data["points"]
    figure, axes = plt.subplots(1, 2, figsize=(11.0, 3.9), gridspec_kw={"wspace": 0.62})
    tokens = lambda i: p["tokens_per_s"][i]
    _lines(v, axes[0], lambda c: [i for i in v.points(c) if p["batch"][i] == 1], "context", tokens, 4)
    _finish(axes[0], "Tokens/s by context, batch 1", f"{v.subtitle()}; decoding only", "context, tokens", "tokens/s")
    _lines(v, axes[1], lambda c: [i for i in v.points(c) if p["context"][i] == v.context], "batch", tokens, 4)
    _finish(axes[1], f"Tokens/s by batch, {tokens_text(v.context or 0)} tokens of context", "lines end where memory does; dashed: format never timed", "batch, sequences", "tokens/s")
    return figure


def memory(data: Dict[str, Any], plt: Any) -> Any:
    """Largest stored batch that fits, by context."""
    v = _View(data)
    p = data["points"]

    def largest(configuration: int) -> List[int]:
        best: Dict[int, int] = {}
        for i in v.points(configuration):
            if p["context"][i] not in best or p["batch"][i] > p["batch"][best[p["context"][i]]]:
                best[p["context"][i]] = i
        return [best[c] for c in sorted(best)]

    figure, ax = plt.subplots(figsize=(6.4, 3.9))
    _lines(v, ax, largest, "context", lambda i: float(p["batch"][i]), 4)
    _finish(ax, "Largest batch that fits", f"{v.subtitle()}; as far as the sweep went", "context, tokens", "sequences")
    return figure


def breakeven(data: Dict[str, Any], plt: Any) -> Any:
    """Step time of the plain cache over the method's, by context at batch 1."""
    v = _View(data)
    p = data["points"]
    figure, ax = plt.subplots(figsize=(6.4, 3.9))
    _lines(v, ax, lambda c: [i for i in v.points(c) if p["batch"][i] == 1], "context", lambda i: p["speedup"][i], 1.6)
    ax.axhline(1, color=INK, linewidth=0.9, linestyle=":")
    _finish(ax, "Where a step starts to pay, batch 1", f"{v.subtitle()}; above 1 the method is faster than the plain cache", "context, tokens", "speedup of a step")
    return figure


def parts(data: Dict[str, Any], plt: Any) -> Any:
    """A decode step's time by part, batch 1, with the 80 % interval of the whole."""
    v = _View(data)
    p = data["points"]
    rows = []
    for r in reversed(v.lit):
        found = [i for i in v.points(r["configuration"]) if p["context"][i] == v.context and p["batch"][i] == 1]
        if found:
            rows.append((r, found[0]))
    figure, ax = plt.subplots(figsize=(7.6, 1.2 + 0.42 * max(1, len(rows))))
    for y, (r, i) in enumerate(rows):
        left = 0.0
        for name, column, colour in PARTS:
            width = 1e3 * p[column][i]
            ax.barh(y, width, left=left, height=0.6, color=colour, edgecolor=SURFACE, linewidth=0.8, label=name if y == 0 else None,
                    hatch="////" if r["evidence"] == UNCALIBRATED and column in ("attention_s", "method_s") else None)
            left += width
        ax.plot([1e3 * p["low_s"][i], 1e3 * p["high_s"][i]], [y, y], color=INK, linewidth=1)
        ax.plot([1e3 * p["low_s"][i], 1e3 * p["high_s"][i]], [y, y], "|", color=INK, markersize=6)
    ax.set_yticks(range(len(rows)), [r["recipe"] for r, _ in rows])
    ax.tick_params(axis="y", colors=INK)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower right", fontsize=8, ncols=2) if rows else None
    _finish(ax, f"Step time at {tokens_text(v.context or 0)} tokens, batch 1", f"{v.subtitle()}; whiskers 80 % interval", "milliseconds", "")
    return figure


def ledger(data: Dict[str, Any], plt: Any) -> Any:
    """Bits of one original value by what is stored."""
    v = _View(data)
    table, model = data["ledgers"], v.view["model"]
    contexts = sorted(set(table["context"]))
    wanted = v.view["context"] or data["workloads"][v.view["workload"]]["prompt"]
    context = max((c for c in contexts if c <= wanted), default=contexts[0])
    bits: Dict[int, List[float]] = {}
    for i in range(len(table["model"])):
        if table["model"][i] == model and table["context"][i] == context:
            kinds = bits.setdefault(table["method"][i], [0.0] * len(KINDS))
            kinds[data["kind_of_component"][table["component"][i]]] += table["bits_per_value"][i]
    rows = sorted(((sum(bits[r["method"]]), r) for r in v.lit if r["method"] in bits), key=lambda pair: pair[0])
    figure, ax = plt.subplots(figsize=(7.6, 1.2 + 0.42 * max(1, len(rows))))
    named = set()
    for y, (total, r) in enumerate(rows):
        left = 0.0
        for k, (name, colour) in enumerate(zip(KINDS, KIND_COLOURS)):
            width = bits[r["method"]][k]
            if width > 0:
                ax.barh(y, width, left=left, height=0.6, color=colour, edgecolor=SURFACE, linewidth=0.8, label=None if name in named else name)
                named.add(name)
                left += width
        ax.text(total + 0.15, y, _number(total), va="center", fontsize=8.5)
    ax.set_yticks(range(len(rows)), [r["recipe"] for _, r in rows])
    ax.tick_params(axis="y", colors=INK)
    ax.grid(axis="y", visible=False)
    ax.legend(loc="lower right", fontsize=8)
    _finish(ax, f"Bits of one original value at {tokens_text(context)} tokens", f"{v.data['models'][model]['name']}; everything that is stored", "bits a value", "")
    return figure


def measured(data: Dict[str, Any], plt: Any) -> Any:
    """Predicted against measured kernel times."""
    figure, ax = plt.subplots(figsize=(5.2, 4.6))
    rows = [m for m in data["measurements"] if m.get("predicted") is not None]
    for kind, name, colour in (("decode_attention", "decode attention", COLOURS[1]), ("prefill_attention", "prompt attention", COLOURS[3]), ("gemm", "matrix products", COLOURS[2])):
        part = [m for m in rows if m["kind"] == kind]
        if part:
            ax.scatter([1e6 * m["value"] for m in part], [1e6 * m["predicted"] for m in part], s=13, color=colour, alpha=0.65, linewidths=0, label=name)
    ends = [1e6 * min(m["value"] for m in rows), 1e6 * max(m["value"] for m in rows)]
    ax.plot(ends, ends, color=MUTED, linewidth=0.9, linestyle=":")
    ax.set_xscale("log")
    ax.set_yscale("log")
    _log_axis(ax.xaxis, _number, 10)
    _log_axis(ax.yaxis, _number, 10)
    ax.legend(loc="upper left", fontsize=8)
    _finish(ax, "Predicted against measured", f"{len(rows):,} of {data['meta']['measurements_total']:,} timings of kernels, as many of each kernel and GPU", "measured, microseconds", "predicted, microseconds")
    return figure


def quality(data: Dict[str, Any], plt: Any) -> Any:
    """Throughput against retained quality, where both are of one model."""
    v = _View(data)
    slug = data["models"][v.view["model"]]["slug"]
    best = {recipe: q for recipe, q in strongest(data["quality"], slug).items() if q["quality_model"] == slug}
    figure, ax = plt.subplots(figsize=(7.0, 4.2))
    named: List[Tuple[float, float, str]] = []
    for r in v.view["rows"]:
        q = best.get(r["recipe"])
        if q is None:
            continue
        colour = v.colour.get(r["configuration"])
        if colour is None:
            ax.scatter([q["retained"]], [r["value"]], s=16, color=GREY, zorder=2)
        else:
            _mark(ax, q["retained"], r["value"], {**r, "evidence": UNCALIBRATED if q["grade"] == "X" else r["evidence"]}, colour)
            named.append((q["retained"], r["value"], r["recipe"]))
    ax.set_yscale("log")
    _name_marks(ax, named)
    _log_axis(ax.yaxis, _number, 10)
    _finish(ax, f"{v.view['metric'].capitalize()} against quality", f"{v.subtitle()}, both of one model; hatched: proxy quality or format never timed", "retained quality (1 = the plain cache's)", v.view["metric"])
    return figure


def draw_all(data: Dict[str, Any], folder: Union[str, Path], formats: Sequence[str] = ("svg", "png")) -> List[Path]:
    """Writes every figure that the store has rows for; returns the files.

    folder   made when it is not there; a figure gets its name when all are drawn
    raises   StoreError when matplotlib is missing, the store holds no prediction, or a file cannot be written
    """
    plt = _pyplot()
    view = opening(data)
    model = data["models"][view["model"]]["slug"] if view is not None else ""
    wanted: List[Tuple[str, Callable[..., Any], bool]] = [
        ("tradeoff", tradeoff, True),
        ("quality", quality, any(q["model"] == model == q["quality_model"] and q["retained"] is not None for q in data["quality"])),
        ("throughput", throughput, bool(data["points"]["configuration"])), ("parts", parts, bool(data["points"]["configuration"])),
        ("memory", memory, bool(data["points"]["configuration"])), ("breakeven", breakeven, any(s is not None for s in data["points"]["speedup"])),
        ("ledger", ledger, bool(data["ledgers"]["model"])), ("measured", measured, any(m.get("predicted") is not None for m in data["measurements"]))]
    out = Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{out}: cannot be made ({error.strerror})") from None
    parts_of: Dict[Path, Path] = {}
    try:
        for name, draw, present in wanted:
            if not present:
                continue
            figure = draw(data, plt)
            try:
                for suffix in formats:
                    path = out / f"{name}.{suffix}"
                    parts_of[path] = path.with_name(path.name + ".part")
                    _save(figure, parts_of[path], suffix)
            finally:
                plt.close(figure)
        for path, part in parts_of.items():
            try:
                os.replace(part, path)
            except OSError as error:
                raise StoreError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        for part in parts_of.values():
            with contextlib.suppress(OSError):
                part.unlink()
    return list(parts_of)


def _save(figure: Any, path: Path, suffix: str) -> None:
    try:
        figure.savefig(path, format=suffix, dpi=160, bbox_inches="tight", metadata={"Date": None} if suffix == "svg" else None)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from None
