"""Makes the training and held-out text of the embedded model from three Debian packages of public-domain books.

    python corpus.py --out DIR          (needs apt-get and dpkg-deb; writes train.txt, heldout.txt, corpus.json)

r-cran-janeaustenr   Jane Austen's six novels, 1811-1818 (the R package around them is MIT; only the text is used)
bible-kjv-text       King James Bible, 1611 (printed by the program of package bible-kjv)
dict-devil           Ambrose Bierce, The Devil's Dictionary, 1911
"""
import argparse
import gzip
import hashlib
import json
import pathlib
import re
import struct
import subprocess
import tempfile
import zlib

PACKAGES = ("r-cran-janeaustenr", "bible-kjv-text", "bible-kjv", "dict-devil")
HELD_OUT = 0.04  # the end of every work, never trained on


def normalise(text):
    """One line a paragraph, ASCII only, no square brackets: these belong to the retrieval tasks alone."""
    for a, b in (("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"'), ("\u2014", "--"), ("[", "("), ("]", ")")):
        text = text.replace(a, b)
    text = text.encode("ascii", "ignore").decode()
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", text))
    return "\n".join(p for p in paragraphs if p) + "\n"


def r_strings(block):
    """The first character vector of a serialised R object (XDR): flags, length, then one CHARSXP an element."""
    at = block.index(b"\0\0\0\x10", 14)
    count = struct.unpack(">i", block[at + 4 : at + 8])[0]
    at += 8
    lines = []
    for _ in range(count):
        size = struct.unpack(">i", block[at + 4 : at + 8])[0]
        at += 8
        lines.append(block[at : at + max(size, 0)].decode("utf-8", "replace"))
        at += max(size, 0)
    return lines


def austen(root):
    folder = root / "usr/lib/R/site-library/janeaustenr/data"
    index = zlib.decompress((folder / "Rdata.rdx").read_bytes()) if (folder / "Rdata.rdx").read_bytes()[0] == 0x78 else gzip.open(folder / "Rdata.rdx").read()
    data = (folder / "Rdata.rdb").read_bytes()
    names = [n for n in ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "sensesensibility")]
    # The index holds, name by name, an integer pair (offset, length): type 13, count 2.
    pairs = [struct.unpack(">ii", m.group(1)) for m in re.finditer(rb"\0\0\0\x0d\0\0\0\x02(.{8})", index, re.S)]
    for name, (offset, size) in zip(names, pairs, strict=True):
        yield f"austen/{name}", "\n".join(r_strings(zlib.decompress(data[offset + 4 : offset + size])))


def bible(root):
    program = root / "usr/bin/bible"
    out = subprocess.run([program, "-p", root / "usr/lib/", "-l", "1000", "-f", "Gen1:1-Rev22:21"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    verses = re.findall(r"^(\w+?)(\d+):\d+ (.*)$", out.stdout.decode("latin-1"), re.M)
    chapters = {}
    for book, chapter, verse in verses:
        chapters.setdefault((book, chapter), []).append(verse.strip())
    return "\n\n".join(" ".join(v) for v in chapters.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temp:
        root = pathlib.Path(temp)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=root, check=True, capture_output=True)
        packages = sorted(p.name for p in root.glob("*.deb"))
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", package, "."], cwd=root, check=True)
        works = list(austen(root))
        works.append(("bible", bible(root)))
        devil = gzip.open(root / "usr/share/dictd/devil.dict.dz").read().decode("latin-1")
        works.append(("devil", devil[devil.index("PREFACE") :]))
    train, held_out, rows = [], [], []
    for name, text in works:
        text = normalise(text)
        cut = text.rindex("\n", 0, int(len(text) * (1 - HELD_OUT))) + 1
        train.append(text[:cut])
        held_out.append(text[cut:])
        rows.append({"work": name, "train_bytes": cut, "held_out_bytes": len(text) - cut})
    for name, parts in (("train.txt", train), ("heldout.txt", held_out)):
        (args.out / name).write_text("".join(parts), encoding="ascii")
    digest = {n: hashlib.sha256((args.out / n).read_bytes()).hexdigest() for n in ("train.txt", "heldout.txt")}
    (args.out / "corpus.json").write_text(json.dumps({"packages": packages, "works": rows, "sha256": digest}, indent=2) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
