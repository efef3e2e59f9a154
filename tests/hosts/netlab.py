#!/usr/bin/env python3
"""A network on one machine: hosts and switches are network namespaces, links are shaped cables between them.

Needs Linux, root and iproute2; verify needs iperf3, sshd needs openssh-server. What is up is noted in /run/coppice-lab.
A link's capacity is of TCP payload, of each direction; see layout.py for addresses, routes and shaping.
"""
import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import sshd
import verify
from cluster_file import cluster_text
from layout import BLACKHOLE, IDENTITY, Layout, RouteMode, Shaping
from topology import (BadInput, LabError, Link, Topology, dumps, link_to_json, load_topology, parse_topology,
                      plain_name, positive, to_json)

STATE = pathlib.Path("/run/coppice-lab")
SYSCTL = pathlib.Path("/proc/sys/net/ipv4")
HOSTS_FILES = pathlib.Path("/etc/netns")  # ip netns exec lays NAMESPACE/hosts over /etc/hosts


@dataclasses.dataclass(frozen=True)
class Settings:
    route: RouteMode = "hops"
    # TCP's congestion control in the whole lab; the machine's own default differs from one to another.
    congestion: str = "cubic"
    shaping: Shaping = dataclasses.field(default_factory=Shaping)


class Lab:
    """A lab that is up. Several programs may use one: what changes it reads and writes its state under a lock."""

    def __init__(self, topology: Topology, settings: Settings) -> None:
        self.name = topology.name
        self.settings = settings
        self.nominal = topology  # as it was brought up
        self.current = topology  # with links as they are now
        self.layout = Layout(topology)

    # ---- what it looks like ----------------------------------------------------------------------------------------

    @property
    def hosts(self) -> list[str]:
        return self.nominal.hosts

    @property
    def nodes(self) -> list[str]:
        return [node.id for node in self.nominal.nodes]

    @property
    def prefix(self) -> str:
        """Of the names of its namespaces; no lab's or node's name holds a colon."""
        return f"coppice:{self.name}:"

    @property
    def directory(self) -> pathlib.Path:
        """For files of what runs in the lab; goes with it."""
        return STATE / f"{self.name}.d"

    def namespace(self, node: str) -> str:
        if node not in self.nodes:
            raise BadInput(f"{self.name}: there is no host {node}; there are {' '.join(self.nodes)}")
        return self.prefix + node

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on the host, as a process of that very id."""
        return ["ip", "netns", "exec", self.namespace(host), "unshare", "--uts", "--", "sh", "-c",
                'hostname "$0"; exec "$@"', host, *argv]

    def processes(self) -> list[int]:
        """Ids of the processes in its namespaces."""
        found = (_run(["ip", "netns", "pids", self.prefix + node], check=False).stdout.split() for node in self.nodes)
        return [int(pid) for pids in found for pid in pids]

    def topology(self) -> dict[str, Any]:
        """As a topology file, of the links as they are now: without those that are cut, with the ends' addresses.

        A link whose directions differ is two entries. "id" is the lab's own name for the link.
        """
        links = []
        for link in self.current.links:
            if link.state != "up":
                continue
            split = link.duplex and link.capacity[0] != link.capacity[1]
            for end in (0, 1) if split else (0,):
                entry = link_to_json(link, end) | {"id": link.id}
                for key, port in (("from", self.layout.port(link, end)), ("to", self.layout.port(link, 1 - end))):
                    if port:
                        entry[f"{key}_address"] = port.address
                links.append(entry)
        return to_json(self.nominal) | {"links": links}

    def write_cluster(self, directory: pathlib.Path, port: int = 7000) -> pathlib.Path:
        """Writes topology.json and cluster.toml, a node a host and the gateway on the first; the latter's path."""
        text = cluster_text(self.name, {host: self.layout.identity(host) for host in self.hosts},
                            f"ip netns exec {self.prefix}{{name}} {{command}}", port)
        file = directory / "cluster.toml"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "topology.json").write_text(dumps(self.topology()))
            file.write_text(text)
        except OSError as error:
            raise BadInput(f"{directory}: cannot be written: {error}") from None
        return file

    # ---- changes ---------------------------------------------------------------------------------------------------

    def degrade(self, link_id: str, capacity: Fraction, leaving: str | None = None) -> None:
        """Sets the link's capacity, in the topology's unit: of the direction that leaves a node, or of both."""
        with self._changing():
            link = self.current.link(link_id)
            self._set(link.with_capacity(capacity, None if leaving is None else link.end_at(leaving)))

    def cut(self, link_id: str, how: str = "down") -> None:
        """down: both ends see the carrier go. blackhole: packets go in and none comes out. Routes stay as they are."""
        if how not in ("down", "blackhole"):
            raise BadInput(f"{how}: is no way to cut a link; take down or blackhole")
        with self._changing():
            self._set(dataclasses.replace(self.current.link(link_id), state=how))

    def restore(self, link_id: str | None = None) -> None:
        """The link, or every one, as it was when the lab was brought up; then the routes anew."""
        with self._changing():
            current = self.current.links if link_id is None else [self.current.link(link_id)]
            for link in current:
                if link != self.nominal.links[link.number]:
                    self._set(self.nominal.links[link.number])
            self._apply_routes()

    def reroute(self) -> None:
        """Sets routes over the links that are up, at their capacities of now."""
        with self._changing():
            self._apply_routes()

    def down(self) -> None:
        """Ends what runs in the lab and removes it; also what an interrupted setup left of it."""
        with _locked():
            self._remove()

    # ---- how it is done --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with _locked():
            self.current = load(self.name).current  # another program may have changed it
            try:
                yield
            except BadInput:
                raise
            except LabError as error:
                raise LabError(f"{error}; where restore does not help, take {self.name} down and up again") from None
            finally:
                self._save()

    def _save(self) -> None:
        changed = {link.id: {"capacity": [str(each) for each in link.capacity], "state": link.state}
                   for link, nominal in zip(self.current.links, self.nominal.links) if link != nominal}
        document = {"topology": to_json(self.nominal), "settings": dataclasses.asdict(self.settings),
                    "changed": changed}
        part = STATE / f"{self.name}.json.part"
        part.write_text(json.dumps(document, indent=1))
        part.replace(STATE / f"{self.name}.json")

    def _set(self, link: Link) -> None:
        """Makes the cable what `link` says."""
        for end in (0, 1):
            namespace, interface = self.namespace(link.ends[end]), f"e{link.number}"
            _run(["ip", "-n", namespace, "link", "set", interface, "down" if link.state == "down" else "up"])
            _run(["tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", *self._queue(link, end).split()])
        self.current = self.current.with_link(link)
        if link.state == "up":
            self._apply_port_rules()  # the kernel dropped its routes when the link went down

    def _queue(self, link: Link, end: int) -> str:
        if link.state == "blackhole":
            return BLACKHOLE
        return self.settings.shaping.token_bucket(self.layout.mbit(link, end))

    def _build(self) -> None:
        _batch(["ip"], [f"netns add {self.namespace(node)}" for node in self.nodes])
        self._save()
        mtu = self.settings.shaping.mtu
        _batch(["ip"], [f"link add e{link.number} mtu {mtu} netns {self.namespace(link.ends[0])} type veth "
                        f"peer name e{link.number} mtu {mtu} netns {self.namespace(link.ends[1])}"
                        for link in self.current.links])
        for node in self.nodes:
            self._set_kernel(node)
            self._build_node(node)
        self._apply_port_rules()
        self._apply_routes()

    def _build_node(self, node: str) -> None:
        namespace, is_host = self.namespace(node), node in self.hosts
        steps, queues = ["link set lo up"], []
        if is_host:
            # A bridge without ports: unlike lo, it is an interface that Open MPI and Gloo take for a network.
            steps += [f"link add {IDENTITY} type bridge", f"link set {IDENTITY} up",
                      f"addr add {self.layout.identity(node)}/32 dev {IDENTITY}"]
        else:
            steps += ["link add br0 type bridge stp_state 0 forward_delay 0", "link set br0 up"]
        for link in self.current.links:
            if node not in link.ends:
                continue
            end, interface = link.end_at(node), f"e{link.number}"
            port = self.layout.port(link, end)
            steps += [f"addr add {port.address}/{port.prefix} dev {interface}" if port else
                      f"link set {interface} master br0", f"link set {interface} up"]
            queues.append(f"qdisc replace dev {interface} root {self._queue(link, end)}")
        _batch(["ip", "-n", namespace], steps)
        _batch(["tc", "-n", namespace], queues)
        if is_host:
            (HOSTS_FILES / namespace).mkdir(parents=True, exist_ok=True)
            names = "".join(f"{self.layout.identity(host)} {host}\n" for host in self.hosts)
            (HOSTS_FILES / namespace / "hosts").write_text("127.0.0.1 localhost\n" + names)

    def _set_kernel(self, node: str) -> None:
        values = {"net/ipv4/ip_forward": 1, "net/ipv4/conf/all/rp_filter": 0, "net/ipv4/conf/default/rp_filter": 0,
                  "net/ipv4/conf/all/send_redirects": 0,
                  # A port answers for its own address alone: traffic to one port of a segment enters by no other.
                  "net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2,
                  "net/ipv4/tcp_congestion_control": self.settings.congestion,
                  "net/ipv4/tcp_no_metrics_save": 1}  # each connection finds its pace anew
        script = "set -e\n" + "".join(f"echo {value} >/proc/sys/{key}\n" for key, value in values.items())
        _run(["ip", "netns", "exec", self.namespace(node), "sh", "-c",
              script + "for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$file; done"])

    def _apply_port_rules(self) -> None:
        for number, port in enumerate(self.layout.shared_segment_ports(), start=100):
            if self.current.links[int(port.interface[1:])].state == "down":
                continue
            namespace, network = self.namespace(port.host), port.address.rsplit(".", 1)[0] + ".0/24"
            _run(["ip", "-n", namespace, "rule", "del", "from", port.address], check=False)  # from an earlier time
            _batch(["ip", "-n", namespace],
                   [f"rule add from {port.address} lookup {number}",
                    f"route replace {network} dev {port.interface} src {port.address} table {number}"])

    def _apply_routes(self) -> None:
        routes = self.layout.routes(self.current.links, self.settings.route)
        for host in self.hosts:
            source = self.layout.identity(host)
            wanted = {self.layout.identity(to): arc for to, arc in routes[host].items()}
            shown = _run(["ip", "-n", self.namespace(host), "-json", "route", "show", "proto", "static"]).stdout
            old = [route["dst"] for route in json.loads(shown or "[]") if route["dst"] not in wanted]
            _batch(["ip", "-n", self.namespace(host)],
                   [f"route del {address}/32 proto static" for address in old] +
                   [f"route replace {address}/32 via {arc.gateway} dev {arc.interface} src {source} proto static"
                    for address, arc in wanted.items()])

    def _remove(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            until = time.monotonic() + 2
            while self.processes() and time.monotonic() < until:
                time.sleep(0.05)
        for node in self.nodes:
            _run(["ip", "netns", "del", self.prefix + node], check=False)
            shutil.rmtree(HOSTS_FILES / (self.prefix + node), ignore_errors=True)
        with contextlib.suppress(OSError):
            HOSTS_FILES.rmdir()  # unless someone else keeps something there
        shutil.rmtree(self.directory, ignore_errors=True)
        (STATE / f"{self.name}.json.part").unlink(missing_ok=True)
        (STATE / f"{self.name}.json").unlink(missing_ok=True)


# ---- labs by name --------------------------------------------------------------------------------------------------

def up(topology: Topology, settings: Settings = Settings(), force: bool = False) -> Lab:
    """Brings a lab up; a failed setup leaves nothing behind. force: in place of one of this name, or of its remains."""
    _check_machine(settings)
    lab = Lab(topology, settings)
    for link in topology.links:  # before anything is made
        for end in (0, 1):
            lab._queue(link, end)
    with _locked():
        if is_up(lab.name):
            if not force:
                raise BadInput(f"lab {lab.name} is up already; take it down, or give --force to replace it")
            load(lab.name)._remove()
        elif force:
            lab._remove()
        try:
            lab._build()
        except BaseException as error:
            lab._remove()
            if isinstance(error, LabError):
                raise LabError(f"{error}; nothing is left of {lab.name}. Does this machine allow network namespaces, "
                               f"veth, bridges and tbf?") from None
            raise
    return lab


@contextlib.contextmanager
def running(topology: Topology, settings: Settings = Settings(), force: bool = False) -> Iterator[Lab]:
    lab = up(topology, settings, force)
    try:
        yield lab
    finally:
        lab.down()


def refusal() -> str:
    """Why no lab can be up here, or nothing: a small one is tried."""
    pair = parse_topology({"name": "possible", "unit": "Mbit/s", "nodes": [{"id": "h0"}, {"id": "h1"}],
                           "links": [{"from": "h0", "to": "h1", "capacity": "100", "kind": "tcp"}]})
    try:
        with running(pair, force=True):
            return ""
    except (LabError, OSError) as error:
        return str(error)


def is_up(name: str) -> bool:
    return (STATE / f"{name}.json").exists()


def names() -> list[str]:
    return sorted(file.stem for file in STATE.glob("*.json"))


def load(name: str) -> Lab:
    """The lab of this name, which must be up."""
    if not is_up(plain_name(name, "lab")):
        raise BadInput(f"lab {name} is not up; " + (f"up are {' '.join(names())}" if names() else "none is"))
    document = json.loads((STATE / f"{name}.json").read_text())
    settings = document["settings"]
    lab = Lab(parse_topology(document["topology"]), Settings(**settings | {"shaping": Shaping(**settings["shaping"])}))
    for link_id, change in document["changed"].items():
        capacity = (Fraction(change["capacity"][0]), Fraction(change["capacity"][1]))
        changed = dataclasses.replace(lab.current.link(link_id), capacity=capacity, state=change["state"])
        lab.current = lab.current.with_link(changed)
    return lab


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_machine(settings: Settings) -> None:
    if os.geteuid() != 0:
        raise BadInput("network namespaces: only root may make them; run this with sudo")
    for program in ("ip", "tc", "unshare"):
        if not shutil.which(program):
            raise BadInput(f"{program}: is not installed; bash apps/deps installs it (iproute2)")
    _allow_congestion_control(settings.congestion)


def _allow_congestion_control(wanted: str) -> None:
    """A namespace may take only what the machine lets everyone take: on one whose own default is bbr, not even cubic.

    So it is added to what is allowed, machine-wide and for good: it lets programs choose, and changes none.
    """
    offered = (SYSCTL / "tcp_available_congestion_control").read_text().split()
    if wanted not in offered:
        raise BadInput(f"congestion control {wanted}: this kernel offers {' '.join(offered)}; take one of them with "
                       f"--cc, or modprobe tcp_{wanted}")
    allowed = (SYSCTL / "tcp_allowed_congestion_control").read_text().split()
    if wanted not in allowed:
        try:
            (SYSCTL / "tcp_allowed_congestion_control").write_text(" ".join([*allowed, wanted]))
        except OSError as error:
            raise BadInput(f"congestion control {wanted}: this machine allows namespaces {' '.join(allowed)} only, "
                           f"and that cannot be changed ({error.strerror}); take one of them with --cc") from None


def _run(argv: Sequence[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, check=False, stdin=subprocess.DEVNULL, text=True, capture_output=True)
    if check and done.returncode:
        words = " ".join(" ".join(argv).split())
        raise LabError(f"{words}: {' '.join(done.stderr.split())}")
    return done


def _batch(program: list[str], lines: Sequence[str]) -> None:
    """One process of ip or tc for many of its commands."""
    if not lines:
        return
    done = subprocess.run([*program, "-batch", "-"], check=False, input="\n".join(lines) + "\n", text=True,
                          capture_output=True)
    if done.returncode:
        fault = done.stderr.strip().splitlines() or ["failed"]
        place = fault[-1].rpartition("-:")[2]  # "Command failed -:3"
        line = lines[int(place) - 1] if place.isdecimal() and int(place) <= len(lines) else lines[0]
        raise LabError(f"{' '.join(program)} {line}: {fault[0]}")


# ---- the command line ----------------------------------------------------------------------------------------------

def _print_status(lab: Lab) -> None:
    for link in lab.current.links:
        parts = [f"{link.id:12s} {link.state:9s}"]
        for end in (0, 1):
            shown = _run(["tc", "-n", lab.namespace(link.ends[end]), "-json", "-s", "qdisc", "show", "dev",
                          f"e{link.number}"]).stdout
            queue = json.loads(shown)[0]
            parts.append(f"{link.ends[end]}->{link.ends[1 - end]} {float(link.capacity[end]):g} {lab.nominal.unit}, "
                         f"{queue['bytes']} bytes, {queue['drops']} dropped")
        print(" | ".join(parts))


def _print_routes(lab: Lab) -> None:
    for host, steps in lab.layout.routes(lab.current.links, lab.settings.route).items():
        print(host, " ".join(f"{to}:{arc.interface}" for to, arc in steps.items()))


def _take_down(arguments: argparse.Namespace) -> None:
    if bool(arguments.name) == arguments.all:
        raise BadInput("down: name one lab, or give --all")
    for name in names() if arguments.all else [arguments.name]:
        load(name).down()
        print(f"{name}: down")


def _bring_up(arguments: argparse.Namespace) -> None:
    topology = load_topology(arguments.topology).scaled(positive(arguments.scale, "--scale"))
    if arguments.name:
        topology = topology.renamed(arguments.name)
    shaping = Shaping(arguments.mtu, arguments.queue_ms, arguments.burst, arguments.raw)
    begun = time.monotonic()
    lab = up(topology, Settings(arguments.route, arguments.cc, shaping), arguments.force)
    print(f"{lab.name}: {len(lab.hosts)} hosts, {len(topology.links)} links up in {time.monotonic() - begun:.2f} s")


def _execute(lab: Lab, arguments: argparse.Namespace) -> None:
    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not words:
        raise BadInput("exec: names no command; e.g. exec hetero4 h0 ip addr")
    argv = lab.command(arguments.host, words)
    os.execvp(argv[0], argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def add(verb: str, what: str, lab: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(verb, help=what, description=what)
        if lab:
            command.add_argument("name", help="the lab's")
        return command

    command = add("up", "bring up the lab of a topology file", lab=False)
    command.add_argument("topology", type=pathlib.Path)
    command.add_argument("--name", help="instead of the topology's own")
    command.add_argument("--scale", default="1", help="times every capacity: 0.25, 1/4")
    command.add_argument("--route", choices=["hops", "widest"], default="hops")
    command.add_argument("--cc", default="cubic", help="TCP's congestion control")
    command.add_argument("--force", action="store_true", help="in place of one that is up")
    command.add_argument("--mtu", type=int, default=Shaping.mtu, help="bytes")
    command.add_argument("--queue-ms", type=int, default=Shaping.queue_ms, help="what may wait for a link")
    command.add_argument("--burst", type=int, default=Shaping.burst_bytes, help="bytes, at least")
    command.add_argument("--raw", action="store_true", help="capacities are of whole frames, not of TCP payload")
    command = add("down", "end what runs in a lab and remove it", lab=False)
    command.add_argument("name", nargs="?")
    command.add_argument("--all", action="store_true")
    add("list", "the labs that are up", lab=False)
    add("status", "each link's state, capacities, and what has passed")
    add("routes", "the interface by which each host sends to each other")
    command = add("exec", "run a command on a host: exec NAME HOST COMMAND...")
    command.add_argument("host")
    command.add_argument("command", nargs=argparse.REMAINDER)
    command = add("degrade", "set a link's capacity, in the topology's unit")
    command.add_argument("link")
    command.add_argument("capacity")
    command.add_argument("--leaving", metavar="NODE", help="of the direction that leaves NODE alone")
    command = add("cut", "cut a link; routes stay, see reroute")
    command.add_argument("link")
    command.add_argument("--how", choices=["down", "blackhole"], default="down", help="blackhole: silently")
    command = add("restore", "a link, or all, as it was at first; then reroute")
    command.add_argument("link", nargs="?")
    add("reroute", "set routes over the links that are up")
    command = add("verify", "measure every link with iperf3; status 1 where one is more than 5 % off")
    command.add_argument("--seconds", type=int, default=2, help="of each measurement")
    command.add_argument("--all-at-once", action="store_true", help="all links and directions together")
    add("sshd", "start an SSH server on each host, entered by a key made for it")
    add("topology", "print the topology as it is now, with addresses")
    command = add("cluster", "write cluster.toml and topology.json for coppice's commands")
    command.add_argument("--directory", type=pathlib.Path, required=True)
    command.add_argument("--port", type=int, default=7000, help="of every host")
    return parser


def _perform(arguments: argparse.Namespace) -> int:
    match arguments.verb:
        case "up":
            _bring_up(arguments)
            return 0
        case "down":
            _take_down(arguments)
            return 0
        case "list":
            print("".join(f"{name}\n" for name in names()), end="")
            return 0
    lab = load(arguments.name)
    match arguments.verb:
        case "status":
            _print_status(lab)
        case "routes":
            _print_routes(lab)
        case "exec":
            _execute(lab, arguments)
        case "degrade":
            lab.degrade(arguments.link, positive(arguments.capacity, "capacity"), arguments.leaving)
        case "cut":
            lab.cut(arguments.link, arguments.how)
        case "restore":
            lab.restore(arguments.link)
        case "reroute":
            lab.reroute()
        case "verify":
            return 0 if verify.print_deviations(lab, arguments.seconds, arguments.all_at_once) <= 0.05 else 1
        case "sshd":
            print(f"from any host: ssh -F {sshd.start(lab)} HOST COMMAND")
        case "topology":
            print(dumps(lab.topology()), end="")
        case "cluster":
            print(lab.write_cluster(arguments.directory, arguments.port))
    return 0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that a setup is rolled back
    arguments = _parser().parse_args()
    if os.geteuid() != 0 and arguments.verb not in ("list", "routes", "topology", "cluster"):
        raise BadInput(f"{arguments.verb}: only root may; run this with sudo")
    return _perform(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        print(f"netlab: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BadInput) else 1)
