"""Compares `tokenizer train` with Hugging Face's trainer, merge for merge, and the ids that result.

    pip install tokenizers
    python3 dev/check_hf_tokenizer.py [--vocab 8257] [--split file|lines] [--bytes N] FILE...

Both learn from the same documents: whole files, or lines without their ends. 8257 tokens are 256 bytes,
8000 merges and <|endoftext|>. Then both encode the documents, and the directory that `tokenizer` wrote is
opened by the other side. Exit status 1 if anything differs. --bytes N takes the first N bytes of each
file, up to a line end. The text must be UTF-8, since Hugging Face's trainer accepts nothing else.
"""
import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
MARK = "<|endoftext|>"


def read_merges(path):
    lines = open(path, encoding="utf-8", newline="\n").read().split("\n")
    return [tuple(line.split(" ")) for line in lines[1:] if line]


def hf_tokenizer(model):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def hf_train(documents, vocab, min_frequency, work):
    tokenizer = hf_tokenizer(models.BPE())
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=min_frequency, special_tokens=[MARK], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.model.save(work)
    return read_merges(os.path.join(work, "merges.txt"))


def read_documents(shard):
    data = open(shard, "rb").read()
    count = struct.unpack("<3i", data[:12])[2]
    ids = struct.unpack(f"<{count}H", data[1024:])
    starts = [i for i, token in enumerate(ids) if token == ids[0]] + [count]
    return [list(ids[a + 1:b]) for a, b in zip(starts, starts[1:])]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", default=os.path.join(HERE, "..", "tokenizer"))
    p.add_argument("--vocab", type=int, default=8257)
    p.add_argument("--split", choices=["file", "lines"], default="file")
    p.add_argument("--bytes", type=int)
    p.add_argument("--min-frequency", type=int, default=2)
    p.add_argument("files", nargs="+")
    a = p.parse_args()
    texts = [open(path, "rb").read() for path in a.files]
    if a.bytes:
        texts = [text[:text[:a.bytes].rfind(b"\n") + 1] for text in texts]
    with tempfile.TemporaryDirectory() as work:
        paths = []
        for i, text in enumerate(texts):
            paths.append(os.path.join(work, f"text{i}"))
            open(paths[-1], "wb").write(text)
        documents = [text.decode("utf-8") for text in texts]
        if a.split == "lines":
            documents = [line for text in documents for line in
                         (line[:-1] if line.endswith("\r") else line for line in text.split("\n")) if line]
        start = time.time()
        want = hf_train(documents, a.vocab, a.min_frequency, work)
        hf_time, start = time.time() - start, time.time()
        out = os.path.join(work, "ours")
        subprocess.run([a.program, "train", "--vocab", str(a.vocab), "--split", a.split, "--min-frequency",
                        str(a.min_frequency), "--out", out, *paths], check=True, stderr=subprocess.DEVNULL)
        our_time = time.time() - start
        got = read_merges(os.path.join(out, "merges.txt"))
        same = next((i for i, pair in enumerate(zip(got, want)) if pair[0] != pair[1]), min(len(got), len(want)))
        equal = got == want
        print(f"{sum(map(len, texts)) / 1e6:.1f} MB, {len(documents)} documents: merges {len(got)} here, {len(want)} "
              f"there, the first {same} equal; {our_time:.2f} s here, {hf_time:.2f} s there")
        if not equal and same < min(len(got), len(want)):
            print("   first difference:", got[same], want[same])
        theirs = hf_tokenizer(models.BPE.from_file(os.path.join(out, "vocab.json"), os.path.join(out, "merges.txt")))
        subprocess.run([a.program, "encode", "--tokenizer", out, "--split", a.split, "--out",
                        os.path.join(work, "s"), *paths], check=True, stderr=subprocess.DEVNULL)
        sample = slice(0, 20000)
        ids = read_documents(os.path.join(work, "s_000000.bin"))
        hf_ids = [e.ids for e in theirs.encode_batch(documents[sample])]
        bad = sum(x != y for x, y in zip(ids[sample], hf_ids)) + (len(ids) != len(documents))
        print(f"ids of {len(hf_ids)} documents: {bad} differ")
    sys.exit(0 if equal and not bad else 1)


main()
