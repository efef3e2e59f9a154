#!/usr/bin/env python3
"""The commands run, decompose, evaluate and plan from outside: cli_test.py PATH_OF_COPPICE.

Makes its own data: images of four noisy quadrants of which one is brighter, and linear nets that add the quadrants up,
so that every accuracy can be worked out again here with numpy.
"""
import copy
import gzip
import itertools
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import traceback
import xml.etree.ElementTree
from fractions import Fraction

sys.dont_write_bytecode = True
import numpy as np

from decode_check import decode

COPPICE = pathlib.Path(sys.argv[1]).resolve()
SOURCE = pathlib.Path(__file__).resolve().parents[2]
SIDE, CLASSES, MEAN, STD = 6, 4, 0.5, 0.25
GROUPS = [[0, 1], [2, 3]]
TRAIN, HELD_OUT, TEST = 700, 600, 300


# ---- tiny inputs ---------------------------------------------------------------------------------------------------

def varint(n):
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def proto(*fields):
    """Protocol buffer of (number, int | bytes | str) fields."""
    out = b""
    for number, value in fields:
        value = value.encode() if isinstance(value, str) else value
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        else:
            out += varint(number << 3) + varint(value)
    return out


def linear_onnx(weight, flat=False, squared=False):
    """scores = weight @ pixels, as an ONNX file: one convolution of the whole image, or Flatten and Gemm; or their squares."""
    last = "linear" if squared else "scores"
    def tensor(name, values):
        return proto(*[(1, d) for d in values.shape], (2, 1), (8, name), (9, values.astype("<f4").tobytes()))

    def value(name, dims):
        shape = proto(*[(1, proto((2, d) if isinstance(d, str) else (1, d))) for d in dims])
        return proto((1, name), (2, proto((1, proto((1, 1), (2, shape))))))

    def node(kind, inputs, output, *attributes):
        return proto(*[(1, i) for i in inputs], (2, output), (3, output), (4, kind), *[(5, a) for a in attributes])

    if flat:
        nodes = [node("Flatten", ["image"], "flat"),
                 node("Gemm", ["flat", "weight", "bias"], last, proto((1, "transB"), (3, 1), (20, 2)))]
    else:
        weight = weight.reshape(-1, 1, SIDE, SIDE)
        kernel = proto((1, "kernel_shape"), (8, SIDE), (8, SIDE), (20, 7))
        nodes = [node("Conv", ["image", "weight", "bias"], "points", kernel), node("Flatten", ["points"], last)]
    if squared:
        nodes.append(node("Mul", [last, last], "scores"))
    graph = proto(*[(1, n) for n in nodes], (2, "linear"),
                  (5, tensor("weight", weight)), (5, tensor("bias", np.zeros(len(weight)))),
                  (11, value("image", ["N", 1, SIDE, SIDE])), (12, value("scores", ["N", len(weight)])))
    return proto((1, 7), (7, graph), (8, proto((1, ""), (2, 13))))


def quadrant_weights():
    """[class, pixel]: the mean of the class's quadrant."""
    weight = np.zeros((CLASSES, SIDE, SIDE))
    half = SIDE // 2
    for c in range(CLASSES):
        weight[c, c // 2 * half:, c % 2 * half:][:half, :half] = 4 / half ** 2
    return weight.reshape(CLASSES, -1)


def images(count, random):
    labels = random.integers(0, CLASSES, count)
    bright = (quadrant_weights() != 0).reshape(CLASSES, SIDE, SIDE)[labels]
    return (random.integers(0, 200, bright.shape) + 45 * bright).astype(np.uint8), labels.astype(np.uint8)


def write_idx(folder, part, pixels, labels):
    folder.mkdir(exist_ok=True)
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        head = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


class World:
    """A directory with data, nets, and what they compute."""

    def __init__(self, root):
        random = np.random.default_rng(7)
        self.root, self.data, self.nets = root, root / "data", root / "nets"
        write_idx(self.data, "train", *images(TRAIN, random))
        self.pixels, self.labels = images(TEST, random)
        write_idx(self.data, "t10k", self.pixels, self.labels)
        base = quadrant_weights()
        self.weights = {"base": base, **{f"subnet{i}": base[g] for i, g in enumerate(GROUPS)}}
        for name in ("companion0", "companion1", "control"):
            self.weights[name] = base + random.normal(0, 0.2, base.shape)
        self.nets.mkdir()
        for name, weight in self.weights.items():
            (self.nets / f"{name}.onnx").write_bytes(linear_onnx(weight))
        every = list(range(CLASSES))
        self.nets_json = {
            "schema": 1, "data": "quadrants", "input": {"shape": [1, SIDE, SIDE], "mean": MEAN, "std": STD},
            "classes": [f"quadrant {c}" for c in every], "held_out": HELD_OUT, "groups": GROUPS, "base": "base.onnx",
            "control": "control.onnx", "seed": 7,
            "subnets": [{"file": f"subnet{i}.onnx", "classes": g} for i, g in enumerate(GROUPS)],
            "companions": [{"file": f"companion{i}.onnx", "classes": every} for i in range(2)]}
        (self.nets / "nets.json").write_text(json.dumps(self.nets_json))
        (self.nets / "corrupt.onnx").write_bytes(b"\x08\x07:\xff\xff\xff\xff\x0fnot a net")

    def items(self, mean=MEAN, std=STD):
        return ((self.pixels / 255 - mean) / std).reshape(TEST, -1).astype(np.float32)

    def scores(self, name):
        return self.items() @ self.weights[name].T.astype(np.float32)

    def accuracy(self, scores):
        return 100 * np.mean(scores.argmax(1) == self.labels)

    def directory(self, scheme):
        """A decomposed model, made once."""
        out = self.root / f"model-{scheme}"
        if not out.exists():
            ok("decompose", "--nets", self.nets, "--data", self.data, "--scheme", scheme, "--out", out)
        return out


# ---- running -------------------------------------------------------------------------------------------------------

def call(*arguments, **settings):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COPPICE_")} | settings
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=120)


