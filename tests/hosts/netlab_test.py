#!/usr/bin/env python3
"""The network lab: netlab_test.py [PATH_OF_COPPICE] [UNITTEST'S OPTIONS]

Its arithmetic everywhere; a small lab, brought up and taken down, where this machine allows network namespaces; and,
given the program, what it makes of the lab's files.
"""
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock
from fractions import Fraction
from typing import Any

sys.dont_write_bytecode = True
import netlab
import peers
from cluster_file import cluster_text
from layout import Layout, Port, Shaping
from topology import BadInput, LabError, Topology, load_topology, parse_topology, positive, to_json

HERE = pathlib.Path(__file__).resolve().parent
TOPOLOGIES = sorted((HERE / "topologies").glob("*.json"))
COPPICE = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
LAB = f"netlab_test_{os.getpid()}"

# Broadcast from h0 and allreduce, in Mbit/s.
OPTIMA = {
    "star4": ("200", "400/3"), "hetero4": ("200", "200"), "dgx1v8": ("600", "2400/7"), "frag5": ("200", "200"),
    "frag6": ("300", "250"), "two_racks": ("275", "1875/7"), "two_racks_trunk": ("100", "100"),
    "slowlink8": ("225", "1425/7"), "hybrid4": ("550", "1100/3"),
}


def topology(*links: tuple[Any, ...], hosts: str = "h0 h1 h2", switches: str = "", **more: Any) -> Topology:
    """Links are (from, to, capacity[, duplex])."""
    nodes = [{"id": host} for host in hosts.split()] + [{"id": switch, "switch": True} for switch in switches.split()]
    entries = [dict(zip(("from", "to", "capacity", "duplex"), link)) for link in links]
    return parse_topology({"name": LAB, "unit": "Mbit/s", "nodes": nodes, "links": entries} | more)


def small_lab() -> Topology:
    """All kinds of link: two in parallel, one way, and through switches, from a host that has two ports to them."""
    return topology(("h0", "h1", "40"), ("h1", "h0", "25/2"), ("h1", "h2", "20", False), ("h0", "s0", "60"),
                    ("h0", "s0", "30"), ("s0", "s1", "50"), ("s1", "h2", "60"), switches="s0 s1")


class Reading(unittest.TestCase):
    def test_capacities_are_exact_numbers(self) -> None:
        for text, value in (("25/2", Fraction(25, 2)), ("12.5", Fraction(25, 2)), ("1e3", 1000), (200, 200)):
            self.assertEqual(positive(text, ""), value)
        for wrong in ("0", "-1", "1/0", "", "x", " 1", "1e999", True, None, "9" * 65):
            with self.assertRaisesRegex(BadInput, "link 3: .* above zero"):
                positive(wrong, "link 3")

    def test_units_are_rates(self) -> None:
        for unit, mbit in (("Mbit/s", 1), ("Gbit/s", 1000), ("kB/s", Fraction(8, 1000)),
                           ("MiB/s", Fraction(1048576, 125000))):
            layout = Layout(one := topology(("h0", "h1", 1), unit=unit))
            self.assertEqual(layout.mbit(one.links[0], 0), mbit)
        with self.assertRaisesRegex(BadInput, "'links' is no rate"):
            topology(("h0", "h1", 1), unit="links")

    def test_parallel_links_have_names_of_their_own(self) -> None:
        links = small_lab().links
        names = "h0-h1 h1-h0.1 h1-h2 h0-s0 h0-s0.1 s0-s1 s1-h2"
        self.assertEqual([link.id for link in links], names.split())
        self.assertEqual(small_lab().link("h0-h1.1"), links[1])
        self.assertEqual(small_lab().link("h1-h0"), links[0])
        with self.assertRaisesRegex(BadInput, "no link h0-h9; there are h0-h1 "):
            small_lab().link("h0-h9")

    def test_a_one_way_link_lets_acknowledgements_back(self) -> None:
        link = small_lab().links[2]
        self.assertEqual(link.capacity, (20, 1))
        self.assertEqual(link.with_capacity(Fraction(10)).capacity, (10, Fraction(1, 2)))
        with self.assertRaisesRegex(BadInput, "from h1 to h2 only"):
            link.with_capacity(Fraction(10), 1)

    def test_faults_name_the_culprit(self) -> None:
        for links, words in (
                ([("h0", "h9", 1)], "link 0, h0 to h9: there is no node 'h9'"),
                ([("h0", "h0", 1)], "link 0, h0 to h0: joins a node to itself"),
                ([("h0", "h1")], "link 0, h0 to h1: capacity: None"),
                ([("h0", "h1", 1, "no")], "link 0, h0 to h1: duplex is 'no'")):
            with self.assertRaisesRegex(BadInput, words):
                topology(*links)
        for hosts, words in (("h0 h0", "node 1: two nodes are named h0"), ("../x", "cannot name"), ("", "no host")):
            with self.assertRaisesRegex(BadInput, words):
                topology(hosts=hosts)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write("{")
            file.flush()
            with self.assertRaisesRegex(BadInput, f"{file.name}: is no JSON"):
                load_topology(pathlib.Path(file.name))

    def test_what_is_written_reads_back(self) -> None:
        for file in TOPOLOGIES:
            read = load_topology(file)
            self.assertEqual(read.name, file.stem)
            self.assertEqual(parse_topology(to_json(read)), read)
        self.assertEqual(small_lab().scaled(Fraction(1, 4)).links[1].capacity[0], Fraction(25, 8))
        self.assertEqual({file.stem for file in TOPOLOGIES}, set(OPTIMA))


