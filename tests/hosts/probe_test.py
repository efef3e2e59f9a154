#!/usr/bin/env python3
"""Links are probed at what they are shaped to: probe_test.py COPPICE [UNITTEST'S OPTIONS]

Real processes in network namespaces. Where a machine is so busy that a figure is far off, it is measured once more.
Without root or namespaces it says so and is skipped.
"""
import pathlib
import subprocess
import sys
import tempfile
import unittest
from fractions import Fraction

sys.dont_write_bytecode = True
import netlab
import probe
from topology import load_topology

HERE = pathlib.Path(__file__).resolve().parent
COPPICE = sys.argv.pop(1)
SCALE = Fraction(1, 4)  # so slow that two cores are no bottleneck
TOLERANCE = 0.15
ATTEMPTS = 2
TIME = ["--measure-s", "0.4"]


REFUSAL = netlab.refusal()


@unittest.skipIf(REFUSAL, f"no network lab here: {REFUSAL}")
class Probed(unittest.TestCase):
    def check(self, name: str, declared: bool, shape: str) -> None:
        topology = load_topology(HERE / f"topologies/{name}.json").scaled(SCALE).renamed(f"probe-test-{name}")
        with netlab.running(topology, netlab.Settings(route="widest"), force=True) as lab:
            off: dict[str, float] = {}
            for _ in range(ATTEMPTS):
                measured = probe.probe(COPPICE, lab, declared, *TIME)
                self.assertEqual(measured["probe"]["shape"], shape)
                off = probe.errors(lab, measured, declared)
                print(f"{name}: worst error {100 * max(map(abs, off.values())):.1f} %", file=sys.stderr)
                if max(map(abs, off.values())) < TOLERANCE:
                    return
        self.fail(f"{name}: {off}")

    def test_links_between_hosts_by_their_own_addresses(self) -> None:
        self.check("hetero4", True, "declared")

    def test_a_switch_that_nobody_told_of(self) -> None:
        self.check("star4", False, "star")

    def test_a_link_that_is_cut_is_named_and_the_others_are_measured(self) -> None:
        topology = load_topology(HERE / "topologies/hetero4.json").scaled(SCALE).renamed("probe-test-cut")
        with netlab.running(topology, netlab.Settings(route="widest"), force=True) as lab, \
                tempfile.TemporaryDirectory(prefix="coppice-probe-") as directory:
            cluster = lab.write_cluster(pathlib.Path(directory))  # before: the link is still declared
            subprocess.run([COPPICE, "keys", "--cluster", cluster], check=True, capture_output=True)
            lab.cut("h2-h3", "down")
            lab.reroute()
            out = pathlib.Path(directory) / "out.json"
            done = subprocess.run([COPPICE, "topology", "--cluster", cluster, "--out", out, "--measure-s", "0.1"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn("h2 to h3: h3 does not answer over ", done.stderr)
            ends = {link.ends for link in load_topology(out).links}
            self.assertNotIn(("h2", "h3"), ends)
            self.assertTrue({("h0", "h1"), ("h1", "h2")} <= ends, ends)


if __name__ == "__main__":
    unittest.main(verbosity=2)
