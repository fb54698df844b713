#!/usr/bin/env python3
"""How pretraining by MPI scales.

    python3 dev/scale.py model                       a table of 4, 16 and 64 machines at 1, 10 and 100 Gbit/s
    python3 dev/scale.py pair --data D --tokenizer T     one process of two threads, two ranks of one, in turns
    python3 dev/scale.py link --data D --tokenizer T    two ranks in two network namespaces, with tc

A step of k rounds, of R ranks with P parameters, where a slot takes `slot` seconds:
    send   = 4 P (R - 1) / R bytes / bandwidth + R latencies      a slot's gradient, or all weights
    step   = slot + (k - 1) max(slot, send) + send + update / R + send
since the gradients of all rounds but the last travel while the next slot is computed. `pair` and
`link` need a train_gpt that `make MPI=1` built; `link` needs root, for the namespaces.
"""
import argparse, os, shutil, statistics, subprocess, tempfile

# letter: layers, heads, channels, context, sequences of a slot; parameters with the tokenizer's V
SHAPES = {"A": (12, 12, 768, 64, 4), "C": (6, 4, 256, 256, 16),
          "S": (6, 4, 256, 64, 4)}              # C's trunk with slots so short that the link decides
LATENCY = {1: 50e-6, 10: 20e-6, 100: 5e-6}      # seconds a message, by Gbit/s
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]


def parameters(shape, V):
    L, _, C, T, _ = shape
    return (V + T) * C + L * (12 * C * C + 13 * C) + 2 * C


def step_seconds(P, R, rounds, slot, update, gbits):
    """The model above. One machine sends nothing."""
    send = 0 if R == 1 else 4 * P * (R - 1) / R / (gbits * 1e9 / 8) + R * LATENCY.get(gbits, 50e-6)
    return slot + (rounds - 1) * max(slot, send) + 2 * send + update / R


def efficiency(P, R, rounds, slot, update, gbits):
    """The speed of R machines as a part of R times that of one machine with the same step."""
    return step_seconds(P, 1, rounds * R, slot, update, gbits) / R / step_seconds(P, R, rounds, slot, update, gbits)


def model(options):
    P, slot, update = options.parameters, options.slot, options.update
    print(f"{P / 1e6:.0f}M parameters, a slot of {options.slot_tokens} tokens takes {slot:.2f} s; "
          f"a slot sends {4 * P / 1e6:.0f} MB (R - 1) / R\n")
    print("| machines | Gbit/s | rounds 1 | rounds 4 | rounds 16 | tokens a step for 90% |\n|---|---|---|---|---|---|")
    for R in (4, 16, 64):
        for gbits in (1, 10, 100):
            parts = [f"{efficiency(P, R, k, slot, update, gbits):.2f}" for k in (1, 4, 16)]
            # The smallest step that keeps 90%: in few long slots or in many short ones, which overlap.
            enough = min(next(f for f in (1.1 ** i for i in range(200))
                              if efficiency(P, R, k, f * slot, update, gbits) >= 0.9) * k for k in (1, 2, 4, 8))
            tokens = f"{enough * R * options.slot_tokens:,.0f}"
            print(f"| {R} | {gbits} | {' | '.join(parts)} | {tokens} |")


def train(options, shape, precision, slots, launch, threads):
    """Runs a few steps; returns the median seconds of a step, the first left out."""
    L, H, C, T, B = shape
    out = tempfile.mkdtemp()
    command = launch(["./train_gpt", "train", "--data", options.data, "--tokenizer", options.tokenizer,
                      "--layers", str(L), "--heads", str(H), "--channels", str(C), "--context", str(T),
                      "--batch", str(B), "--accumulate", str(slots), "--steps", str(options.steps), "--optimizer", "adamw",
                      "--save-every", "1000000", "--threads", str(threads), "--precision", precision, "--out", out])
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{run.stderr[-2000:]}")
    rows = [line.split("\t") for line in open(out + "/log.tsv")][2:]
    tokens = [float(row[6]) for row in [[0] * 7] + rows]
    shutil.rmtree(out)
    return statistics.median((b - a) / float(row[7]) for a, b, row in zip(tokens[1:], tokens[2:], rows[1:]))


def two(command):
    return MPIRUN + ["-n", "2"] + command


