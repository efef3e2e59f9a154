#!/usr/bin/env python3
"""Makes the shipped Fashion-MNIST nets: base, class-parallel sub-nets, companions, control.

From sensAI (Wang et al., MLSys 2021): give each worker a small net that scores a few classes only.
Here the sub-nets are not pruned and retrained one by one. They are trained from scratch and
jointly, by one softmax over the ten scores of all five, with distillation from the base. Only
scores and their gradients cross between sub-nets, so this is itself class-parallel training.
Companions are whole ten-class nets of a worker's size; they answer for lost sub-nets. The
control is one more such net: what a user would run instead with the same compute a worker.

The last 5,000 training images are held out: never trained on, used to fit decoders and to choose.
The test images are scored once, at the end, from the exported ONNX files.

  train.py --data DIR --out DIR --seed 0    train; writes *.onnx, nets.json and figures.json
  train.py --aggregate DIR DIR ...          differences to the base, paired over seeds
"""
import argparse
import gzip
import hashlib
import itertools
import json
import math
import platform
import re
import statistics
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
GROUPS = [[0, 6], [1, 3], [2, 4], [5, 7], [8, 9]]   # classes that look alike share a sub-net
COLUMN_OF_CLASS = [sum(GROUPS, []).index(c) for c in range(10)]
WORKERS = [f"subnet{i}" for i in range(len(GROUPS))] + ["companion0", "companion1"]
JUDGED = ["base", "joined", "control", "companion0", "companion1"]
BASE_WIDTHS = (16, 16, 32, 32, 64, 64)
WORKER_WIDTHS = (8, 8, 16, 16, 32, 32)
MEAN, STD, SIDE, PAD = 0.2860, 0.3530, 28, 2
HELD_OUT, BATCH, PEAK_LR, TEMPERATURE = 5000, 128, 0.15, 3.0
T_975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]  # Student t, 1..9 d.o.f.


def read_idx(path):
    """A gzipped IDX file of bytes as a uint8 array."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def load(folder, part):
    return (torch.from_numpy(read_idx(folder / f"{part}-images-idx3-ubyte.gz").copy()),
            torch.from_numpy(read_idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)))


def normalise(pixels):
    """uint8 [N,28,28] -> float32 [N,1,28,28]."""
    return ((pixels.float() / 255 - MEAN) / STD).unsqueeze(1)


class Batches:
    """Shuffled, randomly cropped (pad 2) and flipped batches; one generator decides everything."""

    def __init__(self, images, labels, seed):
        self.images = F.pad(images, (PAD, PAD, PAD, PAD))
        self.labels = labels
        self.random = torch.Generator().manual_seed(seed)
        self.per_epoch = len(labels) // BATCH

    def epoch(self):
        order = torch.randperm(len(self.labels), generator=self.random)
        span = torch.arange(SIDE)
        for pick in order[:self.per_epoch * BATCH].split(BATCH):
            top, left = torch.randint(0, 2 * PAD + 1, (2, BATCH, 1), generator=self.random)
            flip = torch.rand(BATCH, 1, generator=self.random) < 0.5
            columns = left + torch.where(flip, SIDE - 1 - span, span)
            crop = self.images[pick[:, None, None], (top + span)[:, :, None], columns[:, None, :]]
            yield normalise(crop), self.labels[pick]


def vgg(widths, outputs, seed):
    """conv3x3-bn-relu per width, max-pool after every second (28 -> 14 -> 7 -> 3), one linear."""
    torch.manual_seed(seed)
    layers, channels = [], 1
    for i, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False),
                   nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if i % 2 else []
        channels = width
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * channels, outputs))
    return net.to(memory_format=torch.channels_last)


def macs(widths, outputs):
    """Multiply-adds an image."""
    total, channels, side = 9 * widths[-1] * outputs, 1, SIDE
    for i, width in enumerate(widths):
        total += side * side * 9 * channels * width
        side, channels = side // 2 if i % 2 else side, width
    return total


def join(outputs):
    """The sub-nets' outputs, in the order of GROUPS, as ten scores in class order."""
    return torch.cat(outputs, 1)[:, COLUMN_OF_CLASS]


