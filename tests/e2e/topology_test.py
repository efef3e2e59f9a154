#!/usr/bin/env python3
"""coppice topology: this machine, and hosts on its loopback; what does not answer is named and costs only its own figures."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lab  # noqa: E402

HOSTS = 3


def plan(topology):
    done = lab.run("plan", "--topology", topology, "--op", "allreduce", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def this_machine_is_described():
    # A machine that hwloc makes up: two memory nodes of two cores, and nothing on a bus.
    environment = {**os.environ, "HWLOC_SYNTHETIC": "NUMANode:2 Core:2 PU:1"}
    done = subprocess.run([lab.COPPICE, "topology", "--json"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["machine"]["cores"] == 4 and document["machine"]["numa_nodes"] == 2, document
    assert [node["id"] for node in document["nodes"]][:2] == ["numa0", "numa1"], document
    assert any("network cards" in line for line in document["not_seen"]), document
    for_people = lab.run("topology")
    assert for_people.returncode == 0 and "cores" in for_people.stdout and "not seen: " in for_people.stdout, for_people


def every_pair_is_probed():
    with tempfile.TemporaryDirectory(prefix="coppice-e2e-") as name:
        directory = pathlib.Path(name)
        file, _ = lab.rank_cluster(directory, HOSTS)
        out = directory / "topology.json"
        done = lab.run("topology", "--cluster", file, "--out", out, "--json", "--measure-s", 0.1)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert document == json.loads(out.read_text())
        assert len(document["probe"]["pairs"]) == HOSTS * (HOSTS - 1) and not document["probe"]["faults"], document["probe"]
        for pair in document["probe"]["pairs"]:
            assert pair["rate"] > 1 and 0 < pair["least_us"] <= pair["median_us"], pair
        assert "rates" in done.stderr and "latencies, round 1 of" in done.stderr, done.stderr
        assert float(plan(out)["bound"].split("/")[0]) > 0

        # What came out is declared now; its links have the hosts' addresses.
        file.write_text(f'topology = "topology.json"\n{file.read_text()}')
        done = lab.run("topology", "--cluster", file, "--measure-s", 0.1)
        assert done.returncode == 0 and "Topology (declared)" in done.stdout, (done.stdout, done.stderr)


def who_does_not_answer_is_named():
    with tempfile.TemporaryDirectory(prefix="coppice-e2e-") as name:
        file, port = lab.rank_cluster(pathlib.Path(name), HOSTS)
        with lab.listener(port + 3):  # h2's
            done = lab.run("topology", "--cluster", file, "--json", "--start-s", 2, "--measure-s", 0.1)
        assert done.returncode == 1, done.stderr
        assert "h2 does not answer" in done.stderr and "h0 to h2" in done.stderr and str(port + 3) in done.stderr, done.stderr
        pairs = {(pair["from"], pair["to"]): pair for pair in json.loads(done.stdout)["probe"]["pairs"]}
        assert pairs["h0", "h1"]["rate"] > 1 and pairs["h1", "h0"]["rate"] > 1, pairs
        assert pairs["h1", "h2"]["rate"] is None and "h2" in pairs["h1", "h2"]["fault"], pairs


def a_bench_without_a_topology_probes():
    with tempfile.TemporaryDirectory(prefix="coppice-e2e-") as name:
<<<<<<< HEAD
        file, _ = lab.rank_cluster(pathlib.Path(name), HOSTS)
        done = lab.run("bench", "collective", "--cluster", file, "--bytes", "64K", "--repeat", 1, "--probe-s", 0.2, "--json")
=======
        file, _ = write_cluster(pathlib.Path(name))
        assert lab.run("keys", "--cluster", file).returncode == 0
        done = lab.run("bench", "collective", "--cluster", file, "--bytes", "64K", "--repeat", 1, "--probe-s", 0.1, "--json")
>>>>>>> probe
        assert done.returncode == 0, done.stderr
        run = json.loads(done.stdout)
        assert run["verified"] and run["unit"] == "Mbit/s" and run["bound"] > 1, run
        kept = json.loads(pathlib.Path(f"{file}.topology.json").read_text())
        assert kept["unit"] == "Mbit/s" and kept["links"], kept


lab.main([this_machine_is_described, every_pair_is_probed, who_does_not_answer_is_named, a_bench_without_a_topology_probes])
