#!/usr/bin/env python3
"""Compares every tensor of a GGUF file, as kvatlas decodes it, with the Python package `gguf`, bit for bit.

usage: compare_tensors.py TOOL FILE.gguf...      TOOL is build/release/tests/kvatlas_weights_tool

Needs numpy and gguf. Prints one line a file; exit status 1 when a single bit differs.
"""
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

CHUNK = 1 << 22  # values compared at a time


def compare(tool: str, path: str) -> bool:
    start = time.time()
    reader = GGUFReader(path)
    ours = subprocess.Popen([tool, "tensors", path], stdout=subprocess.PIPE)
    values, types, wrong = 0, Counter(), []
    for tensor in reader.tensors:
        name, rows, columns = ours.stdout.readline().decode().rsplit(" ", 2)
        expected_columns = int(tensor.shape[0])
        expected_rows = int(np.prod(tensor.shape[1:], dtype=np.int64))
        if (name, int(rows), int(columns)) != (tensor.name, expected_rows, expected_columns):
            print(f"{path}: {tensor.name} [{expected_rows}, {expected_columns}] read as {name} [{rows}, {columns}]")
            return False
        data = tensor.data.reshape(expected_rows, -1)
        step = max(1, CHUNK // expected_columns)
        for row in range(0, expected_rows, step):
            theirs = dequantize(data[row:row + step], tensor.tensor_type).astype(np.float32, copy=False)
            mine = np.frombuffer(ours.stdout.read(theirs.size * 4), np.uint32)
            if not np.array_equal(mine, theirs.reshape(-1).view(np.uint32)):
                wrong.append(tensor.name)
                break
        if wrong and wrong[-1] == tensor.name:
            break
        values += expected_rows * expected_columns
        types[tensor.tensor_type.name] += 1
    rest = ours.stdout.read()
    equal = not wrong and not rest and ours.wait() == 0
    print(f"{path}: {sum(types.values())} of {len(reader.tensors)} tensors, {values} values, "
          f"{', '.join(f'{n} {t}' for t, n in sorted(types.items()))}: "
          f"{'every bit equal' if equal else 'DIFFERENT at ' + ', '.join(wrong or ['the end'])} (gguf {version('gguf')}, {time.time() - start:.0f} s)")
    return equal


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(0 if all([compare(sys.argv[1], path) for path in sys.argv[2:]]) else 1)