def distil(scores, labels, teacher):
    """Half cross-entropy, half T^2 KL(teacher || net) at temperature T."""
    kl = F.kl_div(F.log_softmax(scores / TEMPERATURE, 1), F.log_softmax(teacher / TEMPERATURE, 1),
                  reduction="batchmean", log_target=True)
    return 0.5 * F.cross_entropy(scores, labels) + 0.5 * TEMPERATURE ** 2 * kl


def train(name, nets, loss_of, batches, epochs, watch):
    """SGD with Nesterov momentum under one one-cycle; watch() is a line about held-out accuracy."""
    parameters = [p for net in nets for p in net.parameters()]
    steps, done, start = epochs * batches.per_epoch, 0, time.time()
    sgd = torch.optim.SGD(parameters, lr=PEAK_LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, PEAK_LR, total_steps=steps, pct_start=0.2)
    for epoch in range(1, epochs + 1):
        nn.ModuleList(nets).train()
        for images, labels in batches.epoch():
            sgd.zero_grad()
            loss = loss_of(images, labels)
            loss.backward()
            sgd.step()
            cycle.step()
            done += 1
            if done % 143 == 0:
                left = (time.time() - start) * (steps - done) / done
                print(f"{name} epoch {epoch}/{epochs} step {done}/{steps} loss {loss.item():.3f} "
                      f"eta {left:.0f} s", flush=True)
        print(f"{name} epoch {epoch}/{epochs} held-out {watch()}", flush=True)


def scores_of(net, images):
    net.eval()
    with torch.no_grad():
        return torch.cat([net(chunk) for chunk in images.split(500)])


def percent(scores, labels):
    return 100.0 * (scores.argmax(1) == labels).double().mean().item()


def make_nets(args, batches, held_images, held_labels):
    """Trains everything; returns {file name: net}."""
    def held(net):
        return percent(scores_of(net, held_images), held_labels)

    base = vgg(BASE_WIDTHS, 10, args.seed * 100)
    train("base", [base], lambda x, y: F.cross_entropy(base(x), y), batches, args.base_epochs,
          lambda: f"{held(base):.2f}")
    base.eval()

    subnets = [vgg(WORKER_WIDTHS, len(g), args.seed * 100 + 1 + i) for i, g in enumerate(GROUPS)]
    wholes = {name: vgg(WORKER_WIDTHS, 10, args.seed * 100 + 11 + i)
              for i, name in enumerate(JUDGED[2:])}

    def loss_of(images, labels):
        with torch.no_grad():
            teacher = base(images)
        loss = distil(join([net(images) for net in subnets]), labels, teacher)
        return loss + sum(distil(net(images), labels, teacher) for net in wholes.values())

    def watch():
        joined = percent(join([scores_of(net, held_images) for net in subnets]), held_labels)
        return f"joined {joined:.2f} " + " ".join(f"{n} {held(w):.2f}" for n, w in wholes.items())

    train("workers", subnets + list(wholes.values()), loss_of, batches, args.epochs, watch)
    return {"base": base, **{f"subnet{i}": net for i, net in enumerate(subnets)}, **wholes}


def export(net, path):
    """One self-contained ONNX file; batch norm is folded, the batch axis is free."""
    net = net.to(memory_format=torch.contiguous_format).eval()
    torch.onnx.export(net, (torch.zeros(1, 1, SIDE, SIDE),), str(path), opset_version=13,
                      dynamo=False, input_names=["image"], output_names=["scores"],
                      dynamic_axes={"image": {0: "N"}, "scores": {0: "N"}})
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert path.stat().st_size < 400_000


