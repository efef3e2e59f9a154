"""The cluster file of a lab: one node a host, the first one the gateway. Pure."""
from collections.abc import Mapping

from topology import BadInput

WORKERS_MAX = 32  # what a code is made for


def cluster_text(name: str, addresses: Mapping[str, str], launcher: str, port: int) -> str:
    """The TOML text. `addresses` of the hosts in order; the gateway takes `port` and the one after it.

    The keys lie in keys/ beside the file (`coppice keys` makes them), the topology in topology.json. Any all but two of
    the workers are enough; one or two are all needed.
    """
    workers = len(addresses) - 1
    if not 1 <= workers <= WORKERS_MAX:
        raise BadInput(f"lab {name}: has {len(addresses)} hosts, and a cluster is of 2 to {WORKERS_MAX + 1}; "
                       f"bring up another topology")
    if not 1 <= port <= 65_534:
        raise BadInput(f"port {port}: must lie in 1..65534, since the gateway takes the next one too")
    for host in addresses:
        if host in ("client", "ca"):
            raise BadInput(f"host {host}: a cluster's keys go by that name; rename it in the topology")
    scheme, needed = ("parity", workers - 2) if workers > 2 else ("none", workers)
    lines = [f'name = "{name}"', 'keys = "keys/"', f'launcher = "{launcher}"', 'topology = "topology.json"', "",
             "[code]", f'scheme = "{scheme}"', f"workers = {workers}", f"needed = {needed}"]
    for place, (host, address) in enumerate(addresses.items()):
        lines += ["", "[[host]]", f'name = "{host}"', f'address = "{address}"', f"port = {port}"]
        lines += ['roles = ["gateway"]'] if place == 0 else []
    return "\n".join(lines) + "\n"
