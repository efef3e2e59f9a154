#!/usr/bin/env python3
"""A link fails in the middle of a large allreduce: degrade.py COPPICE [--mib 256] [--rounds 3] [--cut]

hetero4 at a quarter of its rates. Once a good third of all bytes has left the hosts, h0-h1 falls to a tenth, or is cut. What
counts is the time from then on over what the new optimum allows for the bytes that were left (asked: 1.3). How much had
been done is what the interfaces had sent, over what they send in a run that nothing disturbs.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from typing import Any

sys.dont_write_bytecode = True
import netlab
from topology import LabError, load_topology

HERE = pathlib.Path(__file__).resolve().parent
LINK = "h0-h1"
CHANGE_AT = 0.35  # of all bytes
MIB = 1 << 20


def sent(lab: netlab.Lab) -> int:
    """By all interfaces of all hosts so far, headers included."""
    total = 0
    for host in lab.hosts:
        shown = subprocess.run(["ip", "-n", lab.namespace(host), "-s", "-j", "link"], check=True, capture_output=True, text=True)
        total += sum(link["stats64"]["tx"]["bytes"] for link in json.loads(shown.stdout))
    return total


def bound(coppice: str, lab: netlab.Lab, directory: pathlib.Path) -> Fraction:
    """Of the lab's links as they are now, bytes a second."""
    file = directory / "now.json"
    file.write_text(json.dumps(lab.topology()))
    done = subprocess.run([coppice, "plan", "--topology", file, "--op", "allreduce", "--json"], check=True, capture_output=True, text=True)
    return Fraction(json.loads(done.stdout)["bound"]) * 125_000


def start(coppice: str, lab: netlab.Lab, directory: pathlib.Path, mib: int) -> subprocess.Popen[str]:
    cluster = lab.write_cluster(directory)
    subprocess.run([coppice, "keys", "--cluster", cluster], check=True, capture_output=True)
    return subprocess.Popen([coppice, "bench", "collective", "--cluster", cluster, "--json", "--bytes", f"{mib}M", "--element", "int64",
                             "--repeat", "1", "--warm-up", "0", "--no-tune"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(running: subprocess.Popen[str]) -> dict[str, Any]:
    out, error = running.communicate()
    if running.returncode != 0:
        raise LabError(error.strip().splitlines()[-1])
    result = json.loads(out)
    if not result["verified"]:
        raise LabError("the sums are wrong")
    return result


def one_round(coppice: str, mib: int, cut: bool) -> dict[str, Any]:
    topology = load_topology(HERE / "topologies" / "hetero4.json").scaled(Fraction(1, 4)).renamed("dhetero4")
    with netlab.running(topology, netlab.Settings(route="widest")) as lab, tempfile.TemporaryDirectory(prefix="coppice-degrade-") as name:
        directory = pathlib.Path(name)
        before = sent(lab)
        finish(start(coppice, lab, directory / "calm", mib // 4))
        whole = (sent(lab) - before) * 4
        before = sent(lab)
        running = start(coppice, lab, directory / "changed", mib)
        while sent(lab) - before < CHANGE_AT * whole:
            if running.poll() is not None:
                finish(running)
                raise LabError("it was over before the link could change")
            time.sleep(0.02)
        changed = time.monotonic()
        if cut:
            lab.cut(LINK, "blackhole")
        else:
            lab.degrade(LINK, lab.current.link(LINK).capacity[0] / 10)
        done = (sent(lab) - before) / whole
        result = finish(running)
        rest = time.monotonic() - changed
        least = (1 - done) * mib * MIB / float(bound(coppice, lab, directory))
    return {"bytes": mib * MIB, "cut": cut, "done": done, "rest_s": rest, "least_s": least, "ratio": rest / least,
            "attempts": result["attempts"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coppice")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cut", action="store_true", help="altogether")
    options = parser.parse_args()
    ratios = []
    for _ in range(options.rounds):
        row = one_round(options.coppice, options.mib, options.cut)
        print(json.dumps(row), flush=True)
        ratios.append(row["ratio"])
    print(f"{statistics.median(ratios):.2f} times the new optimum's time for the rest, {min(ratios):.2f} to {max(ratios):.2f}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LabError, OSError) as fault:
        sys.exit(f"degrade: {fault}")