def ok(*arguments, **settings):
    done = call(*arguments, **settings)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
    return done.stdout


def document(*arguments, **settings):
    return json.loads(ok(*arguments, "--json", **settings))


def refused(*arguments, says, code=2):
    """Nothing on standard output, the code, and (but for the parser's own) one line that says what is wrong."""
    done = call(*arguments)
    assert done.returncode == code, f"exit {done.returncode}, wanted {code}: {done.stderr}"
    assert done.stdout == "", done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"coppice {arguments[0]}: ")]
    assert len(lines) <= 1 and says in (lines or [done.stderr])[0], done.stderr
    return lines


def near(measured, wanted, items=TEST):
    """Accuracies agree to within one item, which float32 sums may move across a tie."""
    assert abs(measured - wanted) <= 100 / items + 1e-3, f"{measured}, wanted {wanted}"


# ---- run -----------------------------------------------------------------------------------------------------------

def run_on(world, array, *more):
    np.save(world.root / "x.npy", array)
    (world.root / "y.npy").unlink(missing_ok=True)
    result = document("run", "--model", world.nets / "base.onnx", "--input", world.root / "x.npy", "--output",
                      world.root / "y.npy", *more)
    return result, np.load(world.root / "y.npy")


def test_run_one_item(world):
    item = world.items()[0].reshape(1, SIDE, SIDE)
    result, scores = run_on(world, item, "--repeat", 5)
    assert set(result) == {"model", "device", "threads", "macs", "parameters", "repeat", "p50_us", "p99_us", "min_us",
                           "output_shape"}, result
    assert result["output_shape"] == [CLASSES] and result["repeat"] == 5 and result["device"] == "cpu"
    assert result["macs"] == CLASSES * SIDE ** 2 and result["parameters"] == CLASSES * (SIDE ** 2 + 1)
    assert 0 < result["min_us"] <= result["p50_us"] <= result["p99_us"]
    assert scores.dtype == np.float32 and np.allclose(scores, world.scores("base")[0], atol=1e-4)


def test_run_batch_longer_than_a_slice(world):
    result, scores = run_on(world, world.items().reshape(TEST, 1, SIDE, SIDE))
    assert result["output_shape"] == [TEST, CLASSES]
    assert np.allclose(scores, world.scores("base"), atol=1e-4)


def test_run_net_that_begins_with_flatten(world):
    (world.nets / "flat.onnx").write_bytes(linear_onnx(world.weights["base"], flat=True))
    np.save(world.root / "x.npy", world.items().reshape(TEST, 1, SIDE, SIDE))
    ok("run", "--model", world.nets / "flat.onnx", "--input", world.root / "x.npy", "--output", world.root / "y.npy")
    assert np.allclose(np.load(world.root / "y.npy"), world.scores("base"), atol=1e-4)


def test_run_text(world):
    np.save(world.root / "x.npy", np.zeros((2, 1, SIDE, SIDE), np.float32))
    text = ok("run", "--model", world.nets / "base.onnx", "--input", world.root / "x.npy", "--output", world.root / "y.npy")
    assert "p50 us" in text and "2x4" in text, text


def test_run_refuses(world):
    good, bad, out = world.root / "x.npy", world.root / "bad.npy", world.root / "y.npy"
    np.save(good, np.zeros((1, SIDE, SIDE), np.float32))
    net = world.nets / "base.onnx"
    refused("run", "--model", world.root / "no.onnx", "--input", good, "--output", out, says="no.onnx")
    refused("run", "--model", world.nets / "corrupt.onnx", "--input", good, "--output", out, says="corrupt.onnx")
    refused("run", "--model", net, "--input", world.root / "no.npy", "--output", out, says="no.npy")
    np.save(bad, np.zeros((SIDE, SIDE), np.float32))
    refused("run", "--model", net, "--input", bad, "--output", out, says="takes 1x6x6")
    bad.write_bytes(good.read_bytes()[:-7])
    refused("run", "--model", net, "--input", bad, "--output", out, says="bad.npy")
    refused("run", "--model", net, "--input", good, "--output", out, "--device", "abacus", says="--device")
    refused("run", "--model", net, "--input", good, "--output", out, "--repeat", 0, says="--repeat")
    refused("run", "--model", net, "--input", good, "--output", out, "--frobnicate", says="--frobnicate")
    refused("run", "--model", net, "--input", good, says="--output")


