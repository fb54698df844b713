#!/usr/bin/env python3
"""tinyshakespeare by nanoGPT's documented settings for a CPU, in PyTorch, to compare with train_gpt.

    python3 dev/bench_nanogpt.py data/tinyshakespeare/train.txt data/tinyshakespeare/val.txt 180

The settings are those of nanoGPT's README for a CPU (Karpathy 2022): 4 layers, 4 heads, 128 channels,
context 64, 12 sequences in a step, a character is a token; AdamW 1e-3 to 1e-4 by a cosine, 100 steps
of warm-up, beta2 0.99, weight decay 0.1 of matrices, clip 1, no dropout, no biases. Instead of 2,000
steps it makes as many as fit into the seconds. Prints bits per byte of all of val.txt, cut into
sequences of the context; all characters of this text have one byte.
"""
import math, sys, time
import torch
from torch import nn
from torch.nn import functional as F

L, H, C, T, B = 4, 4, 128, 64, 12


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.qkv, self.attention = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.fc, self.projection = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def forward(self, x):
        heads = (t.view(*t.shape[:2], H, C // H).transpose(1, 2) for t in self.qkv(self.ln1(x)).split(C, 2))
        read = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.attention(read.transpose(1, 2).reshape(x.shape))
        return x + self.projection(F.gelu(self.fc(self.ln2(x))))


class GPT(nn.Module):
    def __init__(self, V):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
        self.blocks, self.ln = nn.Sequential(*(Block() for _ in range(L))), nn.LayerNorm(C, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * L) if name.endswith(("attention.weight", "projection.weight")) else 0.02)

    def forward(self, x, y):
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        logits = self.ln(self.blocks(h)) @ self.wte.weight.T
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def main():
    train, val, limit = open(sys.argv[1]).read(), open(sys.argv[2]).read(), float(sys.argv[3])
    ids = {c: i for i, c in enumerate(sorted(set(train + val)))}
    data, held = (torch.tensor([ids[c] for c in text]) for text in (train, val))
    torch.manual_seed(1337)
    model = GPT(len(ids))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adamw = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}],
                              lr=1e-3, betas=(0.9, 0.99), fused=True)

    def step(rate):
        at = torch.randint(len(data) - T, (B,))
        x, y = (torch.stack([data[i + k:i + k + T] for i in at]) for k in (0, 1))
        for group in adamw.param_groups: group["lr"] = rate
        loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    start, n = time.time(), 0
    while (used := (time.time() - start) / limit) < 1:          # the cosine follows the clock
        step(min(1, (n + 1) / 100) * (1e-4 + 9e-4 * (1 + math.cos(math.pi * used)) / 2))
        n += 1
    with torch.no_grad():
        rows = (len(held) - 1) // T
        x, y = (held[k:k + rows * T].view(rows, T) for k in (0, 1))
        losses = [model(a, b).item() * len(a) for a, b in zip(x.split(64), y.split(64))]
    print(f"{n} steps, {n * B * T / 1e6:.2f}M characters, {sum(losses) / rows / math.log(2):.3f} bits per byte")


main()
