"""What a lab of a topology looks like: addresses, routes, shaping. Pure.

Host i (from 0) is 10.99.0.(i+1), on an interface id0 of its own that every other host has a route to. A cable between
hosts is a network of its own, 10.100.x.y/30. Switches that are joined make one segment, 10.150.s.0/24, in which every
host's port has an address. So a connection between two ends' own addresses runs over that very link.
"""
import dataclasses
import heapq
import itertools
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

from topology import BadInput, Link, Topology, megabits_per_unit

HOSTS_MAX = 250
LINKS_MAX = 1 << 14
SEGMENTS_MAX = 256
PORTS_MAX = 254  # of hosts, in one segment
IDENTITY = "id0"

RouteMode = Literal["hops", "widest"]


@dataclasses.dataclass(frozen=True)
class Port:
    """A host's end of a link."""
    host: str
    interface: str
    address: str
    prefix: int  # bits


@dataclasses.dataclass(frozen=True)
class Arc:
    """One step of a route: from a host to another over one cable or through switches."""
    to: str
    interface: str
    gateway: str
    capacity: Fraction  # the narrowest link's on the way
    one_way: bool  # against a one-way link somewhere, where only acknowledgements fit


@dataclasses.dataclass(frozen=True)
class Shaping:
    """How capacities are enforced. A capacity is of TCP payload, so that what a program sees is what the file says."""
    mtu: int = 1500  # bytes
    queue_ms: int = 20  # what may wait for a link, beyond one burst
    # At least: packets of 64 KiB, as hosts hand them to a link, pass whole. Cutting them up costs processor time.
    burst_bytes: int = 70_000
    raw: bool = False  # capacities are of whole Ethernet frames

    def token_bucket(self, mbit: Fraction) -> str:
        """The queue that lets through `mbit` Mbit/s, as tc's words."""
        frame, payload = self.mtu + 14, self.mtu - 52  # Ethernet's head; IP's and TCP's, with time stamps
        rate = int(mbit * 10**6 * (1 if self.raw else Fraction(frame, payload)))  # bit/s
        if rate < 8_000:
            raise BadInput(f"{float(mbit):g} Mbit/s: below 8 kbit/s nothing useful passes; cut the link instead")
        burst = max(self.burst_bytes, rate // 8 // 500)  # 2 ms
        limit = max(400_000, rate * self.queue_ms // 8_000) + burst
        return f"tbf rate {rate}bit burst {burst} limit {limit}"


BLACKHOLE = "tbf rate 8bit burst 1 limit 1"  # no packet fits


class Layout:
    """Where everything is. Raises BadInput where switches form a loop, or there is more than addresses are for."""

    def __init__(self, topology: Topology) -> None:
        self.hosts = topology.hosts
        self.switches = topology.switches
        self._megabits = megabits_per_unit(topology.unit)
        for count, most, what in ((len(self.hosts), HOSTS_MAX, "hosts"), (len(topology.links), LINKS_MAX, "links")):
            if count > most:
                raise BadInput(f"{topology.name}: has {count} {what}, more than there are addresses for, {most}")
        self._segments = _segments(topology)
        self._ports: dict[tuple[int, int], Port] = {}
        counts = dict.fromkeys(self._segments.values(), 0)
        for link, end in itertools.product(topology.links, (0, 1)):
            node, other = link.ends[end], link.ends[1 - end]
            if node in self._segments:
                continue
            if other in self._segments:
                segment = self._segments[other]
                counts[segment] += 1
                if counts[segment] > PORTS_MAX:
                    raise BadInput(f"switch {other}: more than {PORTS_MAX} ports of hosts; spread them over switches "
                                   f"that are not joined")
                address, prefix = f"10.150.{segment}.{counts[segment]}", 24
            else:
                address, prefix = f"10.100.{link.number >> 6}.{(link.number & 63) * 4 + 1 + end}", 30
            self._ports[link.number, end] = Port(node, f"e{link.number}", address, prefix)

    def identity(self, host: str) -> str:
        """The address by which the whole lab knows a host."""
        return f"10.99.0.{self.hosts.index(host) + 1}"

    def port(self, link: Link, end: int) -> Port | None:
        """None: a switch's port, which has no address."""
        return self._ports.get((link.number, end))

    def mbit(self, link: Link, end: int) -> Fraction:
        """What leaves the end, in Mbit/s."""
        return link.capacity[end] * self._megabits

    def shared_segment_ports(self) -> list[Port]:
        """Of hosts that have several in one segment. Without a rule for each, all would send by the first."""
        in_segment: dict[tuple[str, str], list[Port]] = {}
        for port in self._ports.values():
            if port.prefix == 24:
                in_segment.setdefault((port.host, port.address.rsplit(".", 1)[0]), []).append(port)
        return [port for ports in in_segment.values() if len(ports) > 1 for port in ports]

    def arcs(self, links: Iterable[Link]) -> dict[str, list[Arc]]:
        """By host: whom it reaches without another host between, over the links that are up."""
        leaving: dict[str, list[tuple[Link, int]]] = {node: [] for node in self.hosts + self.switches}
        for link, end in itertools.product(links, (0, 1)):
            if link.state == "up":
                leaving[link.ends[end]].append((link, end))
        arcs: dict[str, list[Arc]] = {host: [] for host in self.hosts}
        for host in self.hosts:
            for first, first_end in leaving[host]:
                # Switches form trees: going on without turning back visits each once.
                ahead = [(first, first_end, first.capacity[first_end], False)]
                while ahead:
                    link, end, capacity, one_way = ahead.pop()
                    capacity = min(capacity, link.capacity[end])
                    one_way = one_way or (end == 1 and not link.duplex)
                    arrival = self.port(link, 1 - end)
                    if arrival is None:
                        ahead += [(next_link, next_end, capacity, one_way)
                                  for next_link, next_end in leaving[link.ends[1 - end]] if next_link is not link]
                    elif arrival.host != host:
                        arcs[host].append(Arc(arrival.host, f"e{first.number}", arrival.address, capacity, one_way))
        return arcs

    def routes(self, links: Iterable[Link], mode: RouteMode) -> dict[str, dict[str, Arc]]:
        """By host and destination, the first step of the best way over the links that are up.

        hops: the fewest steps, the wider of equals. widest: the least sum of 1 / capacity, as routers count it. Either
        way against a one-way link only where there is no other: connections need some way back.
        """
        arcs = self.arcs(links)
        return {host: _first_steps(arcs, host, mode) for host in self.hosts}


def _segments(topology: Topology) -> dict[str, int]:
    """The number of each switch's segment."""
    leader = {switch: switch for switch in topology.switches}

    def find(switch: str) -> str:
        while leader[switch] != switch:
            switch = leader[switch]
        return switch

    for link in topology.links:
        if link.ends[0] in leader and link.ends[1] in leader:
            a, b = (find(node) for node in link.ends)
            if a == b:  # no spanning tree protocol runs: packets would circle
                raise BadInput(f"link {link.id}: closes a loop of switches, where packets would circle; leave it out")
            leader[b] = a
    leaders = [switch for switch in leader if find(switch) == switch]
    if len(leaders) > SEGMENTS_MAX:
        raise BadInput(f"{topology.name}: has {len(leaders)} switches that are not joined, and a lab has addresses for "
                       f"{SEGMENTS_MAX}; make it smaller")
    return {switch: leaders.index(find(switch)) for switch in leader}


def _first_steps(arcs: dict[str, list[Arc]], source: str, mode: RouteMode) -> dict[str, Arc]:
    """Dijkstra's shortest paths; in exact fractions, so that ways that are equal are so seen from every host."""
    Cost = tuple[int, Fraction, Fraction]
    ticket = itertools.count()  # what heap entries of equal cost are told apart by
    best: dict[str, Cost] = {source: (0, Fraction(0), Fraction(0))}
    heap: list[tuple[Cost, int, str, Arc | None]] = [(best[source], next(ticket), source, None)]
    steps: dict[str, Arc] = {}
    done: set[str] = set()
    while heap:
        cost, _, host, first = heapq.heappop(heap)
        if host in done:
            continue
        done.add(host)
        if first:
            steps[host] = first
        for arc in arcs[host]:
            lengths = (Fraction(1), 1 / arc.capacity)
            primary, secondary = lengths if mode == "hops" else reversed(lengths)
            further = (cost[0] + arc.one_way, cost[1] + primary, cost[2] + secondary)
            if arc.to not in best or further < best[arc.to]:
                best[arc.to] = further
                heapq.heappush(heap, (further, next(ticket), arc.to, first or arc))
    return steps
