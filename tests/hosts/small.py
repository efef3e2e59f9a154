#!/usr/bin/env python3
"""Small allreduces beside Open MPI's, in the same namespaces: small.py COPPICE [--ranks 8] [--bytes 4096] [--rounds 5]

Hosts at one switch that is no limit. A round is so many calls by us, as many by Open MPI over TCP, and as many by bare
ZeroMQ sockets, which is the least that we can take; what counts is the median call of each, and the ratio round by round.
Keep the machine quiet: two cores have all ranks to run.
"""
import argparse
import json
import pathlib
import statistics
import sys
import tempfile

sys.dont_write_bytecode = True
import netlab
import peers
from bench import measure_ours
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coppice")
    parser.add_argument("--ranks", type=positive, default=8)
    parser.add_argument("--bytes", type=positive, default=4096)
    parser.add_argument("--calls", type=positive, default=500, help="a round")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory(prefix="coppice-small-") as directory:
        topology = load_topology(star(options.ranks, pathlib.Path(directory)))
        with netlab.running(topology) as lab:
            algorithm = peers.find_algorithm("openmpi", "allreduce")
            for number in range(options.rounds):
                ours = measure_ours(options.coppice, lab, "allreduce", "exact", str(options.bytes), options.calls)
                if "error" in ours or not ours["verified"]:
                    raise LabError(ours.get("error", "the sums are wrong"))
                theirs = peers.measure(lab, algorithm, options.bytes, options.calls)
                if theirs.error:
                    raise LabError(theirs.error)
                rounds.append({"ours_us": statistics.median(ours["seconds"]) * 1e6, "openmpi_us": statistics.median(theirs.seconds) * 1e6})
                for name, keys in (("zeromq_us", False), ("curve_us", True)):
                    rounds[-1][name] = statistics.median(peers.star_over_zeromq(lab, options.bytes, options.calls, keys)) * 1e6
                rounds[-1]["ratio"] = rounds[-1]["ours_us"] / rounds[-1]["openmpi_us"]
                if not options.json:
                    print("round {}: {ours_us:.0f} us, Open MPI {openmpi_us:.0f} us, bare ZeroMQ {zeromq_us:.0f} us, with CURVE {curve_us:.0f} us, ratio {ratio:.2f}".format(number + 1, **rounds[-1]), flush=True)
    ratios = [each["ratio"] for each in rounds]
    summary = {"ranks": options.ranks, "bytes": options.bytes, "calls": options.calls, "rounds": rounds,
               "ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
    if options.json:
        print(json.dumps(summary))
    else:
        print(f"{options.bytes} bytes, {options.ranks} ranks: {summary['ratio']:.2f} times Open MPI's time, {min(ratios):.2f} to {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LabError, OSError) as fault:
        sys.exit(f"small: {fault}")