def onnx_scores(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.cat([torch.from_numpy(session.run(["scores"], {"image": chunk.numpy()})[0])
                      for chunk in images.split(500)])


def manifest(seed):
    return {"schema": 1, "data": "fashion-mnist",
            "input": {"shape": [1, SIDE, SIDE], "mean": MEAN, "std": STD},
            "seed": seed, "classes": CLASSES, "held_out": HELD_OUT, "groups": GROUPS,
            "base": "base.onnx", "control": "control.onnx",
            "subnets": [{"file": f"subnet{i}.onnx", "classes": g} for i, g in enumerate(GROUPS)],
            "companions": [{"file": f"{n}.onnx", "classes": list(range(10))} for n in WORKERS[5:]]}


def fit_logistic(x, y, l2):
    """Ten-class logistic regression on standardised columns; returns a function of scores."""
    mean, spread = x.mean(0), x.std(0)
    z, weight = (x - mean) / spread, torch.zeros(x.shape[1] + 1, 10, dtype=torch.float64)
    weight.requires_grad_()
    solver = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def objective():
        solver.zero_grad()
        loss = F.cross_entropy(z @ weight[1:] + weight[0], y) + l2 / 2 * weight[1:].square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    fitted = weight.detach()
    return lambda scores: (scores - mean) / spread @ fitted[1:] + fitted[0]


def choose_l2(x, y, folds=5):
    """The penalty with the least cross-validated log-loss."""
    def log_loss(l2):
        parts = [torch.arange(len(y)) % folds == f for f in range(folds)]
        return sum(F.cross_entropy(fit_logistic(x[~p], y[~p], l2)(x[p]), y[p]) for p in parts)

    return min([1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1], key=log_loss)


def decode_missing(held, held_labels, test, test_labels):
    """Test accuracy with none, any one and any two of the workers (a list of scores) missing."""
    held, test = [[s.double() for s in scores] for scores in (held, test)]
    l2 = choose_l2(torch.cat(held, 1), held_labels)
    rows = []
    for count in range(3):
        accuracy = {}
        for lost in itertools.combinations(range(len(held)), count):
            here = [i for i in range(len(held)) if i not in lost]
            decoder = fit_logistic(torch.cat([held[i] for i in here], 1), held_labels, l2)
            accuracy[lost] = percent(decoder(torch.cat([test[i] for i in here], 1)), test_labels)
        worst = min(accuracy, key=accuracy.get)
        rows.append({"count": count, "patterns": len(accuracy),
                     "mean": round(statistics.mean(accuracy.values()), 3),
                     "worst": round(accuracy[worst], 2), "worst_pattern": worst})
        print(f"decoder, {count} missing: {rows[-1]}", flush=True)
    return {"kind": "logistic per arrival set", "l2": l2, "workers": WORKERS, "missing": rows}


def measure(args, nets, held, test, max_error, seconds):
    """held, test: (normalised images, labels). All accuracies in percent, from the ONNX files."""
    scores = {part: {name: onnx_scores(args.out / f"{name}.onnx", images) for name in nets}
              for part, (images, _) in (("held_out", held), ("test", test))}
    accuracy, files, cpuinfo = {}, {}, Path("/proc/cpuinfo").read_text()
    for part, labels in (("held_out", held[1]), ("test", test[1])):
        of = scores[part] | {"joined": join([scores[part][name] for name in WORKERS[:5]])}
        accuracy[part] = {name: round(percent(of[name], labels), 2) for name in JUDGED}
        print(f"{part}: {accuracy[part]}", flush=True)
    for name, net in nets.items():
        widths = BASE_WIDTHS if name == "base" else WORKER_WIDTHS
        path = args.out / f"{name}.onnx"
        files[path.name] = {"macs": macs(widths, net[-1].out_features),
                            "parameters": sum(p.numel() for p in net.parameters()),
                            "bytes": path.stat().st_size,
                            "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    worker_macs = max(files[f"{name}.onnx"]["macs"] for name in WORKERS)
    lists = [[scores[part][name] for name in WORKERS] for part in ("held_out", "test")]
    return {"schema": 1, "data": "fashion-mnist", "seed": args.seed,
            "input": {"shape": [1, SIDE, SIDE], "mean": MEAN, "std": STD},
            "split": {"train": 60000 - HELD_OUT, "held_out": HELD_OUT, "test": 10000},
            "recipe": {"base_epochs": args.base_epochs, "epochs": args.epochs, "batch": BATCH,
                       "peak_lr": PEAK_LR, "momentum": 0.9, "weight_decay": 5e-4,
                       "temperature": TEMPERATURE, "augmentation": "pad 2 and crop, flip"},
            "accuracy": accuracy, "decoder": decode_missing(lists[0], held[1], lists[1], test[1]),
            "worker_macs_fraction": round(worker_macs / files["base.onnx"]["macs"], 4),
            "onnxruntime_max_abs_error": max_error, "files": files,
            "versions": {"python": platform.python_version(),
                         **{m.__name__: m.__version__ for m in (torch, onnx, onnxruntime, np)}},
            "machine": {"cpu": re.findall(r"model name\s*: (.*)|$", cpuinfo)[0],
                        "isa": torch.backends.cpu.get_cpu_capability(), "threads": args.threads},
            "training_seconds": round(seconds)}


def aggregate(folders):
    """Prints each seed's difference to the base on the test set, the mean, a 95 % t-interval."""
    runs = [json.loads((folder / "figures.json").read_text()) for folder in folders]

    def values(run):
        test, missing = run["accuracy"]["test"], run["decoder"]["missing"]
        row = {name: test[name] for name in JUDGED[1:]}
        for m in missing:
            row |= {f"decoded, {m['count']} missing, {key}": m[key] for key in ("mean", "worst")}
        return {"base itself": test["base"], **{k: v - test["base"] for k, v in row.items()},
                "joined minus control": test["joined"] - test["control"]}

    rows = [values(run) for run in runs]
    print("test accuracy less the base's, points; seeds " + " ".join(str(r["seed"]) for r in runs))
    for key in rows[0]:
        sample = [row[key] for row in rows]
        half = math.nan
        if 2 <= len(sample) <= len(T_975) + 1:
            half = T_975[len(sample) - 2] * statistics.stdev(sample) / math.sqrt(len(sample))
        print(f"{key:28s} " + " ".join(f"{v:7.2f}" for v in sample)
              + f"   mean {statistics.mean(sample):7.3f} +- {half:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base-epochs", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=12, help="epochs of all worker-sized nets")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--aggregate", type=Path, nargs="+", metavar="DIR")
    args = parser.parse_args()
    if args.aggregate:
        return aggregate(args.aggregate)

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    assert macs(WORKER_WIDTHS, 10) <= 0.26 * macs(BASE_WIDTHS, 10)

    start = time.time()
    images, labels = load(args.data, "train")
    held = normalise(images[-HELD_OUT:]), labels[-HELD_OUT:]
    nets = make_nets(args, Batches(images[:-HELD_OUT], labels[:-HELD_OUT], args.seed), *held)
    seconds = time.time() - start

    args.out.mkdir(parents=True, exist_ok=True)
    max_error = 0.0
    for name, net in nets.items():
        path = args.out / f"{name}.onnx"
        export(net, path)
        difference = onnx_scores(path, held[0]) - scores_of(net, held[0])
        max_error = max(max_error, difference.abs().max().item())
    assert max_error < 1e-4, f"ONNX Runtime differs from PyTorch by {max_error}"
    images, labels = load(args.data, "t10k")
    figures = measure(args, nets, held, (normalise(images), labels), max_error, seconds)
    for name, value in (("nets.json", manifest(args.seed)), ("figures.json", figures)):
        (args.out / name).write_text(json.dumps(value, indent=2) + "\n")
    print(f"done in {time.time() - start:.0f} s (training {seconds:.0f} s): {args.out}", flush=True)


if __name__ == "__main__":
    main()
