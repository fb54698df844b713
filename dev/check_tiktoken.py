"""Compares the ids of `tokenizer` with those of tiktoken, GPT-2's own vocabulary in both.

    pip install tiktoken
    python3 dev/check_tiktoken.py --vocab DIR [--fixture LINES.jsonl IDS.txt] [--strings 100000] [--seed 1]

DIR holds merges.txt (or vocab.bpe) and encoder.json, as `data/get_data.sh gpt2-vocab` fetches them. Compared are: every
code point alone, before and after a letter and between spaces, random strings over an alphabet that mixes all classes of
characters, edge cases, and the lines of a fixture (one JSON string a line, its ids on the same line of
the other file), if there is one. Exit status 1 if anything differs.
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

import tiktoken

HERE = os.path.dirname(os.path.abspath(__file__))
MARK = "<|endoftext|>"
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

ALPHABET = (list("aaaeinorstLMSTDVRE      \n\n\t\r\x0b\x0c'''0123456789!?.,-_<|>$#") +
            ["'s", "'ll", "'re", "'VE", "\r\n", "  ", "the", " and", "\x00", "\x1c", "\x85", "\xa0", "\xad",
             "\xb2", "\xe9", "\u0301", "\u1680", "\u180e", "\u2003", "\u200b", "\u200d", "\u2019", "\u2028",
             "\u202f", "\u205f", "\u2167", "\u3000", "\u4f60", "\u597d", "\u0663", "\u0e01", "\u0e33", "\ufeff",
             "\ufffd", "\u0410", "\u0431", "\u05d0", "\u0627", "\uac00", "\U0001f600", "\U0001f468",
             "\U0001f1fa", "\U00010330", "\U00020000", "\U0001d7ce", "\U0010ffff", "\u1c89", "\U00011db0"])

EDGES = ["a", "\n", " ", "  ", "   a", "a   ", "a  \n b", "\n\n\nx", "\r\nx", "\t\tx", "I'm we'LL I'Ll 's", "''s", "'", "x'",
         "don\u2019t", "123456 7", "x\u00b2 \u2167 \u0663", "\u00a0x", " \u00a0x", "x\u0085y", "x\u2028y", "\u3000x",
         "a\u200bb", "a\x1cb", "\ufeffHi", "a\0b", "\u4f60\u597d\u4e16\u754c", "e\u0301", "!!!???", "a_b", "\ufffd",
         "a  <|endoftext|>  b", "<|endoftext|", "a\u1c89", "a\U00011db0", "a" * 32, "a" * 10000, "^" * 10000,
         " " * 10000, "\u4e2d" * 10000, "ab" * 5000, "abcdefghij" * 1000, "\U0001f468\u200d\U0001f469\u200d\U0001f467",
         "\U0001f1fa\U0001f1f8", " \ufffd", "".join(chr(i) for i in range(256)),
         "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[i * i * 7 % 61] for i in range(10000))]


def oracle(folder):
    ids = json.load(open(os.path.join(folder, "encoder.json"), encoding="utf-8"))
    visible = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 255 and b != 173]
    byte_of = {chr(b): b for b in visible}
    byte_of.update({chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in visible)})
    ranks = {bytes(byte_of[c] for c in s): i for s, i in ids.items() if s != MARK}
    return tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={MARK: ids[MARK]})


def merges_file(folder):
    path = os.path.join(folder, "merges.txt")
    return path if os.path.exists(path) else os.path.join(folder, "vocab.bpe")


def ours(program, folder, texts, work):
    """The ids of every text. Texts are documents between marks, so they must not hold the mark."""
    path, prefix = os.path.join(work, "texts"), os.path.join(work, "shard")
    with open(path, "wb") as f:
        for text in texts:
            f.write(MARK.encode() + b"\n" + text.encode("utf-8"))
    subprocess.run([program, "encode", "--overwrite", "--split", "eot", "--tokenizer",
                    merges_file(folder), "--out", prefix, path], check=True, stderr=subprocess.DEVNULL)
    data = open(prefix + "_000000.bin", "rb").read()
    count = struct.unpack("<3i", data[:12])[2]
    documents = []
    for i in struct.unpack(f"<{count}H", data[1024:]):
        documents.append([]) if i == 50256 else documents[-1].append(i)
    return documents


def ids_command(program, folder, text, *options):
    done = subprocess.run([program, "ids", "--tokenizer", merges_file(folder), *options],
                          input=text.encode(), stdout=subprocess.PIPE, check=True)
    return [int(word) for word in done.stdout.split()]


def compare(name, texts, got, want):
    bad = [i for i in range(len(texts)) if i >= len(got) or got[i] != want[i]]
    print(f"{name}: {len(texts)} compared, {len(bad)} differ", flush=True)
    for i in bad[:5]:
        print("   ", ascii(texts[i][:80]), got[i][:20] if i < len(got) else None, want[i][:20])
    return len(bad) + (len(got) != len(texts))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vocab", required=True)
    p.add_argument("--program", default=os.path.join(HERE, "..", "tokenizer"))
    p.add_argument("--fixture", nargs=2)
    p.add_argument("--strings", type=int, default=100000)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    encoding, bad = oracle(a.vocab), 0

    def check(name, texts):
        want = [encoding.encode_ordinary(text) for text in texts]
        return compare(name, texts, ours(a.program, a.vocab, texts, work), want)

    with tempfile.TemporaryDirectory() as work:
        points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
        bad += check("code points alone", [c for c in points if c != "\n"])
        bad += check("code points after a letter", ["a" + c for c in points])
        bad += check("code points before a letter", [c + "a" for c in points])
        bad += check("code points between spaces", ["  " + c + "  b" for c in points])
        rng = random.Random(a.seed)
        texts = ["".join(rng.choices(ALPHABET, k=rng.randint(1, 40))) for _ in range(a.strings)]
        texts = [text.lstrip("\r\n") or "x" for text in texts]      # a line end after the mark is part of it
        bad += check("random strings", texts)
        texts = ["".join(chr(c) for c in (rng.randrange(1, 0x110000) for _ in range(rng.randint(1, 8)))
                         if not 0xD800 <= c < 0xE000).lstrip("\r\n") or "x" for _ in range(a.strings // 4)]
        bad += check("random code points", texts)
        texts = EDGES + [""]
        bad += compare("edge cases (ids)", texts, [ids_command(a.program, a.vocab, text) for text in texts],
                       [encoding.encode_ordinary(text) for text in texts])
        bad += compare("edge cases (ids --special)", texts,
                       [ids_command(a.program, a.vocab, text, "--special") for text in texts],
                       [encoding.encode(text, allowed_special="all") for text in texts])
        if a.fixture:
            texts = [json.loads(line) for line in open(a.fixture[0], encoding="utf-8")]
            want = [[int(i) for i in line.split()] for line in open(a.fixture[1])]
            bad += compare("fixture", texts, [ids_command(a.program, a.vocab, text) for text in texts], want)
            plain = [i for i, text in enumerate(texts) if MARK not in text and text.lstrip("\r\n") == text != ""]
            texts, want = [texts[i] for i in plain], [want[i] for i in plain]
            bad += compare("fixture as documents", texts, ours(a.program, a.vocab, texts, work), want)
    print("equal" if not bad else f"{bad} differences")
    sys.exit(1 if bad else 0)


main()
