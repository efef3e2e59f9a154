"""What a lab's links really carry, by iperf3."""
import contextlib
import dataclasses
import json
import shutil
import subprocess
import time
from fractions import Fraction
from typing import TYPE_CHECKING

from topology import BadInput, LabError, Link

if TYPE_CHECKING:
    from netlab import Lab

FIRST_PORT = 5300


@dataclasses.dataclass(frozen=True)
class Job:
    link: Link
    source: str
    source_address: str
    target: str
    target_address: str
    mbit: Fraction  # what is to be expected


def jobs(lab: "Lab") -> list[Job]:
    """One for each host's end of a link that is up. By a switch, to the next host of the segment over it."""
    found = []
    arcs = lab.layout.arcs(lab.current.links)
    megabits = {link.number: lab.layout.mbit(link, 0) / link.capacity[0] for link in lab.current.links}
    for link in lab.current.links:
        for end in (0, 1):
            port = lab.layout.port(link, end)
            if link.state != "up" or port is None or (end == 1 and not link.duplex):
                continue
            # Each to the next one round the hosts: all at once they are a permutation, and no port gets two flows.
            here = lab.hosts.index(port.host)
            over = [arc for arc in arcs[port.host] if arc.interface == port.interface and not arc.one_way]
            over.sort(key=lambda arc: (lab.hosts.index(arc.to) - here) % len(lab.hosts))
            if over:
                mbit = over[0].capacity * megabits[link.number]
                found.append(Job(link, port.host, port.address, over[0].to, over[0].gateway, mbit))
    return found


def print_deviations(lab: "Lab", seconds: int, all_at_once: bool) -> float:
    """Prints a line for each job; the worst deviation as a fraction of the capacity."""
    if not shutil.which("iperf3"):
        raise BadInput("iperf3: is not installed; bash apps/deps --peers installs it")
    every = jobs(lab)
    worst = 0.0
    for group in [every] if all_at_once else [[job] for job in every]:
        for job, measured in zip(group, _measure(lab, group, seconds)):
            deviation = measured / float(job.mbit) - 1
            worst = max(worst, abs(deviation))
            print(f"{job.link.id:12s} {job.source}->{job.target} nominal {float(job.mbit):7.1f} "
                  f"measured {measured:7.1f} Mbit/s {100 * deviation:+.1f}%", flush=True)
    print(f"worst deviation {100 * worst:.1f}%")
    return worst


def _measure(lab: "Lab", group: list[Job], seconds: int) -> list[float]:
    """Mbit/s of each, all together; the first second is not counted."""
    with contextlib.ExitStack() as ended:
        def start(host: str, *words: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(lab.command(host, ["iperf3", *words]), stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL, text=True)
            ended.callback(process.wait)
            ended.callback(process.kill)
            return process

        for number, job in enumerate(group):
            start(job.target, "-s", "-1", "-B", job.target_address, "-p", str(FIRST_PORT + number))
        time.sleep(0.3)  # until they listen
        clients = [start(job.source, "-c", job.target_address, "-B", job.source_address, "-p", str(FIRST_PORT + number),
                         "-t", str(seconds), "-O", "1", "-J") for number, job in enumerate(group)]
        rates = []
        for job, client in zip(group, clients):
            try:
                report = json.loads(client.communicate(timeout=seconds + 30)[0])
                rates.append(report["end"]["sum_received"]["bits_per_second"] / 1e6)
            except (subprocess.TimeoutExpired, ValueError, KeyError):
                raise LabError(f"link {job.link.id}: iperf3 from {job.source} to {job.target_address} gave no result; "
                               f"see netlab.py status {lab.name}") from None
        return rates
