#!/usr/bin/env python3
"""Writes test/golden/: two tiny GPT-2 directories and what PyTorch computes with them.

    python3 dev/make_golden.py [DIR]          needs torch and transformers

  lm/, classifier/    Hugging Face model directories, written by save_pretrained
  lm.safetensors      for every parameter NAME grad.NAME, the gradient of the mean loss, and
  classifier...       step3.NAME, the weights after three AdamW steps; in the metadata, as text,
                      tokens, labels, losses, norms of the gradient, options
  muon.safetensors    the same for lm, if the matrices of its blocks learn by Muon

All is computed in double precision from weights that float32 holds exactly, one sequence at a time,
and stored as float32. Every run gives the same tensors.
"""
import copy
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

LENGTHS = [5, 10, 1, 7, 2]                  # ragged; one fills the context, one is a single token
OPTIONS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "clip": 1.0}
LABELS = ["bad", "middling", "good"]


def tiny_config(**more):
    return GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=max(LENGTHS), vocab_size=29,
                      attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
                      bos_token_id=28, eos_token_id=28, pad_token_id=28, **more)


def randomize(model, seed):
    """No weight at a special value: biases that are 0 and gains that are 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        gain = ".ln_" in name and name.endswith("weight")
        values = torch.randn(p.shape, generator=generator) * 0.25 + (1.0 if gain else 0.0)
        p.data.copy_(values.to(torch.float32))


def lm_loss(model, sequences, labels):
    """Mean of -log p(next token) over all tokens that have a predecessor."""
    total, count = 0, 0
    for x in sequences:
        if len(x) < 2:
            continue
        log_p = model(x[None]).logits[0, :-1].log_softmax(-1)
        total = total - log_p.gather(1, x[1:, None]).sum()
        count += len(x) - 1
    return total / count


def classifier_loss(model, sequences, labels):
    """Mean over sentences. Alone in its batch, a sentence's class is read at its last token."""
    model.config.pad_token_id = None
    log_p = torch.cat([model(x[None]).logits for x in sequences]).log_softmax(-1)
    model.config.pad_token_id = 28
    return -log_p.gather(1, labels[:, None]).mean()


def train(model, loss_of, sequences, labels, muon=False):
    """The first gradient, the weights after three steps, and the numbers of each step."""
    model = copy.deepcopy(model).double().train()
    names = dict(model.named_parameters())
    whole = [p for name, p in names.items() if muon and ".h." in name and p.dim() > 1]
    matrices = [p for p in names.values() if p.dim() > 1 and not any(p is q for q in whole)]
    vectors = [p for p in names.values() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": OPTIONS["weight_decay"]},
                                   {"params": vectors, "weight_decay": 0.0}], lr=OPTIONS["lr"],
                                  betas=(OPTIONS["beta1"], OPTIONS["beta2"]), eps=1e-8)
    optimizers = [optimizer]
    if muon:
        optimizers.append(torch.optim.Muon(whole, lr=OPTIONS["lr"], adjust_lr_fn="match_rms_adamw",
                                           weight_decay=OPTIONS["weight_decay"]))
    tensors, losses, norms = {}, [], []
    for step in range(3):
        model.zero_grad()
        loss = loss_of(model, sequences, labels)
        loss.backward()
        if step == 0:
            tensors = {"grad." + name: p.grad.clone() for name, p in names.items()}
        norms.append(torch.nn.utils.clip_grad_norm_(names.values(), OPTIONS["clip"]).item())
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
    tensors.update({"step3." + name: p.data.clone() for name, p in names.items()})
    return {k: t.to(torch.float32).contiguous() for k, t in tensors.items()}, losses, norms


def write(directory, name, model, loss_of):
    generator = torch.Generator().manual_seed(7)
    sequences = [torch.randint(0, 29, (n,), generator=generator) for n in LENGTHS]
    labels = torch.randint(0, len(LABELS), (len(LENGTHS),), generator=generator)
    randomize(model, seed=1 + len(name))
    path = os.path.join(directory, name)
    shutil.rmtree(path, ignore_errors=True)
    model.save_pretrained(path)
    if os.path.exists(os.path.join(path, "generation_config.json")):
        os.remove(os.path.join(path, "generation_config.json"))
    save(path, model, loss_of, sequences, labels)
    if name == "lm":
        save(os.path.join(directory, "muon"), model, loss_of, sequences, labels, muon=True)


def save(path, model, loss_of, sequences, labels, **options):
    tensors, losses, norms = train(model, loss_of, sequences, labels, **options)
    words = {
        "lengths": " ".join(str(n) for n in LENGTHS),
        "tokens": " ".join(str(t) for x in sequences for t in x.tolist()),
        "labels": " ".join(str(k) for k in labels.tolist()),
        "losses": " ".join(f"{x:.17g}" for x in losses),
        "norms": " ".join(f"{x:.17g}" for x in norms),
        **{k: str(x) for k, x in OPTIONS.items()},
    }
    save_file(tensors, path + ".safetensors", metadata=words)
    print(f"{path}: losses {words['losses']}, norms {words['norms']}")


def main():
    default = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "golden")
    directory = os.path.normpath(sys.argv[1] if len(sys.argv) > 1 else default)
    os.makedirs(directory, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    torch.Tensor.bfloat16 = torch.Tensor.clone      # Muon's products, too, in double precision
    write(directory, "lm", GPT2LMHeadModel(tiny_config()), lm_loss)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: k for k, n in enumerate(LABELS)}}
    classifier = GPT2ForSequenceClassification(tiny_config(**names))
    write(directory, "classifier", classifier, classifier_loss)


if __name__ == "__main__":
    main()
