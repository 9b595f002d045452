"""Checking kernels: cases, the comparison, and vectors on disk."""
import json

import kvatlas
import numpy as np
import pytest
from kvatlas.arrays import f32_to_bf16

CACHED = [m.slug for m in kvatlas.methods() if "open" in m.record["faces"]]


def run(case):
    """The reference driven from Python, as a kernel's author would drive a kernel."""
    cache = case.open_cache()
    out = np.zeros_like(case.outputs["out"])
    layers, tokens = out.shape[0], case.prompt + case.decode

    def feed(first, last):
        for layer in range(layers):
            out[layer, :, first:last] = cache.forward(layer, *(case.inputs[n][layer][:, first:last] for n in "qkv"))

    for first in range(0, case.prompt, case.chunk):
        feed(first, min(first + case.chunk, case.prompt))
    cache.end_prefill()
    prompt = cache.buffers()
    for i in range(case.prompt, tokens):
        feed(i, i + 1)
    return {"out": out, "prompt": prompt, "end": cache.buffers()}


@pytest.mark.parametrize("method", CACHED)
def test_the_reference_passes_its_own_check(method):
    for case in kvatlas.cases(method):
        outputs = run(case)
        result = kvatlas.check(method, outputs, case=case)
        assert result.equal and result and not result.not_given, str(result)


def test_the_first_difference_and_its_distance_are_found():
    case = kvatlas.case("kivi", 0)
    outputs = run(case)
    wrong = outputs["out"].copy()
    at = (0, 0, case.prompt + 1, 5)
    wrong[at] = np.nextafter(wrong[at], np.float32(np.inf))
    result = kvatlas.check("kivi", {**outputs, "out": wrong}, case=case)
    assert not result and result.first.stage == "attention of decoding" and result.first.first == (0, 0, 1, 5)
    assert result.first.different == 1 and result.first.max_ulp == 1 and result.first.ulp["1"] == 1
    name = next(n for n, b in outputs["prompt"].items() if b.size)
    flipped = {n: b.copy() for n, b in outputs["prompt"].items()}
    flipped[name][0] ^= 1
    result = kvatlas.check("kivi", {**outputs, "prompt": flipped, "out": wrong}, case="case0")
    assert result.first.stage == "prompt" and result.first.name == name and "differ" in str(result)
    assert json.dumps(result.to_dict()["equal"]) == "false"


def test_decode_steps_alone_and_other_dtypes_can_be_checked():
    case = kvatlas.case("fp8_kv")
    out = run(case)["out"]
    assert kvatlas.check("fp8_kv", out[:, :, case.prompt :]).equal
    assert kvatlas.check("fp8_kv", out.astype(np.float16)).equal
    bf16 = kvatlas.compare(out, f32_to_bf16(out), bf16=True)
    assert bf16.equal
    off = kvatlas.compare(out, f32_to_bf16(out) + np.uint16(1), bf16=True)
    assert off.different == out.size and off.max_ulp == 1
    assert kvatlas.compare(out, out[:1]).note or out.shape[0] == 1


def test_default_float_types_and_lists_are_rounded_to_float32_first():
    case = kvatlas.case("kivi")
    outputs = run(case)
    out = outputs["out"]
    assert kvatlas.check("kivi", out.astype(np.float64)).equal and kvatlas.check("kivi", out.tolist()).equal
    assert kvatlas.check("kivi", {**outputs, "out": out.tolist()}).equal
    wrong = out.astype(np.float64)
    wrong[0, 0, 0, 0] += 1
    found = kvatlas.compare(out.astype(np.float64), wrong)
    assert found.different == 1 and found.first == (0, 0, 0, 0) and found.max_abs == pytest.approx(1, rel=1e-6) and found.max_ulp > 0
    assert kvatlas.compare([0.1, 0.2], np.array([0.1, 0.2], np.float32)).equal and kvatlas.compare(np.array([0.1]), [0.1]).equal
    assert kvatlas.compare([0.1, 0.2], [0.1, 0.3]).different == 1
    assert kvatlas.compare(np.array([1, 2], np.uint8), [1, 2]).equal and kvatlas.compare(np.array([1, 2], np.float32), [1, 2]).equal
    assert kvatlas.compare(np.array([1, 2], np.uint8), [1, 300]).note
    assert kvatlas.compare(np.array([1.0, 1e300]), np.array([1.0, np.inf], np.float32)).equal


def test_wrong_outputs_are_said():
    with pytest.raises(ValueError, match="must have any of"):
        kvatlas.check("kivi", {"output": np.zeros(3)})
    with pytest.raises(ValueError, match="case is 99"):
        kvatlas.case("kivi", 99)


def test_speculation_is_checked_by_rows_tokens_and_buffers():
    case = kvatlas.case("specpv")
    emitted = case.outputs["emitted"]
    assert case.kind == "speculation" and emitted.shape == (case.decode, 4) and (emitted[:, 0] >= 0).all() and (emitted[:, 1:] >= 0).any()  # some drafts are accepted
    given = {**case.outputs, **case.stages}
    assert kvatlas.check("specpv", given, case=case).not_given == [] and kvatlas.check("specpv", given, case=case)
    wrong = case.outputs["out"].copy()
    wrong[0, 0, 3, 2] += 1
    found = kvatlas.check("specpv", {**given, "out": wrong}, case=case)
    assert not found and found.first.stage == "verifying" and found.first.first == (0, 0, 3, 2)
    with pytest.raises(ValueError, match="must have any of"):
        kvatlas.check("specpv", {"decode": wrong})


def test_vectors_on_disk_are_plain_npy_and_json(tmp_path):
    folders = kvatlas.write_vectors("snapkv", tmp_path, cases=2)
    assert len(folders) == 2
    case = kvatlas.case("snapkv", folders[1])
    description = json.loads((tmp_path / "snapkv" / "case1" / "case.json").read_text())
    for name, row in {**description["inputs"], **description["outputs"]}.items():
        array = np.load(tmp_path / "snapkv" / "case1" / row["file"])
        assert list(array.shape) == row["shape"] and np.array_equal(array, {**case.inputs, **case.outputs}[name])
    stage = description["stages"][0]
    packed = np.load(tmp_path / "snapkv" / "case1" / stage["file"])
    for b in stage["buffers"]:
        assert np.array_equal(packed[b["offset"] : b["offset"] + b["bytes"]], case.stages["prompt"][b["name"]])
    built_in = kvatlas.case("snapkv", 1)
    assert np.array_equal(built_in.outputs["out"], case.outputs["out"])
    array[...] = 0
    np.save(tmp_path / "snapkv" / "case1" / "out.npy", array)
    with pytest.raises(OSError, match="hash"):
        kvatlas.case("snapkv", folders[1])
