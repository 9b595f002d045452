"""Sweeps on this machine, or on anything with ``submit``: chunks keyed by content, a file each, merged into one store."""
from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, Union

from . import _native

SpecLike = Union[str, "os.PathLike[str]", Mapping[str, Any]]


class Executor(Protocol):
    """concurrent.futures, mpi4py.futures, dask (client or client.get_executor()), submitit, loky: all have ``submit``."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any: ...


def _read(spec: SpecLike) -> tuple[str, str, str]:
    """(text, what messages call it, folder of relative model paths)"""
    if isinstance(spec, Mapping):
        return json.dumps(dict(spec)), "spec", os.getcwd()
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        return spec, "spec", os.getcwd()
    path = os.fspath(spec)
    with open(path, encoding="utf-8") as file:
        return file.read(), path, os.path.dirname(os.path.abspath(path))


def plan(spec: SpecLike, chunks: int) -> list[dict[str, Any]]:
    """The chunks of a spec: [{shard: "1/8", key, configurations}]. ``key`` names the content: spec, imported models, version of the code."""
    if chunks < 1:
        raise ValueError(f"chunks is {chunks}, must be at least 1")
    keys = _native.chunk_keys(*_read(spec), chunks)
    return [{"shard": f"{i}/{chunks}", "key": key, "configurations": held} for i, (key, held) in enumerate(keys, 1)]


def run_chunk(text: str, origin: str, folder: str, shard: str, key: str, out: str | None, jobs: int) -> dict[str, Any]:
    """What a worker does: one chunk into a file of its own, which gets its name when it is complete.

    Without ``out`` (no folder shared with the caller) the file's bytes come back instead. Safe to run twice, also at once.
    """
    home = out or tempfile.mkdtemp(prefix="kvatlas-")
    done = os.path.join(home, f"{key}.sqlite")
    if os.path.exists(done):
        return {"key": key, "points": 0, "reused": True, "bytes": None}
    part = os.path.join(home, f"{key}.{uuid.uuid4().hex}.part")
    try:
        report = _native.sweep(text, origin, folder, part, jobs, shard, None)
        os.replace(part, done)
    finally:
        for leftover in (part, part + "-wal", part + "-shm"):
            if os.path.exists(leftover):
                os.remove(leftover)
    content = None
    if out is None:
        with open(done, "rb") as file:
            content = file.read()
        os.remove(done)
        os.rmdir(home)
    return {"key": key, "points": report["stored"], "reused": False, "bytes": content}


def _finished(futures: dict[Any, Any], poll_s: float) -> Iterable[Any]:
    """Futures of any library as they finish: all have ``result()``, most have ``done()``."""
    waiting = dict(futures)
    while waiting:
        ready = [f for f in waiting if not hasattr(f, "done") or f.done()]
        if not ready:
            time.sleep(poll_s)
            continue
        for future in ready if hasattr(ready[0], "done") else ready[:1]:
            del waiting[future]
            yield future


def sweep(spec: SpecLike, db: str | os.PathLike[str], *, executor: Executor | None = None, chunks: int | None = None, chunk_folder: str | os.PathLike[str] | None = None,
          shared_folder: bool = True, jobs: int = 0, retries: int = 2, keep_chunks: bool = False, progress: Callable[[dict[str, Any]], None] | None = None,
          poll_s: float = 0.05) -> dict[str, Any]:
    """Evaluates a spec's design points into a store; the same call goes on after any stop.

    spec           path, JSON text or dict (sweeps/README.md says what it may hold)
    db             the store; with an executor it is merged from the chunks, and from itself when it exists
    executor       anything with ``submit(fn, *args)`` that returns futures; None: threads of this process
    chunks         parts of the work; default: 8 for each worker the executor tells of, else 64
    chunk_folder   where workers write a file each; default: DB.chunks beside the store
    shared_folder  False: workers do not see that folder and send their files back as bytes
    jobs           threads of a worker (0: one a core); with an executor 0 means 1
    retries        of a chunk whose worker died or failed; chunks that are complete are never evaluated again
    progress       called with {configurations, configurations_done, ...}, with an executor with {chunks, chunks_done, points}
    returns        {points, stored, skipped, infeasible, seconds, ...}; with an executor {chunks, reused, points, retried, rows, conflicts, seconds, db}
    """
    text, origin, folder = _read(spec)
    target = os.fspath(db)
    if executor is None:
        return _native.sweep(text, origin, folder, target, jobs, "1/1", progress)
    began = time.perf_counter()
    parts = plan(text if origin == "spec" else spec, chunks or 8 * _workers(executor))
    home = os.fspath(chunk_folder) if chunk_folder is not None else target + ".chunks"
    os.makedirs(home, exist_ok=True)
    home = os.path.abspath(home)
    parts = [p for p in parts if p["configurations"] > 0]
    files = [os.path.join(home, p["key"] + ".sqlite") for p in parts]
    reused = sum(os.path.exists(f) for f in files)
    points, retried = 0, 0
    left: dict[str, int] = {}
    queue = [p for p, f in zip(parts, files) if not os.path.exists(f)]
    while queue:
        futures = {executor.submit(run_chunk, text, origin, folder, p["shard"], p["key"], home if shared_folder else None, max(1, jobs)): p for p in queue}
        queue = []
        try:
            for future in _finished(futures, poll_s):
                part = futures[future]
                try:
                    result = future.result()
                except Exception as error:  # of a worker: what it is depends on the library
                    left[part["key"]] = left.get(part["key"], 0) + 1
                    if left[part["key"]] > retries or isinstance(error, (ValueError, NotImplementedError)):
                        raise RuntimeError(f"chunk {part['shard']} failed: {type(error).__name__}: {error}; complete chunks are kept in {home}, the same call goes on") from error
                    retried += 1
                    queue.append(part)
                    continue
                points += result["points"]
                if result["bytes"] is not None:
                    _write(os.path.join(home, result["key"] + ".sqlite"), result["bytes"])
                if progress is not None:
                    progress({"chunks": len(parts), "chunks_done": sum(os.path.exists(f) for f in files), "points": points})
        except BaseException:
            for future in futures:
                if hasattr(future, "cancel"):
                    future.cancel()
            raise
    merged = _native.merge(target, files, False)
    if not merged["written"]:
        raise RuntimeError(f"{merged['conflicts']} points differ between chunks, {target} is left as it was: {merged['examples'][0]}")
    _clean(home, {p["key"] for p in parts}, keep_chunks)
    return {"chunks": len(parts), "reused": reused, "points": points, "retried": retried, "rows": merged["rows"], "conflicts": merged["conflicts"],
            "seconds": time.perf_counter() - began, "db": target, "provenance": "computed"}


def _clean(home: str, keys: set[str], keep_chunks: bool) -> None:
    """Removes the files of merged chunks, and what workers that died have left of them."""
    for name in os.listdir(home):
        key, _, rest = name.partition(".")
        if key in keys and (".part" in rest or not keep_chunks):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(home, name))
    if not os.listdir(home):
        os.rmdir(home)


def _write(path: str, content: bytes) -> None:
    part = f"{path}.{uuid.uuid4().hex}.part"
    with open(part, "wb") as file:
        file.write(content)
    os.replace(part, path)


def _workers(executor: Any) -> int:
    """Workers, where the executor says; 8 otherwise."""
    for name in ("_max_workers", "max_workers", "num_workers"):
        n = getattr(executor, name, None)
        if isinstance(n, int) and n > 0:
            return n
    client = getattr(executor, "_client", executor)
    try:
        return max(1, len(client.scheduler_info()["workers"]))
    except Exception:
        return 8


def merge(db: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]], *, force: bool = False) -> dict[str, Any]:
    """Merges stores into ``db``: {rows, conflicts, examples, written}. Any order and repeated inputs give the same points."""
    return _native.merge(os.fspath(db), [os.fspath(i) for i in inputs], force)
