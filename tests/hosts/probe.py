#!/usr/bin/env python3
"""How near coppice topology comes to the rates that a lab's links are shaped to.

    ./probe.py COPPICE topologies/*.json --scale 1/4             # each link of the topology, by its addresses
    ./probe.py COPPICE topologies/star4.json --undeclared        # and what is inferred without it
"""
import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
from fractions import Fraction
from typing import Any

sys.dont_write_bytecode = True
import netlab
from topology import LabError, load_topology, positive

Directions = dict[tuple[str, str, str, str], Fraction]


def directions(document: dict[str, Any]) -> Directions:
    """The capacity of each direction of each link, by its ends and their addresses; of equal ones the sum."""
    found: Directions = {}
    for link in document["links"]:
        ends = [(link["from"], link.get("from_address", "")), (link["to"], link.get("to_address", ""))]
        for (source, here), (target, there) in [ends, ends[::-1]] if link.get("duplex", True) else [ends]:
            key = (source, target, here, there)
            found[key] = found.get(key, Fraction(0)) + Fraction(link["capacity"])
    return found


def probe(coppice: str, lab: netlab.Lab, declared: bool = True, *flags: str) -> dict[str, Any]:
    """What coppice topology --json says of the lab; undeclared: it is not told the links."""
    with tempfile.TemporaryDirectory(prefix="coppice-probe-") as directory:
        cluster = lab.write_cluster(pathlib.Path(directory))
        if not declared:
            cluster.write_text(re.sub(r"(?m)^topology = .*$", "", cluster.read_text()))
        subprocess.run([coppice, "keys", "--cluster", cluster], check=True, capture_output=True)
        done = subprocess.run([coppice, "topology", "--cluster", cluster, "--json", *flags], capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"{lab.name}: {done.stderr.strip()}")
        return json.loads(done.stdout)


def errors(lab: netlab.Lab, measured: dict[str, Any], declared: bool = True) -> dict[str, float]:
    """Of each direction of each link: measured / shaped - 1. Undeclared: by the ends alone, a switch being any switch."""
    def plain(found: Directions) -> Directions:
        switches = {node["id"] for node in [*measured["nodes"], *lab.topology()["nodes"]] if node.get("switch")}
        named: Directions = {}
        for (source, target, here, there), capacity in found.items():
            key = (source, target, here, there) if declared else (
                "switch" if source in switches else source, "switch" if target in switches else target, "", "")
            named[key] = named.get(key, Fraction(0)) + capacity
        return named

    shaped, found = plain(directions(lab.topology())), plain(directions(measured))
    if shaped.keys() != found.keys():
        raise LabError(f"{lab.name}: links {sorted(found)} were found, not {sorted(shaped)}")
    return {f"{key[0]} to {key[1]}" + (f" over {key[3]}" if key[3] else ""): float(found[key] / shaped[key]) - 1 for key in shaped}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coppice")
    parser.add_argument("topologies", nargs="+", type=pathlib.Path)
    parser.add_argument("--scale", default="1/4", help="times every capacity")
    parser.add_argument("--undeclared", action="store_true")
    parser.add_argument("--measure-s", default="1.2", help="for a rate, where nothing is in the way")
    parser.add_argument("--alone", action="store_true", help="one rate at a time")
    parser.add_argument("--verbose", action="store_true", help="each direction's error")
    arguments = parser.parse_args()
    every: list[float] = []
    for file in arguments.topologies:
        topology = load_topology(file).scaled(positive(arguments.scale, "--scale"))
        with netlab.running(topology.renamed(f"probe-{topology.name}"), netlab.Settings(route="widest"), force=True) as lab:
            measured = probe(arguments.coppice, lab, not arguments.undeclared, "--measure-s", arguments.measure_s,
                             *(["--alone"] if arguments.alone else []))
            off = errors(lab, measured, not arguments.undeclared)
        sizes = [abs(error) for error in off.values()]
        every += sizes
        worst = max(off, key=lambda name: abs(off[name]))
        disturbed = sum(entry["disturbed"] for entry in measured["probe"]["links"] + measured["probe"]["pairs"])
        print(f"{topology.name:16s} {measured['probe']['shape']:8s} {len(off):3d} directions: median {100 * statistics.median(sizes):.1f} %, "
              f"worst {100 * off[worst]:+.1f} % ({worst}), {disturbed} disturbed", flush=True)
        if arguments.verbose:
            print("".join(f"  {name:40s} {100 * error:+.1f} %\n" for name, error in off.items()), end="")
    print(f"all: median {100 * statistics.median(every):.1f} %, worst {100 * max(every):.1f} %")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(f"probe: {error}", file=sys.stderr)
        sys.exit(1)
