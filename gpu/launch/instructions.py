#!/usr/bin/env python3
"""Instructions that decode attention executes for each stored value, by pipe, and what they leave of the memory's bandwidth.

usage: instructions.py write SOURCE_DIR    compiles instructions.cu, counts, writes instructions.csv and budget.csv beside this script
       instructions.py check SOURCE_DIR    counts again and compares; exit code 77 where nvcc or its version is another
       instructions.py test SOURCE_DIR     needs no nvcc: the counter on a program of known counts; budget.csv follows from instructions.csv

Method. ptx_counter.py runs the first lane of each warp of a block through the compiled PTX, once over 192 and once over 256 coded tokens of
one span. The difference is one tile of 64 tokens in the steady state, copies and page look-ups in, start and end out: a function of what
is executed, not of the text. Counts are instructions of the block's warps; a tile stores 2 * 64 * 128 values, so lane instructions a value
are 32 * counts / 16384. `check` shows that another pair of lengths differs by the same counts and that no lane executes what the first of
its warp does not. PTX is not the machine's code: ptxas removes moves (not counted) and merges some shifts and sums, which makes
the counts an upper estimate, and expands others (the weights in ptx_counter.py).
"""
import csv
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.dont_write_bytecode = True
import ptx_counter  # noqa: E402

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a")
BITS, GROUPS = (16, 8, 4, 2), (1, 4, 8)
TILE, DIM, WARPS = 64, 128, 4
FIELDS = ["nvcc", "arithmetic", "bits", "q_per_kv", "architecture", *ptx_counter.NAMES, "per_value"]

# Lanes that a multiprocessor serves in a clock, assumed: what the throughput table of the CUDA C++ Programming Guide says from memory, not
# compared with a copy (four schedulers issue one warp instruction each). Conversions at 16, the slowest that it has for 32-bit types. `move` is
# shared memory, shuffles and copies, which leave by one port.
RATES = {"sm_80": {"issue": 128, "float": 64, "integer": 64, "convert": 16, "move": 32}, "sm_89": {"issue": 128, "float": 128, "integer": 64, "convert": 16, "move": 32},
         "sm_90a": {"issue": 128, "float": 128, "integer": 64, "convert": 16, "move": 32}}
MMA_OPERATIONS = 2 * 16 * 8 * 32
GPUS = (("a100-sxm-80gb", "sm_80"), ("h100-sxm", "sm_90a"), ("rtx-4090", "sm_89"))
BUDGET_FIELDS = ["gpu", "arithmetic", "bits", "q_per_kv", "bytes_per_value", "budget", "spent", "busiest", "clocks_over_memory", "bound"]


def bytes_per_value(bits):
    """Codes, and an fp16 scale and zero point for 32 of them."""
    return 2.0 if bits == 16 else bits / 8 + 4 / 32


def launch(tokens):
    """Parameters of DecodeArgs by byte, and the control words of a sequence of so many tokens, all coded, in pages of 64."""
    parameters = {0: 1 << 20, 8: 2 << 20, 16: 3 << 20, 168: 4 << 20, 176: 5 << 20, 184: 6 << 20, 192: TILE, 200: 8, 208: 1, 216: 1, 220: 0x3F800000}
    for side in (24, 96):
        for i in range(5):
            parameters[side + 8 * i] = (16 + i + side) << 20
        for i in range(4):
            parameters[side + 40 + 8 * i] = 1 << 14
    return parameters, {1 << 20: (tokens, tokens, tokens, 0)}


def run(kernel, thread, tokens):
    parameters, control = launch(tokens)
    special = {"%tid.x": thread, "%ntid.x": DIM, "%ctaid.x": 0, "%ctaid.y": 0, "%ctaid.z": 0, "%nctaid.x": 1}
    return ptx_counter.run(kernel, parameters, special, control)


def tile_counts(kernel, longer=256):
    total = dict.fromkeys(ptx_counter.NAMES, 0)
    for warp in range(WARPS):
        for tokens, sign in ((longer, 1), (longer - TILE, -1)):
            for pipe, count in run(kernel, 32 * warp, tokens)[0].items():
                total[pipe] += sign * count
    return total


