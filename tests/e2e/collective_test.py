#!/usr/bin/env python3
"""coppice bench collective on this machine's own loopback: every operation, every type, and what is wrong is said."""
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lab  # noqa: E402

OPERATIONS = ["broadcast", "reduce", "allreduce", "allgather", "reduce_scatter", "gather", "scatter"]
ELEMENTS = ["float32", "float16", "bfloat16", "int32", "int64", "bytes"]


def main():
    with tempfile.TemporaryDirectory(prefix="coppice-e2e-") as directory:
        file, port = lab.rank_cluster(pathlib.Path(directory), 4)

        def bench(*flags):
            done = lab.run("bench", "collective", "--cluster", file, "--probe-s", 0, "--json", "--repeat", 2, *flags)
            assert done.returncode == 0, (flags, done.stderr)
            return json.loads(done.stdout)

        for i, operation in enumerate(OPERATIONS):
            runs = bench("--op", operation, "--bytes", 1000, "300K", "--root", f"h{i % 4}")["runs"]
            assert all(run["verified"] and run["wrong"] == 0 and run["ranks"] == 4 and len(run["seconds"]) == 2 for run in runs), runs
            assert runs[0]["bytes"] in (1000, 992) and runs[1]["bytes"] == 300 << 10, runs
        for i, element in enumerate(ELEMENTS):
            for reduction in ("sum", "min", "max", "avg"):
                if (i + len(reduction)) % 2 == 0 or element == "float32":  # each of both kinds; all pairs are in actors_test
                    run = bench("--op", OPERATIONS[1 + i % 2], "--element", element, "--reduction", reduction, "--bytes", "64K")
                    assert run["verified"] and run["element"] == element and run["reduction"] == reduction, run
        assert bench("--op", "allreduce", "--bytes", "64K", "--planner", "best_ring")["verified"]
        trace = pathlib.Path(directory) / "trace.jsonl"
        run = bench("--op", "broadcast", "--bytes", "300K", "--chunks", 5, "--trace", trace)
        hops = [json.loads(line) for line in trace.read_text().splitlines()]
        assert run["verified"] and hops
        assert all(hop["way"] == "down" and hop["chunk"] < 6 and hop["from"] != hop["to"] for hop in hops), hops[:3]
        for call in {hop["call"] for hop in hops}:
            assert sum(hop["bytes"] for hop in hops if hop["call"] == call) == 3 * (300 << 10), call

        for flags, word in ((("--op", "alltoall"), "alltoall"), (("--root", "h9"), "h9"), (("--element", "int8"), "int8"),
                            (("--bytes", "-1"), "--bytes"), (("--hybrid", "pcie:1"), "--kind"), (("--kind", "pcie"), "--hybrid"), (("--planner", "best"), "best")):
            done = lab.run("bench", "collective", "--cluster", file, *flags)
            assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1, (flags, done.stderr)
        with lab.listener(port + 3):
            done = lab.run("bench", "collective", "--cluster", file, "--probe-s", 0, "--bytes", "4K", "--patience-s", 2)
            assert done.returncode == 1 and "h2" in done.stderr and str(port + 3) in done.stderr, done.stderr


main()
