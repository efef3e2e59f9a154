#!/usr/bin/env python3
"""The demo as a newcomer runs it, small; and interrupted."""
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


def start(cache, *options):
    return subprocess.Popen([lab.COPPICE, "demo", *options], env={**os.environ, "XDG_CACHE_HOME": cache},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def nodes_of(cache):
    return subprocess.run(["pgrep", "-f", f"node --cluster {cache}"], capture_output=True, text=True).stdout.split()


def the_table_is_whole_and_no_answer_is_wrong():
    with tempfile.TemporaryDirectory() as cache:
        demo = start(cache, "--requests", "120", "--no-crossing", "--json")
        out, err = demo.communicate(timeout=200)
        assert demo.returncode == 0, err
        result = json.loads(out)
        assert result["base"] >= 92.5 and result["macs"] == 7_344_000, result["base"]
        assert set(result["schemes"]) == {"none", "parity", "control", "whole"}
        assert {"base_1", "base_2", "control_1", "control_2"} <= set(result["local"])
        for name, scheme in result["schemes"].items():
            for condition in ("clean", "straggler", "killed"):
                cell = scheme[condition]
                assert cell["answered"] == cell["requests"] == 120, (name, condition, cell)
                assert cell["wrong"] == 0 and cell["lost"] == 0 and cell["failed"] == 0, (name, condition, cell)
                assert cell["p999_ms"] is None, "no p99.9 from 120 requests"
        parity = result["schemes"]["parity"]
        assert parity["macs_per_worker"] <= 0.26 * result["macs"]
        assert parity["clean"]["accuracy_offline"] >= result["base"] - 1.0
        assert parity["killed"]["accuracy_offline"] >= result["base"] - 1.5
        manifest = json.loads((pathlib.Path(cache) / "coppice/demo/parity/manifest.json").read_text())
        assert manifest["code"] == {"scheme": "parity", "workers": 7, "needed": 5}, manifest["code"]
        assert pathlib.Path(result["report"]).is_file()
        assert nodes_of(cache) == []


def interrupted_it_stops_what_it_started():
    for number in (signal.SIGINT, signal.SIGTERM):
        with tempfile.TemporaryDirectory() as cache:
            demo = start(cache, "--requests", "100000", "--no-crossing")
            until = time.monotonic() + 60
            while not nodes_of(cache):
                assert time.monotonic() < until, "no node came up"
                time.sleep(0.05)
            time.sleep(0.5)
            demo.send_signal(number)
            _, err = demo.communicate(timeout=20)
            assert demo.returncode == 1 and "interrupted" in err, (demo.returncode, err)
            assert nodes_of(cache) == [], "nodes outlived the demo"


def interrupted_it_stops_training():
    with tempfile.TemporaryDirectory() as cache:
        demo = start(cache, "--from-scratch")
        until = time.monotonic() + 60
        for line in demo.stderr:
            if "training the base" in line:
                break
            assert time.monotonic() < until, "no training began"
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate(timeout=20)
        assert demo.returncode == 1 and "stopped" in err, (demo.returncode, err)


def bad_data_is_named():
    with tempfile.TemporaryDirectory() as empty:
        demo = start(empty, "--data", empty)
        out, err = demo.communicate(timeout=20)
        assert demo.returncode == 2 and empty in err and out == "", err


if __name__ == "__main__":
    lab.main([the_table_is_whole_and_no_answer_is_wrong, interrupted_it_stops_what_it_started, interrupted_it_stops_training,
              bad_data_is_named])
