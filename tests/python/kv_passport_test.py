"""The passport hook against a tiny attention layer of torch, and against a tiny transformers model where that is installed."""
import importlib.util
import pathlib
import sys
import tempfile
import unittest

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from safetensors import safe_open
except ImportError as missing:
    print(f"skipped: {missing.name} is not installed")
    sys.exit(77)

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "python/examples/kv_passport.py"


def load():
    spec = importlib.util.spec_from_file_location("kv_passport", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class KvPassport(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = pathlib.Path(folder.name)
        generator = torch.Generator().manual_seed(1)
        self.q = torch.randn(2, 1, 4, 100, 16, generator=generator)  # layers, batch, heads, tokens, head_dim
        self.k, self.v = torch.randn(2, 2, 1, 2, 100, 16, generator=generator)

    def forward(self, repeat, **options):
        self.outputs = [F.scaled_dot_product_attention(q, *(x.repeat_interleave(2, 1) if repeat else x for x in (k, v)), is_causal=True, enable_gqa=not repeat, **options)
                        for q, k, v in zip(self.q, self.k, self.v)]

    def read(self, layer=1):
        with safe_open(self.out / f"story.layer{layer}.safetensors", "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()

    def capture(self, forward, layers=(1,), **options):
        load().capture(forward, self.out, "tiny", "story", set(layers), 2, **options)

    def test_files_hold_the_layer_that_was_asked_for(self):
        for repeat in (True, False):
            self.capture(lambda r=repeat: self.forward(r))
            self.assertEqual([p.name for p in self.out.iterdir()], ["story.layer1.safetensors"])
            rows, facts = self.read()
            self.assertEqual(facts, {"format": "kvatlas capture 1", "model": "tiny", "prompt": "story", "layer": "1", "rope": "after"})
            self.assertEqual(sorted(rows), ["k", "q", "v"])
            for name, whole in (("q", self.q), ("k", self.k), ("v", self.v)):
                np.testing.assert_array_equal(rows[name], whole[1, 0].numpy())

    def test_scale_and_window_are_written_where_they_are_not_the_usual(self):
        self.capture(lambda: self.forward(True, scale=0.4), layers=(0, 1), windows={1: 32})
        self.assertEqual([self.read(layer)[1].get("window") for layer in (0, 1)], [None, "32"])
        self.assertEqual(self.read()[1]["score_scale"], "0.4")

    def test_attention_computed_from_the_files_is_the_attention_of_the_model(self):
        self.capture(lambda: self.forward(True, scale=0.4))
        rows, facts = self.read()
        q, k, v = (rows[n].astype(np.float64) for n in "qkv")
        for head in range(4):
            for position in (0, 1, 57, 99):
                score = float(facts["score_scale"]) * k[head // 2, : position + 1] @ q[head, position]
                weight = np.exp(score - score.max())
                expected = self.outputs[1][0, head, position].numpy()
                np.testing.assert_allclose(weight @ v[head // 2, : position + 1] / weight.sum(), expected, atol=1e-5)

    def test_the_hook_is_gone_even_after_a_failure(self):
        before = F.scaled_dot_product_attention

        def fail():
            self.forward(True)
            raise RuntimeError("model failed")

        with self.assertRaisesRegex(RuntimeError, "model failed"):
            self.capture(fail)
        self.assertIs(F.scaled_dot_product_attention, before)

    def test_a_layer_that_the_model_does_not_have_is_refused(self):
        with self.assertRaisesRegex(ValueError, "layer is 5, must be below 2"):
            self.capture(lambda: self.forward(True), layers=(0, 5))

    @unittest.skipIf(importlib.util.find_spec("transformers") is None, "transformers is not installed")
    def test_a_tiny_llama_of_transformers_gives_a_passport(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa")
        model = LlamaForCausalLM(config).eval()
        ids = torch.arange(40)[None]
        self.capture(lambda: model(ids, use_cache=False))
        rows, facts = self.read()
        self.assertEqual((rows["k"].shape, rows["q"].shape), ((2, 40, 8), (4, 40, 8)))
        self.assertAlmostEqual(float(facts["score_scale"]), 8**-0.5)
        # Values do not turn with the position: they are what the projection of this layer's input gives.
        seen = {}
        model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda _, __, out: seen.update(v=out))
        with torch.no_grad():
            model(ids, use_cache=False)
        np.testing.assert_allclose(rows["v"], seen["v"][0].view(40, 2, 8).transpose(0, 1).numpy(), atol=1e-6)


if __name__ == "__main__":
    sys.exit(not unittest.main(exit=False, verbosity=2).result.wasSuccessful())
