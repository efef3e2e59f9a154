#!/usr/bin/env python3
"""A rank's process is killed in the middle of allreduces: its survivors name it, or finish with the sum over those left."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lab  # noqa: E402

RANKS = 4
CALLS = 80


def pid_of(file, host):
    """The rank's process, once it is there."""
    wanted = ["--cluster", str(file.resolve())], ["--as", host]
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if all(any(words[i:i + 2] == pair for i in range(len(words))) for pair in wanted):
            return int(entry.name)
    return None


def busy_s(pid):
    """The processor time that it had."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench_without(file, victim, *flags):
    """The bench, whose rank is killed once it has worked for a while: many more repetitions than that are asked for."""
    bench = subprocess.Popen([lab.COPPICE, "bench", "collective", "--cluster", str(file), "--probe-s", "0", "--json", "--no-tune", "--warm-up", "0",
                              "--op", "allreduce", "--element", "int64", "--bytes", "32M", "--repeat", str(CALLS), *flags],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while (pid := pid_of(file, victim)) is None or busy_s(pid) < 0.7:
        assert time.monotonic() < deadline and bench.poll() is None, bench.communicate()
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    out, err = bench.communicate(timeout=200)
    return bench.returncode, out, err, time.monotonic() - killed


def main():
    with tempfile.TemporaryDirectory(prefix="coppice-e2e-") as directory:
        file, _ = lab.rank_cluster(pathlib.Path(directory), RANKS)
        for victim in ("h2", "h0"):  # rank 0 plans
            code, out, err, took = bench_without(file, victim, "--survivors")
            assert code == 0, err
            run = json.loads(out)
            assert run["verified"] and run["wrong"] == 0 and len(run["seconds"]) == CALLS, run
            assert run["survivors"] == [f"h{i}" for i in range(RANKS) if f"h{i}" != victim], run
            assert victim in run["lost"] and "SIGKILL" in run["lost"], run
            print(f"{victim} killed: the longest of {CALLS} allreduces took {max(run['seconds']):.2f} s", flush=True)

        code, out, err, took = bench_without(file, "h2")
        assert code == 1 and "killed by SIGKILL" in err and "rank 2 (h2) is gone" in err, (code, err)
        assert err.count("; rank ") == 1, f"survivors say different things: {err}"
        print(f"h2 killed: all had failed {took:.2f} s later", flush=True)


main()
