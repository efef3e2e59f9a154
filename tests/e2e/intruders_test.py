#!/usr/bin/env python3
"""Who has no key gets nothing and harms nobody; who has one cannot break a node with what it sends."""
import json
import os
import pathlib
import random
import re
import socket
import sys
import time

import msgpack
import zmq

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lab  # noqa: E402

# Of the vocabulary.
VERSION = int(re.search(r"kVersion = (\d+);", (lab.ROOT / "actors/messages.hpp").read_text())[1])
STATUS_REQUEST = msgpack.packb([VERSION, 7, 42])  # version, type, tag


def rss_mib(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmRSS"))


def dealer(cluster, public=None, secret=None, server=None):
    socket_ = zmq.Context.instance().socket(zmq.DEALER)
    socket_.linger = 0
    if public:
        socket_.curve_publickey, socket_.curve_secretkey, socket_.curve_serverkey = public, secret, server
    socket_.connect(f"tcp://127.0.0.1:{cluster.port}")
    return socket_


def keys_of(cluster, name):
    allow = json.loads((cluster.dir / "keys/allow.json").read_text())
    secret = (cluster.dir / f"keys/{name}.curve").read_text().strip().splitlines()[-1].strip().strip('"')
    return allow[name].encode(), secret.encode()


def server_key(cluster):
    return json.loads((cluster.dir / "keys/allow.json").read_text())["gateway"].encode()


def reply(socket_, message, patience_ms):
    socket_.send(message)
    return socket_.recv() if socket_.poll(patience_ms) else None


def well(cluster):
    result = cluster.bench(100)
    assert result["answered"] == 100 and result["wrong"] == 0 and result["lost"] == 0, result


def an_unknown_key_gets_no_answer():
    with lab.Cluster() as cluster:
        public, secret = keys_of(cluster, "client")
        assert reply(dealer(cluster, public, secret, server_key(cluster)), STATUS_REQUEST, 5_000), "the known key works"
        stranger = zmq.curve_keypair()
        assert reply(dealer(cluster, *stranger, server_key(cluster)), STATUS_REQUEST, 1_500) is None
        well(cluster)


def a_plaintext_client_gets_no_answer():
    with lab.Cluster() as cluster:
        assert reply(dealer(cluster), STATUS_REQUEST, 1_500) is None
        well(cluster)


def a_wrong_server_key_gets_no_answer():
    with lab.Cluster() as cluster:
        public, secret = keys_of(cluster, "client")
        wrong, _ = zmq.curve_keypair()
        assert reply(dealer(cluster, public, secret, wrong), STATUS_REQUEST, 1_500) is None
        well(cluster)


def random_bytes_harm_nobody():
    with lab.Cluster() as cluster:
        noise = random.Random(1)
        before = rss_mib(cluster.pids["gateway"])
        open_ = []
        for _ in range(100):
            for port in (cluster.port, cluster.port + 1, cluster.port + 2):  # data, control, a worker's data
                s = socket.socket()
                s.settimeout(0.2)
                s.connect(("127.0.0.1", port))
                try:
                    s.sendall(noise.randbytes(4096))
                except OSError:
                    pass  # hung up on: as it should be
                open_.append(s)
        well(cluster)
        for s in open_:
            s.close()
        well(cluster)
        grown = rss_mib(cluster.pids["gateway"]) - before
        assert grown < 64, f"the gateway grew by {grown:.0f} MiB"


def malformed_frames_under_a_good_key_are_dropped():
    with lab.Cluster() as cluster:
        public, secret = keys_of(cluster, "client")
        s = dealer(cluster, public, secret, server_key(cluster))
        assert reply(s, STATUS_REQUEST, 5_000)
        noise = random.Random(2)
        good = [STATUS_REQUEST, msgpack.packb([VERSION, 0, 7, True]), msgpack.packb([VERSION, 8, 3, "worker=any:1,delay=1ms"])]
        bombs = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
                 b"\x91" * 100_000, b"", b"\x00"]
        for bomb in bombs:
            s.send(bomb)
            s.send_multipart([bomb, bomb])
        for _ in range(3_000):
            frame = bytearray(noise.choice(good))
            for _ in range(noise.randint(1, 3)):
                frame[noise.randrange(len(frame))] = noise.randrange(256)
            s.send(bytes(frame[: noise.randint(1, len(frame))]))
        s.send_multipart([STATUS_REQUEST] * 9)
        well(cluster)


def a_client_cannot_speak_as_a_worker():
    with lab.Cluster() as cluster:
        public, secret = keys_of(cluster, "client")
        s = dealer(cluster, public, secret, server_key(cluster))
        for request in range(1, 400):  # coded responses for requests to come, as worker 0
            s.send_multipart([msgpack.packb([VERSION, 2, request, 8, 0, 5]), b"\0" * 8])
        well(cluster)
        # One worker's key cannot answer for another.
        public, secret = keys_of(cluster, "w1")
        s = dealer(cluster, public, secret, server_key(cluster))
        for request in range(1, 400):
            s.send_multipart([msgpack.packb([VERSION, 2, request, 8, 0, 5]), b"\0" * 8])
        time.sleep(0.3)
        well(cluster)
        assert cluster.status()["responses"]["impostors"] == 399, cluster.status()["responses"]


def secrets_are_nobody_elses():
    cluster = lab.Cluster()
    for file in (cluster.dir / "keys").iterdir():
        if file.name.endswith((".curve", ".key.pem")):
            assert os.stat(file).st_mode & 0o077 == 0, file
    os.chmod(cluster.dir / "keys/gateway.curve", 0o644)
    launched = lab.run("launch", "--cluster", cluster.file)
    assert launched.returncode in (1, 2) and "chmod 600" in launched.stderr, launched.stderr


if __name__ == "__main__":
    lab.main([an_unknown_key_gets_no_answer, a_plaintext_client_gets_no_answer, a_wrong_server_key_gets_no_answer,
              random_bytes_harm_nobody, malformed_frames_under_a_good_key_are_dropped,
              a_client_cannot_speak_as_a_worker, secrets_are_nobody_elses])
