#!/usr/bin/env python3
"""What Open MPI and Gloo make of a lab that is up: their broadcast and allreduce, algorithm by algorithm.

Results are JSON lines: lab, op, bytes, peer, algorithm, segment (bytes; 0: not cut), order (the hosts by rank; rank 0
is the root), seconds (of each repetition, contents checked) and load (the machine's, before). A peer that fails or
takes too long has "error" and no more seconds than it got to. Needs apps/deps --peers, and root.

Open MPI's processes poll without pause: where they have to share cores with other work, or with each other, their
figures are low. Scale a lab down (netlab.py up --scale 1/4) before comparing.
"""
import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import netlab
from layout import IDENTITY
from topology import BadInput, LabError, Topology

HERE = pathlib.Path(__file__).resolve().parent / "peers"
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's, which has python3-torch; another one in PATH has not
OPERATIONS = ("broadcast", "allreduce")
KIB = 1 << 10
RING_HOSTS_MAX = 10  # beyond it the search for the widest ring takes too long


@dataclasses.dataclass(frozen=True)
class Algorithm:
    peer: str  # openmpi | gloo
    op: str
    name: str
    number: int = 0  # Open MPI's own, of its component "tuned"; 0: it decides
    segment: int = 0  # bytes; 0: not cut


# All that Open MPI 4.1 offers, each with one size of segments; Gloo offers no choice.
ALGORITHMS = (
    *(Algorithm("openmpi", "broadcast", name, number, segment) for number, (name, segment) in enumerate((
        ("default", 0), ("basic_linear", 0), ("chain", 128 * KIB), ("pipeline", 128 * KIB),
        ("split_binary_tree", 128 * KIB), ("binary_tree", 128 * KIB), ("binomial", 128 * KIB), ("knomial", 128 * KIB),
        ("scatter_allgather", 0), ("scatter_allgather_ring", 0)))),
    *(Algorithm("openmpi", "allreduce", name, number, segment) for number, (name, segment) in enumerate((
        ("default", 0), ("basic_linear", 0), ("nonoverlapping", 0), ("recursive_doubling", 0), ("ring", 0),
        ("segmented_ring", 256 * KIB), ("rabenseifner", 0)))),
    *(Algorithm("gloo", op, "default") for op in OPERATIONS),
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    lab: str
    op: str
    bytes: int
    peer: str
    algorithm: str
    segment: int
    order: tuple[str, ...]
    seconds: tuple[float, ...]
    load: float  # processes that wanted to run, averaged over the minute before
    error: str = ""

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("inf")

    @property
    def mbit_per_s(self) -> float:
        """Algorithm bandwidth: the buffer over the median time."""
        return self.bytes * 8 / self.median_s / 1e6

    def to_json(self) -> dict[str, Any]:
        document = dataclasses.asdict(self)
        return document if self.error else {key: value for key, value in document.items() if key != "error"}


def find_algorithm(peer: str, op: str, name: str = "default", segment: int | None = None) -> Algorithm:
    """segment: bytes, instead of the usual ones."""
    for algorithm in ALGORITHMS:
        if (algorithm.peer, algorithm.op, algorithm.name) == (peer, op, name):
            return algorithm if segment is None else dataclasses.replace(algorithm, segment=segment)
    names = " ".join(each.name for each in ALGORITHMS if (each.peer, each.op) == (peer, op))
    known = f"there are {names}" if names else f"peers are openmpi and gloo, operations {' and '.join(OPERATIONS)}"
    raise BadInput(f"{peer} {op} {name}: there is none; {known}")


def measure(lab: netlab.Lab, algorithm: Algorithm, bytes: int, repeats: int = 3, order: Sequence[str] | None = None,
            timeout_s: float = 120) -> Measurement:
    """Times one algorithm after a warm-up; whatever goes wrong with the peer is in the result's `error`."""
    order = list(order or lab.hosts)
    if sorted(order) != sorted(lab.hosts):
        raise BadInput(f"order {','.join(order)}: must name each host of {lab.name} once: {','.join(lab.hosts)}")
    if bytes < 4 or bytes % 4 or bytes > 1 << 30 or repeats < 1:
        raise BadInput(f"{bytes} bytes, {repeats} times: take a multiple of 4 up to 1 GiB, at least once")
    load = round(os.getloadavg()[0], 2)
    start = _start_openmpi if algorithm.peer == "openmpi" else _start_gloo
    lines, error = _Run(lab, timeout_s).finish(lambda run: start(run, algorithm, bytes, repeats, order))
    seconds = tuple(_seconds(lines))
    if not error and len(seconds) != repeats:
        error = f"printed {len(seconds)} times, not {repeats}"
    return Measurement(lab.name, algorithm.op, bytes, algorithm.peer, algorithm.name, algorithm.segment, tuple(order),
                       seconds, load, error)


def openmpi_here(op: str, ranks: int, bytes: int, repeats: int, transport: str, timeout_s: float = 120) -> list[float]:
    """Seconds of each repetition among ranks of this machine, in its own namespace. transport: tcp or vader. Raises LabError."""
    settings = {"pml": "ob1", "btl": f"{transport},self", "mpi_yield_when_idle": "1"}
    if transport == "tcp":
        settings["btl_tcp_if_include"] = "lo"
    try:
        done = subprocess.run(["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(ranks), "--bind-to", "none", *_mca(settings),
                               str(_compiled()), op, str(repeats), str(bytes)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise LabError(f"Open MPI over {transport}: not done within {timeout_s:g} s") from None
    seconds = _seconds(done.stdout.splitlines())
    if done.returncode or len(seconds) != repeats:
        raise LabError(f"Open MPI over {transport}: exit status {done.returncode}: {' '.join(done.stderr.split())[-400:]}")
    return seconds


def rank_algorithms(lab: netlab.Lab, op: str, bytes: int = 8 << 20, repeats: int = 3,
                    algorithms: Iterable[Algorithm] = ALGORITHMS, timeout_s: float = 120,
                    report: Callable[[Measurement], None] = lambda measurement: None) -> list[Measurement]:
    """All algorithms for `op`, in the natural order and, where there is one, in ring order: best first, failures last.

    `report` is called with each result as it comes.
    """
    orders = [lab.hosts]
    ring = ring_order(lab.current)
    if ring and ring != lab.hosts:
        orders.append(ring)
    results = []
    for order in orders:
        for algorithm in algorithms:
            if algorithm.op == op:
                results.append(measure(lab, algorithm, bytes, repeats, order, timeout_s))
                report(results[-1])
    return sorted(results, key=lambda result: (bool(result.error), result.median_s))


# ---- rank orders ---------------------------------------------------------------------------------------------------

def ring_order(topology: Topology) -> list[str] | None:
    """The hosts along the widest ring through all of them, from the first one; None: there is no ring.

    A ring's width is that of its narrowest link, where a link that several steps cross (between switches) is shared by
    them. Among equals the hosts' own order counts, then which comes first in it.
    """
    hosts = topology.hosts
    if not 3 <= len(hosts) <= RING_HOSTS_MAX:
        return None
    steps = _steps(topology)
    best: list[str] = []
    best_width = Fraction(0)
    if all((a, b) in steps for a, b in zip(hosts, hosts[1:] + hosts[:1])):
        best, best_width = hosts, _width(topology, [steps[pair] for pair in zip(hosts, hosts[1:] + hosts[:1])])

    def extend(path: list[str], taken: list[list[tuple[int, int]]]) -> None:
        nonlocal best, best_width
        if taken and _width(topology, taken) <= best_width:
            return  # going on only narrows it
        if len(path) == len(hosts):
            closing = steps.get((path[-1], path[0]))
            if closing is not None and (width := _width(topology, [*taken, closing])) > best_width:
                best, best_width = list(path), width
            return
        for host in hosts:
            if host not in path and (path[-1], host) in steps:
                extend([*path, host], [*taken, steps[path[-1], host]])

    extend([hosts[0]], [])
    return best or None


def _steps(topology: Topology) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """By pair of hosts with no other between them: the links of the widest way, as (number, end that it leaves)."""
    steps: dict[tuple[str, str], list[tuple[int, int]]] = {}
    switches = set(topology.switches)
    leaving: dict[str, list[tuple[int, int]]] = {node.id: [] for node in topology.nodes}
    for link in topology.links:
        for end in (0, 1) if link.duplex else (0,):
            if link.state == "up":
                leaving[link.ends[end]].append((link.number, end))
    for host in topology.hosts:
        ahead = [[first] for first in leaving[host]]
        while ahead:
            way = ahead.pop()
            number, end = way[-1]
            node = topology.links[number].ends[1 - end]
            if node in switches:
                ahead += [[*way, further] for further in leaving[node] if further[0] != number]
            elif node != host:
                old = steps.get((host, node))
                if old is None or _width(topology, [way]) > _width(topology, [old]):
                    steps[host, node] = way
    return steps


def _width(topology: Topology, ways: list[list[tuple[int, int]]]) -> Fraction:
    loads: dict[tuple[int, int], int] = {}
    for way in ways:
        for arc in way:
            loads[arc] = loads.get(arc, 0) + 1
    return min(topology.links[number].capacity[end] / load for (number, end), load in loads.items())


# ---- processes -----------------------------------------------------------------------------------------------------

class _Run:
    """Processes of one measurement. Wherever they went on to, all of them carry a mark in their environment."""

    def __init__(self, lab: netlab.Lab, timeout_s: float) -> None:
        self.lab = lab
        self.timeout_s = timeout_s
        self.mark = f"COPPICE_PEER_RUN={uuid.uuid4()}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._files: list[Any] = []  # their output, each

    def start(self, host: str, argv: Sequence[str], environment: dict[str, str]) -> None:
        name, value = self.mark.split("=")
        file = tempfile.TemporaryFile()
        self._files.append(file)
        self._processes.append(subprocess.Popen(
            self.lab.command(host, argv), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | environment | {name: value}, start_new_session=True))

    def finish(self, start: Callable[["_Run"], None]) -> tuple[list[str], str]:
        """Starts, waits and clears up: the lines of the first process, and what went wrong."""
        try:
            start(self)
            error = self._wait()
        finally:
            self._end()
        outputs = []
        for file in self._files:
            file.seek(0)
            outputs.append(file.read().decode(errors="replace").splitlines())
            file.close()
        if error:
            words = [line for lines in outputs for line in lines
                     if line.strip() and not line.startswith(("seconds ", "---")) and "plm:rsh: Warning" not in line]
            error += ": " + " ".join(" ".join(words[-8:]).split())[-400:] if words else ""
        return outputs[0], error

    def _wait(self) -> str:
        until = time.monotonic() + self.timeout_s
        while any(process.poll() is None for process in self._processes):
            failed = [process.returncode for process in self._processes if process.returncode]
            if failed:  # the others would wait for it
                return f"exit status {failed[0]}"
            if time.monotonic() > until:
                return f"not done within {self.timeout_s:g} s"
            time.sleep(0.05)
        failed = [process.returncode for process in self._processes if process.returncode]
        return f"exit status {failed[0]}" if failed else ""

    def _end(self) -> None:
        for number, patience_s in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
            until = time.monotonic() + patience_s
            for pid in self._left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            while self._left() and time.monotonic() < until:
                time.sleep(0.05)
        for process in self._processes:
            process.wait()

    def _left(self) -> list[int]:
        for process in self._processes:
            process.poll()  # lets go of those that have ended
        left = []
        for pid in self.lab.processes():
            with contextlib.suppress(OSError):
                if self.mark.encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    left.append(pid)
        return left


def _start_openmpi(run: _Run, algorithm: Algorithm, bytes: int, repeats: int, order: list[str]) -> None:
    settings = {
        "plm_rsh_agent": str(HERE / "agent.sh"), "plm_rsh_no_tree_spawn": "1",
        "pml": "ob1", "btl": "tcp,self", "btl_tcp_if_include": IDENTITY, "oob_tcp_if_include": IDENTITY,
        "mpi_yield_when_idle": "1",
    }
    if algorithm.number:
        name = {"broadcast": "bcast"}.get(algorithm.op, algorithm.op)
        settings |= {"coll_tuned_use_dynamic_rules": "1", f"coll_tuned_{name}_algorithm": str(algorithm.number),
                     f"coll_tuned_{name}_algorithm_segmentsize": str(algorithm.segment)}
    run.start(order[0], ["mpirun", "--allow-run-as-root", "--host", ",".join(order), "-np", str(len(order)),
                         "--bind-to", "none", *_mca(settings), str(_compiled()), algorithm.op, str(repeats), str(bytes)],
              {"COPPICE_LAB_PREFIX": run.lab.prefix})


def _start_gloo(run: _Run, algorithm: Algorithm, bytes: int, repeats: int, order: list[str]) -> None:
    address, port = run.lab.layout.identity(order[0]), _gloo_port()
    for rank, host in enumerate(order):
        run.start(host, [SYSTEM_PYTHON, str(HERE / "gloo_collective.py"), str(rank), str(len(order)), address,
                         str(port), algorithm.op, str(repeats), str(bytes)], {"GLOO_SOCKET_IFNAME": IDENTITY})


def star_over_zeromq(lab: netlab.Lab, bytes: int, calls: int, keys: bool = True, timeout_s: float = 120) -> list[float]:
    """Seconds of each of so many allreduces over bare ZeroMQ sockets (peers/zmq_star.cpp); keys: encrypted. Raises LabError."""
    program, where = _compiled("zmq_star.cpp", "c++", ["-lzmq"]), f"{lab.layout.identity(lab.hosts[0])}:{_gloo_port()}"

    def start(run: _Run) -> None:
        for rank, host in enumerate(lab.hosts):
            run.start(host, [str(program), str(rank), str(len(lab.hosts)), where, str(bytes), str(calls), "curve" if keys else "plain"], {})

    lines, error = _Run(lab, timeout_s).finish(start)
    if error:
        raise LabError(f"ZeroMQ alone in {lab.name}: {error}")
    return _seconds(lines)


def train_with_gloo(lab: netlab.Lab, widths: str, epochs: int, batch: int, images: int, data: str,
                    order: Sequence[str] | None = None, timeout_s: float = 600) -> dict[str, float]:
    """PyTorch's data-parallel training over Gloo (peers/gloo_training.py): seconds and accuracy. Raises LabError."""
    order = list(order or lab.hosts)
    address, port = lab.layout.identity(order[0]), _gloo_port()

    def start(run: _Run) -> None:
        for rank, host in enumerate(order):
            run.start(host, [SYSTEM_PYTHON, str(HERE / "gloo_training.py"), str(rank), str(len(order)), address, str(port),
                             widths, str(epochs), str(batch), str(images), data], {"GLOO_SOCKET_IFNAME": IDENTITY})

    lines, error = _Run(lab, timeout_s).finish(start)
    if error:
        raise LabError(f"PyTorch over Gloo in {lab.name}: {error}")
    return {words[0]: float(words[1]) for words in map(str.split, lines) if words[0] in ("seconds", "accuracy")}


def _mca(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--mca", key, value)]


def _seconds(lines: Iterable[str]) -> list[float]:
    """Of each repetition, as every peer's program prints them."""
    return [float(line.split()[1]) for line in lines if line.startswith("seconds ")]


def _gloo_port() -> int:
    return 20_000 + os.getpid() % 10_000  # below those that outgoing connections take


def _compiled(name: str = "mpi_collective.c", compiler: str = "mpicc", libraries: Sequence[str] = ()) -> pathlib.Path:
    """A peer's program, compiled once for each text of its source."""
    if not shutil.which(compiler):
        raise BadInput(f"{compiler}: is not installed; bash apps/deps --peers installs it")
    source = HERE / name
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "coppice" / "hosts"
    program = cache / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = program.with_suffix(f".{os.getpid()}")
        done = subprocess.run([compiler, "-O2", "-Wall", "-o", part, source, *libraries], check=False, capture_output=True,
                              text=True, timeout=60)
        if done.returncode:
            raise LabError(f"{source}: {compiler}: {' '.join(done.stderr.split())[:400]}")
        part.replace(program)
    return program


# ---- the command line ----------------------------------------------------------------------------------------------

def _size(text: str) -> int:
    """Bytes: 8388608, 256K, 8M, 1G."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 0)
    number = text[:-1] if factor else text
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 8388608, 256K, 8M or 1G")
    return int(number) * (factor or 1)


def _print(measurement: Measurement) -> None:
    print(json.dumps(measurement.to_json()), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the algorithms that are known")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("lab")
    common.add_argument("--op", choices=OPERATIONS, required=True)
    common.add_argument("--bytes", type=_size, default=8 << 20, help="of the buffer: 8M")
    common.add_argument("--repeats", type=int, default=3)
    common.add_argument("--timeout", type=float, default=120, help="seconds, of one algorithm")
    command = commands.add_parser("measure", parents=[common], help="one algorithm")
    command.add_argument("--peer", choices=["openmpi", "gloo"], required=True)
    command.add_argument("--algorithm", default="default")
    command.add_argument("--segment", type=_size, help="bytes, instead of the usual ones")
    command.add_argument("--order", type=lambda text: text.split(","), help="of the ranks: h0,h2,h1, or ring")
    commands.add_parser("rank", parents=[common], help="all algorithms in two orders; the last line is the best again")
    return parser


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that peers are ended
    arguments = _parser().parse_args()
    if arguments.verb == "list":
        for algorithm in ALGORITHMS:
            print(json.dumps(dataclasses.asdict(algorithm)))
        return 0
    lab = netlab.load(arguments.lab)
    if arguments.verb == "measure":
        order = arguments.order
        if order == ["ring"] and (order := ring_order(lab.current)) is None:
            raise BadInput(f"order ring: {lab.name} has no ring through its hosts; name them in another order")
        algorithm = find_algorithm(arguments.peer, arguments.op, arguments.algorithm, arguments.segment)
        result = measure(lab, algorithm, arguments.bytes, arguments.repeats, order, arguments.timeout)
        _print(result)
        return 1 if result.error else 0
    results = rank_algorithms(lab, arguments.op, arguments.bytes, arguments.repeats, timeout_s=arguments.timeout,
                              report=_print)
    if results[0].error:
        raise LabError(f"{lab.name}: every peer failed; the last said: {results[-1].error}")
    _print(results[0])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(f"peers: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)
