"""Runs one thread of a compiled kernel (PTX) and counts what it executes, by pipe.

Registers hold raw bits. Integer instructions, predicates and branches are computed; of float instructions only moves, sums, products,
comparisons and conversions between 1.0s and their like matter, since control flow of the decode kernels hangs on lengths alone:
what memory holds is 1.0 in the type of the load (see `loaded`), shuffles give a lane its own value, products of matrices give zeros.
An instruction that is not known stops the run with its text.
"""
import re
import struct

# The pipe of an instruction, by the start of its name; the first match counts. Weights: instructions of the machine that ptxas makes of
# one, where that is not one: 64-bit integers are two words, a correctly rounded division about ten steps, a 64-bit one about seventy.
PIPES = (
    (r"(?:mov|cvta|ld\.param|ret)\b", None, 0),  # names of registers and constants: ptxas leaves them out
    (r"cvt\.[su]\d+\.[su](?:8|16)$|cvt\.[su]32\.[su]64$|cvt\.u64\.u32$", None, 0),  # another width of the same register, as loads leave it
    (r"mma\.", "tensor", 1),
    (r"shfl\.", "shuffle", 1),
    (r"(?:ld|st)\.shared", "shared", 1),
    (r"cp\.async\.cg", "memory", 1),
    (r"(?:ld|st)\.global", "memory", 1),
    (r"cvt\.(?:rn|rz|rni|rzi)?\.?f|cvt\S*\.f(?:16|32)$", "convert", 1),
    (r"div\.rn\.f32", "float", 10),
    (r"div\.(?:s|u)64", "integer", 70),
    (r"div\.(?:s|u)32|rem\.(?:s|u)32", "integer", 20),
    (r"(?:fma|add|sub|mul|neg|abs|max|min|setp\.\w+|selp)\.(?:rn\.)?f32", "float", 1),
    (r"mul\.lo\.s64", "integer", 3),
    (r"\S+\.[subf]64\b", "integer", 2),
    (r"(?:bra|bar|cp\.async)", "control", 1),
    (r"(?:add|sub|mul|mad|shl|shr|and|or|xor|not|neg|abs|min|max|prmt|bfi|bfe|setp|selp|cvt|lop3|popc|brev|clz)\b", "integer", 1),
)
NAMES = ("integer", "float", "convert", "shared", "shuffle", "tensor", "memory", "control")
LINE = re.compile(r"^\s+(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*?);\s*$")


def pipe_of(name):
    for pattern, pipe, weight in PIPES:
        if re.match(pattern, name):
            return pipe, weight
    raise ValueError(f"instruction {name}: no pipe is stated for it")


def f32(bits):
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0]


def bits32(x):
    try:
        return struct.unpack("<I", struct.pack("<f", x))[0]
    except OverflowError:
        return 0x7F800000 if x > 0 else 0xFF800000


def loaded(kind):
    """What memory holds: 1.0 as float32 or fp16, small codes in bytes."""
    width = int(kind[1:])
    return {8: 0x01, 16: 0x3C00, 32: 0x3F800000, 64: 0x3F8000003F800000}[width]


def signed(value, width):
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


class Kernel:
    """The instructions of one entry: (predicate, negated, name, operands); labels are indices."""

    def __init__(self, lines):
        self.code, self.labels = [], {}
        for line in lines:
            line = line.split("//")[0]
            if found := re.match(r"^(\$\w+):", line):
                self.labels[found.group(1)] = len(self.code)
            elif found := LINE.match(line):
                negated, predicate, name, rest = found.groups()
                operands = [o for o in re.split(r"[,\s{}\[\]|]+", rest) if o]
                self.code.append((predicate, negated == "!", name, operands, pipe_of(name)))


