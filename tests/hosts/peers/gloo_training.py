"""Trains the reference net data-parallel with PyTorch over Gloo: gloo_training.py RANK RANKS ADDRESS PORT WIDTHS EPOCHS BATCH IMAGES DATA

The net is coppice train's vgg:WIDTHS; the batch is of all ranks together; SGD, Nesterov's momentum, weight decay and the
one-cycle rate are coppice train's own defaults, without augmentation. DATA is a directory of IDX files, of whose training
images the first IMAGES are used. Rank 0 prints "seconds S" for all epochs, and "accuracy A" on the test images.
"""
import gzip
import os
import pathlib
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy  # noqa: E402
import torch  # noqa: E402 - reads the line above
from torch import distributed, nn  # noqa: E402

PEAK, RISING, MOMENTUM, DECAY = 0.1, 0.2, 0.9, 5e-4


def idx(directory: pathlib.Path, name: str, header: int) -> numpy.ndarray:
    file = next(each for each in (directory / name, directory / f"{name}.gz") if each.exists())
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return numpy.frombuffer(data, numpy.uint8, offset=header)


def part(directory: pathlib.Path, prefix: str, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.tensor(idx(directory, f"{prefix}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)[:count]).float() / 255
    return images, torch.tensor(idx(directory, f"{prefix}-labels-idx1-ubyte", 8)[:count]).long()


def vgg(widths: list[int]) -> nn.Module:
    layers: list[nn.Module] = []
    channels, size = 1, 28
    for number, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        if number % 2 == 1:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, 10))


def main() -> None:
    rank, ranks = int(sys.argv[1]), int(sys.argv[2])
    address, port = sys.argv[3:5]
    widths = [int(each) for each in sys.argv[5].split(",")]
    epochs, batch, count = (int(each) for each in sys.argv[6:9])
    directory = pathlib.Path(sys.argv[9])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    distributed.init_process_group("gloo", init_method=f"tcp://{address}:{port}", rank=rank, world_size=ranks)
    images, labels = part(directory, "train", count)
    mean, deviation = images.mean(), images.std()
    images = (images - mean) / deviation
    net = vgg(widths)
    together = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=PEAK, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    loss_of = nn.CrossEntropyLoss()
    own, per_epoch = batch // ranks, len(images) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, epochs * per_epoch, pct_start=RISING, div_factor=25,
                                                   final_div_factor=400, cycle_momentum=False)
    distributed.barrier()
    begun = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for step in range(per_epoch):
            chosen = order[step * batch + rank * own:][:own]
            optimizer.zero_grad()
            loss_of(together(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    distributed.barrier()
    if rank == 0:
        print(f"seconds {time.perf_counter() - begun:.3f}", flush=True)
        net.eval()
        test, right = part(directory, "t10k"), 0
        with torch.no_grad():
            for begin in range(0, len(test[0]), 500):
                scores = net((test[0][begin:begin + 500] - mean) / deviation)
                right += int((scores.argmax(1) == test[1][begin:begin + 500]).sum())
        print(f"accuracy {100 * right / len(test[0]):.2f}", flush=True)
    os._exit(0)  # all is done; taking Gloo down in order has been seen to abort a rank


if __name__ == "__main__":
    main()