class Layouts(unittest.TestCase):
    def test_every_end_of_a_host_has_an_address_of_its_own(self) -> None:
        lab = small_lab()
        layout = Layout(lab)
        ports = [layout.port(link, end) for link in lab.links for end in (0, 1)]
        addresses = [port.address for port in ports if port] + [layout.identity(host) for host in lab.hosts]
        self.assertEqual(len(set(addresses)), 9 + 3)
        self.assertEqual(addresses[:2], ["10.100.0.1", "10.100.0.2"])
        self.assertEqual([bool(port) for port in ports[6:]], [True, False, True, False, False, False, False, True])
        self.assertEqual([port.interface for port in layout.shared_segment_ports()], ["e3", "e4"])

    def test_loops_of_switches_are_refused(self) -> None:
        for links in ([("s0", "s1", 1), ("s1", "s0", 1)], [("s0", "s1", 1), ("s1", "s2", 1), ("s2", "s0", 1)]):
            with self.assertRaisesRegex(BadInput, "link s.-s0.*: closes a loop"):
                Layout(topology(*links, switches="s0 s1 s2"))

    def test_routes_are_short_or_wide(self) -> None:
        lab = topology(("h0", "h1", 400), ("h1", "h2", 200), ("h2", "h0", 50))
        layout = Layout(lab)
        self.assertEqual(layout.routes(lab.links, "hops")["h0"]["h2"].interface, "e2")
        self.assertEqual(layout.routes(lab.links, "widest")["h0"]["h2"].interface, "e0")
        self.assertEqual(layout.routes(lab.links[:2], "hops")["h0"]["h2"].gateway, "10.100.0.2")
        self.assertEqual(layout.routes(lab.links[:1], "hops")["h2"], {})

    def test_routes_pass_switches_and_turn_to_one_way_links_last(self) -> None:
        layout = Layout(small_lab())
        routes = layout.routes(small_lab().links, "hops")
        self.assertEqual((routes["h0"]["h2"].interface, routes["h0"]["h2"].capacity), ("e3", 50))
        self.assertEqual(routes["h0"]["h1"].interface, "e0")  # the wider of two
        self.assertEqual(routes["h1"]["h2"].interface, "e2")
        self.assertEqual(routes["h2"]["h1"].interface, "e6")  # two hops, rather than against the one way
        self.assertEqual(layout.routes(small_lab().links[2:3], "hops")["h2"]["h1"].interface, "e2")  # the only one

    def test_a_token_bucket_is_of_payload(self) -> None:
        self.assertEqual(Shaping().token_bucket(Fraction(100)), "tbf rate 104558011bit burst 70000 limit 470000")
        self.assertEqual(Shaping(raw=True).token_bucket(Fraction(1000)),
                         "tbf rate 1000000000bit burst 250000 limit 2750000")
        with self.assertRaisesRegex(BadInput, "cut the link instead"):
            Shaping().token_bucket(Fraction(1, 1000))

    def test_a_ring_is_the_widest_one(self) -> None:
        rings = {file.stem: peers.ring_order(load_topology(file)) for file in TOPOLOGIES}
        self.assertEqual(rings["dgx1v8"], ["h0", "h3", "h2", "h1", "h5", "h6", "h7", "h4"])
        self.assertEqual(rings["slowlink8"], [f"h{i}" for i in range(8)])
        self.assertIsNone(rings["frag5"])
        racks = rings["two_racks"] or []
        self.assertEqual(racks[3:5], ["h1", "h5"])  # and back by h4-h0: the two widest links between the racks
        self.assertEqual(racks[-1], "h4")

    def test_a_cluster_file_has_a_gateway_and_workers(self) -> None:
        text = cluster_text("lab", {f"h{i}": f"10.99.0.{i + 1}" for i in range(4)}, "run {name} {command}", 7000)
        self.assertIn('scheme = "parity"\nworkers = 3\nneeded = 1\n', text)
        self.assertEqual(text.count("[[host]]"), 4)
        self.assertEqual(text.count('roles = ["gateway"]'), 1)
        with self.assertRaisesRegex(BadInput, "has 1 hosts"):
            cluster_text("lab", {"h0": "10.99.0.1"}, "{command}", 7000)


