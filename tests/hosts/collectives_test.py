#!/usr/bin/env python3
"""Collectives on shaped links: collectives_test.py COPPICE [UNITTEST'S OPTIONS]

Real processes in network namespaces. Nothing here depends on how fast this machine is: contents are checked, bytes are
counted where they leave, and no run may be faster than its links. Without root or namespaces it says so and is skipped.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from fractions import Fraction
from typing import Any, Callable

sys.dont_write_bytecode = True
import netlab
from topology import load_topology

HERE = pathlib.Path(__file__).resolve().parent
COPPICE = sys.argv.pop(1)
SCALE = Fraction(1, 4)  # so slow that two cores are no bottleneck


REFUSAL = netlab.refusal()


class Bench:
    """coppice bench collective, in the background, in a lab of its own."""

    def __init__(self, lab: netlab.Lab, *flags: Any) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="coppice-collectives-")
        cluster = lab.write_cluster(pathlib.Path(self.directory.name))
        subprocess.run([COPPICE, "keys", "--cluster", cluster], check=True, capture_output=True)
        self.process = subprocess.Popen(
            [COPPICE, "bench", "collective", "--cluster", cluster, "--json", *map(str, flags)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, timeout_s: float = 150) -> tuple[int, dict[str, Any], str]:
        out, error = self.process.communicate(timeout=timeout_s)
        self.directory.cleanup()
        return self.process.returncode, json.loads(out) if out else {}, error


def kill(lab: netlab.Lab, host: str) -> None:
    """kill -9 to what runs on the host, which is its rank."""
    pids = subprocess.run(["ip", "netns", "pids", lab.namespace(host)], check=True, capture_output=True, text=True).stdout.split()
    subprocess.run(["kill", "-KILL", *pids], check=True)


def sent_bytes(lab: netlab.Lab, host: str) -> dict[str, int]:
    """By interface: what has left it, headers included."""
    shown = subprocess.run(["ip", "-n", lab.namespace(host), "-s", "-j", "link"], check=True, capture_output=True, text=True)
    return {link["ifname"]: link["stats64"]["tx"]["bytes"] for link in json.loads(shown.stdout)}


@unittest.skipIf(REFUSAL, f"no network lab here: {REFUSAL}")
class OnShapedLinks(unittest.TestCase):
    def lab(self, name: str) -> Any:
        topology = load_topology(HERE / f"topologies/{name}.json").scaled(SCALE).renamed(f"c{name}")
        return netlab.running(topology, netlab.Settings(route="widest"), force=True)

    def test_contents_are_right_and_no_run_beats_its_links(self) -> None:
        for name in ("hetero4", "frag6", "two_racks"):
            for operation in ("broadcast", "allreduce"):
                with self.subTest(topology=name, op=operation), self.lab(name) as lab:
                    code, result, error = Bench(lab, "--op", operation, "--bytes", "8M", "--repeat", 2, "--no-tune").finish()
                    self.assertEqual(code, 0, error)
                    self.assertTrue(result["verified"])
                    print(f"{name} {operation}: {result['fraction_of_bound']:.3f} of the bound", file=sys.stderr)
                    self.assertLess(result["fraction_of_bound"], 1.05)

    def test_chunks_travel_on_the_links_of_the_plan(self) -> None:
        with self.lab("hetero4") as lab:
            plan = json.loads(subprocess.run(
                [COPPICE, "plan", "--topology", HERE / "topologies/hetero4.json", "--op", "broadcast", "--root", "h0", "--json"],
                check=True, capture_output=True, text=True).stdout)
            size = 8 << 20
            before = {host: sent_bytes(lab, host) for host in lab.hosts}
            code, result, error = Bench(lab, "--op", "broadcast", "--bytes", size, "--repeat", 1, "--warm-up", 0).finish()
            self.assertEqual(code, 0, error)
            self.assertEqual(result["attempts"], 1, "this machine is too busy: a link was taken for slow")
            wanted: dict[tuple[str, str], Fraction] = {}
            for tree in plan["trees"]:
                share = Fraction(tree["rate"]) / Fraction(plan["rate"]) * size
                for edge in tree["edges"]:
                    key = (edge["from"], edge["to"])
                    wanted[key] = wanted.get(key, Fraction(0)) + share
            for link in lab.current.links:
                for end in (0, 1):
                    host, peer = link.ends[end], link.ends[1 - end]
                    interface = lab.layout.port(link, end).interface
                    left = sent_bytes(lab, host)[interface] - before[host][interface]
                    share = float(wanted.get((host, peer), 0))
                    # Headers, acknowledgements and a retransmission or two; a chunk on a wrong link would be far more.
                    self.assertLess(abs(left - share), 0.12 * share + 0.05 * size, f"{host} to {peer}")

    def traced(self, lab: netlab.Lab, *flags: Any, deploy: tuple[Any, ...] = ()) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The hops of one call, and the relays that `coppice plan --deploy` puts in place for it."""
        with tempfile.TemporaryDirectory(prefix="coppice-trace-") as directory:
            cluster, trace = lab.write_cluster(pathlib.Path(directory)), pathlib.Path(directory) / "trace.jsonl"
            plan = json.loads(subprocess.run([COPPICE, "plan", "--deploy", cluster, "--json", *map(str, deploy)],
                                             check=True, capture_output=True, text=True).stdout)
            code, result, error = Bench(lab, "--repeat", 1, "--warm-up", 0, "--no-tune", "--trace", trace, *flags).finish()
            self.assertEqual(code, 0, error)
            self.assertTrue(result["verified"])
            self.assertEqual(result["attempts"], 1, "this machine is too busy: a link was taken for slow")
            return [json.loads(line) for line in trace.read_text().splitlines()], plan["deploy"]

    def follows(self, hops: list[dict[str, Any]], chains: list[dict[str, Any]]) -> None:
        """Every chunk of every tree took each of its hops once, over the link that was deployed, and no other."""
        wanted: dict[tuple[int, str], set[tuple[str, str, str]]] = {}
        for chain in chains:
            for relay in chain["relays"]:
                if relay["parent"] is None:
                    continue
                parent, link = chain["relays"][relay["parent"]]["host"], relay["link"]
                if chain["way"] in ("broadcast", "both"):
                    wanted.setdefault((chain["tree"], "down"), set()).add((parent, relay["host"], link["from_address"]))
                if chain["way"] in ("reduce", "both"):
                    wanted.setdefault((chain["tree"], "up"), set()).add((relay["host"], parent, link["to_address"]))
        seen: dict[tuple[int, str], dict[int, list[tuple[str, str, str]]]] = {}
        for hop in hops:
            chunks = seen.setdefault((hop["tree"], hop["way"]), {})
            chunks.setdefault(hop["chunk"], []).append((hop["from"], hop["to"], hop["from_address"]))
        self.assertEqual(seen.keys(), wanted.keys())
        for key, chunks in seen.items():
            self.assertEqual(sorted(chunks), list(range(len(chunks))), key)
            self.assertGreater(len(chunks), 1)
            for chunk, ways in chunks.items():
                self.assertEqual(len(ways), len(set(ways)), f"{key}, chunk {chunk} took a hop twice")
                self.assertEqual(set(ways), wanted[key], f"{key}, chunk {chunk}")

    def test_every_chunk_follows_the_relays_that_were_deployed(self) -> None:
        with self.lab("hybrid4") as lab:
            for operation in ("broadcast", "allreduce"):
                with self.subTest(op=operation):
                    hops, chains = self.traced(lab, "--op", operation, "--bytes", "4M", deploy=("--op", operation))
                    self.follows(hops, chains)
                    addresses = {hop["from_address"] for hop in hops}
                    self.assertTrue(any(lab.layout.port(link, 0).address in addresses or lab.layout.port(link, 1).address in addresses
                                        for link in lab.current.links if link.kind == "pcie"), "parallel links were not used")

    def test_a_hybrid_plan_divides_the_buffer_between_the_kinds_as_planned(self) -> None:
        size = 4 << 20
        with self.lab("hybrid4") as lab:
            kinds = ("--kind", "nvlink", "--hybrid", "pcie:20")
            hops, chains = self.traced(lab, "--op", "broadcast", "--bytes", size, *kinds,
                                       deploy=("--op", "broadcast", *kinds, "--bytes", size))
            self.follows(hops, chains)
            split = json.loads(subprocess.run(
                [COPPICE, "plan", "--topology", HERE / "topologies/hybrid4.json", "--op", "broadcast", *kinds, "--bytes", str(4 * size), "--json"],
                check=True, capture_output=True, text=True).stdout)  # the lab has a quarter of the rates
            kind = {lab.layout.port(link, end).address: link.kind for link in lab.current.links for end in (0, 1)}
            arrived = {name: sum(hop["bytes"] for hop in hops if kind[hop["from_address"]] == name and hop["to"] == "h1")
                       for name in ("nvlink", "pcie")}
            self.assertEqual(sum(arrived.values()), size)
            self.assertAlmostEqual(arrived["pcie"] / size, split["second"]["bytes"] / (4 * size), delta=0.001)

    def test_three_phases_are_executed_over_two_boxes(self) -> None:
        with self.lab("two_racks") as lab:
            flags = ("--op", "allreduce", "--planner", "three_phase")
            hops, chains = self.traced(lab, *flags, "--bytes", "4M", deploy=flags)
            self.assertEqual({(hop["tree"], hop["from"], hop["to"], hop["way"]) for hop in hops},
                             {(chain["tree"], *ends, way) for chain in chains for relay in chain["relays"] if relay["parent"] is not None
                              for parent in [chain["relays"][relay["parent"]]["host"]]
                              for way, ends in (("down", (parent, relay["host"])), ("up", (relay["host"], parent)))
                              if chain["way"] == "both" or (way == "up") == (chain["way"] == "reduce")})
            box = lambda host: int(host[1:]) // 4
            crossing = {(hop["from"], hop["to"]) for hop in hops if box(hop["from"]) != box(hop["to"])}
            self.assertTrue(crossing)
            self.assertTrue(all(abs(int(a[1:]) - int(b[1:])) == 4 for a, b in crossing), "between boxes only roots that match exchange")

    def changed_half_way(self, name: str, change: Callable[[netlab.Lab], None], *flags: Any) -> tuple[int, dict[str, Any], str]:
        with self.lab(name) as lab:
            bench = Bench(lab, "--repeat", 1, "--warm-up", 0, "--no-tune", *flags)
            watched = lab.hosts[0]
            start = sum(sent_bytes(lab, watched).values())
            deadline = time.monotonic() + 60
            # Under way once the first host has sent some megabytes, however long the start took.
            while sum(sent_bytes(lab, watched).values()) - start < 4 << 20 and time.monotonic() < deadline:
                time.sleep(0.02)
            worker = threading.Thread(target=change, args=(lab,))
            worker.start()
            finished = bench.finish()
            worker.join()
            return finished

    def test_a_link_that_falls_to_a_tenth_is_planned_around(self) -> None:
        code, result, error = self.changed_half_way(
            "hetero4", lambda lab: lab.degrade("h0-h1", Fraction(10)), "--op", "allreduce", "--bytes", "48M", "--element", "int64")
        self.assertEqual(code, 0, error)
        self.assertTrue(result["verified"])
        self.assertGreater(result["attempts"], 1)

    def test_a_link_that_is_cut_is_planned_around(self) -> None:
        for operation in ("allreduce", "reduce"):
            with self.subTest(op=operation):
                code, result, error = self.changed_half_way(
                    "hetero4", lambda lab: lab.cut("h0-h1", "blackhole"), "--op", operation, "--root", "h2", "--bytes", "48M")
                self.assertEqual(code, 0, error)
                self.assertTrue(result["verified"])
                self.assertGreater(result["attempts"], 1)

    def test_one_of_two_parallel_links_is_cut_and_the_other_goes_on(self) -> None:
        code, result, error = self.changed_half_way(
            "hybrid4", lambda lab: lab.cut("h0-h1", "blackhole"), "--op", "allreduce", "--bytes", "24M")
        self.assertEqual(code, 0, error)
        self.assertTrue(result["verified"])
        self.assertGreater(result["attempts"], 1)

    def test_a_rank_that_is_killed_is_named_by_every_survivor(self) -> None:
        code, _, error = self.changed_half_way("hetero4", lambda lab: kill(lab, "h2"), "--op", "allreduce", "--bytes", "48M")
        self.assertEqual(code, 1)
        self.assertIn("killed by SIGKILL", error)
        self.assertIn("rank 2 (h2) is gone", error)
        self.assertEqual(error.count("; rank "), 1, f"survivors say different things: {error}")

    def test_survivors_of_a_killed_rank_have_its_result_without_it(self) -> None:
        for victim, operation in (("h2", "allreduce"), ("h0", "allreduce"), ("h3", "broadcast")):
            with self.subTest(victim=victim, op=operation):
                code, result, error = self.changed_half_way(
                    "hetero4", lambda lab, victim=victim: kill(lab, victim), "--op", operation, "--root", "h1", "--bytes", "24M", "--survivors")
                self.assertEqual(code, 0, error)
                self.assertTrue(result["verified"])
                self.assertEqual(result["survivors"], [h for h in ("h0", "h1", "h2", "h3") if h != victim])
                self.assertIn("killed by SIGKILL", result["lost"])
                print(f"{victim} killed in {operation}: repetitions of {result['seconds']} s", file=sys.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
