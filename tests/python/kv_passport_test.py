"""The passport hook against a tiny attention layer of torch, and against a tiny transformers model where that is installed."""
import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

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

    def forward(self, repeat, scale=None):
        self.outputs = [F.scaled_dot_product_attention(q, *(x.repeat_interleave(2, 1) if repeat else x for x in (k, v)), is_causal=True, scale=scale, enable_gqa=not repeat)
                        for q, k, v in zip(self.q, self.k, self.v)]

    def read(self, name):
        return np.load(self.out / f"story.L1.{name}.npy")

    def test_files_hold_the_layer_that_was_asked_for(self):
        for repeat in (True, False):
            facts = load().capture(lambda r=repeat: self.forward(r), "story", {1}, 2, self.out, queries=8)
            self.assertEqual(sorted(p.name for p in self.out.iterdir()), ["story.L1.k.npy", "story.L1.q.npy", "story.L1.v.npy"])
            self.assertEqual((facts["tokens"], facts["q_heads"], facts["kv_heads"], facts["scale"]), (100, 4, 2, 0.25))
            self.assertEqual((facts["positions"][0], facts["positions"][-1], len(facts["positions"])), (0, 99, 8))
            np.testing.assert_array_equal(self.read("k"), self.k[1, 0].transpose(0, 1).numpy())
            np.testing.assert_array_equal(self.read("v"), self.v[1, 0].transpose(0, 1).numpy())
            np.testing.assert_array_equal(self.read("q"), self.q[1, 0, :, facts["positions"]].transpose(0, 1).numpy())

    def test_attention_computed_from_the_files_is_the_attention_of_the_model(self):
        facts = load().capture(lambda: self.forward(True, scale=0.4), "story", {1}, 2, self.out)
        q, k, v = (self.read(n).astype(np.float64) for n in "qkv")
        for row, position in enumerate(facts["positions"]):
            for head in range(4):
                score = facts["scale"] * k[: position + 1, head // 2] @ q[row, head]
                weight = np.exp(score - score.max())
                expected = self.outputs[1][0, head, position].numpy()
                np.testing.assert_allclose(weight @ v[: position + 1, head // 2] / weight.sum(), expected, atol=1e-5)

    def test_the_hook_is_gone_even_after_a_failure(self):
        before = F.scaled_dot_product_attention

        def fail():
            self.forward(True)
            raise RuntimeError("model failed")

        with self.assertRaisesRegex(RuntimeError, "model failed"):
            load().capture(fail, "story", {0}, 2, self.out)
        self.assertIs(F.scaled_dot_product_attention, before)

    @unittest.skipIf(importlib.util.find_spec("transformers") is None, "transformers is not installed")
    def test_a_tiny_llama_of_transformers_gives_a_passport(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa")
        model = LlamaForCausalLM(config).eval()
        ids = torch.arange(40)[None]
        facts = load().capture(lambda: model(ids, use_cache=False), "story", {1}, 2, self.out)
        self.assertEqual((facts["tokens"], facts["q_heads"]), (40, 4))
        self.assertEqual((self.read("k").shape, self.read("q").shape), ((40, 2, 8), (40, 4, 8)))
        json.dumps(facts)
        # Values do not turn with the position: they are what the projection of this layer's input gives.
        seen = {}
        model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda _, __, out: seen.update(v=out))
        with torch.no_grad():
            model(ids, use_cache=False)
        np.testing.assert_allclose(self.read("v"), seen["v"][0].view(40, 2, 8).numpy(), atol=1e-6)


if __name__ == "__main__":
    if torch is None:
        print("skipped: torch is not installed")
        sys.exit(77)
    sys.exit(not unittest.main(exit=False, verbosity=2).result.wasSuccessful())
