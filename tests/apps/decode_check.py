#!/usr/bin/env python3
"""Repeats every decode of a record with nothing of Coppice: only the model's manifest.json and numpy.

decode_check.py MODEL_DIRECTORY RECORD   (RECORD: what `coppice bench inference --record FILE` wrote)
Prints agreed/total; exits 1 on any disagreement.
"""
import base64
import json
import pathlib
import sys

import numpy as np


def array(stored):
    return np.frombuffer(base64.b64decode(stored["float32"]), "<f4").reshape(stored["shape"]).astype(float)


def decode(decoder, responses):
    """responses: {worker: floats}. Returns one score a class; the largest, the first among equals, is the answer."""
    here = sorted(responses)
    if decoder["type"] == "logistic":  # one matrix an arrival set; its last column is the bias
        weights = array(decoder["sets"][str(sum(1 << w for w in here))])
        return weights[:, :-1] @ np.concatenate([responses[w] for w in here]) + weights[:, -1]
    if decoder["type"] != "sum":
        raise SystemExit(f"no decode is written here for the decoder {decoder['type']}")
    rows = np.concatenate([array(decoder["generator"][w]) for w in here])
    values = np.concatenate([responses[w] for w in here])
    alone = (rows != 0).sum(1) == 1  # rows that name one class: their mean is its score
    named, count = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for row, value in zip(rows[alone], values[alone]):
        named[row != 0] += value / row[row != 0]
        count[row != 0] += 1
    lowest = (named[count > 0] / count[count > 0]).min()
    return np.where(count > 0, named / np.maximum(count, 1), lowest - 1 - abs(lowest))


def decode_blocks(blocks, responses, workers):
    """Every block by itself: a class's score is its log-odds against the block's last, "none of these"."""
    scores = np.full(1 + max(c for block in blocks for c in block["classes"]), -np.inf)
    for number, block in enumerate(blocks):
        own = {w - number * workers: values for w, values in responses.items() if w // workers == number}
        if own:
            of_block = decode(block, own)
            scores[block["classes"]] = of_block[:-1] - of_block[-1]
    return scores


def agrees(manifest, line):
    decoder, responses = manifest["decoder"], {a["worker"]: np.array(a["values"]) for a in line["arrivals"]}
    scores = decode_blocks(decoder["blocks"], responses, manifest["code"]["workers"]) if decoder["type"] == "blocks" else decode(decoder, responses)
    rounding = 1e-6 * max(1.0, np.abs(scores[np.isfinite(scores)]).max())  # of float32: such near ties may fall either way
    return scores[line["answer"]] >= scores.max() - rounding


def main():
    directory, record = map(pathlib.Path, sys.argv[1:])
    manifest = json.loads((directory / "manifest.json").read_text())
    agreed = [agrees(manifest, json.loads(line)) for line in record.read_text().splitlines()]
    print(f"{sum(agreed)}/{len(agreed)}")
    sys.exit(0 if all(agreed) else 1)


if __name__ == "__main__":
    main()