def entry_of(name):
    found = re.search(r"(float|integer)_cost_kernelILi(\d+)E", name)
    return found.group(1), BITS[int(found.group(2)) // 3], GROUPS[int(found.group(2)) % 3]


def per_value(counts):
    return f"{sum(int(counts[p]) for p in ptx_counter.NAMES) * 32 / (2 * TILE * DIM):.2f}"


def count_all(source, version, thorough):
    rows, failures = [], []
    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            ptx = pathlib.Path(folder) / "cost.ptx"
            subprocess.run(["nvcc", "-std=c++20", "-fmad=false", f"-I{source}", f"-arch={arch}", "-ptx", "-o", ptx, str(source / "gpu/launch/instructions.cu")], check=True)
            kernels = ptx_counter.kernels_of(ptx.read_text())
        for name, kernel in kernels.items():
            arithmetic, bits, group = entry_of(name)
            counts = tile_counts(kernel)
            rows.append({"nvcc": version, "arithmetic": arithmetic, "bits": bits, "q_per_kv": group, "architecture": arch, **counts, "per_value": per_value(counts)})
            if thorough and arch == ARCHITECTURES[0] and group == 4:
                failures += doubts(f"{arithmetic} {bits} bits", kernel, counts)
    return sorted(rows, key=lambda r: (r["arithmetic"], -r["bits"], r["q_per_kv"], ARCHITECTURES.index(r["architecture"]))), failures


def doubts(name, kernel, counts):
    """What would make the counts wrong: a tile that costs otherwise, an instruction that the first lane of a warp does not execute."""
    out = [] if tile_counts(kernel, 192) == counts else [f"{name}: the second and third tile differ from the fourth"]
    first = run(kernel, 0, 256)[1]
    for lane in (1, 5, 8, 31):
        other = run(kernel, lane, 256)[1]
        # A lane may take the other side of a branch whose sides are equal in kind; what it adds is bounded by half a percent.
        extra = sum(max(0, there - here) for here, there in zip(first, other))
        if extra > 0.005 * sum(first):
            out.append(f"{name}: lane {lane} executes {extra} instructions that lane 0 does not")
    return out


def budget_rows(rows, source):
    """The card: lane instructions a value that the bandwidth leaves time for, what the kernel spends, and which unit is the last to finish."""
    out = []
    for slug, arch in GPUS:
        figures = {k: v["value"] for k, v in json.loads((source / f"simulator/gpus/{slug}.json").read_text())["figures"].items()}
        multiprocessors, clock = figures["sm_count"], figures["clock"] * 1e6
        for r in (r for r in rows if r["architecture"] == arch):
            lanes = {p: int(r[p]) * 32 / (2 * TILE * DIM) for p in ptx_counter.NAMES}
            memory = bytes_per_value(int(r["bits"])) / (figures["hbm_bandwidth"] * 1e9 / multiprocessors / clock)
            used = {"issue": sum(lanes.values()), "float": lanes["float"], "integer": lanes["integer"], "convert": lanes["convert"], "move": lanes["shared"] + lanes["shuffle"] + lanes["memory"]}
            clocks = {p: used[p] / RATES[arch][p] for p in used}
            clocks["tensor"] = lanes["tensor"] / 32 * MMA_OPERATIONS / (figures["int8_ops"] * 1e12 / multiprocessors / clock)
            busiest = max(clocks, key=clocks.get)
            share = clocks[busiest] / memory
            out.append({"gpu": slug, "arithmetic": r["arithmetic"], "bits": r["bits"], "q_per_kv": r["q_per_kv"], "bytes_per_value": f"{bytes_per_value(int(r['bits'])):.3f}",
                        "budget": f"{memory * RATES[arch]['issue']:.1f}", "spent": f"{used['issue']:.1f}", "busiest": busiest, "clocks_over_memory": f"{share:.2f}",
                        "bound": "memory" if share <= 1 else busiest})
    return out


def text_of(fields, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


SAMPLE = """
.visible .entry sample(
	.param .align 8 .b8 sample_param_0[224]
)
{
	.reg .pred 	%p<3>;
	ld.param.u64 	%rd1, [sample_param_0+8];
	mov.u32 	%r1, %tid.x;
	mov.u32 	%r2, 0;
$L__BB0_1:
	ld.shared.f32 	%f1, [%r1];
	fma.rn.f32 	%f2, %f1, %f1, %f1;
	setp.eq.f32 	%p2, %f2, 0f40000000;
	@!%p2 bra 	$L__BB0_2;
	add.s64 	%rd2, %rd1, -1;
	shfl.sync.bfly.b32 	%r5|%p1, %r2, 1, 31, -1;
$L__BB0_2:
	add.s32 	%r2, %r2, 1;
	setp.lt.s32 	%p1, %r2, 7;
	@%p1 bra 	$L__BB0_1;
	ret;
}
"""


def test(source):
    failures = []
    (kernel,) = ptx_counter.kernels_of(SAMPLE).values()
    counts, ran = ptx_counter.run(kernel, {8: 5}, {"%tid.x": 0}, {})
    # Seven rounds: 1 * 1 + 1 = 2, so the branch over sum and shuffle is never taken; the 64-bit sum counts twice.
    want = {"integer": 7 * (2 + 1 + 1), "float": 7 * 2, "convert": 0, "shared": 7, "shuffle": 7, "tensor": 0, "memory": 0, "control": 7 * 2}
    if counts != want or ran[-1] != 1:
        failures.append(f"counter: the sample gives {counts}, must give {want}")
    for name, pipe, weight in (("ld.shared.v4.u32", "shared", 1), ("cvt.f32.f16", "convert", 1), ("cvt.rn.f32.s32", "convert", 1), ("cvt.u32.u16", None, 0), ("cvt.s64.s32", "integer", 2),
                               ("setp.lt.f32", "float", 1), ("setp.lt.s64", "integer", 2), ("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32", "tensor", 1), ("bar.warp.sync", "control", 1),
                               ("mul.wide.s32", "integer", 1), ("selp.f32", "float", 1), ("div.rn.f32", "float", 10), ("mov.b32", None, 0)):
        try:
            if ptx_counter.pipe_of(name) != (pipe, weight):
                failures.append(f"counter: {name} counts as {ptx_counter.pipe_of(name)}, must count as {(pipe, weight)}")
        except ValueError as error:
            failures.append(str(error))
    rows = list(csv.DictReader((HERE / "instructions.csv").open()))
    failures += [f"instructions.csv: {r['arithmetic']} {r['bits']} {r['q_per_kv']}: per_value is {r['per_value']}, the counts give {per_value(r)}" for r in rows if r["per_value"] != per_value(r)]
    if len(rows) != 63:
        failures.append(f"instructions.csv: {len(rows)} rows, must be 63")
    if text_of(BUDGET_FIELDS, budget_rows(rows, source)) != (HERE / "budget.csv").read_text():
        failures.append("budget.csv does not follow from instructions.csv and the GPU files; write it again")
    for line in failures:
        print(line)
    print(f"{len(rows)} rows, {len(failures)} failures")
    return 1 if failures else 0


def main():
    mode, source = sys.argv[1], pathlib.Path(sys.argv[2])
    if mode == "test":
        return test(source)
    version = re.search(r"V([\d.]+)", subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout).group(1) if shutil.which("nvcc") else None
    if version is None:
        print("instructions: skipped, nvcc not found")
        return 77
    if mode == "check" and (made := next(csv.DictReader((HERE / "instructions.csv").open()))["nvcc"]) != version:
        print(f"instructions: skipped, the table is of nvcc {made}, this is {version}")
        return 77
    rows, failures = count_all(source, version, True)
    text = text_of(FIELDS, rows)
    for line in failures:
        print(line)
    if mode == "write":
        (HERE / "instructions.csv").write_text(text)
        (HERE / "budget.csv").write_text(text_of(BUDGET_FIELDS, budget_rows(rows, source)))
        print(f"{len(rows)} rows written, {len(failures)} failures")
    elif text != (HERE / "instructions.csv").read_text():
        print(f"instructions.csv differs from what nvcc {version} makes now; write it again")
        failures.append("table")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
