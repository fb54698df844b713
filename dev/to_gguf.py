#!/usr/bin/env python3
"""Writes a language model's directory as a GGUF file, for llama.cpp, ollama and LM Studio.

    pip install gguf
    python3 dev/to_gguf.py MODEL_DIR [OUT.gguf] [--type f32|f16]

The file holds GPT-2's tensors under llama.cpp's names, and the tokenizer: tokens, merges, and that
<|endoftext|> begins a text and ends one. llama.cpp multiplies by (out, in) matrices, so the matrices
of a block, which are (in, out) here, are transposed. --type f16 halves the matrices of the blocks and
wte; vectors and wpe stay f32. dev/check_gguf.py compares the file with our programs.
"""
import argparse
import json
import os
import re
import sys

try:
    import gguf
    import numpy as np
except ImportError as error:
    sys.exit(f"{error.name}: no such package. pip install gguf installs what is needed.")

DTYPES = {"F32": np.float32, "F16": np.float16}
NAMES = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm",
         "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up",
         "mlp.c_proj": "ffn_down"}
MARK = "<|endoftext|>"


def read_json(directory, name):
    path = os.path.join(directory, name)
    if not os.path.exists(path):
        sys.exit(f"{path}: no such file. Name a language model's directory with config.json, one "
                 "model.safetensors, and a tokenizer.")
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def read_tensors(path):
    """The metadata and the tensors, name -> array, of a safetensors file."""
    if not os.path.exists(path):
        sys.exit(f"{path}: no such file. A model must be one file; of several, save_pretrained(DIR, "
                 "max_shard_size='100GB') makes one.")
    data = np.memmap(path, mode="r")
    length = int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:8 + length]))
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, t in header.items():
        if t["dtype"] not in DTYPES:
            sys.exit(f"{path}: {name} is {t['dtype']}. Only {' and '.join(DTYPES)} are converted.")
        begin, end = (8 + length + at for at in t["data_offsets"])
        tensors[name] = data[begin:end].view(DTYPES[t["dtype"]]).reshape(t["shape"])
    return metadata, tensors


def gguf_name(name):
    """transformer.h.3.attn.c_attn.weight -> blk.3.attn_qkv.weight; None for attention masks."""
    if re.search(r"\.attn\.(masked_)?bias$", name):
        return None
    found = re.fullmatch(r"(?:transformer\.)?(?:h\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if not found or found[2] not in NAMES:
        sys.exit(f"{name}: not a tensor of a GPT-2 language model. Name the directory of one.")
    return (f"blk.{found[1]}." if found[1] else "") + f"{NAMES[found[2]]}.{found[3]}"


def add_tensors(writer, tensors, half):
    for name, tensor in tensors.items():
        new = gguf_name(name)
        if new is None:
            continue
        if re.search(r"\.c_(attn|proj|fc)\.weight$", name):
            tensor = tensor.T
        matrix = tensor.ndim == 2 and not new.startswith("position_embd")
        writer.add_tensor(new, np.ascontiguousarray(tensor, np.float16 if half and matrix else np.float32))


def read_tokenizer(directory):
    """Token -> id, and the merges as lines: of GPT-2's two files, or of tokenizer.json alone."""
    if not os.path.exists(os.path.join(directory, "vocab.json")):
        whole = read_json(directory, "tokenizer.json")
        ids = {t["content"]: t["id"] for t in whole["added_tokens"]} | whole["model"]["vocab"]
        return ids, [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
    with open(os.path.join(directory, "merges.txt"), encoding="utf-8", newline="\n") as f:
        merges = f.read().split("\n")
    return read_json(directory, "vocab.json"), \
        [m.rstrip("\r") for m in merges[merges[0].startswith("#version"):]]


def begins_with_mark(directory, ours):
    """Whether a text begins with <|endoftext|>, as tokenizer_config.json says, or else tokenizer.json's
    template; a directory of ours that says nothing means it."""
    for name in ("tokenizer_config.json", "tokenizer.json"):
        says = read_json(directory, name) if name in os.listdir(directory) else {}
        if "add_bos_token" in says:
            return bool(says["add_bos_token"])
        if says.get("post_processor"):
            return "SpecialToken" in (says["post_processor"].get("single") or [{}])[0]
    return ours


def add_tokenizer(writer, directory, vocabulary, ours):
    """The tokens in the order of their ids. A model may have more rows than there are tokens."""
    ids, merges = read_tokenizer(directory)
    if MARK not in ids:
        sys.exit(f"{directory}: its tokenizer has no {MARK}, so it is not GPT-2's.")
    tokens = [f"<|unused{i}|>" for i in range(vocabulary)]
    types = [gguf.TokenType.UNUSED] * vocabulary
    for token, i in ids.items():
        tokens[i] = token
        types[i] = gguf.TokenType.CONTROL if token == MARK else gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m for m in merges if m])
    writer.add_bos_token_id(ids[MARK])
    writer.add_eos_token_id(ids[MARK])
    writer.add_add_bos_token(begins_with_mark(directory, ours))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", metavar="MODEL_DIR")
    parser.add_argument("out", metavar="OUT.gguf", nargs="?", help="without: MODEL_DIR/model.gguf")
    parser.add_argument("--type", choices=["f32", "f16"], default="f32")
    a = parser.parse_args()
    out = a.out or os.path.join(a.model, "model.gguf")
    config = read_json(a.model, "config.json")
    if config.get("model_type") != "gpt2":
        sys.exit(f"{a.model}: is not a GPT-2, but {config.get('model_type')}. Name the directory of one.")
    if not os.path.isdir(os.path.dirname(out) or "."):
        sys.exit(f"{out}: no such directory. Make it, or name another file.")
    metadata, tensors = read_tensors(os.path.join(a.model, "model.safetensors"))
    writer = gguf.GGUFWriter(out, "gpt2")
    writer.add_name(os.path.basename(os.path.normpath(a.model)))
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type({"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}[a.type])
    add_tokenizer(writer, a.model, config["vocab_size"], ours="tokenizer_hash" in metadata)
    add_tensors(writer, tensors, half=a.type == "f16")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{out}: {os.path.getsize(out) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