@unittest.skipUnless(COPPICE, "no path of coppice was given")
class Commands(unittest.TestCase):
    def coppice(self, *words: object) -> str:
        done = subprocess.run([COPPICE, *map(str, words)], check=False, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_the_optima_of_the_topologies(self) -> None:
        for file in TOPOLOGIES:
            for op, rate in zip(("broadcast", "allreduce"), OPTIMA[file.stem]):
                plan = json.loads(self.coppice("plan", "--topology", file, "--op", op, "--root", "h0", "--json"))
                self.assertEqual((plan["rate"], plan["optimal"]), (rate, True), file.stem)

    def test_the_files_of_a_lab_are_accepted(self) -> None:
        lab = netlab.Lab(load_topology(HERE / "topologies/hetero4.json").scaled(Fraction(1, 8)), netlab.Settings())
        with tempfile.TemporaryDirectory() as directory:
            file = lab.write_cluster(pathlib.Path(directory))
            self.coppice("keys", "--cluster", file)
            deployed = self.coppice("plan", "--topology", file.with_name("topology.json"), "--op", "allreduce",
                                    "--deploy", file, "--json")
            self.assertEqual(json.loads(deployed)["rate"], "25")


# ---- a lab that is up ----------------------------------------------------------------------------------------------

SERVER = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 7))
server.settimeout(20)
print("listening", flush=True)
connection = server.accept()[0]
total, begun = 0, None
while data := connection.recv(1 << 16):
    begun = begun or time.monotonic()
    total += len(data)
print(total, time.monotonic() - begun)
"""
CLIENT = """
import socket, sys
socket.setdefaulttimeout(float(sys.argv[4]))
with socket.create_connection((sys.argv[2], 7), source_address=(sys.argv[1], 0)) as connection:
    connection.settimeout(20)
    connection.sendall(bytes(int(sys.argv[3])))
"""


def cannot_have_labs() -> str:
    """Why this machine cannot have one; empty: it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip") or not shutil.which("tc"):
        return "iproute2 is not installed"
    with contextlib.suppress(LabError), netlab.running(topology(("h0", "h1", 1), name=f"{LAB}_probe")):
        return ""
    return "this machine allows no network namespaces"


