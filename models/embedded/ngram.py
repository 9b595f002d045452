"""Interpolated Kneser-Ney model over bytes: the baseline that the embedded model has to beat."""
import numpy as np


class Ngram:
    """P(byte | up to order - 1 bytes before it); one discount an order, n1 / (n1 + 2 n2); order 0 is uniform."""

    def __init__(self, text, order=5):
        self.order = order
        self.tables = {}
        codes, counts = np.unique(self.grams(np.frombuffer(text, np.uint8), order), return_counts=True)
        for n in range(order, 0, -1):
            ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
            contexts, first, kinds = np.unique(codes >> np.uint64(8), return_index=True, return_counts=True)
            self.tables[n] = (codes, counts, contexts, np.add.reduceat(counts, first), kinds, ones / max(ones + 2 * twos, 1))
            if n > 1:  # lower orders count the kinds of byte that stand before a gram
                codes, counts = np.unique(codes & np.uint64((1 << 8 * (n - 1)) - 1), return_counts=True)

    @staticmethod
    def grams(data, order):
        """Code of the `order` bytes that end at each byte from the first whole gram on."""
        out = np.zeros(len(data) - order + 1, np.uint64)
        for i in range(order):
            out = (out << np.uint64(8)) | data[i : len(data) - order + 1 + i].astype(np.uint64)
        return out

    @staticmethod
    def look_up(keys, values, wanted):
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, values[at], 0).astype(np.float64)

    def probabilities(self, text):
        """Probability of every byte of `text` from the order-th on (each with its full context)."""
        whole = self.grams(np.frombuffer(text, np.uint8), self.order)
        p = np.full(len(whole), 1 / 256)
        for n in range(1, self.order + 1):
            codes, counts, contexts, totals, kinds, discount = self.tables[n]
            gram = whole & np.uint64((1 << 8 * n) - 1)
            context = gram >> np.uint64(8)
            count, total, kind = self.look_up(codes, counts, gram), self.look_up(contexts, totals, context), self.look_up(contexts, kinds, context)
            seen = total > 0
            p = np.where(seen, (np.maximum(count - discount, 0) + discount * kind * p) / np.where(seen, total, 1), p)
        return p

    def bits(self, text):
        return float(-np.log2(self.probabilities(text)).mean())
