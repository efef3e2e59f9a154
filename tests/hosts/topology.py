"""A topology file as a value: hosts, switches, links and what they carry. Pure.

The format is the one that `coppice plan --topology` reads: {"name", "unit", "nodes": [{"id", "switch", "server"}],
"links": [{"from", "to", "capacity", "kind", "duplex"}]}. Keys that are not known are left alone; so are addresses,
since a lab gives its own.
"""
import dataclasses
import itertools
import json
import pathlib
import re
from fractions import Fraction
from typing import Any

# "200", "25/2", "12.5", "1e3", and no more digits than coppice plan takes.
NUMBER = re.compile(r"\d{1,64}(/\d{1,64})?|\d{0,32}\.?\d{1,32}(e[-+]?\d{1,2})?", re.IGNORECASE)
# Names become those of network namespaces, machines and files.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")
# What the way back of a one-way link gets of the way forth: enough for TCP's acknowledgements, which take 66 bytes for
# every 1514 at the worst, and too little to send data by.
ACKNOWLEDGEMENTS = Fraction(1, 20)


class LabError(Exception):
    """Work that failed: one line that names the culprit and what to do."""


class BadInput(LabError):
    """The same, of something that was asked for or read."""


@dataclasses.dataclass(frozen=True)
class Node:
    id: str
    is_switch: bool = False
    server: str = ""  # the machine that it is part of; for planners alone


@dataclasses.dataclass(frozen=True)
class Link:
    """A cable. Its end e is at node ends[e]; capacity[e] is of the direction that leaves it, in the topology's unit."""
    id: str  # "h0-h1"; further ones of the same pair "h0-h1.1", "h0-h1.2"
    number: int  # its place in the file; its interfaces are called e<number> at both ends
    ends: tuple[str, str]
    capacity: tuple[Fraction, Fraction]
    kind: str = "tcp"
    duplex: bool = True  # False: carries from end 0 alone, and the way back is a trickle of acknowledgements
    state: str = "up"  # up | down (no carrier) | blackhole (takes packets and loses them)

    @property
    def reversed_id(self) -> str:
        return f"{self.ends[1]}-{self.ends[0]}" + self.id.removeprefix("-".join(self.ends))

    def end_at(self, node: str) -> int:
        if node not in self.ends:
            raise BadInput(f"link {self.id}: has no end at {node}; its ends are {' and '.join(self.ends)}")
        return self.ends.index(node)

    def with_capacity(self, capacity: Fraction, end: int | None = None) -> "Link":
        """The link with this capacity, of both directions or of the one that leaves `end`."""
        if not self.duplex:
            if end == 1:
                raise BadInput(f"link {self.id}: carries from {self.ends[0]} to {self.ends[1]} only; "
                               f"give the capacity of that direction")
            return dataclasses.replace(self, capacity=(capacity, capacity * ACKNOWLEDGEMENTS))
        forth, back = (capacity if end in (None, each) else self.capacity[each] for each in (0, 1))
        return dataclasses.replace(self, capacity=(forth, back))


@dataclasses.dataclass(frozen=True)
class Topology:
    name: str
    unit: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]

    @property
    def hosts(self) -> list[str]:
        return [node.id for node in self.nodes if not node.is_switch]

    @property
    def switches(self) -> list[str]:
        return [node.id for node in self.nodes if node.is_switch]

    def link(self, link_id: str) -> Link:
        """By its id, or by "h1-h0" for "h0-h1"."""
        names = {link.reversed_id: link for link in self.links} | {link.id: link for link in self.links}
        if link_id in names:
            return names[link_id]
        raise BadInput(f"{self.name}: there is no link {link_id}; there are {' '.join(link.id for link in self.links)}")

    def scaled(self, factor: Fraction) -> "Topology":
        """Every capacity times `factor`."""
        links = (dataclasses.replace(link, capacity=(link.capacity[0] * factor, link.capacity[1] * factor))
                 for link in self.links)
        return dataclasses.replace(self, links=tuple(links))

    def renamed(self, name: str) -> "Topology":
        return dataclasses.replace(self, name=plain_name(name, "name"))

    def with_link(self, link: Link) -> "Topology":
        """With `link` in place of the one of its number."""
        links = self.links[:link.number] + (link,) + self.links[link.number + 1:]
        return dataclasses.replace(self, links=links)


def plain_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise BadInput(f"{where}: {name!r} cannot name a lab or a node; take 1 to 63 of letters, digits, '.', '_' and "
                       f"'-', beginning with none of '.-'")
    return name


def positive(value: Any, where: str) -> Fraction:
    """A positive rational number out of "200", "25/2", "12.5" or a JSON number."""
    text = str(value)
    try:
        number = Fraction(text) if NUMBER.fullmatch(text) and not isinstance(value, bool) else Fraction(0)
    except ZeroDivisionError:
        number = Fraction(0)
    if number <= 0:
        raise BadInput(f'{where}: {value!r} is no number above zero; write it as "200", "25/2" or "12.5"')
    return number