def test_run_shipped_net(world):
    net = SOURCE / "apps/nets/fashion-mnist/base.onnx"
    if not net.exists():
        return
    np.save(world.root / "x.npy", np.zeros((3, 1, 28, 28), np.float32))
    result = document("run", "--model", net, "--input", world.root / "x.npy", "--output", world.root / "y.npy")
    assert result["output_shape"] == [3, 10] and np.isfinite(np.load(world.root / "y.npy")).all()


# ---- decompose and evaluate ----------------------------------------------------------------------------------------

WORKERS = {"none": ["subnet0", "subnet1"], "parity": ["subnet0", "subnet1", "companion0", "companion1"],
           "control": ["control"] * 4, "replicate": ["base"] * 2}
NEEDED = {"none": 2, "parity": 2, "control": 1, "replicate": 1}


def recomputed(world, scheme, lost):
    """Test accuracy without the workers `lost`, from the manifest's arrays alone."""
    decoder = json.loads((world.directory(scheme) / "manifest.json").read_text())["decoder"]
    answers = {w: world.scores(name) for w, name in enumerate(WORKERS[scheme]) if w not in lost}
    scores = [decode(decoder, {w: a[i] for w, a in answers.items()}) for i in range(TEST)]
    return world.accuracy(np.array(scores))


def check_missing(world, scheme, rows):
    n = len(WORKERS[scheme])
    for count, row in enumerate(rows, 1):
        assert set(row) == {"count", "patterns", "mean", "worst", "worst_pattern"}, row
        patterns = list(itertools.combinations(range(n), count))
        wanted = [recomputed(world, scheme, lost) for lost in patterns]
        assert row["count"] == count and row["patterns"] == len(patterns), row
        near(row["mean"], np.mean(wanted))
        near(row["worst"], min(wanted))
        near(row["worst"], recomputed(world, scheme, row["worst_pattern"]))


def test_decompose_every_scheme(world):
    for scheme, workers in WORKERS.items():
        out = world.root / f"model-{scheme}"
        result = document("decompose", "--nets", world.nets, "--data", world.data, "--scheme", scheme, "--out", out)
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["code"] == {"scheme": scheme, "workers": len(workers), "needed": NEEDED[scheme]}, manifest["code"]
        assert [w["file"] for w in manifest["workers"]] == [f"{name}.onnx" for name in workers]
        assert {p.name for p in out.iterdir()} == {f"{name}.onnx" for name in workers} | {"manifest.json"}
        assert (out / f"{workers[0]}.onnx").read_bytes() == (world.nets / f"{workers[0]}.onnx").read_bytes()
        assert len(manifest["source"]["sha256"]) == 64 and manifest["source"]["multiply_adds"] == CLASSES * SIDE ** 2
        assert set(manifest["accuracy"]) == {"base", "clean", "missing"}
        near(manifest["accuracy"]["base"], world.accuracy(world.scores("base")))
        near(manifest["accuracy"]["clean"], recomputed(world, scheme, []))
        beyond = min(len(workers) - NEEDED[scheme] + 1, len(workers) - 1)
        assert len(manifest["accuracy"]["missing"]) == beyond
        check_missing(world, scheme, manifest["accuracy"]["missing"])
        assert len(result["workers"]) == len(workers) and result["scheme"] == scheme
        alone = world.scores("control").argmax(1)
        if scheme == "control":
            near(result["workers"][0]["accuracy_alone"], 100 * np.mean(alone == world.labels))


def test_decompose_text(world):
    text = ok("decompose", "--nets", world.nets, "--data", world.data, "--scheme", "parity", "--out", world.root / "model-parity",
              "--groups", 2)
    assert "quadrant 0, quadrant 1" in text and "all 4" in text and "any 2 of 4" in text, text


