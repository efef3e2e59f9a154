#!/usr/bin/env python3
"""Small allreduces beside Open MPI's: small.py COPPICE [--ranks 8] [--bytes 4096] [--rounds 5] [--apart]

Ranks of this machine, in its own namespace; or --apart, in one namespace each, as if they were on machines of their own, at one
switch that is no limit. A round is so many calls by us and as many by each of the others, in turn; what counts is the median call of
each, and the ratio to Open MPI over TCP, round by round. Keep the machine quiet: two cores have all ranks to run.
"""
import argparse
import contextlib
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

sys.dont_write_bytecode = True
import netlab
import peers
from bench import make_keys, measure_ours, run_ours
from topology import LabError, load_topology

RATE = 10_000  # Mbit/s


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def star(ranks: int, directory: pathlib.Path) -> pathlib.Path:
    hosts = [f"h{i}" for i in range(ranks)]
    file = directory / f"small{ranks}.json"
    file.write_text(json.dumps({
        "name": f"small{ranks}", "unit": "Mbit/s", "nodes": [{"id": host} for host in hosts] + [{"id": "s0", "switch": True}],
        "links": [{"from": host, "to": "s0", "capacity": str(RATE), "kind": "tcp"} for host in hosts]}))
    return file


def median_us(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e6


def ours_us(run: dict[str, Any]) -> float:
    if "error" in run or not run["verified"]:
        raise LabError(run.get("error", "the sums are wrong"))
    return median_us(run["seconds"])


def round_apart(options: argparse.Namespace, lab: netlab.Lab) -> dict[str, float]:
    ours = ours_us(measure_ours(options.coppice, lab, "allreduce", "exact", str(options.bytes), options.calls))
    theirs = peers.measure(lab, peers.find_algorithm("openmpi", "allreduce"), options.bytes, options.calls)
    if theirs.error:
        raise LabError(theirs.error)
    return {"ours": ours, "Open MPI, TCP": median_us(theirs.seconds)} | {
        name: median_us(peers.star_over_zeromq(lab, options.bytes, options.calls, keys))
        for name, keys in (("bare ZeroMQ", False), ("with CURVE", True))}


def round_here(options: argparse.Namespace, cluster: pathlib.Path) -> dict[str, float]:
    def ours(*more: str) -> float:
        return ours_us(run_ours(options.coppice, cluster, "allreduce", str(options.bytes), options.calls, "--probe-s", "0", *more))

    def theirs(transport: str) -> float:
        return median_us(peers.openmpi_here("allreduce", options.ranks, options.bytes, options.calls, transport))

    return {"ours": ours(), "Open MPI, TCP": theirs("tcp"), "ours, TCP": ours("--no-local"), "Open MPI, shared memory": theirs("vader")}


def write_cluster(ranks: int, directory: pathlib.Path) -> pathlib.Path:
    """Of processes of this machine, at ports below those of outgoing connections."""
    file = directory / "cluster.toml"
    lines = ['name = "small"', 'keys = "keys/"']
    for rank in range(ranks):
        lines += ["", "[[host]]", f'name = "h{rank}"', 'address = "127.0.0.1"', f"port = {21_000 + os.getpid() % 5_000 + 2 * rank}"]
        lines += ['roles = ["gateway"]'] if rank == 0 else []
    file.write_text("\n".join(lines) + "\n")
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coppice")
    parser.add_argument("--ranks", type=positive, default=8)
    parser.add_argument("--bytes", type=positive, default=4096)
    parser.add_argument("--calls", type=positive, default=500, help="a round")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--apart", action="store_true", help="in namespaces of their own")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="coppice-small-") as directory, contextlib.ExitStack() as stack:
        if options.apart:
            lab = stack.enter_context(netlab.running(load_topology(star(options.ranks, pathlib.Path(directory)))))
            measure = functools.partial(round_apart, options, lab)
        else:
            cluster = write_cluster(options.ranks, pathlib.Path(directory))
            make_keys(options.coppice, cluster)
            measure = functools.partial(round_here, options, cluster)
        for number in range(options.rounds):
            rounds.append(measure())
            if not options.json:
                told = ", ".join(f"{name} {us:.0f} us" for name, us in rounds[-1].items())
                print(f"round {number + 1}: {told}", flush=True)
    ratios = [each["ours"] / each["Open MPI, TCP"] for each in rounds]
    summary = {"ranks": options.ranks, "bytes": options.bytes, "calls": options.calls, "apart": options.apart, "rounds": rounds,
               "ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
    if options.json:
        print(json.dumps(summary))
    else:
        print(f"{options.bytes} bytes, {options.ranks} ranks: {summary['ratio']:.2f} times the time of Open MPI over TCP, "
              f"{min(ratios):.2f} to {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LabError, OSError) as fault:
        sys.exit(f"small: {fault}")