def megabits_per_unit(unit: str) -> Fraction:
    """Mbit/s in one of `unit`: "bit/s" and "B/s" with k, M, G, T or Ki, Mi, Gi, Ti before them."""
    match = re.fullmatch(r"([kKMGT]?)(i?)(bit|B)/s", unit)
    if not match or match[2] and not match[1]:
        raise BadInput(f'unit: {unit!r} is no rate that links can be shaped to; write "Mbit/s" or the like')
    power = "kMGT".find(match[1].replace("K", "k")) + 1 if match[1] else 0
    return Fraction((1024 if match[2] else 1000) ** power * (8 if match[3] == "B" else 1), 10**6)


def parse_topology(document: Any, name: str = "") -> Topology:
    """The topology in a JSON document; `name` where the document has none."""
    if not isinstance(document, dict):
        raise BadInput('topology: must be a JSON object of "name", "unit", "nodes" and "links"')
    for key in ("nodes", "links"):
        if not isinstance(document.get(key), list) or not all(isinstance(each, dict) for each in document[key]):
            raise BadInput(f'topology: needs an array "{key}" of objects')
    nodes: dict[str, Node] = {}
    for place, node in enumerate(document["nodes"]):
        node_id = plain_name(node.get("id"), f"node {place}: id")
        if node_id in nodes:
            raise BadInput(f"node {place}: two nodes are named {node_id}; give each a name of its own")
        nodes[node_id] = Node(node_id, _flag(node, "switch", False, f"node {node_id}"), str(node.get("server", "")))
    topology = Topology(plain_name(document.get("name") or name, "name"), str(document.get("unit", "")),
                        tuple(nodes.values()), _links(document["links"], nodes))
    megabits_per_unit(topology.unit)
    if not topology.hosts:
        raise BadInput("nodes: there is no host among them; a lab needs at least one")
    return topology


def load_topology(path: pathlib.Path) -> Topology:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    try:
        return parse_topology(json.loads(text, parse_float=str), path.stem)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: is no JSON: {error}") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def to_json(topology: Topology) -> dict[str, Any]:
    """parse_topology gives back an equal topology, so long as each link's directions are as they were in the file."""
    nodes = [{"id": node.id} | ({"switch": True} if node.is_switch else {}) |
             ({"server": node.server} if node.server else {}) for node in topology.nodes]
    return {"name": topology.name, "unit": topology.unit, "nodes": nodes,
            "links": [link_to_json(link) for link in topology.links]}


def link_to_json(link: Link, end: int = 0) -> dict[str, Any]:
    """One direction of the link as the file's object, from `end`; both where they have one capacity."""
    ends = (link.ends[end], link.ends[1 - end])
    entry: dict[str, Any] = {"from": ends[0], "to": ends[1], "capacity": str(link.capacity[end]), "kind": link.kind}
    both = link.duplex and link.capacity[0] == link.capacity[1]
    return entry if both else entry | {"duplex": False}


def dumps(document: dict[str, Any]) -> str:
    """The text of a topology file: one link a line."""
    head = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "links")
    links = ",\n".join("  " + json.dumps(link) for link in document["links"])
    return f'{{{head},\n "links": [\n{links}]}}\n'


def _flag(entry: dict[str, Any], key: str, default: bool, where: str) -> bool:
    value = entry.get(key, default)
    if not isinstance(value, bool):
        raise BadInput(f"{where}: {key} is {value!r}; write true or false")
    return value


def _node(entry: dict[str, Any], key: str, nodes: dict[str, Node], where: str) -> str:
    node = entry.get(key)
    if not isinstance(node, str) or node not in nodes:
        raise BadInput(f'{where}: there is no node {node!r}; name it in "nodes"')
    return node


def _links(entries: list[dict[str, Any]], nodes: dict[str, Node]) -> tuple[Link, ...]:
    links: list[Link] = []
    taken: set[str] = set()  # ids, and what they are when read from the other end
    for number, entry in enumerate(entries):
        where = f"link {number}, {entry.get('from')} to {entry.get('to')}"
        ends = (_node(entry, "from", nodes, where), _node(entry, "to", nodes, where))
        if ends[0] == ends[1]:
            raise BadInput(f"{where}: joins a node to itself; name two nodes")
        name = "-".join(ends)
        ids = itertools.chain([name], (f"{name}.{count}" for count in itertools.count(1)))
        link_id = next(each for each in ids if each not in taken)
        capacity = positive(entry.get("capacity"), f"{where}: capacity")
        link = Link(link_id, number, ends, (capacity, capacity), str(entry.get("kind", "tcp")),
                    _flag(entry, "duplex", True, where)).with_capacity(capacity)
        taken |= {link.id, link.reversed_id}
        links.append(link)
    return tuple(links)
