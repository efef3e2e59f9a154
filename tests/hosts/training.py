#!/usr/bin/env python3
"""Data-parallel training over packed trees, over one ring, and by PyTorch over Gloo: training.py COPPICE --out DIR

Four hosts of hetero4 train one net on Fashion-MNIST together. First it is measured how long a step takes where links are
no limit; then links are scaled so that the ring's allreduce of all gradients takes twice as long, which makes
communication two thirds of a step whose parts do not overlap. Both then run with the same overlap of gradients and
backward, in turns. Results: DIR/training.jsonl, a line a run, and the last lines on standard output.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from fractions import Fraction
from typing import Any

sys.dont_write_bytecode = True
import netlab
import peers
from bench import predicted
from topology import LabError, load_topology

HERE = pathlib.Path(__file__).resolve().parent
TOPOLOGY = HERE / "topologies" / "hetero4.json"
DATA = "/usr/share/datasets/fashion-mnist"
ALL_IMAGES = 60_000
NO_LIMIT = Fraction(20)  # of the topology's rates: gigabits


def train(coppice: str, lab: netlab.Lab, options: argparse.Namespace, planner: str, images: int, epochs: int) -> dict[str, Any]:
    """One training by all hosts; seconds are of its steps alone, accuracy is of the test images."""
    with tempfile.TemporaryDirectory(prefix="coppice-training-") as directory:
        cluster = lab.write_cluster(pathlib.Path(directory))
        net = pathlib.Path(directory) / "net.onnx"

        def run(*words: Any) -> dict[str, Any]:
            done = subprocess.run([coppice, *map(str, words), "--json"], capture_output=True, text=True)
            if done.returncode != 0:
                raise LabError(f"coppice {words[0]} in {lab.name}: {done.stderr.strip().splitlines()[-1]}")
            return json.loads(done.stdout)

        subprocess.run([coppice, "keys", "--cluster", cluster], check=True, capture_output=True)
        trained = run("train", "--cluster", cluster, "--net", f"vgg:{options.widths}", "--epochs", epochs, "--batch", options.batch,
                      "--data", DATA, "--held-out", ALL_IMAGES - images, "--planner", planner, "--bucket", options.bucket,
                      "--out", net)
        steps = images // options.batch * epochs
        seconds = steps * options.batch / trained["images_per_second"]
        return {"seconds": seconds, "step_s": seconds / steps, "parameters": trained["parameters"],
                "accuracy": run("evaluate", "--model", net, "--data", DATA, "--mean", trained["mean"], "--std", trained["std"])["accuracy"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coppice", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--widths", default="32,32,64,64,128,128")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128, help="of all hosts together")
    parser.add_argument("--bucket", default="256K")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=ALL_IMAGES)
    parser.add_argument("--no-gloo", action="store_true")
    options = parser.parse_args()
    coppice = str(options.coppice.resolve())
    topology = load_topology(TOPOLOGY).renamed("thetero4")
    options.out.mkdir(parents=True, exist_ok=True)

    with netlab.running(topology.scaled(NO_LIMIT), netlab.Settings(route="widest"), force=True) as lab:
        alone = train(coppice, lab, options, "exact", min(options.images, 128 * options.batch), 1)
    ring = predicted(coppice, TOPOLOGY, "allreduce", "best_ring", topology.hosts[0])
    trees = predicted(coppice, TOPOLOGY, "allreduce", "exact", topology.hosts[0])
    bits = 32 * alone["parameters"]
    scale = Fraction(bits / 1e6 / (2 * alone["step_s"]) / float(ring)).limit_denominator(1000)
    print(f"a step alone: {alone['step_s'] * 1e3:.1f} ms; links at {float(scale):.3f} of {TOPOLOGY.stem}, where the ring needs "
          f"{2e3 * alone['step_s']:.1f} ms for {bits / 8e6:.2f} MB and the trees {2e3 * alone['step_s'] * float(ring / trees):.1f} ms",
          file=sys.stderr, flush=True)

    rows: list[dict[str, Any]] = []
    with netlab.running(topology.scaled(scale), netlab.Settings(route="widest"), force=True) as lab, \
            (options.out / "training.jsonl").open("a") as file:
        orders = [lab.hosts, peers.ring_order(lab.current)]
        for number in range(options.rounds):
            for who in ("exact", "best_ring", *(() if options.no_gloo else ("gloo", "gloo in ring order"))):
                if who.startswith("gloo"):
                    row = peers.train_with_gloo(lab, options.widths, options.epochs, options.batch, options.images, DATA,
                                                orders[who != "gloo"])
                else:
                    row = train(coppice, lab, options, who, options.images, options.epochs)
                rows.append({"who": who, "round": number, "epochs": options.epochs, "scale": float(scale),
                             "alone_step_s": alone["step_s"], **row})
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
                print(f"{who}: {row['seconds']:.1f} s, {row['accuracy']:.2f} %", file=sys.stderr, flush=True)

    ours = [row["seconds"] for row in rows if row["who"] == "exact"]
    for who in dict.fromkeys(row["who"] for row in rows):
        theirs = [row for row in rows if row["who"] == who]
        saved = [1 - a / b["seconds"] for a, b in zip(ours, theirs)]
        print(f"{who:20} {statistics.median(row['seconds'] for row in theirs):7.1f} s, "
              f"{statistics.median(row['accuracy'] for row in theirs):.2f} %, the trees save "
              f"{100 * statistics.median(saved):.0f} % ({100 * min(saved):.0f} to {100 * max(saved):.0f})")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as fault:
        sys.exit(f"training: {fault}")
