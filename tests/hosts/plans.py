#!/usr/bin/env python3
"""Whether plans do on shaped links what was planned: plans.py QUESTION COPPICE --out FILE [TOPOLOGY...]

simulated  the simulator's time beside the measured one, of our plans and of the peers' rings, and the median error.
           Its parameters (latency of a hop, bytes of overhead a chunk, cost of a call) are measured on a line of hosts first,
           once for all topologies.
chunks     the number of chunks that the tuner settles on beside every size from 16 KiB to 4 MiB, held fixed.
hybrid     the planned split between two kinds of links beside a sweep of splits, with and without a cost of switching.
phases     the three-phase plan beside the flat one, on two boxes.

Every topology is brought up at --scale of its rates, in namespaces of its own. Runs that are compared alternate, so that
what else the machine does meets all of them; figures are medians. Results are lines of FILE; a summary is printed.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from fractions import Fraction
from typing import Any, Callable, Iterator

sys.dont_write_bytecode = True
import netlab
import peers
from topology import Topology, load_topology, parse_topology

HERE = pathlib.Path(__file__).resolve().parent
OPERATIONS = ("broadcast", "allreduce")
SIZES = [1 << power for power in range(14, 23)]  # of a chunk, bytes
CHUNKS = 64  # a tree, where sizes are not what is asked about
RINGS = (("gloo", "default"), ("openmpi", "ring"))


class Work:
    """One lab, and what is run in it."""

    def __init__(self, options: argparse.Namespace, lab: netlab.Lab, directory: str) -> None:
        self.options, self.lab = options, lab
        self.cluster = lab.write_cluster(pathlib.Path(directory))
        self.topology = self.cluster.parent / "topology.json"
        self.replans = 0  # of links that were taken for slow: on a machine that has time there are none
        self.coppice("keys", "--cluster", self.cluster)

    def coppice(self, *words: Any) -> str:
        done = subprocess.run([str(self.options.coppice), *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            raise netlab.LabError(f"{self.lab.name}: coppice {' '.join(map(str, words))}: {done.stderr.strip()}")
        return done.stdout

    def bench(self, op: str, *flags: Any, bytes: int | None = None, repeat: int = 1) -> dict[str, Any]:
        run = json.loads(self.coppice("bench", "collective", "--cluster", self.cluster, "--json", "--op", op, "--bytes",
                                      bytes or self.options.bytes, "--repeat", repeat, *flags))
        if not run["verified"]:
            raise netlab.LabError(f"{self.lab.name}: {op} {flags}: wrong contents")
        if run["replans"]:  # what follows is planned for a link that is not there
            self.replans += run["replans"]
            print(f"  {self.lab.name}: {op} {' '.join(map(str, flags))}: a link was taken for slow: this machine is busy", file=sys.stderr)
        return run

    def plan(self, op: str, *flags: Any, topology: pathlib.Path | None = None) -> dict[str, Any]:
        root = ["--root", self.lab.hosts[0]] if op == "broadcast" else []
        return json.loads(self.coppice("plan", "--topology", topology or self.topology, "--op", op, "--json", *root, *flags))

    def alternating(self, runs: dict[Any, Callable[[], list[float]]], rounds: int) -> dict[Any, list[float]]:
        """Each in turn, so many times: their seconds."""
        seconds: dict[Any, list[float]] = {key: [] for key in runs}
        for _ in range(rounds):
            for key, run in runs.items():
                seconds[key] += run()
        return seconds


class Report:
    def __init__(self, file: pathlib.Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file

    def add(self, **row: Any) -> dict[str, Any]:
        row["load"] = round(os.getloadavg()[0], 1)
        with self.file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        return row


def works(options: argparse.Namespace, default: list[str], route: str = "widest") -> Iterator[tuple[str, Work]]:
    known = [file.stem for file in sorted((HERE / "topologies").glob("*.json"))]
    for name in options.topologies or default or known:
        if name not in known:
            raise netlab.BadInput(f"no topology {name}; there are {', '.join(known)}")
        yield from in_lab(options, load_topology(HERE / f"topologies/{name}.json"), name, route)


def in_lab(options: argparse.Namespace, topology: Topology, name: str, route: str) -> Iterator[tuple[str, Work]]:
    scaled = topology.scaled(options.scale).renamed(f"p{os.getpid()}.{name}")
    with netlab.running(scaled, netlab.Settings(route=route)) as lab, \
            tempfile.TemporaryDirectory(prefix="coppice-plans-") as directory:
        yield name, Work(options, lab, directory)


# ---- simulated -------------------------------------------------------------------------------------------------------

def measured_parameters(options: argparse.Namespace) -> dict[str, float]:
    """Of the executor, on lines of 2 and of 5 hosts, whose links are too fast to matter.

    A message of one chunk takes a call and as many hops; a buffer in many chunks takes longer than one in few by what each
    chunk costs, which a link sees as so many bytes more.
    """
    rate = Fraction(100)  # Mbit/s, of the line on which overhead is seen

    def line(hosts: int, mbit: Fraction) -> Topology:
        return parse_topology({"name": "line", "unit": "Mbit/s", "nodes": [{"id": f"h{i}"} for i in range(hosts)],
                               "links": [{"from": f"h{i}", "to": f"h{i + 1}", "capacity": str(mbit)} for i in range(hosts - 1)]})

    def seconds(work: Work, chunks: int, bytes: int) -> float:
        return statistics.median(work.bench("broadcast", "--no-tune", "--chunks", chunks, bytes=bytes,
                                            repeat=options.parameter_repeat)["seconds"])

    own = argparse.Namespace(**vars(options) | {"scale": Fraction(1)})
    times = {}
    for hosts in (2, 5):
        for _, work in in_lab(own, line(hosts, Fraction(4000)), f"line{hosts}", "widest"):
            times[hosts] = seconds(work, 1, 4096)
    hop = max((times[5] - times[2]) / 3, 1e-6)
    for _, work in in_lab(own, line(2, rate), "line2", "widest"):
        few, many = seconds(work, 32, 4 << 20), seconds(work, 512, 4 << 20)
    overhead = max(many - few, 0) / 480 * float(rate) * 1e6 / 8
    return {"hop_s": hop, "call_s": max(times[2] - hop, 0), "overhead_bytes": overhead}


def widest_alone(work: Work) -> pathlib.Path:
    """The topology without the narrower ones of parallel links, which no route takes: what peers have."""
    document = work.lab.topology()
    links: dict[tuple[str, ...], dict[str, Any]] = {}
    for link in document["links"]:
        pair = (*sorted((link["from"], link["to"])), "" if link.get("duplex", True) else link["from"])
        if pair not in links or Fraction(link["capacity"]) > Fraction(links[pair]["capacity"]):
            links[pair] = link
    file = work.topology.with_name("widest.json")
    file.write_text(json.dumps(document | {"links": list(links.values())}))
    return file


def simulated(options: argparse.Namespace, report: Report) -> None:
    parameters = measured_parameters(options)
    print(f"a hop {parameters['hop_s'] * 1e6:.0f} us, a call {parameters['call_s'] * 1e6:.0f} us, a chunk "
          f"{parameters['overhead_bytes']:.0f} bytes of overhead")
    report.add(question="simulated", parameters=parameters)
    errors: dict[str, list[float]] = {"ours": [], "rings": []}
    flags = ["--bytes", options.bytes, "--chunks", CHUNKS, "--latency", parameters["hop_s"] * 1e6, "--overhead", parameters["overhead_bytes"]]

    def compare(kind: str, name: str, op: str, who: str, predicted: float, seconds: list[float]) -> None:
        measured = statistics.median(seconds)
        errors[kind].append(abs(predicted / measured - 1))
        report.add(question="simulated", topology=name, op=op, who=who, simulated_s=predicted, seconds=seconds)
        print(f"{name:16s} {op:10s} {who:16s} simulated {predicted:.3f} s, measured {measured:.3f} s, ratio {predicted / measured:.3f}", flush=True)

    # By the fewest hops, as the simulator routes messages of classics.
    for name, work in works(options, [], "hops"):
        for op in OPERATIONS:
            schedule = work.plan(op, *flags)["schedule"]
            run = work.bench(op, "--no-tune", "--chunks", CHUNKS, repeat=options.repeat)
            compare("ours", name, op, "exact", schedule["simulated_s"] + parameters["call_s"], run["seconds"])
        one_way = work.plan("allreduce", *flags, topology=widest_alone(work))["schedule"]
        for peer, algorithm in RINGS if options.peers else ():
            result = peers.measure(work.lab, peers.find_algorithm(peer, "allreduce", algorithm), options.bytes, options.repeat)
            if result.error:
                print(f"{name:16s} allreduce  {peer}: {result.error}", file=sys.stderr)
                continue
            compare("rings", name, "allreduce", f"{peer} ring", one_way["classic_s"]["ring"], list(result.seconds))
    for kind, found in errors.items():
        if found:
            print(f"{kind}: median |error| {statistics.median(found):.3f}, worst {max(found):.3f}, of {len(found)}")
    print(f"all: median |error| {statistics.median(errors['ours'] + errors['rings']):.3f}")


# ---- chunks ----------------------------------------------------------------------------------------------------------

def chunks(options: argparse.Namespace, report: Report) -> None:
    for name, work in works(options, ["hetero4", "frag6", "slowlink8"]):
        for op in OPERATIONS:
            plan = work.plan(op)
            largest = options.bytes * max(Fraction(tree["rate"]) for tree in plan["trees"]) / Fraction(plan["rate"])
            counts = {size: max(1, round(largest / size)) for size in SIZES if size <= largest}
            fixed = {size: lambda count=count: work.bench(op, "--no-tune", "--chunks", count)["seconds"] for size, count in counts.items()}
            settled: list[int] = []

            def tuned() -> list[float]:
                run = work.bench(op, repeat=2)
                settled.append(run["chunks"])
                return run["seconds"]

            seconds = work.alternating({"tuned": tuned, **fixed}, options.repeat)
            medians = {size: statistics.median(found) for size, found in seconds.items()}
            best = min(counts, key=lambda size: medians[size])
            report.add(question="chunks", topology=name, op=op, chunks=settled, seconds={str(key): value for key, value in seconds.items()})
            print(f"{name:12s} {op:10s} tuned ({'/'.join(map(str, settled))} chunks) {medians['tuned']:.3f} s; best of fixed "
                  f"{best >> 10} KiB ({counts[best]}) {medians[best]:.3f} s; ratio {medians['tuned'] / medians[best]:.3f}; "
                  + ", ".join(f"{size >> 10}K {medians[size]:.3f}" for size in counts), flush=True)


# ---- hybrid ----------------------------------------------------------------------------------------------------------

def hybrid(options: argparse.Namespace, report: Report) -> None:
    for name, work in works(options, ["hybrid4"]):
        kinds = list(dict.fromkeys(link.kind for link in work.lab.nominal.links))
        if len(kinds) != 2:
            raise netlab.BadInput(f"{name}: hybrid needs links of two kinds; it has {' '.join(kinds)}")
        for op in OPERATIONS:
            for switching in options.switching_ms:
                between = ["--kind", kinds[0], "--hybrid", f"{kinds[1]}:{switching}"]
                split = work.plan(op, *between, "--bytes", options.bytes)
                planned = split["second"]["bytes"] / options.bytes
                shares = sorted({round(max(planned + step, 0), 3) for step in (-0.15, -0.1, -0.05, -0.025, 0.025, 0.05, 0.1, 0.15)} | {0.0})
                run = lambda *more: work.bench(op, "--no-tune", "--chunks", CHUNKS, *between, "--emulate-switching", *more)["seconds"]
                seconds = work.alternating({"planned": run} | {share: lambda share=share: run("--second-share", share) for share in shares},
                                           options.repeat)
                medians = {share: statistics.median(found) for share, found in seconds.items()}
                best = min(shares, key=lambda share: medians[share])
                report.add(question="hybrid", topology=name, op=op, switching_ms=switching, planned=planned, predicted_s=split["seconds"],
                           seconds={str(key): value for key, value in seconds.items()})
                print(f"{name:10s} {op:10s} switching {switching} ms: planned share {planned:.3f} {medians['planned']:.3f} s (predicted "
                      f"{split['seconds']:.3f}); best of the sweep {best:.3f} {medians[best]:.3f} s; ratio {medians['planned'] / medians[best]:.3f}; "
                      + ", ".join(f"{share:.3f} {medians[share]:.3f}" for share in shares), flush=True)


# ---- phases ----------------------------------------------------------------------------------------------------------

def phases(options: argparse.Namespace, report: Report) -> None:
    for name, work in works(options, ["two_racks"]):
        for op in OPERATIONS:
            rates = {planner: Fraction(work.plan(op, "--planner", planner)["rate"]) for planner in ("exact", "three_phase")}
            for mode, flags in (("fixed", ["--no-tune", "--chunks", CHUNKS]), ("tuned", [])):
                seconds = work.alternating({planner: lambda planner=planner: work.bench(op, "--planner", planner, *flags)["seconds"]
                                            for planner in rates}, options.repeat)
                medians = {planner: statistics.median(found) for planner, found in seconds.items()}
                report.add(question="phases", topology=name, op=op, chunks=mode, rates={key: str(rate) for key, rate in rates.items()}, seconds=seconds)
                print(f"{name:10s} {op:10s} {mode:5s} flat {medians['exact']:.3f} s, three-phase {medians['three_phase']:.3f} s: "
                      f"{medians['exact'] / medians['three_phase']:.3f} times as fast; rates {float(rates['exact']):g} and "
                      f"{float(rates['three_phase']):g}", flush=True)


def main() -> int:
    questions = {"simulated": simulated, "chunks": chunks, "hybrid": hybrid, "phases": phases}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=questions)
    parser.add_argument("coppice", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("topologies", nargs="*", default=[])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--bytes", type=peers._size, default=8 << 20)
    parser.add_argument("--scale", type=Fraction, default=Fraction(1, 4))
    parser.add_argument("--repeat", type=int, default=5, help="of everything that is compared")
    parser.add_argument("--parameter-repeat", type=int, default=15, help="simulated: of the small measurements before")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="simulated: our plans only")
    parser.add_argument("--switching-ms", type=lambda text: [int(each) for each in text.split(",")], default=[0, 200], help="hybrid: 0,200")
    options = parser.parse_intermixed_args()
    questions[options.question](options, Report(options.out))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except netlab.LabError as error:
        print(f"plans: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, netlab.BadInput) else 1)
