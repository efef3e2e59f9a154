"""A cluster of real processes for one test: makes its files, launches it, asks it, and sees that nothing is left."""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

COPPICE = sys.argv[1]
ROOT = pathlib.Path(sys.argv[2])
NETS = ROOT / "apps/nets/fashion-mnist"


def free_ports(count):
    """`count` consecutive free ports, below those that outgoing connections take."""
    start = 12_000 + os.getpid() * 53 % 7_000
    for base in range(start, 19_900 - count, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    s = stack.enter_context(socket.socket())
                    s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise RuntimeError("no free ports")


@contextlib.contextmanager
def listener(port):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections may linger on the port
        deadline = time.monotonic() + 5
        while True:  # who held it a moment ago may still be on its way out
            try:
                taken.bind(("127.0.0.1", port))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        taken.listen()
        yield taken


def run(*args, timeout=120):
    return subprocess.run([COPPICE, *map(str, args)], capture_output=True, text=True, timeout=timeout)


def rank_cluster(directory, ranks):
    """A cluster file with keys for hosts h0, h1, … on the loopback; gives the file and the first port."""
    file = directory / "cluster.toml"
    port = free_ports(ranks + 1)  # the gateway keeps the second for its control
    hosts = "".join(f'[[host]]\nname = "h{i}"\naddress = "127.0.0.1"\nport = {port + i + (i > 0)}\n' + ('roles = ["gateway"]\n' if i == 0 else "")
                    for i in range(ranks))
    file.write_text('name = "e2e"\nkeys = "keys"\n' + hosts)
    made = run("keys", "--cluster", file)
    assert made.returncode == 0, made.stderr
    return file, port


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Cluster:
    """With the shipped nets of `scheme`, or a model's directory. deadline_ms is long, so that a noisy machine degrades
    nothing by itself. heads: of a model with blocks, workers or gateway. devices: one a worker."""

    def __init__(self, scheme="parity", deadline_ms=2000, launcher=None, extra="", keys=True, model=None, heads="workers", devices=()):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="coppice-e2e-"))
        self.file = self.dir / "cluster.toml"
        source = model / "manifest.json" if model else NETS / f"{scheme}.json"
        manifest = json.loads(source.read_text())
        code = manifest["code"]
        self.n, self.k = len(manifest["workers"]), code["needed"]
        own = self.dir / "model"
        own.mkdir()
        shutil.copy(source, own / "manifest.json")
        for worker in manifest["workers"]:
            shutil.copy(source.parent / worker["file"], own)
        base = self.port = free_ports(self.n + 2)
        lines = ['name = "e2e"', 'keys = "keys"', 'model = "model"', "allow_faults = true", extra]
        if launcher:
            lines.append(f'launcher = "{launcher}"')
        lines += ["[code]", f'scheme = "{code["scheme"]}"', f'workers = {code["workers"]}', f"needed = {self.k}",
                  f"deadline_ms = {deadline_ms}"]
        lines += [f'blocks = {code["blocks"]}', f'heads = "{heads}"'] if "blocks" in code else []
        hosts = [("gateway", base)] + [(f"w{i}", base + 2 + i) for i in range(self.n)]
        for name, port in hosts:
            lines += ["[[host]]", f'name = "{name}"', 'address = "127.0.0.1"', f"port = {port}"]
            lines += ['roles = ["gateway"]'] if name == "gateway" else []
            lines += [f'device = "{devices[int(name[1:])]}"'] if devices and name != "gateway" else []
        self.file.write_text("\n".join(lines) + "\n")
        self.launched = None
        self.pids = {}
        if keys:
            made = run("keys", "--cluster", self.file)
            assert made.returncode == 0, made.stderr

    def __enter__(self):
        self.launched = subprocess.Popen([COPPICE, "launch", "--cluster", self.file, "--json"], stdout=subprocess.PIPE,
                                         stderr=(self.dir / "launch.err").open("w"), text=True)
        text = ""
        for line in self.launched.stdout:  # one document, over several lines
            text += line
            with contextlib.suppress(json.JSONDecodeError):
                self.pids = json.loads(text)["nodes"]
                return self
        raise AssertionError("launch failed: " + (self.dir / "launch.err").read_text())

    def __exit__(self, *fault):
        self.launched.send_signal(signal.SIGINT)
        try:
            self.launched.wait(15)
        finally:
            left = [name for name, pid in self.pids.items() if alive(pid)]
            for name in left:
                os.kill(self.pids[name], signal.SIGKILL)
            if fault[0] is not None:
                for log in sorted((self.dir / "cluster.toml.logs").glob("*.log")):
                    print(f"--- {log.name}\n{log.read_text()[-1500:]}")
            shutil.rmtree(self.dir, ignore_errors=True)
        assert fault[0] is not None or not left, f"processes left behind: {left}"

    def kill(self, worker, number=signal.SIGKILL):
        os.kill(self.pids[f"w{worker}"], number)

    def bench_in_background(self, requests, rate, *more):
        return subprocess.Popen([COPPICE, "bench", "inference", "--cluster", self.file, "--requests", str(requests),
                                 "--rate", str(rate), "--json", *map(str, more)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def bench(self, requests, *more, rate=0):
        return finish(self.bench_in_background(requests, rate, *more))

    def status(self):
        asked = run("status", "--cluster", self.file, "--json")
        assert asked.returncode == 0, asked.stderr
        return json.loads(asked.stdout)

    def infer(self, count=1):
        return run("infer", "--cluster", self.file, "--count", count, "--json", "--patience-ms", 8000)

    def wait(self, condition, what, seconds=20):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {what}")

    def requests_under_way(self, least=1):
        self.wait(lambda: self.status()["requests"]["completed"] >= least, "requests under way")


def finish(bench):
    out, err = bench.communicate(timeout=180)
    assert bench.returncode == 0, err
    return json.loads(out)


def main(tests):
    failed = 0
    for test in tests:
        begun = time.monotonic()
        try:
            test()
            print(f"ok {test.__name__} ({time.monotonic() - begun:.1f} s)", flush=True)
        except Exception as fault:  # noqa: BLE001 - every fault is a failed test
            failed += 1
            print(f"FAILED {test.__name__}: {type(fault).__name__}: {fault}", flush=True)
    print(f"{len(tests) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
