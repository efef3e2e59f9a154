#!/usr/bin/env python3
"""Blocks beside a flat gather of the same workers: blocks.py COPPICE --model DIR --data DIR

MODEL is a decomposed model with blocks (coppice decompose --blocks). A lab of one gateway and as many hosts as a block has
workers, all behind one switch: each host runs one worker of every block, so that a host that is lost costs every block one
worker. The same nets serve twice, decoded by heads in the tree and by the gateway; both clusters are up at once and are
asked in turns, one request at a time.

Shown: the gateway's messages and processor time a request, its latency, and whether every request is answered, undegraded
and as an outside decode says, when in every block at once a worker is stopped, killed, or lost with its host.
Results: a table, with --json one document. Exit status 1: something that was to be shown was not.
"""
import argparse
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

sys.dont_write_bytecode = True
import netlab
from layout import Shaping
from topology import LabError, parse_topology

ROOT = pathlib.Path(__file__).resolve().parents[2]
INSIDE = 10_000  # Mbit/s between a host and its own workers, for the scheduler: far more than any link
WARM_UP = 20  # requests


@dataclasses.dataclass(frozen=True)
class Shape:
    blocks: int
    workers: int  # of each
    needed: int

    @property
    def in_all(self) -> int:
        return self.blocks * self.workers

    def host(self, worker: int) -> int:
        """Worker p of every block."""
        return 1 + worker % self.workers


def lab_topology(name: str, shape: Shape, rate: Fraction) -> dict[str, Any]:
    hosts = [f"h{i}" for i in range(shape.workers + 1)]
    return {"name": name, "unit": "Mbit/s", "nodes": [{"id": host} for host in hosts] + [{"id": "s0", "switch": True}],
            "links": [{"from": host, "to": "s0", "capacity": str(rate), "kind": "tcp"} for host in hosts]}


def cluster_topology(shape: Shape, rate: Fraction) -> dict[str, Any]:
    """The same as the scheduler reads it: nodes of the cluster, and hosts as switches between them."""
    switches = ["s0", *(f"h{i}" for i in range(1, shape.workers + 1))]
    workers = [f"w{i}" for i in range(shape.in_all)]
    return {"name": "cluster", "unit": "Mbit/s",
            "nodes": [{"id": node} for node in ("gateway", *workers)] + [{"id": s, "switch": True} for s in switches],
            "links": [{"from": "gateway" if s == "s0" else s, "to": "s0", "capacity": str(rate), "kind": "tcp"} for s in switches]
            + [{"from": w, "to": f"h{shape.host(i)}", "capacity": str(INSIDE), "kind": "shm"} for i, w in enumerate(workers)]}


