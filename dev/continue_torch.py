#!/usr/bin/env python3
"""Goes on with a pretraining in PyTorch, whose Trainer runs on GPUs and, by torchrun, on many of them.

    python3 dev/continue_torch.py --model my/model --data my/train_000000.bin --out my/longer --steps 100
    torchrun --nproc-per-node 8 dev/continue_torch.py ...

The result opens here again: `./train_gpt eval --model my/longer --data my/val.bin` agrees to 1e-4 with
the loss that --val prints. The weights go on; AdamW's moments start at 0. Needs torch, transformers,
accelerate.
"""
import argparse, os, shutil
import numpy, torch, transformers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
for name in ("model", "data", "val", "out"):
    parser.add_argument("--" + name, required=name != "val")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--lr", type=float, default=1e-4)
options = parser.parse_args()

model = transformers.AutoModelForCausalLM.from_pretrained(options.model)
T = model.config.n_positions
read = lambda path: torch.from_numpy(numpy.fromfile(path, "<u2", offset=1024).astype("int64"))

rows = [{"input_ids": row, "labels": row} for row in read(options.data).split(T) if len(row) == T]
settings = transformers.TrainingArguments(options.out, max_steps=options.steps, learning_rate=options.lr,
    per_device_train_batch_size=options.batch, save_strategy="no", report_to=[], weight_decay=0.1)
trainer = transformers.Trainer(model, settings, train_dataset=rows)
trainer.train()
trainer.save_model(options.out)                     # rank 0 alone writes
for name in ("merges.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json"):
    if trainer.is_world_process_zero():
        shutil.copy(os.path.join(options.model, name), options.out)

if options.val and trainer.is_world_process_zero():
    x, total = read(options.val).to(model.device), 0.0
    model.eval()
    with torch.no_grad():
        for inputs, targets in zip(x[:-1].split(T), x[1:].split(T)):
            total += torch.nn.functional.cross_entropy(model(inputs[None]).logits[0], targets,
                                                       reduction="sum").item()
    print(f"loss {total / (len(x) - 1):.6f} of {options.val}")
