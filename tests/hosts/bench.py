#!/usr/bin/env python3
"""Collectives on shaped links beside Open MPI and Gloo: bench.py COPPICE --out DIR [--quick] [TOPOLOGY...]

Every topology is brought up at a quarter of its rates (two cores are no bottleneck then), in its own namespaces. For
broadcast and allreduce it measures

- our exact packing, and the rivals' plans over the same transport: what the algorithm gains;
- our best ring beside the peers' rings: what the implementation gains;
- our exact packing beside the best that the peers have, all their algorithms ranked in two rank orders first: together.

What a plan promises stands beside what it did: its rate, and what the simulator makes of it, which knows that chunks are
pipelined (rs_ag's two halves overlap, though its rate is that of one after the other).

Contents are checked in every repetition. Results are lines of DIR/results.jsonl, and what is there is not measured again;
DIR/table.md and DIR/chart.svg are made of them. --quick: three topologies, small buffers, no peers: two minutes.
"""
import argparse
import dataclasses
import html
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from fractions import Fraction
from typing import Any, Iterator, Sequence

sys.dont_write_bytecode = True
import netlab
import peers
from topology import load_topology

HERE = pathlib.Path(__file__).resolve().parent
UNTUNED_FROM_S = 12
HOP_US, CHUNK_OVERHEAD_BYTES = 294, 126  # of our executor, as plans.py simulated measures them
SCALE = Fraction(1, 4)
OPERATIONS = ("broadcast", "allreduce")
PLANNERS = {"broadcast": ("exact", "mwu"), "allreduce": ("exact", "mwu", "rs_ag", "rings", "best_ring")}
RINGS = {"broadcast": ("pipeline", "gloo"), "allreduce": ("ring", "segmented_ring", "gloo")}


@dataclasses.dataclass(frozen=True)
class Load:
    ours: str = "64M"
    ours_repeats: int = 3
    ranking: int = 8 << 20
    ranking_repeats: int = 3
    ranking_timeout_s: float = 120
    final: int = 16 << 20
    final_repeats: int = 5


