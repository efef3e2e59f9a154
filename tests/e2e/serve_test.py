#!/usr/bin/env python3
"""The main job with everyone well, and what a person gets for bad input."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lab  # noqa: E402


def answers_agree_with_an_offline_decode_by_an_outside_script():
    with lab.Cluster() as cluster:
        record = cluster.dir / "record.jsonl"
        result = cluster.bench(400, "--record", record)
        assert result["answered"] == 400 and result["wrong"] == 0 and result["lost"] == 0, result
        assert result["accuracy"] > 85, result["accuracy"]
        assert result["p999_ms"] is None, "no p99.9 from fewer than 10,000 requests"
        check = subprocess.run(["/usr/bin/python3", lab.ROOT / "tests/apps/decode_check.py",
                                cluster.dir / "model", record], capture_output=True, text=True)
        assert check.returncode == 0, check.stdout + check.stderr
        # And the check can fail: one answer changed is one disagreement.
        lines = record.read_text().splitlines()
        first = json.loads(lines[0])
        first["answer"] = (first["answer"] + 1) % 10
        record.write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
        check = subprocess.run(["/usr/bin/python3", lab.ROOT / "tests/apps/decode_check.py",
                                cluster.dir / "model", record], capture_output=True, text=True)
        assert check.returncode == 1, "a wrong answer went unnoticed"


def every_scheme_answers():
    for scheme in ("none", "control", "replicate"):
        with lab.Cluster(scheme) as cluster:
            result = cluster.bench(100)
            assert result["answered"] == 100 and result["wrong"] == 0 and result["degraded"] == 0, (scheme, result)


def open_loop_answers_everything():
    with lab.Cluster() as cluster:
        result = cluster.bench(300, rate=150)
        assert result["answered"] == 300 and result["lost"] == 0 and result["wrong"] == 0, result


def weights_went_down_the_relays():
    with lab.Cluster() as cluster:
        status = cluster.status()
        assert status["ready"] and [w["state"] for w in status["workers"]] == ["ready"] * cluster.n, status


def infer_names_the_class():
    with lab.Cluster() as cluster:
        asked = cluster.infer(5)
        assert asked.returncode == 0, asked.stderr
        answers = json.loads(asked.stdout)["answers"]
        assert len(answers) == 5 and all(a["status"] == "ok" and a["name"] for a in answers), answers
        beyond = lab.run("infer", "--cluster", cluster.file, "--first", 10_000)
        assert beyond.returncode == 2 and "10000" in beyond.stderr, beyond.stderr


def one_line(result, status, *words):
    assert result.returncode == status, (result.returncode, result.stderr)
    last = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert str(word) in last, (word, result.stderr)


def bad_cluster_files_are_named():
    cluster = lab.Cluster(extra="dedline_ms = 5", keys=False)
    one_line(lab.run("status", "--cluster", cluster.file), 2, "cluster.toml", "dedline_ms")
    one_line(lab.run("status", "--cluster", cluster.dir / "absent.toml"), 2, "absent.toml")
    cluster.file.write_text("name = ")
    one_line(lab.run("launch", "--cluster", cluster.file), 2, "cluster.toml:1")


def missing_keys_name_the_remedy():
    cluster = lab.Cluster(keys=False)
    one_line(lab.run("launch", "--cluster", cluster.file), 2, "coppice keys")


def a_port_in_use_is_named_and_nothing_is_left():
    cluster = lab.Cluster()
    with lab.listener(cluster.port + 4):  # w2's
        one_line(lab.run("launch", "--cluster", cluster.file), 1, "w2", cluster.port + 4)
    with lab.listener(cluster.port + 1):  # control
        one_line(lab.run("launch", "--cluster", cluster.file), 1, "gateway", cluster.port + 1)
    left = subprocess.run(["pgrep", "-f", str(cluster.file)], capture_output=True, text=True).stdout
    assert left == "", f"left behind: {left}"


def a_worker_that_cannot_start_is_named():
    # The launcher starts every host but w3.
    cluster = lab.Cluster(launcher="/bin/sh -c 'test {name} != w3 && exec {command}'")
    one_line(lab.run("launch", "--cluster", cluster.file, "--ready-s", 10), 1, "w3")


def a_corrupt_net_is_refused_by_name():
    cluster = lab.Cluster()
    file = cluster.dir / "model/subnet2.onnx"
    file.write_bytes(file.read_bytes()[:1000])
    one_line(lab.run("launch", "--cluster", cluster.file, "--ready-s", 3), 1, "subnet2.onnx")


def a_model_of_another_code_is_refused():
    cluster = lab.Cluster()
    cluster.file.write_text(cluster.file.read_text().replace("needed = 5", "needed = 4"))
    one_line(lab.run("launch", "--cluster", cluster.file), 1, "parity (7, 5)", "(7, 4)")


def launch_stops_everything_when_interrupted():
    with lab.Cluster() as cluster:
        pids = list(cluster.pids.values())
        cluster.launched.send_signal(signal.SIGTERM)
        cluster.launched.wait(10)
        assert not any(map(lab.alive, pids)), "nodes outlived their launcher"


def nodes_die_with_a_killed_launcher():
    with lab.Cluster() as cluster:
        os.kill(cluster.launched.pid, signal.SIGKILL)
        cluster.launched.wait(5)
        cluster.wait(lambda: not any(map(lab.alive, cluster.pids.values())), "all nodes gone")


if __name__ == "__main__":
    lab.main([answers_agree_with_an_offline_decode_by_an_outside_script, every_scheme_answers,
              open_loop_answers_everything, weights_went_down_the_relays, infer_names_the_class,
              bad_cluster_files_are_named, missing_keys_name_the_remedy, a_port_in_use_is_named_and_nothing_is_left,
              a_worker_that_cannot_start_is_named, a_corrupt_net_is_refused_by_name,
              a_model_of_another_code_is_refused, launch_stops_everything_when_interrupted,
              nodes_die_with_a_killed_launcher])