def test_decompose_refuses(world):
    def nets(name, change):
        """A copy of the nets with another nets.json."""
        folder = world.root / name
        folder.mkdir()
        for file in world.nets.glob("*.onnx"):
            (folder / file.name).write_bytes(file.read_bytes())
        object = copy.deepcopy(world.nets_json)
        change(object)
        (folder / "nets.json").write_text(json.dumps(object))
        return folder

    def no(folder, says, data=world.data, **flags):
        more = [text for key, value in flags.items() for text in (f"--{key}", value)]
        refused("decompose", "--nets", folder, "--data", data, "--out", world.root / "never", *more, says=says)

    refused("decompose", "--groups", 5, "--out", world.root / "never", says="--nets")
    refused("decompose", "--nets", world.nets, says="--out")
    no(world.nets, "unknown scheme 'best'", scheme="best")
    no(world.nets, "scheme wide", scheme="wide")
    no(world.nets, "2 groups", groups=5)
    no(world.nets, "--model", model="base.onnx")
    no(world.root, "nets.json")
    no(nets("escape", lambda o: o.update(base="../base.onnx")), "base")
    no(nets("untyped", lambda o: o.update(groups="all")), "groups")
    no(nets("gap", lambda o: o.pop("held_out")), "held_out")
    no(nets("greedy", lambda o: o.update(held_out=TRAIN + 1)), str(TRAIN + 1))
    no(nets("absent", lambda o: o.update(control="gone.onnx")), "gone.onnx", scheme="control")
    no(nets("damaged", lambda o: o["subnets"][1].update(file="corrupt.onnx")), "corrupt.onnx")
    no(nets("misfit", lambda o: o["subnets"][1].update(file="base.onnx")), "base.onnx")
    odd = world.root / "squared.onnx"
    odd.write_bytes(linear_onnx(quadrant_weights(), squared=True))
    refused("decompose", "--model", odd, "--data", world.data, "--held-out", HELD_OUT, "--out", world.root / "never",
            says="squared.onnx: node scores (Arithmetic): arithmetic, which decomposition does not take")
    deep = world.root / "deep"
    deep.mkdir()
    (deep / "nets.json").write_text("[" * 100_000 + "]" * 100_000)
    no(deep, "nested too deeply")
    refused("decompose", "--nets", world.nets, "--data", world.data, "--out", world.nets / "nets.json" / "x", says="not a directory")
    truncated = world.root / "truncated"
    write_idx(truncated, "train", world.pixels, world.labels)
    write_idx(truncated, "t10k", world.pixels, world.labels)
    whole = gzip.decompress((truncated / "t10k-images-idx3-ubyte.gz").read_bytes())
    (truncated / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole[:-100]))
    no(world.nets, "t10k-images", data=truncated)
    no(world.nets, "train-", data=world.root)
    assert not (world.root / "never").exists()


def test_evaluate_directory(world):
    for scheme, missing in (("parity", 2), ("none", 1), ("replicate", 1)):
        result = document("evaluate", "--dir", world.directory(scheme), "--data", world.data, "--missing", missing)
        assert set(result) == {"base", "clean", "missing", "decoder", "scheme", "n", "k"}, result
        assert result["n"] == len(WORKERS[scheme]) and result["k"] == NEEDED[scheme] and result["scheme"] == scheme
        assert result["decoder"] == ("sum" if scheme == "replicate" else "logistic")
        assert len(result["missing"]) == missing
        near(result["clean"], recomputed(world, scheme, []))
        check_missing(world, scheme, result["missing"])


def test_evaluate_takes_data_from_the_environment(world):
    text = ok("evaluate", "--dir", world.directory("parity"), COPPICE_DATA=str(world.data))
    assert "worst set" in text and "any 2 of 4" in text, text


def test_evaluate_model(world):
    beside = document("evaluate", "--model", world.nets / "control.onnx", "--data", world.data)
    near(beside["accuracy"], world.accuracy(world.scores("control")))
    assert beside["items"] == TEST and abs(beside["mean"] - MEAN) < 1e-6 and abs(beside["std"] - STD) < 1e-6
    told = document("evaluate", "--model", world.nets / "control.onnx", "--data", world.data, "--mean", 0.1, "--std", 2)
    near(told["accuracy"], world.accuracy(world.items(0.1, 2) @ world.weights["control"].T))
    lonely = world.root / "lonely"
    lonely.mkdir()
    (lonely / "net.onnx").write_bytes((world.nets / "base.onnx").read_bytes())
    done = call("evaluate", "--model", lonely / "net.onnx", "--data", world.data)
    assert done.returncode == 0 and "0.2860" in done.stderr and "0.3530" in done.stderr, done.stderr