class Results:
    """One line a measurement; keys are (topology, op, who)."""

    def __init__(self, directory: pathlib.Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.file = directory / "results.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def find(self, **key: Any) -> dict[str, Any] | None:
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.file.open("a") as out:
            out.write(json.dumps(row) + "\n")
        rate = row.get("mbit_per_s")
        print(f"{row['topology']} {row['op']} {row['who']}: " + (f"{rate:.1f} Mbit/s" if rate else row.get("error", "")),
              file=sys.stderr, flush=True)


def planned(coppice: str, topology: pathlib.Path, op: str, planner: str, root: str, *more: str) -> dict[str, Any] | None:
    """What `coppice plan` says; none: the planner has no such plan here."""
    flags = ["--root", root] if op == "broadcast" else []
    done = subprocess.run([coppice, "plan", "--topology", topology, "--op", op, "--planner", planner, "--json", *flags, *more],
                          capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def predicted(coppice: str, topology: pathlib.Path, op: str, planner: str, root: str) -> Fraction | None:
    """The rate of the plan at full scale, Mbit/s; none: the planner has none here."""
    plan = planned(coppice, topology, op, planner, root)
    return Fraction(plan["rate"]) if plan else None


def simulated(coppice: str, lab: netlab.Lab, op: str, planner: str, bytes: str, chunks: int) -> float | None:
    """Mbit/s by the simulator, of the lab as it is; none: it has no such plan."""
    with tempfile.TemporaryDirectory(prefix="coppice-bench-") as directory:
        topology = lab.write_cluster(pathlib.Path(directory)).parent / "topology.json"
        plan = planned(coppice, topology, op, planner, lab.hosts[0], "--bytes", bytes, "--chunks", str(chunks),
                       "--latency", str(HOP_US), "--overhead", str(CHUNK_OVERHEAD_BYTES))
    return plan["schedule"]["bytes"] / plan["schedule"]["simulated_s"] / 125_000 if plan else None


def measure_ours(coppice: str, lab: netlab.Lab, op: str, planner: str, bytes: str, repeats: int, *more: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="coppice-bench-") as directory:
        cluster = lab.write_cluster(pathlib.Path(directory))
        make_keys(coppice, cluster)
        return run_ours(coppice, cluster, op, bytes, repeats, "--planner", planner, *more)


def make_keys(coppice: str, cluster: pathlib.Path) -> None:
    subprocess.run([coppice, "keys", "--cluster", cluster], check=True, capture_output=True)


def run_ours(coppice: str, cluster: pathlib.Path, op: str, bytes: str, repeats: int, *more: str) -> dict[str, Any]:
    done = subprocess.run([coppice, "bench", "collective", "--cluster", cluster, "--json", "--op", op,
                           "--bytes", bytes, "--repeat", str(repeats), *more], capture_output=True, text=True)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}"}
    run = json.loads(done.stdout)
    return {"bytes": run["bytes"], "seconds": run["seconds"], "mbit_per_s": run["algbw"], "verified": run["verified"],
            "trees": run["trees"], "chunks": run["chunks"], "attempts": run["attempts"], "replans": run["replans"],
            "fraction_of_bound": run["fraction_of_bound"]}


def measure_topology(coppice: str, name: str, results: Results, load: Load, with_peers: bool, operations: Sequence[str]) -> None:
    file = HERE / f"topologies/{name}.json"
    topology = load_topology(file).scaled(SCALE).renamed(f"b{name}")
    with netlab.running(topology, netlab.Settings(route="widest"), force=True) as lab:
        for op in operations:
            for planner in PLANNERS[op]:
                if results.find(topology=name, op=op, who=planner):
                    continue
                rate = predicted(coppice, file, op, planner, lab.hosts[0])
                # Long calls are not made ten times over only to find the best number of chunks; the model is close there.
                slow = rate and int(load.ours.rstrip("M")) * (1 << 20) / 125_000 / float(rate * SCALE) > UNTUNED_FROM_S
                more = ["--no-tune"] if slow else []
                row = {"topology": name, "op": op, "who": planner, "load": os.getloadavg()[0],
                       "predicted": float(rate * SCALE) if rate else None, "tuned": not slow}
                row |= measure_ours(coppice, lab, op, planner, load.ours, load.ours_repeats, *more) if rate else {"error": "no such plan here"}
                if "chunks" in row:
                    row["simulated"] = simulated(coppice, lab, op, planner, load.ours, row["chunks"])
                results.add(row)
            if with_peers:
                measure_peers(lab, name, op, results, load)


def measure_peers(lab: netlab.Lab, name: str, op: str, results: Results, load: Load) -> None:
    def add(who: str, measured: peers.Measurement) -> None:
        results.add({"topology": name, "op": op, "who": who, **measured.to_json(),
                     "mbit_per_s": None if measured.error else measured.mbit_per_s})

    if not results.find(topology=name, op=op, who="best peer"):
        ranked = peers.rank_algorithms(lab, op, load.ranking, load.ranking_repeats, timeout_s=load.ranking_timeout_s,
                                       report=lambda one: add("ranking", one))
        best = ranked[0]
        add("best peer", peers.measure(lab, peers.find_algorithm(best.peer, op, best.algorithm, best.segment), load.final,
                                       load.final_repeats, best.order))
    if not results.find(topology=name, op=op, who="peers' ring"):
        rings = [row for row in results.rows if row["topology"] == name and row["op"] == op and row["who"] == "ranking"
                 and row.get("mbit_per_s") and (row["algorithm"] in RINGS[op] or row["peer"] in RINGS[op])]
        if rings:
            best_ring = max(rings, key=lambda row: row["mbit_per_s"])
            algorithm = peers.find_algorithm(best_ring["peer"], op, best_ring["algorithm"], best_ring["segment"])
            add("peers' ring", peers.measure(lab, algorithm, load.final, load.final_repeats, best_ring["order"]))


# ---- what it comes to ------------------------------------------------------------------------------------------------

def ratio(results: Results, name: str, op: str, ours: str, theirs: str) -> float | None:
    a, b = (results.find(topology=name, op=op, who=who) for who in (ours, theirs))
    return a["mbit_per_s"] / b["mbit_per_s"] if a and b and a.get("mbit_per_s") and b.get("mbit_per_s") else None


def expected(results: Results, name: str, op: str, who: str) -> float | None:
    """Our exact plan over a rival's, by the simulator, or by the rates of plans where it was not asked."""
    exact, other = (results.find(topology=name, op=op, who=each) for each in ("exact", who))
    for key in ("simulated", "predicted"):
        if exact and other and exact.get(key) and other.get(key):
            return exact[key] / other[key]
    return None


def table(results: Results) -> Iterator[str]:
    names = list(dict.fromkeys(row["topology"] for row in results.rows))
    yield "| topology | op | Mbit/s | of the bound | over mwu | rs_ag | rings | best ring | ring over peers' ring | over the best peer |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    fractions: dict[str, list[float]] = {op: [] for op in OPERATIONS}
    together: dict[str, list[float]] = {op: [] for op in OPERATIONS}
    for name in names:
        for op in OPERATIONS:
            exact = results.find(topology=name, op=op, who="exact")
            if not exact or not exact.get("mbit_per_s"):
                continue
            shown = lambda value: "–" if value is None else f"{value:.2f}"
            beside = lambda who: shown(ratio(results, name, op, "exact", who)) + (
                f" ({expected(results, name, op, who):.2f})" if ratio(results, name, op, "exact", who) else "") + (
                "†" if (results.find(topology=name, op=op, who=who) or {}).get("replans") else "")
            over = ratio(results, name, op, "exact", "best peer")
            fractions[op].append(exact["fraction_of_bound"])
            if over and name != "star4":
                together[op].append(over)
            yield "| " + " | ".join(
                [name, op, f"{exact['mbit_per_s']:.1f}", f"{exact['fraction_of_bound']:.3f}"]
                + [beside(who) for who in ("mwu", "rs_ag", "rings", "best_ring")]
                + [shown(ratio(results, name, op, "best_ring", "peers' ring")), shown(over)]) + " |"
    yield ""
    yield "In brackets: what the simulator expects. †: a link was taken for slow, and other trees than the plan's were used.  "
    for op in OPERATIONS:
        if fractions[op]:
            yield (f"{op}: geometric mean {statistics.geometric_mean(fractions[op]):.3f} of the bound, worst {min(fractions[op]):.3f}"
                   + (f"; {statistics.geometric_mean(together[op]):.2f} times the best peer without star4" if together[op] else "") + ".  ")


def chart(results: Results) -> str:
    """Bars: our rate and the best peer's, as parts of the bound."""
    bars = []
    for name in dict.fromkeys(row["topology"] for row in results.rows):
        for op in OPERATIONS:
            exact = results.find(topology=name, op=op, who="exact")
            peer = results.find(topology=name, op=op, who="best peer")
            if exact and exact.get("mbit_per_s"):
                bound = exact["mbit_per_s"] / exact["fraction_of_bound"]
                theirs = peer["mbit_per_s"] / bound if peer and peer.get("mbit_per_s") else 0
                bars.append((f"{name} {op}", exact["fraction_of_bound"], theirs))
    row, left, width = 34, 190, 420
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{row * len(bars) + 40}" '
             'font-family="sans-serif" font-size="12">']
    for i, (label, ours, theirs) in enumerate(bars):
        y = 10 + i * row
        parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{html.escape(label)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{ours * width:.1f}" height="12" fill="#2a7"/>')
        parts.append(f'<rect x="{left}" y="{y + 13}" width="{theirs * width:.1f}" height="9" fill="#99a"/>')
        parts.append(f'<text x="{left + ours * width + 5:.1f}" y="{y + 11}">{ours:.2f}</text>')
    parts.append(f'<line x1="{left + width}" y1="4" x2="{left + width}" y2="{row * len(bars) + 6}" stroke="#000"/>')
    parts.append(f'<text x="{left}" y="{row * len(bars) + 28}">parts of the bound: Coppice (green), the best of Open MPI and Gloo (grey)</text></svg>')
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coppice", type=pathlib.Path)
    parser.add_argument("topologies", nargs="*", default=[])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--op", choices=OPERATIONS, help="only this one")
    parser.add_argument("--ranking-timeout", type=float, default=Load.ranking_timeout_s, metavar="SECONDS",
                        help="an algorithm of the peers that takes longer for four times 8 MiB is not the best one")
    parser.add_argument("--quick", action="store_true", help="three topologies, 16 MiB, no peers")
    options = parser.parse_intermixed_args()
    known = [file.stem for file in sorted((HERE / "topologies").glob("*.json"))]
    names = options.topologies or (["hetero4", "frag6", "slowlink8"] if options.quick else known)
    for name in names:
        if name not in known:
            print(f"bench: no topology {name}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    results = Results(options.out)
    load = Load(ours="16M", ours_repeats=2) if options.quick else Load(ranking_timeout_s=options.ranking_timeout)
    for name in names:
        measure_topology(str(options.coppice.resolve()), name, results, load, not options.quick, [options.op] if options.op else OPERATIONS)
        text = "\n".join(table(results)) + "\n"
        (options.out / "table.md").write_text(text)
        (options.out / "chart.svg").write_text(chart(results))
    print(text)
    wrong = [row for row in results.rows if row.get("verified") is False]
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except netlab.LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