def pair(options):
    """Ratios of speeds: two ranks of one thread by one process of two threads, in turns."""
    print("| shape | precision | one process, s | two ranks, s | ratio of speeds |\n|---|---|---|---|---|")
    for letter in options.shapes:
        for precision in ("fp32", "bf16"):
            times = [[], []]
            for _ in range(options.turns):
                times[0].append(train(options, SHAPES[letter], precision, options.slots, list, 2))
                times[1].append(train(options, SHAPES[letter], precision, options.slots, two, 1))
            one, both = map(statistics.median, times)
            print(f"| {letter} | {precision} | {one:.3f} | {both:.3f} | {one / both:.2f} |", flush=True)


def namespaces(rate):
    """The commands that make two namespaces with a link of this rate in Mbit/s."""
    yield from ("ip netns add gpta", "ip netns add gptb",
                "ip link add gpt0a netns gpta type veth peer name gpt0b netns gptb")
    for number, end in enumerate("ab", 1):
        inside = f"ip netns exec gpt{end} "
        yield from (f"{inside}ip addr add 10.77.0.{number}/24 dev gpt0{end}",
                    f"{inside}ip link set gpt0{end} up", f"{inside}ip link set lo up",
                    f"{inside}tc qdisc add dev gpt0{end} root tbf rate {rate}mbit burst 1mb latency 50ms")


def bytes_sent():
    said = subprocess.run("ip netns exec gpta cat /sys/class/net/gpt0a/statistics/tx_bytes".split(),
                          capture_output=True, text=True, check=True)
    return int(said.stdout)


def link(options):
    """Measured steps on a slowed link beside the model's, and bytes on the link beside the formula's."""
    shape, slots = SHAPES[options.shapes[0]], options.slots
    V = 257 + sum(1 for line in open(options.tokenizer + "/merges.txt") if not line.startswith("#version"))
    P = parameters(shape, V)
    # mpirun runs in the first namespace; the rank in the second one finds it by the link.
    os.environ.update(PMIX_MCA_ptl_tcp_remote_connections="1", PMIX_MCA_ptl_tcp_if_include="gpt0a")
    def in_namespaces(command):
        return (["ip", "netns", "exec", "gpta"] + MPIRUN + ["--mca", "btl", "self,tcp", "-n", "1"] + command
                + [":", "-n", "1", "ip", "netns", "exec", "gptb"] + command)
    print(f"{P / 1e6:.1f}M parameters, {slots} slots a step")
    print("| Mbit/s | measured, s | model, s | MB a step, measured | formula |\n|---|---|---|---|---|")
    fast = None
    for rate in (100000, 1000, 100):
        try:
            for command in namespaces(rate):
                subprocess.run(command.split(), check=True)
            before = bytes_sent()
            measured = train(options, shape, "fp32", slots, in_namespaces, 1)
            sent = (bytes_sent() - before - 4 * P) / options.steps      # rank 0 begins with its weights
        finally:
            for name in ("gpta", "gptb"):
                subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)
        rounds = (slots + 1) // 2
        if fast is None: fast = measured
        # What the unlimited link takes is compute: the same number of slots in turn.
        expected = step_seconds(P, 2, rounds, fast / rounds, 0, rate / 1000) if rate < 100000 else fast
        formula = 4 * P / 2 * (rounds + 1)
        print(f"| {rate} | {measured:.3f} | {expected:.3f} | {sent / 1e6:.1f} | {formula / 1e6:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["model", "pair", "link"])
    parser.add_argument("--data")
    parser.add_argument("--tokenizer")
    parser.add_argument("--shapes", default="AC", help="letters; link takes the first")
    parser.add_argument("--slots", type=int, default=4, help="--accumulate of pair and link")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--parameters", type=float, default=124e6)
    parser.add_argument("--slot", type=float, default=1.0, help="seconds that a machine takes for a slot")
    parser.add_argument("--slot-tokens", type=int, default=1024)
    parser.add_argument("--update", type=float, default=0.1, help="seconds of AdamW for all parameters")
    options = parser.parse_args()
    if options.what != "model" and not (options.data and options.tokenizer):
        parser.error(f"{options.what} needs --data and --tokenizer")
    {"model": model, "pair": pair, "link": link}[options.what](options)


if __name__ == "__main__":
    main()