class Served:
    """One cluster in the lab."""

    def __init__(self, coppice: str, lab: netlab.Lab, directory: pathlib.Path, shape: Shape, options: argparse.Namespace,
                 heads: str, port: int) -> None:
        self.coppice, self.lab, self.shape, self.data = coppice, lab, shape, options.data
        self.file = directory / heads / "cluster.toml"
        self.file.parent.mkdir()
        launcher = self.file.parent / "launch"  # a host's namespace by its address, 10.99.0.(i+1)
        launcher.write_text(f'#!/bin/sh\nhost=h$((${{1##*.}} - 1))\nshift\nexec ip netns exec {lab.prefix}$host "$@"\n')
        launcher.chmod(0o755)
        (self.file.parent / "topology.json").write_text(json.dumps(cluster_topology(shape, options.rate)))
        lines = ['name = "blocks"', 'keys = "keys"', f'model = "{options.model}"', 'topology = "topology.json"',
                 f'launcher = "{launcher} {{address}} {{command}}"', "[code]", 'scheme = "parity"', f"blocks = {shape.blocks}",
                 f"workers = {shape.workers}", f"needed = {shape.needed}", f'heads = "{heads}"', f"deadline_ms = {options.deadline_ms}",
                 "[[host]]", 'name = "gateway"', f'address = "{lab.layout.identity("h0")}"', f"port = {port}", 'roles = ["gateway"]']
        for worker in range(shape.in_all):
            lines += ["[[host]]", f'name = "w{worker}"', f'address = "{lab.layout.identity(f"h{shape.host(worker)}")}"',
                      f"port = {port + worker // shape.workers}"]
            lines += [f'device = "replay:{options.replay}/worker{worker}.json"'] if options.replay else []
        self.file.write_text("\n".join(lines) + "\n")
        self.pids: dict[str, int] = {}

    def _argv(self, *words: Any) -> list[str]:
        return self.lab.command("h0", [self.coppice, *map(str, words), "--cluster", str(self.file), "--json"])

    def ask(self, *words: Any) -> Any:
        done = subprocess.run(self._argv(*words), capture_output=True, text=True)
        if done.returncode != 0:
            raise LabError(f"coppice {words[0]}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def launched(self) -> Iterator["Served"]:
        subprocess.run([self.coppice, "keys", "--cluster", self.file], check=True, capture_output=True)
        errors = self.file.parent / "launch.err"
        with errors.open("w") as file:
            process = subprocess.Popen(self._argv("launch", "--ready-s", 300), stdout=subprocess.PIPE, stderr=file, text=True)
        try:
            text = ""
            for line in process.stdout or ():  # one document, over several lines
                text += line
                with contextlib.suppress(json.JSONDecodeError):
                    self.pids = json.loads(text)["nodes"]
                    break
            else:
                raise LabError("coppice launch: " + (errors.read_text().strip() or "no word").splitlines()[-1])
            yield self
        finally:
            for worker in self.pids:
                self.signal(worker, signal.SIGCONT)
            process.send_signal(signal.SIGINT)
            process.wait(30)

    def signal(self, node: str, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[node], number)

    def wait_ready(self, patience: float = 120) -> None:
        until = time.monotonic() + patience
        while not self.ask("status")["ready"]:
            if time.monotonic() > until:
                raise LabError("the workers did not come back")
            time.sleep(0.3)

    def gateway_cpu(self) -> float:
        """Seconds on a processor, of all its threads."""
        tasks = pathlib.Path(f"/proc/{self.pids['gateway']}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def measure(self, requests: int) -> dict[str, float]:
        """One round, without recording what arrived: that would be sent up too."""
        self.ask("infer", "--data", self.data, "--count", WARM_UP, "--patience-ms", 30_000)
        before, cpu = self.ask("status"), self.gateway_cpu()
        answers = self.ask("infer", "--data", self.data, "--count", requests, "--patience-ms", 30_000)["answers"]
        cpu, after = self.gateway_cpu() - cpu, self.ask("status")
        bad = collections.Counter(a["status"] for a in answers if a["status"] != "ok")
        if bad or len(answers) != requests:
            raise LabError(f"of {requests} requests, {len(answers)} answered, {dict(bad)}")
        frames = {way: (after["frames"][way] - before["frames"][way]) / requests for way in ("from_workers", "to_workers")}
        times = sorted(answer["gateway_ms"] for answer in answers)
        return {**frames, "p50_ms": statistics.median(times), "p99_ms": times[-1 - len(times) // 100], "cpu_ms": 1e3 * cpu / requests}

    def checked(self, requests: int, strike: Callable[[], None]) -> dict[str, Any]:
        """Strikes while requests are answered; every answer is decoded again from what arrived, by an outside script."""
        record = self.file.parent / "record.jsonl"
        done = self.ask("status")["requests"]["completed"]
        bench = subprocess.Popen(self._argv("bench", "inference", "--data", self.data, "--requests", requests, "--record", record),
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while bench.poll() is None and self.ask("status")["requests"]["completed"] < done + requests // 10:
            time.sleep(0.05)
        strike()
        before = self.ask("status")["requests"]["completed"] - done  # those that the strike cannot have touched, and some
        out, errors = bench.communicate()
        if bench.returncode != 0:
            raise LabError("coppice bench: " + errors.strip().splitlines()[-1])
        result = json.loads(out)
        outside = subprocess.run(["/usr/bin/python3", ROOT / "tests/apps/decode_check.py", self.model_directory(), record],
                                 capture_output=True, text=True)
        kept = {key: result[key] for key in ("requests", "answered", "degraded", "wrong", "lost", "changed", "accuracy", "p50_ms", "max_ms")}
        if before >= requests:
            raise LabError(f"all {requests} requests were answered before the strike: give more with --faulty")
        return kept | {"agreed_outside": outside.stdout.strip(), "answered_before": before,
                       "good": outside.returncode == 0 and result["answered"] == requests and not result["degraded"] + result["wrong"]}

    def model_directory(self) -> str:
        return next(line.split('"')[1] for line in self.file.read_text().splitlines() if line.startswith("model"))


def faults(served: Served, lab: netlab.Lab, requests: int, seed: int) -> dict[str, Any]:
    """In every block at once one worker is missing, by chance which; in one of the cases every head."""
    shape, draw = served.shape, random.Random(seed)
    results: dict[str, Any] = {}

    def struck(what: str, workers: list[str], number: int) -> None:
        results[what] = served.checked(requests, lambda: [served.signal(w, number) for w in workers] and None) | {"missing": workers}

    def anyone() -> list[str]:
        return [f"w{block * shape.workers + draw.randrange(shape.workers)}" for block in range(shape.blocks)]

    for what, workers in (("stopped", anyone()), ("heads stopped", [b["head"] for b in served.ask("status")["blocks"]])):
        struck(what, workers, signal.SIGSTOP)
        for worker in workers:
            served.signal(worker, signal.SIGCONT)
        served.wait_ready()
    host = f"h{1 + draw.randrange(shape.workers)}"
    results["host cut off"] = served.checked(requests, lambda: lab.cut(f"{host}-s0", "blackhole")) | {"missing": [host]}
    lab.restore()
    served.wait_ready()
    struck("killed", anyone(), signal.SIGKILL)
    return results


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """By kind and figure: median, least and most of the rounds."""
    return {kind: {key: {"median": statistics.median(r[key] for r in rows), "least": min(r[key] for r in rows), "most": max(r[key] for r in rows)}
                   for key in rows[0]} for kind, rows in rounds.items()}


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':8} {'messages in':>12} {'out':>6} {'p50 ms':>24} {'p99 ms':>24} {'gateway CPU ms':>24}"]
    spread = lambda f: f"{f['median']:.2f} ({f['least']:.2f}-{f['most']:.2f})"
    for kind, row in result["kinds"].items():
        lines.append(f"{kind:8} {row['from_workers']['median']:12.2f} {row['to_workers']['median']:6.2f} "
                     + " ".join(f"{spread(row[key]):>24}" for key in ("p50_ms", "p99_ms", "cpu_ms")))
    for what, row in result["faults"].items():
        lines.append(f"{what:14} {', '.join(row['missing'])}: {row['answered']} of {row['requests']} answered, {row['degraded']} degraded, "
                     f"{row['wrong']} wrong, {row['requests'] - row['answered_before']} and more after the strike, decoded again {row['agreed_outside']}, the longest {row['max_ms']:.0f} ms")
    return "\n".join(lines)


def run(coppice: str, options: argparse.Namespace) -> dict[str, Any]:
    code = json.loads((options.model / "manifest.json").read_text())["code"]
    if "blocks" not in code:
        raise LabError(f"{options.model}: has no blocks; make it with coppice decompose --blocks")
    shape = Shape(code["blocks"], code["workers"], code["needed"])
    asked = max(options.requests, options.faulty)
    if options.replay and len(json.loads((options.replay / "worker0.json").read_text())["items"]) < asked:
        raise LabError(f"{options.replay}: fewer than {asked} items were recorded; give --record-items {asked}")
    topology = parse_topology(lab_topology(options.lab, shape, options.rate))
    settings = netlab.Settings(shaping=Shaping(burst_bytes=16_000))  # less than a fan-out, more than a frame
    rounds: dict[str, list[dict[str, float]]] = {"blocks": [], "flat": []}
    with netlab.running(topology, settings, force=True) as lab, tempfile.TemporaryDirectory(prefix="coppice-blocks-") as where, \
            contextlib.ExitStack() as stack:
        made = {kind: Served(coppice, lab, pathlib.Path(where), shape, options, heads, port)
                for kind, heads, port in (("blocks", "workers", 7000), ("flat", "gateway", 7500))}
        served = {kind: stack.enter_context(each.launched()) for kind, each in made.items()}
        print(f"{2 * (shape.in_all + 1)} nodes are up", file=sys.stderr, flush=True)
        for number in range(options.rounds):
            for kind in sorted(served, reverse=bool(number % 2)):
                rounds[kind].append(served[kind].measure(options.requests))
                print(f"round {number + 1}, {kind}: {rounds[kind][-1]}", file=sys.stderr, flush=True)
        broken = faults(served["blocks"], lab, options.faulty, options.seed)
    kinds = summary(rounds)
    good = all(row["good"] for row in broken.values()) and kinds["blocks"]["from_workers"]["least"] == kinds["blocks"]["from_workers"]["most"] == shape.blocks
    return {"blocks": shape.blocks, "workers": shape.workers, "needed": shape.needed, "rate_mbit": float(options.rate),
            "device": "replay" if options.replay else "cpu", "requests": options.requests, "kinds": kinds, "rounds": rounds,
            "faults": broken, "good": good}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coppice", type=pathlib.Path)
    parser.add_argument("--model", type=lambda text: pathlib.Path(text).resolve(), required=True)
    parser.add_argument("--data", type=lambda text: pathlib.Path(text).resolve(), required=True)
    parser.add_argument("--replay", type=lambda text: pathlib.Path(text).resolve(),
                        help="what coppice evaluate --record-replay wrote, of at least as many items as are asked about: workers wait instead of computing")
    parser.add_argument("--rate", type=Fraction, default=Fraction(100), help="of every link, Mbit/s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300, help="in each round")
    parser.add_argument("--faulty", type=int, default=1_000, help="requests of each fault")
    parser.add_argument("--deadline-ms", type=int, default=5_000, help="so long that a busy machine degrades nothing by itself")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lab", default="blocks")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = run(str(options.coppice.resolve()), options)
    print(json.dumps(result, indent=1) if options.json else table(result))
    return 0 if result["good"] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as fault:
        sys.exit(f"blocks: {fault}")