def kernels_of(ptx):
    """{mangled name: Kernel}"""
    out, name, lines = {}, None, []
    joined, pending = [], ""
    for line in ptx.split("\n"):  # an instruction may stand on several lines
        if pending or (re.match(r"^\s+(?:@!?%p\d+\s+)?[a-z][\w.:]*\s", line) and ";" not in line and ".param" not in line.split("%")[0].split()[:1]):
            pending += " " + line.strip() if pending else line
            if ";" in line:
                joined.append(pending)
                pending = ""
            elif not line.strip() or line.startswith((")", "{", "}")):
                joined.append(pending)
                pending = ""
        else:
            joined.append(line)
    for line in joined:
        if ".entry" in line:
            name, lines = re.search(r"\.entry\s+(\w+)", line).group(1), []
        elif line.startswith("}") and name:
            out[name] = Kernel(lines)
            name = None
        elif name:
            lines.append(line)
    return out


def run(kernel, parameters, special, control, limit=2000000):
    """Counts of one thread: {pipe: weighted instructions} and how often each instruction ran. `parameters` maps byte offsets to values, `control`
    addresses of 16 bytes to four words; `special` are %tid.x and the like."""
    regs, counts, ran = {}, dict.fromkeys(NAMES, 0), [0] * len(kernel.code)

    def get(o):
        if o[0] == "%":
            return special[o] if o in special else regs[o]
        if o.startswith("0f"):
            return int(o[2:], 16)
        if o.startswith("0x"):
            return int(o, 16)
        if re.match(r"-?\d+$", o):
            return int(o)
        return 0  # the name of shared memory

    at, steps = 0, 0
    while at < len(kernel.code):
        predicate, negated, name, o, (pipe, weight) = kernel.code[at]
        ran[at] += 1
        at += 1
        steps += 1
        if steps > limit:
            raise ValueError("the thread does not come to an end")
        if pipe:
            counts[pipe] += weight
        if predicate is not None and bool(regs[predicate]) == negated:
            continue
        part = name.split(".")
        op, kind = part[0], part[-1]
        width = int(kind[1:]) if re.match(r"[busf]\d+$", kind) else 0
        mask = (1 << width) - 1
        if op == "bra":
            at = kernel.labels[o[0]]
        elif op == "ret":
            break
        elif op in ("bar", "cp"):
            pass
        elif op == "ld":
            count = int(part[-2][1]) if re.match(r"v\d$", part[-2]) else 1
            if part[1] == "param":
                offset = int(o[-1].split("+")[1]) if "+" in o[-1] else 0
                for i in range(count):
                    regs[o[i]] = parameters.get(offset + i * width // 8, 0)
            else:
                base, _, add = o[count].partition("+")
                address = get(base) + (int(add) if add else 0)
                for i in range(count):
                    regs[o[i]] = control[address][i] if part[1] == "global" and address in control else loaded(kind)
        elif op == "st":
            pass
        elif op == "shfl":
            regs[o[0]] = get(o[1] if not o[1].startswith("%p") else o[2])
        elif op == "mma":
            for i in range(4):
                regs[o[i]] = 0
        elif op in ("mov", "cvta"):
            if len(o) == 2:
                regs[o[0]] = get(o[1])
            elif len(o) == 3 and width == 64:  # a pair of words; which side is the pair, the widths of the registers say
                if o[2].startswith("%rd"):
                    regs[o[0]], regs[o[1]] = get(o[2]) & 0xFFFFFFFF, get(o[2]) >> 32 & 0xFFFFFFFF
                else:
                    regs[o[0]] = get(o[1]) & 0xFFFFFFFF | (get(o[2]) & 0xFFFFFFFF) << 32
            elif len(o) == 3:
                if o[2].startswith("%rs"):
                    regs[o[0]] = get(o[1]) & 0xFFFF | (get(o[2]) & 0xFFFF) << 16
                else:
                    regs[o[0]], regs[o[1]] = get(o[2]) & 0xFFFF, get(o[2]) >> 16 & 0xFFFF
            else:
                raise ValueError(f"{name} {o}")
        elif op == "setp":
            if kind == "f32":
                a, b = f32(get(o[1])), f32(get(o[2]))
            else:
                a, b = (signed(get(x), width) if kind[0] == "s" else get(x) & mask for x in o[1:3])
            regs[o[0]] = {"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "eq": a == b, "ne": a != b, "gtu": not a <= b, "ltu": not a >= b, "nan": a != a or b != b,
                          "num": a == a and b == b, "leu": not a > b, "geu": not a < b, "equ": a == b, "neu": a != b}[part[1]]
        elif op == "selp":
            regs[o[0]] = get(o[1]) if regs[o[3]] else get(o[2])
        elif kind == "pred":
            a = bool(regs[o[1]])
            regs[o[0]] = not a if op == "not" else (a and bool(regs[o[2]]) if op == "and" else a or bool(regs[o[2]]) if op == "or" else a != bool(regs[o[2]]))
        elif op == "cvt":
            target, source = [p for p in part if re.match(r"[busf]\d+$", p)]
            value = get(o[1])
            if source == "f32":
                x = f32(value)
            elif source == "f16":
                x = struct.unpack("<e", struct.pack("<H", value & 0xFFFF))[0]
            else:
                x = signed(value, int(source[1:])) if source[0] == "s" else value & ((1 << int(source[1:])) - 1)
            if target == "f32":
                regs[o[0]] = bits32(round(x) if "rni" in part else float(x))
            elif target == "f16":
                regs[o[0]] = struct.unpack("<H", struct.pack("<e", x))[0] if abs(x) < 65504 else 0x7C00
            else:
                regs[o[0]] = (0 if isinstance(x, float) and (x != x or abs(x) > 1e18) else int(x)) & ((1 << int(target[1:])) - 1)
        elif kind == "f32":
            x = [f32(get(i)) for i in o[1:]]
            if op == "div":
                y = x[0] / x[1] if x[1] else float("nan")
            else:
                y = {"add": lambda: x[0] + x[1], "sub": lambda: x[0] - x[1], "mul": lambda: x[0] * x[1], "fma": lambda: x[0] * x[1] + x[2], "neg": lambda: -x[0],
                     "abs": lambda: abs(x[0]), "max": lambda: max(x), "min": lambda: min(x)}[op]()
            regs[o[0]] = bits32(y)
        elif op == "prmt":
            both = get(o[1]) & 0xFFFFFFFF | (get(o[2]) & 0xFFFFFFFF) << 32
            regs[o[0]] = sum((both >> 8 * (get(o[3]) >> 4 * i & 7) & 0xFF) << 8 * i for i in range(4))
        elif op == "bfi":
            length = get(o[4])
            field = ((1 << length) - 1) << get(o[3])
            regs[o[0]] = get(o[2]) & ~field | get(o[1]) << get(o[3]) & field
        else:
            wide = "wide" in part
            a = [signed(get(i), width) if kind[0] == "s" else get(i) & mask for i in o[1:]]
            if op == "shl":
                y = a[0] << get(o[2])
            elif op == "shr":
                y = a[0] >> get(o[2])
            elif op in ("div", "rem"):
                q = abs(a[0]) // abs(a[1]) * (1 if (a[0] < 0) == (a[1] < 0) else -1)
                y = q if op == "div" else a[0] - q * a[1]
            elif op == "mad":
                y = a[0] * a[1] + (get(o[3]) if wide else a[2])
            else:
                y = {"add": lambda: a[0] + a[1], "sub": lambda: a[0] - a[1], "mul": lambda: a[0] * a[1], "and": lambda: a[0] & a[1], "or": lambda: a[0] | a[1],
                     "xor": lambda: a[0] ^ a[1], "not": lambda: ~a[0], "neg": lambda: -a[0], "min": lambda: min(a), "max": lambda: max(a)}[op]()
            regs[o[0]] = y & ((1 << (2 * width if wide else width)) - 1)
    return counts, ran
