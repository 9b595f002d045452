"""The recipe of the embedded model: task formats, 5-gram, forward pass against transformers, resume, export."""
import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest

try:
    import numpy as np
    import torch
except ImportError:
    torch = None
    print("skipped: torch is not installed")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "models/embedded"))
import evaluate  # noqa: E402
import export  # noqa: E402
import model  # noqa: E402
import ngram  # noqa: E402
import tasks  # noqa: E402
import train  # noqa: E402

TEXT = (b"It was a dark and stormy night; the rain fell in torrents, except at occasional intervals, when it was checked "
        b"by a violent gust of wind which swept up the streets. ") * 60
SMALL = {**model.CONFIG, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


class Tasks(unittest.TestCase):
    def test_a_question_repeats_its_record_and_the_answer_lies_before_the_last_quarter(self):
        for task in tasks.TASKS:
            for seed in range(20):
                case = tasks.case(task, np.random.default_rng(seed), TEXT, 1024)
                self.assertLess(abs(len(case.context) + len(case.question) - 1024), 24, task)
                self.assertTrue(case.context.endswith(b" ") and case.question.startswith(b"[") and case.question.endswith(b" "))
                record = case.question + case.answer + b"] "
                if task == "few_shot":
                    self.assertNotIn(case.question, case.context)
                    continue
                self.assertEqual(case.context.count(record), 1, task)
                self.assertEqual(case.context[case.source[0] : case.source[1]], case.answer)
                self.assertLess(case.source[1], 0.75 * 1024, task)
                before = case.context[: case.context.index(record)]
                self.assertTrue(before == b"" or before.endswith(b" "))
                self.assertIn(case.second[0] + case.second[1] + b"] ", case.context)

    def test_an_example_of_every_rule(self):
        self.assertEqual({name: rule("xyz") for name, rule in tasks.RULES.items()}, {"upper": "XYZ", "reverse": "zyx", "double": "xxyyzz", "next": "yza"})

    def test_training_documents_weigh_answers_and_never_what_cannot_be_known(self):
        rng = np.random.default_rng(3)
        for _ in range(50):
            data, weight = tasks.document(rng, TEXT, 400, 0.0, 4.0)
            self.assertEqual((len(data), len(weight)), (401, 401))
            text, seen = bytes(data), set()
            for record in text.split(b"[")[1:]:
                if b": " not in record or b"]" not in record:
                    continue
                name, value = record.split(b"]")[0].split(b": ")
                start = text.index(b"[" + record) + len(name) + 3
                if (name, value) in seen:  # the first place of an equal record is the one that states it
                    continue
                seen.add((name, value))
                self.assertEqual(weight[start : start + len(value)].sum(), 0.0)


class Baseline(unittest.TestCase):
    def test_the_probabilities_of_the_next_byte_sum_to_one(self):
        baseline = ngram.Ngram(TEXT)
        for context in (b"dark", b"torr", b"zzzz", b"he s"):
            total = sum(baseline.probabilities(context + bytes([b]))[0] for b in range(256))
            self.assertAlmostEqual(total, 1.0, places=9)

    def test_a_text_seen_is_cheaper_than_one_that_was_not(self):
        baseline = ngram.Ngram(TEXT)
        self.assertLess(baseline.bits(TEXT[:500]), 1.0)
        self.assertGreater(baseline.bits(bytes(range(33, 120))), 6.0)


class Model(unittest.TestCase):
    def weights(self):
        generator = torch.Generator().manual_seed(5)
        weights = model.initial(SMALL, 1)
        return {n: w + 0.05 * torch.randn(w.shape, generator=generator) for n, w in weights.items()}

    def test_the_exported_files_read_back_as_what_was_trained(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            weights = self.weights()
            data = export.safetensors(weights)
            (folder / "model.safetensors").write_bytes(data)
            (folder / "config.json").write_text(json.dumps(SMALL))
            read, config, _ = evaluate.load(folder)
            self.assertEqual(config, SMALL)
            self.assertEqual(sorted(read), sorted(weights))
            for name, w in weights.items():
                self.assertTrue(torch.equal(read[name], w.half().float()), name)
            self.assertLess(sum(np.prod(s) for s in model.shapes(model.CONFIG).values()) * 2 + 60_000, export.LIMIT)

    @unittest.skipIf(importlib.util.find_spec("transformers") is None, "transformers is not installed")
    def test_the_forward_pass_is_that_of_transformers(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        weights = self.weights()
        theirs = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in SMALL.items() if k not in ("architectures", "torch_dtype", "rope_scaling")})).float().eval()
        missing = theirs.load_state_dict(weights, strict=False)
        self.assertEqual((missing.unexpected_keys, [k for k in missing.missing_keys if k != "lm_head.weight"]), ([], []))
        tokens = torch.tensor([[model.BOS, *TEXT[:200]]])
        with torch.no_grad():
            ours = model.forward(weights, SMALL, tokens, model.rope_tables(SMALL, 256))
            self.assertLess((ours - theirs(tokens).logits).abs().max().item(), 1e-3)

    def test_a_window_that_covers_everything_is_full_attention_and_a_small_one_is_not(self):
        m = evaluate.Model(self.weights(), SMALL)
        data = TEXT[:120]
        full = m.logits(data)
        for kind in ("window", "cut"):
            wide = m.logits(data, evaluate.mask_of(kind, 121, 100, 121))
            narrow = m.logits(data, evaluate.mask_of(kind, 121, 100, 8))
            self.assertLess((wide - full).abs().max().item(), 1e-4)
            self.assertGreater((narrow - full)[-1].abs().max().item(), 1e-2)
        cut = m.logits(data, evaluate.mask_of("cut", 121, 100, 8))
        self.assertLess((cut - full)[:100].abs().max().item(), 1e-4)  # the prompt itself is read whole


class Training(unittest.TestCase):
    def run_steps(self, folder, steps):
        argv, stages, config = sys.argv, train.STAGES, model.CONFIG
        sys.argv = ["train.py", "--dir", str(folder), "--steps", str(steps), "--processes", "1"]
        train.STAGES, model.CONFIG = ((0, 192, 2, 0.3),), SMALL
        try:
            train.main()
        finally:
            sys.argv, train.STAGES, model.CONFIG = argv, stages, config
        return torch.load(folder / "checkpoint.pt", weights_only=True)

    def test_processes_share_a_batch(self):
        whole, _ = train.batch(7, 1, TEXT * 3, ((0, 192, 4, 0.3),))
        parts = [train.batch(7, 1, TEXT * 3, ((0, 192, 4, 0.3),), rank, 2)[0] for rank in (0, 1)]
        self.assertTrue(torch.equal(whole, torch.stack(parts, 1).flatten(0, 1)))

    def test_a_resumed_run_ends_where_an_unbroken_one_does(self):
        with tempfile.TemporaryDirectory() as folder:
            ends = []
            for name, parts in (("whole", (4,)), ("broken", (2, 4))):
                work = pathlib.Path(folder) / name
                (work / "corpus").mkdir(parents=True)
                for part in ("train.txt", "heldout.txt"):
                    (work / "corpus" / part).write_bytes(TEXT * 3)
                for steps in parts:
                    saved = self.run_steps(work, steps)
                ends.append(saved)
            self.assertEqual([e["step"] for e in ends], [4, 4])
            for name, w in ends[0]["weights"].items():
                self.assertTrue(torch.equal(w, ends[1]["weights"][name]), name)


if __name__ == "__main__":
    sys.exit(not unittest.main(exit=False, verbosity=2).result.wasSuccessful())
