"""Retrieval tasks of the embedded model: the formats of README.md, for training (dense documents) and for evaluation."""
import dataclasses
import string

import numpy as np

WORDS = ("anchor basket bridge button candle castle forest garden harbor kettle ladder lantern letter market meadow mirror "
         "pepper pillow river saddle silver stone violin window").split()
RULES = {
    "upper": str.upper,
    "reverse": lambda s: s[::-1],
    "double": lambda s: "".join(c + c for c in s),
    "next": lambda s: "".join(chr((ord(c) - 97 + 1) % 26 + 97) for c in s),
}
LETTERS = np.array(list(string.ascii_lowercase))
TASKS = ("passkey", "multi_needle", "kv_lookup", "copy", "few_shot")


@dataclasses.dataclass(frozen=True)
class Record:
    """`[` question answer `] `: a record states it, a question repeats the text up to the answer."""

    question: str  # with the bracket, up to and with the space before the answer
    answer: str

    @property
    def text(self):
        return f"{self.question}{self.answer}] "


def digits(rng, count):
    return "".join(map(str, rng.integers(0, 10, count)))


def letters(rng, count, distinct=False):
    return "".join(rng.choice(LETTERS, count, replace=not distinct))


def passkey(rng):
    return Record("[pass key: ", digits(rng, 5))


def needles(rng, count, made_up=0.0):
    names = rng.choice(WORDS, count, replace=False)
    names = [letters(rng, rng.integers(3, 9)) if rng.random() < made_up else n for n in names]
    return [Record(f"[{n}: ", digits(rng, 5)) for n in dict.fromkeys(names)]


def kv_pairs(rng, count):
    names = dict.fromkeys(letters(rng, 3) for _ in range(count))
    return [Record(f"[{n}: ", digits(rng, 4)) for n in names]


def copy(rng):
    return Record("[copy: ", letters(rng, rng.integers(16, 33)))


def few_shot(rng, rule, count):
    names = dict.fromkeys(letters(rng, 3, distinct=True) for _ in range(count))
    return [Record(f"[{n} > ", RULES[rule](n)) for n in names]


def filler(rng, text, size):
    """`size` bytes of the text from the start of a word to a space."""
    start = int(rng.integers(0, len(text) - size - 64))
    start = text.index(b" ", start) + 1
    return text[start : start + max(size - 1, 0)] + b" " if size > 0 else b""


# Evaluation -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """context + question is the prompt; second is another question on the same context, with its answer."""

    context: bytes
    question: bytes
    answer: bytes
    second: tuple
    source: tuple  # [begin, end) of the answer inside context; (0, 0) where there is no single one


def place(text, records, depths):
    """Inserts each record at the word boundary that follows its depth (a fraction of the filler)."""
    parts, last = [], 0
    for record, depth in sorted(zip(records, depths), key=lambda pair: pair[1]):
        at = text.index(b" ", max(last, min(int(depth * len(text)), len(text) - 2))) + 1
        parts += [text[last:at], record.text.encode()]
        last = at
    return b"".join(parts) + text[last:]


