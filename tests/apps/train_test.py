#!/usr/bin/env python3
"""coppice train from outside, on small images that the test makes: train_test.py PATH_OF_COPPICE.

A bright square is in one of the four quarters of a noisy image. Checked: that it is learnt, that the ONNX file is read
again (and run by ONNX Runtime, where Python has it) to the same accuracy, that a training which is killed or interrupted
goes on to the same bytes, and that what cannot be is refused in one line.
"""
import gzip
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time

COPPICE = pathlib.Path(sys.argv[1]).resolve()
SIDE, CLASSES, TRAIN, HELD_OUT, TEST = 12, 4, 1_000, 200, 300


def image(label, draw):
    top, left = label // 2 * 6 + draw.randrange(2), label % 2 * 6 + draw.randrange(2)
    return bytes(draw.randrange(128) + (100 if top <= y < top + 4 and left <= x < left + 4 else 0)
                 for y in range(SIDE) for x in range(SIDE))


def write_idx(folder, part, count, draw):
    labels = bytes(draw.randrange(CLASSES) for _ in range(count))
    pixels = b"".join(image(label, draw) for label in labels)
    for kind, sizes, content in (("images-idx3", (count, SIDE, SIDE), pixels), ("labels-idx1", (count,), labels)):
        head = struct.pack(">BBBB", 0, 0, 8, len(sizes)) + struct.pack(f">{len(sizes)}I", *sizes)
        (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + content))
    return pixels, labels


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("COPPICE_")}


def call(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, env=environment(), timeout=120)


def document(*arguments):
    done = call(*arguments, "--json")
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return json.loads(done.stdout)


def refused(*arguments, says, code=2):
    done = call(*arguments)
    assert done.returncode == code, f"exit {done.returncode}, wanted {code}: {done.stderr}"
    assert done.stdout == "" and says in done.stderr, done.stderr


def onnx_runtime_accuracy(file, pixels, labels, mean, deviation):
    """Percent right, or None where Python has no ONNX Runtime."""
    try:
        import numpy
        import onnxruntime
    except ImportError:
        return None
    x = (numpy.frombuffer(pixels, numpy.uint8).reshape(-1, 1, SIDE, SIDE) / 255 - mean) / deviation
    scores = onnxruntime.InferenceSession(str(file)).run(None, {"image": x.astype(numpy.float32)})[0]
    return 100 * numpy.mean(scores.argmax(1) == numpy.frombuffer(labels, numpy.uint8))


def training(data, out, *more):
    return ("train", "--net", "vgg:8,8,16,16", "--data", data, "--held-out", HELD_OUT, "--epochs", 8, "--batch", 50,
            "--seed", 3, "--shift", 1, "--ema", "0.9", "--out", out, *more)


def learns_and_is_read_again(root, data, test):
    out = root / "net.onnx"
    told = document(*training(data, out))
    assert told["accuracy"] > 95 and [e["epoch"] for e in told["epochs"]] == list(range(1, 9)), told
    assert told["epochs"][-1]["accuracy"] == told["accuracy"] and told["trained_on"] == TRAIN - HELD_OUT, told
    assert told["images_per_second"] > 0 and told["held_out"] == HELD_OUT, told
    known = ("--mean", told["mean"], "--std", told["std"], "--data", data)
    again = document("evaluate", "--model", out, *known)
    assert again["accuracy"] > 95 and again["parameters"] == told["parameters"], again
    assert call(*training(data, root / "folded.onnx", "--folded")).returncode == 0
    assert abs(document("evaluate", "--model", root / "folded.onnx", *known)["accuracy"] - again["accuracy"]) < 0.5
    for file in (out, root / "folded.onnx"):
        by_ort = onnx_runtime_accuracy(file, *test, told["mean"], told["std"])
        assert by_ort is None or abs(by_ort - again["accuracy"]) < 0.5, by_ort
    return out.read_bytes()


def goes_on_to_the_same_bytes(root, data, whole):
    """Killed once and interrupted once, at whatever step that is."""
    out, checkpoint = root / "parts.onnx", root / "parts.training"
    arguments = [COPPICE, *map(str, training(data, out, "--checkpoint", checkpoint, "--checkpoint-every", "0"))]
    for ending in (signal.SIGKILL, signal.SIGINT):
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == seen):
            time.sleep(0.002)
        process.send_signal(ending)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, 1, 0), said
        if process.returncode == 1:
            assert "go on from " + str(checkpoint) in said, said
    document(*training(data, out, "--checkpoint", checkpoint))
    assert out.read_bytes() == whole
    other = list(training(data, out, "--checkpoint", checkpoint))
    other[other.index("--seed") + 1] = 4
    refused(*other, says=f"{checkpoint}: is the checkpoint of a training with other net and options: remove it")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    refused(*training(data, out, "--checkpoint", checkpoint), says=f"{checkpoint}: is damaged")


def refuses(root, data):
    out = root / "refused.onnx"
    for net, says in (("vgg:", "expected widths"), ("vgg:8,x", "expected widths"), ("vgg:8,", "expected widths"),
                      ("nonsense", "--net nonsense"), ("vgg:8,8,8,8,8,8,8,8", "too small")):
        refused("train", "--net", net, "--data", data, "--held-out", 10, "--out", out, says=says)
    net = ("train", "--net", "vgg:8", "--data", data)
    refused(*net, "--out", out, "--held-out", TRAIN, says="some must be left to train on")
    refused(*net, "--out", root / "absent" / "net.onnx", says="is no file in a directory that is there")
    refused(*net, "--out", out, "--checkpoint", root / "absent" / "ck", says="--checkpoint")
    for flag in ("--peak", "--momentum", "--mean"):
        refused(*net, "--out", out, "--held-out", 10, flag, "nan", says=f"{flag}: nan is no number")
    os.mkfifo(root / "pipe")  # what is there and no file stays what it is
    refused(*net, "--out", root / "pipe", says="is no file")
    assert (root / "pipe").is_fifo()
    refused("train", "--net", "vgg:8", "--data", root / "absent", "--out", out, says="absent")
    assert not out.exists()


def writes_where_a_link_leads(root, data):
    (root / "target.onnx").write_bytes(b"")
    (root / "link.onnx").symlink_to(root / "target.onnx")
    document("train", "--net", "vgg:8", "--data", data, "--held-out", 10, "--epochs", 1, "--out", root / "link.onnx")
    assert (root / "link.onnx").is_symlink() and (root / "target.onnx").stat().st_size > 1_000


with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    data = root / "data"
    data.mkdir()
    draw = random.Random(5)
    write_idx(data, "train", TRAIN, draw)
    test = write_idx(data, "t10k", TEST, draw)
    whole = learns_and_is_read_again(root, data, test)
    goes_on_to_the_same_bytes(root, data, whole)
    refuses(root, data)
    writes_where_a_link_leads(root, data)
print("ok")