def test_evaluate_refuses(world):
    parity = world.directory("parity")
    refused("evaluate", "--data", world.data, says="--model")
    refused("evaluate", "--dir", parity, "--model", world.nets / "base.onnx", says="--dir")
    refused("evaluate", "--dir", parity, "--data", world.data, "--missing", 4, says="nobody")
    refused("evaluate", "--dir", world.root / "nowhere", "--data", world.data, says="nowhere")
    refused("evaluate", "--dir", parity, "--data", world.root / "nowhere", says="nowhere")
    refused("evaluate", "--model", world.nets / "corrupt.onnx", "--data", world.data, says="corrupt.onnx")
    refused("evaluate", "--dir", parity, "--sideways", says="--sideways")
    strange = world.root / "strange"
    strange.mkdir()
    for file in world.data.iterdir():
        (strange / file.name).write_bytes(file.read_bytes())
    pixels, labels = images(20, np.random.default_rng(1))
    write_idx(strange, "t10k", pixels, labels + 200)
    refused("evaluate", "--dir", parity, "--data", strange, says="label 20")
    holed = world.root / "holed"
    holed.mkdir()
    for file in parity.iterdir():
        (holed / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((holed / "manifest.json").read_text())
    del manifest["decoder"]["sets"][str(0b1011)]
    (holed / "manifest.json").write_text(json.dumps(manifest))
    refused("evaluate", "--dir", holed, "--data", world.data, "--missing", 1, says="{2} are missing")


def test_decode_check(world):
    """The outside script agrees with its own decode and sees a wrong answer."""
    decoder = json.loads((world.directory("parity") / "manifest.json").read_text())["decoder"]
    lines = []
    for i, present in enumerate([[0, 1, 2, 3], [3, 1], [2]]):
        values = {w: world.scores(WORKERS["parity"][w])[i].tolist() for w in present}
        answer = int(decode(decoder, {w: np.array(v) for w, v in values.items()}).argmax())
        lines.append({"id": i, "item": i, "epoch": 1, "answer": answer, "degraded": len(present) < 2,
                      "arrivals": [{"worker": w, "at_ms": 1.0, "values": v} for w, v in values.items()]})
    record, script = world.root / "record.jsonl", pathlib.Path(__file__).with_name("decode_check.py")
    for wrong, code, says in ((0, 0, "3/3"), (1, 1, "2/3")):
        lines[0]["answer"] = (lines[0]["answer"] + wrong) % CLASSES
        record.write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = subprocess.run([sys.executable, script, world.directory("parity"), record], capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (code, says), done


# ---- plan ----------------------------------------------------------------------------------------------------------

def topology(world, name="lab", links=None, **more):
    links = links or [{"from": h, "to": "sw", "capacity": c} for h, c in (("h0", "200"), ("h1", "25/2"), ("h2", 100))]
    nodes = [{"id": "h0"}, {"id": "h1"}, {"id": "h2"}, {"id": "sw", "switch": True}]
    file = world.root / f"{name}.json"
    file.write_text(json.dumps({"name": name, "unit": "Mbit/s", "nodes": nodes, "links": links, **more}))
    return file


def load(plan):
    """What each link carries, worked out from the plan's own words: a dictionary by (from, to)."""
    used = {}

    def send(edge, rate, backwards):
        path = edge.get("path", [edge["from"], edge["to"]])
        for a, b in zip(path, path[1:]):
            hop = (b, a) if backwards else (a, b)
            used[hop] = used.get(hop, 0) + rate

    inward = plan["op"] in ("reduce", "reduce_scatter", "gather")
    for tree in plan["trees"]:
        rate = Fraction(tree["rate"])
        for edge in tree["edges"]:
            send(edge, rate, inward)
            if plan["op"] == "allreduce" and "reduce_edges" not in tree:
                send(edge, rate, True)
        for edge in tree.get("reduce_edges", []):
            send(edge, rate, False)
    return used


def within_capacity(plan, file):
    capacity = {}
    for link in json.loads(file.read_text())["links"]:
        for pair in [(link["from"], link["to"])] + [(link["to"], link["from"])] * link.get("duplex", True):
            capacity[pair] = capacity.get(pair, 0) + Fraction(link["capacity"])
    return all(used <= capacity[hop] for hop, used in load(plan).items())


def test_plan_broadcast(world):
    for root in ("h0", "h1"):
        plan = document("plan", "--topology", topology(world), "--op", "broadcast", "--root", root)
        assert set(plan) == {"topology", "op", "unit", "rate", "bound", "optimal", "certificate", "trees", "seconds",
                             "trees_bound"}, plan
        assert plan["topology"] == "lab" and plan["op"] == "broadcast" and plan["unit"] == "Mbit/s"
        assert plan["optimal"] == (Fraction(plan["rate"]) == Fraction(plan["bound"])) and plan["seconds"] >= 0
        assert Fraction(plan["bound"]) == Fraction(25, 2), plan["bound"]
        assert sum(Fraction(tree["rate"]) for tree in plan["trees"]) == Fraction(plan["rate"]) > 0
        for tree in plan["trees"]:
            assert tree["root"] == root and {e["to"] for e in tree["edges"]} == {"h0", "h1", "h2"} - {root}
            assert all(e["path"] == [e["from"], "sw", e["to"]] for e in tree["edges"])


def test_plan_every_operation(world):
    file = topology(world)
    for op in ("broadcast", "reduce", "allreduce", "allgather", "reduce_scatter", "gather", "scatter"):
        plan = document("plan", "--topology", file, "--op", op)
        assert plan["op"] == op and plan["optimal"] is True, plan
        assert within_capacity(plan, file), plan
        if op in ("gather", "scatter"):
            assert {tree["for"] for tree in plan["trees"]} == {"h1", "h2"}


def test_plan_machines(world):
    file = world.root / "dgx-1v.json"
    file.write_text(ok("plan", "--builtin", "dgx-1v", "--print-topology"))
    assert len(json.loads(file.read_text())["nodes"]) == 8
    plan = document("plan", "--topology", file, "--op", "allreduce")
    assert plan["rate"] == plan["bound"] == "24/7" and plan["certificate"]["kind"] == "partition"
    assert within_capacity(plan, file)
    broadcast = document("plan", "--builtin", "dgx-1v", "--op", "broadcast")
    assert broadcast["rate"] == "6" and len(broadcast["trees"]) == broadcast["trees_bound"] == 4
    assert document("plan", "--builtin", "dgx-1v", "--op", "allreduce", "--grain", 3)["rate"] == "10/3"
    part = document("plan", "--builtin", "dgx-1v", "--op", "allreduce", "--participants", "g0,g2,g3")
    assert part["rate"] == "5/2" and part["participants"] == ["g0", "g2", "g3"]
    switched = document("plan", "--builtin", "dgx-2", "--op", "allreduce")
    assert switched["rate"] == "80" and switched["certificate"]["kind"] == "dual"


def test_plan_check(world):
    file = topology(world)
    for op in ("broadcast", "allreduce", "scatter", "reduce_scatter"):
        plan = document("plan", "--topology", file, "--op", op)
        kept = world.root / "plan.json"
        kept.write_text(json.dumps(plan))
        assert document("plan", "--topology", file, "--check", kept)["valid"] is True
        plan["trees"][0]["rate"] = "1000"
        kept.write_text(json.dumps(plan))
        done = call("plan", "--topology", file, "--check", kept)
        assert done.returncode == 1 and "plan.json" in done.stderr and len(done.stderr.splitlines()) == 1, done
    kept.write_text("{}")
    refused("plan", "--topology", file, "--check", kept, says="plan.json")
    refused("plan", "--topology", file, "--check", world.root / "none.json", says="none.json")


def test_plan_rivals(world):
    rates = {}
    for planner in ("exact", "mwu", "rs_ag", "rings", "best_ring"):
        plan = document("plan", "--builtin", "dgx-1v", "--participants", "g0,g1,g2,g3,g4,g5", "--op", "allreduce",
                        "--planner", planner)
        rates[planner] = Fraction(plan["rate"])
        assert plan["bound"] == "5/2" and ("epsilon" in plan) == (planner == "mwu")
    assert rates["exact"] == Fraction(5, 2) and rates["rs_ag"] == Fraction(9, 5) and rates["rings"] == Fraction(6, 5)
    assert max(rates.values()) == rates["exact"]
    rows = document("plan", "--builtin", "dgx-1v", "--compare", "--allocations", "--op", "allreduce")
    assert len(rows) == 46 and sum(row["planners"]["rings"] is None for row in rows) == 21
    assert sum(row["planners"]["rs_ag"]["ratio"] > 1 for row in rows) == 43
    boxes = document("plan", "--builtin", "dgx-a100x2", "--op", "allreduce", "--planner", "three_phase")
    assert Fraction(boxes["rate"]) <= Fraction(boxes["bound"]) and boxes["trees"]
    done = call("plan", "--builtin", "dgx-1v", "--planner", "three_phase")
    assert done.returncode == 1 and "server" in done.stderr, done
    done = call("plan", "--builtin", "dgx-1v", "--participants", "g0,g1,g4", "--planner", "rings")
    assert done.returncode == 1 and "ring" in done.stderr, done


def test_plan_schedule_and_hybrid(world):
    plan = document("plan", "--builtin", "dgx-2", "--op", "allreduce", "--bytes", "64M", "--latency", 5)
    schedule = plan["schedule"]
    assert sum(tree["bytes"] for tree in schedule["trees"]) == 64 << 20 and len(schedule["trees"]) == len(plan["trees"])
    assert 64 * 2**20 / 80e9 < schedule["simulated_s"] < 2 * 64 * 2**20 / 80e9
    assert schedule["simulated_s"] < schedule["classic_s"]["recursive_doubling"]
    times = [document("plan", "--builtin", "dgx-2", "--op", "allreduce", "--bytes", "64M", "--chunks", 64, *more)["schedule"]["simulated_s"]
             for more in ((), ("--latency", 100), ("--latency", 100, "--overhead", 100_000))]
    assert times[0] < times[1] < times[2], times
    links = [{"from": a, "to": b, "capacity": c, "kind": k}
             for a, b in (("h0", "h1"), ("h1", "h2"), ("h0", "h2")) for c, k in ((200, "fast"), (50, "slow"))]
    file = topology(world, "hybrid", links)
    both = document("plan", "--topology", file, "--op", "allreduce", "--kind", "fast", "--hybrid", "slow:1", "--bytes", "64M")
    assert both["first"]["bytes"] + both["second"]["bytes"] == 64 << 20
    assert both["seconds"] < both["seconds_first_alone"]
    refused("plan", "--topology", file, "--hybrid", "slow:1", says="--kind")
    refused("plan", "--topology", file, "--kind", "fast", "--hybrid", "golden:1", "--bytes", "1M", says="golden")
    refused("plan", "--topology", file, "--kind", "golden", says="golden")
    refused("plan", "--topology", file, "--bytes", "many", says="many")
    refused("plan", "--topology", file, "--bytes", "1M", "--latency", "nan", says="nan is no number")
    refused("plan", "--builtin", "dgx-2", "--op", "allreduce", "--bytes", "64M", "--chunks", 1_000_000, says="--chunks")


def test_plan_draws(world):
    picture = world.root / "trees.svg"
    ok("plan", "--builtin", "dgx-2", "--op", "allreduce", "--draw", picture)
    root = xml.etree.ElementTree.fromstring(picture.read_text())
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert root.tag.endswith("svg") and {f"g{i}" for i in range(16)} <= set(words), words
    assert sum("from g" in word for word in words) == 16
    refused("plan", "--builtin", "dgx-2", "--draw", world.root / "none" / "x.svg", says="x.svg")


def test_plan_deploys(world):
    cluster = world.root / "lab.toml"
    hosts = "".join(f"""
[[host]]
name = "h{i}"
address = "10.77.0.{i + 1}"
port = 7000
{'roles = ["gateway"]' if i == 0 else ''}
""" for i in range(4))
    cluster.write_text(f"""name = "lab"
keys = "keys/"
topology = "{topology(world, "four", [{"from": f"h{i}", "to": "sw", "capacity": 100} for i in range(4)], nodes=[{"id": f"h{i}"} for i in range(4)] + [{"id": "sw", "switch": True}])}"
[code]
scheme = "none"
workers = 3
needed = 3
{hosts}""")
    plan = document("plan", "--deploy", cluster, "--op", "broadcast")
    chain = plan["deploy"][0]["relays"]
    assert [relay["host"] for relay in chain][0] == "h0" and {relay["host"] for relay in chain} == {"h0", "h1", "h2", "h3"}
    assert chain[0]["parent"] is None and all(relay["parent"] < i for i, relay in enumerate(chain) if i > 0)
    assert chain[1]["address"].startswith("10.77.0.") and chain[1]["port"] == 7000
    for i, relay in enumerate(chain):
        assert relay["children"] == [j for j, other in enumerate(chain) if other["parent"] == i] and "link" not in relay, relay
    assert sum(Fraction(each["share"]) for each in plan["deploy"]) == 1
    assert "tree0.h0 on h0" in ok("plan", "--deploy", cluster, "--op", "allreduce")
    refused("plan", "--deploy", cluster, "--builtin", "star-5", "--root", "h1", says="h4")
    refused("plan", "--deploy", world.root / "none.toml", says="none.toml")


def test_plan_reads_machine_files(world):
    table = world.root / "topo.txt"
    table.write_text("\tGPU0\tGPU1\tGPU2\nGPU0\t X \tNV1\tNV2\nGPU1\tNV1\t X \tNV1\nGPU2\tNV2\tNV1\t X \n")
    assert document("plan", "--topology", table, "--op", "allreduce")["rate"] == "40"
    dump = world.root / "nccl.xml"
    dump.write_text('<system version="1"><cpu numaid="0">' + "".join(
        f'<pci busid="{i}"><gpu dev="{i}" sm="70"><nvlink target="{1 - i}" count="2" tclass="0x030200"/></gpu></pci>'
        for i in range(2)) + "</cpu></system>")
    assert document("plan", "--topology", dump, "--kind", "nvlink")["rate"] == "40"
    dump.write_text("<system>")
    refused("plan", "--topology", dump, says="nccl.xml")


def test_plan_text_and_default_root(world):
    text = ok("plan", "--topology", topology(world), "--op", "broadcast")
    assert "tree from h0" in text and "bound 25/2 Mbit/s" in text and "-> sw ->" in text, text


def test_data_describe(world):
    told = document("data", "describe", world.data)
    assert told["kind"] == "IDX" and told["classes"] == CLASSES, told
    assert [told["parts"][part]["items"] for part in ("train", "test")] == [TRAIN, TEST], told
    assert abs(told["parts"]["test"]["mean"] - world.pixels.mean() / 255) < 1e-5, told
    assert abs(told["parts"]["test"]["std"] - world.pixels.std() / 255) < 1e-5, told
    refused("data", "describe", world.root / "nowhere", says="nowhere")
    refused("data", "describe", world.nets, says="train-images-idx3-ubyte")


def test_data_glyphs(world):
    empty = world.root / "no-fonts"
    empty.mkdir()
    refused("data", "glyphs-100", "--out", world.root / "g", "--fonts", empty, says="bash apps/deps --fonts")
    refused("data", "glyphs-100", "--out", world.data / "t10k-images-idx3-ubyte.gz", says="--out")
    made = call("data", "glyphs-100", "--out", world.root / "g1", "--train", 20, "--test", 2, "--json")
    if made.returncode != 0:  # without the fonts there is nothing to draw
        assert "bash apps/deps --fonts" in made.stderr, made.stderr
        return
    document("data", "glyphs-100", "--out", world.root / "g2", "--train", 20, "--test", 2)
    document("data", "glyphs-100", "--out", world.root / "g3", "--train", 20, "--test", 2, "--seed", 2)
    files = sorted(file.name for file in (world.root / "g1").iterdir())
    assert files == ["classes.json", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "train-images-idx3-ubyte",
                     "train-labels-idx1-ubyte"], files
    for name in files:
        first, second, other = [(world.root / g / name).read_bytes() for g in ("g1", "g2", "g3")]
        assert first == second and first != other, name
    facts = json.loads((world.root / "g1" / "classes.json").read_text())
    sides = {}
    for face in facts["faces"]:
        sides.setdefault(face["family"], set()).add(face["split"])
    assert len(facts["classes"]) == 100 and all(len(side) == 1 for side in sides.values()), sides
    told = document("data", "describe", world.root / "g1")
    assert told["class_names"] == facts["classes"] and told["parts"]["train"]["most_of_a_class"] == 20, told
    refused("data", "glyphs-100", "--out", world.root / "g1", says="there already")


def test_plan_refuses(world):
    good = topology(world)
    refused("plan", "--topology", world.root / "no.json", "--op", "broadcast", says="no.json")
    refused("plan", "--topology", good, "--op", "juggle", says="juggle")
    refused("plan", "--topology", good, "--planner", "magic", says="magic")
    refused("plan", "--topology", good, "--root", "h9", says="h9")
    refused("plan", "--topology", good, "--root", "sw", says="sw")
    refused("plan", "--topology", good, "--grain", "-1", says="--grain")
    refused("plan", "--topology", good, "--participants", "h0,h8", says="h8")
    refused("plan", "--topology", good, "--magic", says="--magic")
    refused("plan", says="--topology")
    refused("plan", "--builtin", "dgx-9", says="dgx-9")
    stray = topology(world, "stray", [{"from": "h0", "to": "h7", "capacity": "1"}])
    refused("plan", "--topology", stray, says="h7")
    apart = topology(world, "apart", [{"from": "h0", "to": "h1", "capacity": "1"}])
    for op in ("broadcast", "reduce", "allreduce", "scatter"):
        refused("plan", "--topology", apart, "--op", op, says="h2")
    for capacity in ("0", "-3", "9" * 1000, "1/0", "fast"):
        bad = topology(world, "bad", [{"from": "h0", "to": "sw", "capacity": capacity}])
        refused("plan", "--topology", bad, says="'h0' to 'sw'")
    twins = topology(world, "twins", nodes=[{"id": h} for h in ("h0", "h0", "h1", "h2")] + [{"id": "sw", "switch": True}])
    refused("plan", "--topology", twins, says="h0")
    (world.root / "torn.json").write_text("{\"name\": ")
    refused("plan", "--topology", world.root / "torn.json", says="torn.json")


# ---- bench class-parallel ------------------------------------------------------------------------------------------

def result(cell, seed, **more):
    return json.dumps({"seed": seed, "budget": 1.0 if cell == "base" else 0.05, "cell": cell, "macs_per_worker": 7, "test": 90,
                       "held_out": 90, "latency_ratio": 0.5} | more)


def test_class_parallel_summary(world):
    file = world.root / "results.jsonl"
    summary = ("bench", "class-parallel", "--summary", "--out", file)
    whole = "".join(result(cell, seed) + "\n" for seed in (0, 1) for cell in ("base", "class_parallel"))
    file.write_text(whole)
    assert [row["seeds"] for row in document(*summary)] == [2, 2]
    file.write_text(whole[:-9])  # as a full disk leaves it
    assert sorted(row["seeds"] for row in document(*summary)) == [1, 2]
    for line in ("{}", "[]", "nonsense", result("whole", "x"), result("whole", 0, test="much")):
        file.write_text(whole + line + "\n" + whole)
        refused(*summary, says="results.jsonl, line 5")
    refused(*summary[:-1], "/dev/zero", says="/dev/zero")


# ---- all -----------------------------------------------------------------------------------------------------------

def test_help_has_an_example(world):
    for command in ("run", "decompose", "evaluate", "plan"):
        assert f"coppice {command} " in ok(command, "--help")


def main():
    failures = 0
    with tempfile.TemporaryDirectory() as root:
        world = World(pathlib.Path(root))
        for name, test in [item for item in globals().items() if item[0].startswith("test_")]:
            try:
                test(world)
                print("ok", name, flush=True)
            except Exception:  # the next test can still tell something
                failures += 1
                print("FAILED", name, traceback.format_exc(), sep="\n", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