def case(task, rng, text, size, latest=0.7):
    """A prompt of about `size` bytes; everything that the answer needs lies in the first `latest` of it."""
    if task == "passkey":
        records = [passkey(rng)]
    elif task == "multi_needle":
        records = needles(rng, 4)
    elif task == "copy":
        records = [copy(rng)]
    elif task == "kv_lookup":
        records = kv_pairs(rng, max(4, int(latest * size) // 12))
    elif task == "few_shot":
        rule = list(RULES)[int(rng.integers(len(RULES)))]
        records = few_shot(rng, rule, 10)
    else:
        raise ValueError(f"task is {task}, must be one of {', '.join(TASKS)}")
    asked = records if task != "few_shot" else records[-2:]
    stated = records if task != "few_shot" else records[:-2]
    room = size - sum(len(r.text) for r in stated) - len(asked[0].question)
    rest = filler(rng, text, max(room, 16))
    if task in ("kv_lookup", "few_shot"):
        context = "".join(r.text for r in stated).encode() + rest
    else:
        context = place(rest, stated, np.sort(rng.random(len(stated))) * latest)
    pick = rng.permutation(len(asked))
    first, second = asked[pick[0]], asked[pick[min(1, len(asked) - 1)]]
    at = context.find(first.text.encode())
    source = (at + len(first.question), at + len(first.question) + len(first.answer)) if at >= 0 else (0, 0)
    return Case(context, first.question.encode(), first.answer.encode(), (second.question.encode(), second.answer.encode()), source)


# Training ---------------------------------------------------------------------------------------------------------------


def events(rng, size):
    """Records in the order in which a training document states and asks them; at most 0.8 of its bytes."""
    kind = rng.choice(5, p=(0.2, 0.25, 0.25, 0.12, 0.18))
    room = 0.8 * size
    if kind == 0:
        records = [passkey(rng)] + (needles(rng, int(rng.integers(1, 4)), 0.3) if rng.random() < 0.5 else [])
    elif kind == 1:
        records = needles(rng, int(rng.integers(2, 7)), 0.3)
    elif kind == 2:
        records = kv_pairs(rng, int(rng.integers(2, max(4, room / 12 * 0.6))))
    elif kind == 3:
        records = [copy(rng)]
    else:
        return few_shot(rng, list(RULES)[int(rng.integers(len(RULES)))], int(rng.integers(4, max(6, min(24, room / 12)))))
    times = 1 if rng.random() < 0.4 else int(rng.integers(2, 4))  # questions a record
    if kind == 2:
        order = rng.permutation(len(records) * times)[: max(4, int(room / 12) - len(records))] % len(records)
        return records + [records[i] for i in order]
    order = list(range(len(records))) + list(rng.permutation(np.repeat(np.arange(len(records)), times)))
    out, used = [], 0
    for i in order:
        used += len(records[i].text)
        if used > room:
            break
        out.append(records[i])
    return out


def repeats(rng, size):
    """A random string said again and again: every byte after the first round can be known from the one that followed the same
    bytes before. Copying heads form on these within a thousand steps; on records alone they did not in three thousand."""
    alphabet = np.frombuffer((string.ascii_lowercase + string.digits + " []:")[: int(rng.choice((26, 36, 40)))].encode(), np.uint8)
    once = rng.choice(alphabet, int(rng.integers(8, max(9, min(size // 2, 160)))))
    return np.resize(once, size + 1), np.where(np.arange(size + 1) < len(once), 0.0, 2.0).astype(np.float32)


def document(rng, text, size, text_share, repeat_share, answer_weight):
    """size + 1 bytes and the loss weight of each: 0 for what cannot be known (values and names when first stated)."""
    kind = rng.random()
    if kind < text_share:
        start = int(rng.integers(0, len(text) - size - 1))
        return np.frombuffer(text, np.uint8, size + 1, start), np.ones(size + 1, np.float32)
    if kind < text_share + repeat_share:
        return repeats(rng, size)
    listed = events(rng, size)
    room = size + 1 - sum(len(r.text) for r in listed)
    # Gaps between records: from even to one big gap, so that short and long distances both occur.
    share = rng.dirichlet(np.full(len(listed) + 1, float(rng.choice((0.1, 0.5, 3.0)))))
    if listed[0].question[4:5] in (":", ">") and rng.random() < 0.5:  # lists often stand without filler between their records
        share[1 : len(share) // 2] = 0.0
        share /= share.sum()
    gaps = np.floor(share * room).astype(int)
    gaps[-1] += room - int(gaps.sum())
    whole = filler(rng, text, room + 1)
    seen, at, limit = set(), 0, 0
    data, weight = bytearray(), []
    few_shot_seen = 0
    for i, gap in enumerate(gaps):
        limit += int(gap)
        end = limit if i == len(listed) else max(at, whole.rfind(b" ", at, limit) + 1)  # records stand between words
        data += whole[at:end]
        weight += [1.0] * (end - at)
        at = end
        if i == len(listed):
            break
        record = listed[i]
        data += record.text.encode()
        known = record.question in seen
        if record.question[4:6] == " >":
            known = few_shot_seen >= 1  # the first example shows the rule
            few_shot_seen += 1
        seen.add(record.question)
        weight += [0.0] * (len(record.question) - 1) + [1.0]  # the space before the answer
        weight += [answer_weight if known else 0.0] * len(record.answer)
        weight += [answer_weight * 0.5, 1.0]  # the bracket, the space
    return np.frombuffer(bytes(data[: size + 1]), np.uint8), np.asarray(weight[: size + 1], np.float32)
