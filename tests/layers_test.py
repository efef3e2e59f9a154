#!/usr/bin/env python3
"""The layers: apps -> runtime -> actors -> {coding, collectives, gpu}; and what is kept out of public headers."""
import pathlib
import re
import sys

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
LEAVES = {"coding", "collectives", "gpu"}
MAY_INCLUDE = {
    "coding": set(), "collectives": set(), "gpu": set(),
    "actors": LEAVES,
    "runtime": LEAVES | {"actors"},
    "apps": LEAVES | {"actors", "runtime"},
}
# Headers that others include must not drag these in: they cost seconds a file.
HEAVY = re.compile(r"#include <(caf/(?!fwd)|dnnl|onnx/|google/protobuf|Eigen/|lemon/|toml)")
HEAVY_AT_HOME = {"actors/type_ids.hpp", "coding/softmax_regression.hpp",  # private to their layer
                 "gpu/cpu_memory.hpp", "gpu/cpu_net.hpp", "gpu/cpu_training_graph.hpp", "gpu/cpu_training_parameters.hpp"}
TOP = {"CMakeLists.txt", "CMakePresets.json", "README.md", "ARCHITECTURE.md", "LICENSE", "pyproject.toml",
       "runtime", "actors", "gpu", "coding", "collectives", "apps", "tests", "build"}

bad = []
for layer, allowed in MAY_INCLUDE.items():
    for file in sorted((ROOT / layer).rglob("*.[chu]*")):
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        name = file.relative_to(ROOT).as_posix()
        for target in re.findall(r'#include "(\w+)/', text):
            if target not in allowed | {layer}:
                bad.append(f"{name}: includes {target}/, which is not below {layer}/")
        if file.suffix == ".hpp" and name not in HEAVY_AT_HOME:
            for line in text.splitlines():
                if HEAVY.match(line):
                    bad.append(f"{name}: {line.strip()} belongs in a .cpp file")
        if "msgpack::unpack" in text and name != "runtime/msgpack.cpp":
            bad.append(f"{name}: msgpack is unpacked in runtime/msgpack.cpp alone, where its limits are")
for entry in sorted(ROOT.iterdir()):
    if entry.name not in TOP and not entry.name.startswith("."):
        bad.append(f"{entry.name}: not one of the top level's names")

# The test must be able to fail: a planted include is found.
assert "gpu" not in MAY_INCLUDE["coding"] and re.findall(r'#include "(\w+)/', '#include "gpu/x.hpp"') == ["gpu"]
print("\n".join(bad) or "layers: in order")
sys.exit(1 if bad else 0)