class UpAndDown(unittest.TestCase):
    lab: netlab.Lab

    @classmethod
    def setUpClass(cls) -> None:
        if why := cannot_have_labs():
            raise unittest.SkipTest(why)
        cls.lab = netlab.up(small_lab())
        cls.addClassCleanup(cls.lab.down)  # does no harm twice

    def port(self, number: int, end: int) -> Port:
        port = self.lab.layout.port(self.lab.nominal.links[number], end)
        assert port
        return port

    def transfer(self, source: str, source_address: str, target: str, address: str, size: int = 200_000,
                 patience_s: float = 10) -> float:
        """Mbit/s of a connection between these addresses; OSError where there is none."""
        def start(host: str, *words: object) -> subprocess.Popen[str]:
            return subprocess.Popen(self.lab.command(host, [sys.executable, "-c", *map(str, words)]), text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        with start(target, SERVER, address) as server:
            try:
                assert server.stdout and server.stdout.readline() == "listening\n", "the receiver did not start"
                with start(source, CLIENT, source_address, address, size, patience_s) as client:
                    fault = client.communicate(timeout=60)[1]
                if client.returncode:
                    raise OSError(fault.strip().splitlines()[-1])
                total, seconds = server.communicate(timeout=20)[0].split()
            finally:
                server.kill()
        self.assertEqual(int(total), size)
        return size * 8 / float(seconds) / 1e6

    def by_link(self, link_id: str, **more: Any) -> float:
        """The same over a link of the lab between two hosts."""
        number = self.lab.current.link(link_id).number
        here, there = self.port(number, 0), self.port(number, 1)
        return self.transfer(here.host, here.address, there.host, there.address, **more)

    def by_routes(self, source: str, target: str, **more: Any) -> float:
        return self.transfer(source, self.lab.layout.identity(source), target, self.lab.layout.identity(target), **more)

    def sent(self, node: str, interface: str) -> int:
        """Bytes that have left by it."""
        shown = netlab._run(["ip", "-n", self.lab.namespace(node), "-json", "-s", "link", "show", interface]).stdout
        return json.loads(shown)[0]["stats64"]["tx"]["bytes"]

    def test_1_each_link_carries_what_goes_between_its_own_addresses(self) -> None:
        layout, links = self.lab.layout, self.lab.current.links
        h2 = self.port(6, 1)
        ways = [(self.port(number, 0), self.port(number, 1)) for number in (0, 1, 2)]
        ways += [(self.port(3, 0), h2), (self.port(4, 0), h2), (h2, self.port(4, 0))]
        for source, target in ways:
            last, end = next((link, end) for link in links for end in (0, 1) if layout.port(link, end) == target)
            leaves = [(source.host, source.interface), (last.ends[1 - end], target.interface)]
            before = [self.sent(*each) for each in leaves]
            self.transfer(source.host, source.address, target.host, target.address)
            for each, then in zip(leaves, before):
                self.assertGreater(self.sent(*each) - then, 200_000, f"{source.address} to {target.address}")

    def test_2_a_link_lets_its_capacity_through(self) -> None:
        # A burst of 70 kB passes at once. Below, a busy machine may be slow.
        self.assertTrue(4 < self.by_link("h0-h1", size=3_000_000) < 50)
        self.lab.degrade("h0-h1", Fraction(10), leaving="h0")
        self.assertTrue(1 < self.by_link("h0-h1", size=1_500_000) < 13)
        self.assertEqual([link["capacity"] for link in self.lab.topology()["links"][:2]], ["10", "40"])
        self.lab.restore("h0-h1")
        self.assertEqual(self.lab.topology()["links"][0]["capacity"], "40")

    def test_3_cut_links_carry_nothing_until_restored(self) -> None:
        self.lab.cut("h0-h1")
        self.assertNotIn("h0-h1", [link["id"] for link in self.lab.topology()["links"]])
        with self.assertRaises(OSError):
            self.by_link("h0-h1", patience_s=1)
        self.lab.reroute()
        self.by_routes("h0", "h1")
        self.assertEqual(netlab.load(LAB).current.link("h0-h1").state, "down")
        self.lab.cut("h0-s0", "blackhole")
        with self.assertRaisesRegex(OSError, "timed out"):
            self.by_routes("h0", "h2", patience_s=1)
        self.lab.restore()
        self.by_link("h0-h1")
        self.by_routes("h0", "h2")

    def test_4_faults_are_named(self) -> None:
        for action, words in ((lambda: netlab.up(small_lab()), "is up already"),
                              (lambda: self.lab.cut("h0-h9"), "no link h0-h9"),
                              (lambda: self.lab.degrade("h0-h1", Fraction(1), "h2"), "no end at h2"),
                              (lambda: self.lab.command("h9", ["true"]), "no host h9"),
                              (lambda: netlab.load("not-up"), "lab not-up is not up"),
                              (lambda: netlab.up(small_lab(), netlab.Settings(congestion="none")), "kernel offers")):
            with self.assertRaisesRegex(BadInput, words):
                action()

    def test_5_a_failed_setup_is_rolled_back(self) -> None:
        other = small_lab().renamed(f"{LAB}_other")
        planted = unittest.mock.patch.object(netlab.Lab, "_apply_routes", side_effect=LabError("planted"))
        with planted, self.assertRaisesRegex(LabError, "planted; nothing is left"):
            netlab.up(other)
        self.assert_nothing_left(other.name)

    def test_6_down_leaves_nothing(self) -> None:
        with subprocess.Popen(self.lab.command("h1", ["sleep", "100"])) as sleeper:
            until = time.monotonic() + 10
            while sleeper.pid not in self.lab.processes() and time.monotonic() < until:
                time.sleep(0.01)
            netlab.load(LAB).down()
            self.assertLess(sleeper.wait(10), 0)
        self.assert_nothing_left(LAB)

    def assert_nothing_left(self, name: str) -> None:
        namespaces = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
        self.assertNotIn(f"coppice:{name}:", namespaces)
        left = [*netlab.STATE.glob(f"{name}.*"), *netlab.HOSTS_FILES.glob(f"coppice:{name}:*")]
        self.assertEqual(left, [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
