"""An SSH server on each host of a lab, entered by a key that is made for it and goes with it."""
import pathlib
import shutil
import subprocess
from typing import TYPE_CHECKING

from topology import BadInput, LabError

if TYPE_CHECKING:
    from netlab import Lab

SERVER = "/usr/sbin/sshd"
SERVER_CONFIG = """Port 22
ListenAddress {address}
HostKey {directory}/hostkey_{host}
PidFile {directory}/sshd_{host}.pid
AuthorizedKeysFile {directory}/id.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
MaxStartups 100:30:200
AcceptEnv *
"""
CLIENT_CONFIG = """Host {hosts}
  User root
  IdentityFile {directory}/id
  IdentitiesOnly yes
  UserKnownHostsFile {directory}/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  LogLevel ERROR
"""


def start(lab: "Lab") -> pathlib.Path:
    """Starts the servers; the configuration for ssh -F. They end when the lab goes down."""
    if not pathlib.Path(SERVER).exists() or not shutil.which("ssh-keygen"):
        raise BadInput(f"{SERVER}: is not installed; bash apps/deps --peers installs it (openssh-server)")
    directory = lab.directory
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)  # the servers' own place without privileges
    _make_key(directory / "id")
    known = ""
    for host in lab.hosts:
        address = lab.layout.identity(host)
        key = _make_key(directory / f"hostkey_{host}")
        known += f"{host},{address} {key}\n"
        config = SERVER_CONFIG.format(address=address, directory=directory, host=host)
        (directory / f"sshd_{host}.conf").write_text(config)
    (directory / "known_hosts").write_text(known)
    client = directory / "ssh_config"
    client.write_text(CLIENT_CONFIG.format(hosts=" ".join(lab.hosts), directory=directory))
    for host in lab.hosts:
        _run(lab.command(host, [SERVER, "-f", str(directory / f"sshd_{host}.conf")]))
    return client


def _make_key(file: pathlib.Path) -> str:
    """The public key, without its comment."""
    if not file.exists():
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)])
    return " ".join(file.with_suffix(".pub").read_text().split()[:2])


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {' '.join(done.stderr.split())}; is a server of this lab up already?")
