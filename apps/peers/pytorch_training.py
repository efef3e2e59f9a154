#!/usr/bin/env python3
"""PyTorch's training throughput, in bursts that another program asks for one at a time.

pytorch_training.py NET BATCH THREADS LAYOUT: NET is vgg:WIDTHS or resnet-20, LAYOUT nchw or channels_last. Prints "ready"
when the net has warmed up; then, for every line "STEPS" on standard input, trains so many steps on one random batch and
prints the seconds that they took. SGD with Nesterov's momentum, cross entropy, float32, no loading of data.
"""
import sys
import time

import torch
from torch import nn
from torch.nn import functional


def vgg(widths, classes):
    layers, channels, side = [], 1, 28
    for i, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        if i % 2 == 1:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, classes))


class Block(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.around = nn.Identity() if stride == 1 and channels == width else nn.Sequential(
            nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = functional.relu(self.first_norm(self.first(x)), inplace=True)
        return functional.relu(self.second_norm(self.second(out)) + self.around(x), inplace=True)


def resnet20(classes):
    layers, channels = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)], 16
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            layers.append(Block(channels, width, 2 if stage > 0 and block == 0 else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main():
    name, batch, threads, layout = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    net = vgg([int(w) for w in name[4:].split(",")], 10) if name.startswith("vgg:") else resnet20(10)
    images, labels = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    if layout == "channels_last":
        net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(net(images), labels).backward()
            optimizer.step()

    train(3)
    print("ready", torch.__version__, flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        train(int(line))
        print(time.perf_counter() - begun, flush=True)


main()
