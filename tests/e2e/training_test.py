#!/usr/bin/env python3
"""coppice train over a cluster: replicas come to one net; a killed one costs time and nothing else."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lab  # noqa: E402

TRAINING = ["--net", "vgg:8,8,16", "--epochs", 2, "--held-out", 59_000, "--batch", 40, "--shift", 1, "--flip", "--ema", 0.9,
            "--bucket", "16K"]


def train(*flags):
    done = lab.run("train", *TRAINING, "--json", *flags)
    assert done.returncode == 0, (flags, done.stderr)
    return json.loads(done.stdout), done.stderr


def replica(host):
    """The process that is that host's replica; None before it runs."""
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"train" in words and words[-3:-1] == [b"--as", host.encode()]:
            return int(process.name)
    return None


def kill_in_the_middle(command, checkpoint, host):
    """Kills the host's replica once there is a checkpoint of some steps; gives the output of the whole."""
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    written = set()  # every step writes a new file
    while len(written) < 15 and time.monotonic() < until and running.poll() is None:
        if checkpoint.exists():
            written.add(checkpoint.stat().st_mtime_ns)
        time.sleep(0.002)
    victim = replica(host)
    assert victim, "the training ended before its replica was killed"
    os.kill(victim, signal.SIGKILL)
    out, errors = running.communicate(timeout=120)
    return running.returncode, out, errors


def main():
    with tempfile.TemporaryDirectory(prefix="coppice-e2e-") as directory:
        here = pathlib.Path(directory)
        file, _ = lab.rank_cluster(here, 4)

        alone, _ = train("--out", here / "alone.onnx")
        straight, told = train("--out", here / "straight.onnx", "--cluster", file)
        assert "by 4 replicas" in told and "epoch 2 of 2" in told, told
        # Batch norms see a quarter of the batch each: another training, of the same worth.
        assert straight["epochs"][-1]["loss"] < 0.8 * straight["epochs"][0]["loss"], straight
        assert abs(straight["accuracy"] - alone["accuracy"]) < 8, (straight, alone)

        checkpoint = here / "training"
        command = [lab.COPPICE, "train", *map(str, TRAINING), "--json", "--out", str(here / "killed.onnx"), "--cluster", str(file),
                   "--checkpoint", str(checkpoint), "--checkpoint-every", "0"]
        status, out, errors = kill_in_the_middle(command, checkpoint, "h2")
        assert status == 0 and "h2" in errors and "going on from" in errors, errors
        assert json.loads(out)["parameters"] == straight["parameters"]
        assert (here / "killed.onnx").read_bytes() == (here / "straight.onnx").read_bytes(), "not the same bits"

        for flags, word in ((("--batch", 42), "44"), (("--planner", "best"), "best"), (("--bucket", "-1"), "--bucket"),
                            (("--net", "vgg:0"), "vgg:0")):
            done = lab.run("train", "--net=vgg:8" if flags[0] != "--net" else "--epochs=1", "--out", here / "x.onnx", "--cluster", file, *flags)
            assert done.returncode == 2 and word in done.stderr, (flags, done.returncode, done.stderr)
        # Ring gradients are the same sums in another order.
        ring, _ = train("--out", here / "ring.onnx", "--cluster", file, "--planner", "best_ring")
        assert abs(ring["epochs"][0]["loss"] - straight["epochs"][0]["loss"]) < 0.02, (ring, straight)


main()
