"""What there is, by name; and that importing the package loads nothing that was not asked for."""
import subprocess
import sys

import kvatlas
import pytest


def test_importing_the_package_alone_imports_neither_numpy_nor_the_library():
    code = "import kvatlas; assert 'numpy' not in sys.modules and 'kvatlas._native' not in sys.modules; assert 'simulate' in dir(kvatlas)"
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"], check=True)


def test_every_public_name_exists():
    for name in kvatlas.__all__:
        if name != "report":  # drawn by its own part of the package
            assert getattr(kvatlas, name) is not None


def test_methods_carry_their_record():
    all_methods = kvatlas.methods()
    assert len(all_methods) > 60 and len({m.slug for m in all_methods}) == len(all_methods)
    kivi = kvatlas.method("kivi", bits=2)
    assert str(kivi) == "kivi" or str(kivi) == "kivi:bits=2"
    assert kivi.record["paper"]["url"].startswith("http") and {p["name"] for p in kivi.params} >= {"bits"}
    assert kvatlas.method("kivi:bits=4").with_params(bits=2) == kivi
    assert all(m.family == "eviction" for m in kvatlas.methods("eviction"))
    assert "kivi" in kivi._repr_html_()


def test_models_come_by_slug_config_and_folder(tmp_path):
    llama = kvatlas.model("llama-3.1-8b")
    assert llama.kv_bytes_per_token == 32 * 8 * 128 * 2 * 2  # layers, kv heads, head_dim, keys and values, bytes of bf16
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 16,
              "num_key_value_heads": 4, "intermediate_size": 4096, "vocab_size": 32000, "rope_theta": 10000.0, "max_position_embeddings": 8192,
              "torch_dtype": "bfloat16", "tie_word_embeddings": False, "hidden_act": "silu", "rms_norm_eps": 1e-5}
    own = kvatlas.model(config)
    assert own.kv_bytes_per_token == 4 * 4 * 128 * 2 * 2
    import json

    (tmp_path / "config.json").write_text(json.dumps(config))
    assert kvatlas.model(tmp_path).kv_bytes_per_token == kvatlas.model(tmp_path / "config.json").kv_bytes_per_token == own.kv_bytes_per_token


def test_gpus_can_be_changed():
    h100 = kvatlas.gpu("h100-sxm")
    faster = h100.replace(hbm_bandwidth="6.7TB/s", l2="100MiB")
    assert faster.record["figures"]["hbm_bandwidth"]["value"] == 6.7e12
    assert faster.record["figures"]["l2"]["value"] == 100 * 2**20
    assert faster.replace(hbm_bandwidth=6.7e12) == faster and kvatlas.gpu(str(faster)) == faster
    assert faster.replace(hbm_bandwidth=h100.record["figures"]["hbm_bandwidth"]["value"], l2=h100.record["figures"]["l2"]["value"]) == h100
    assert "what-if" in faster._repr_html_()


@pytest.mark.parametrize(("call", "error", "sentence"), [
    (lambda: kvatlas.method("kivy"), ValueError, 'did you mean "kivi"?'),
    (lambda: kvatlas.method("kivi:bits=9"), ValueError, 'bits is "9"'),
    (lambda: kvatlas.method("k=kivi;v=full").with_params(bits=2), ValueError, "must be one method"),
    (lambda: kvatlas.methods("evicting"), ValueError, 'family is "evicting"'),
    (lambda: kvatlas.model("llama-3.1-9b"), ValueError, "did you mean"),
    (lambda: kvatlas.model("missing.json"), OSError, "missing.json"),
    (lambda: kvatlas.gpu("h10"), ValueError, 'did you mean "h100'),
    (lambda: kvatlas.gpu("h100-sxm").replace(hbm_bandwith="6.7TB/s"), ValueError, 'did you mean "hbm_bandwidth"?'),
    (lambda: kvatlas.gpu("h100-sxm").replace(hbm_bandwidth="6.7 apples"), ValueError, "hbm_bandwidth is"),
    (lambda: kvatlas.open_store("missing.sqlite"), OSError, "missing.sqlite"),
])
def test_errors_are_the_librarys_sentence_under_pythons_exception(call, error, sentence):
    with pytest.raises(error) as caught:
        call()
    assert sentence in str(caught.value)


def test_storage_adds_up():
    s = kvatlas.storage("kivi:bits=2", "llama-3.1-8b", "32K")
    assert sum(row["bytes"] for row in s["ledger"]) == s["total_bytes"]
    assert abs(sum(s["bits"].values()) - s["bits_per_value"]) < 1e-9
    assert kvatlas.method("kivi", bits=2).storage("llama-3.1-8b", 32768)["total_bytes"] == s["total_bytes"]
    refused = kvatlas.storage("kivi:group_size=48", "llama-3.1-8b", 1024)
    assert refused["why_not"] and refused["ledger"] is None
