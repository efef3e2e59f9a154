"""The same nets in PyTorch, for tests/gpu/on_device: python3 on_device.py ours.json

Prints one JSON document: what ours.json says, PyTorch's times, and ours over PyTorch's. PyTorch's share is as good as
we know to make it: batch norms folded, cuDNN's own choice of algorithm timed, CUDA graphs, pinned memory, in each
memory format; the best counts. Without PyTorch the document says so.
"""

import json
import statistics
import sys
import time

RUNS, WARM_UPS, SECONDS_MAX = 2000, 100, 1.0
PRECISIONS = {"": (False, "float32"), ":tf32": (True, "float32"), ":fp16": (True, "float16")}


def vgg(nn, widths):
    layers, channels = [], 1
    for i, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        if i % 2:
            layers.append(nn.MaxPool2d(2))
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 9, 10)), (1, 28, 28)


def resnet20(nn):
    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            stride = 2 if inputs != outputs else 1
            self.a = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
            self.b = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
            self.short = nn.Identity()
            if stride == 2:
                self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

        def forward(self, x):
            return nn.functional.relu(self.b(nn.functional.relu(self.a(x))) + self.short(x))

    layers, channels = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for i in range(9):
        layers.append(Block(channels, 16 << (i // 3)))
        channels = 16 << (i // 3)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), (3, 32, 32)


def nets(nn):
    return {
        "vgg": lambda: vgg(nn, (32, 32, 64, 64, 128, 128)),
        "vgg half": lambda: vgg(nn, (16, 16, 32, 32, 64, 64)),
        "vgg quarter": lambda: vgg(nn, (8, 8, 16, 16, 32, 32)),
        "resnet-20": lambda: resnet20(nn),
    }


def folded(torch, module):
    """Convolutions that took up the batch norms after them, as our own compiler does."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for name, child in list(module.named_children()):
        module._modules[name] = folded(torch, child)
    if isinstance(module, torch.nn.Sequential):
        out = []
        for child in module:
            if isinstance(child, torch.nn.BatchNorm2d) and out and isinstance(out[-1], torch.nn.Conv2d):
                out[-1] = fuse_conv_bn_eval(out[-1], child)
            else:
                out.append(child)
        return torch.nn.Sequential(*out).eval()
    return module


def latency(torch, make, batch, suffix, channels_last):
    tf32, precision = PRECISIONS[suffix]
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net, item = make()
    net = folded(torch, net.eval()).cuda().to(getattr(torch, precision)).to(memory_format=layout)
    host_in = torch.randn(batch, *item).pin_memory()
    staged = torch.zeros(batch, *item, device="cuda")
    host_out = torch.zeros(batch, 10).pin_memory()

    def work():
        staged.copy_(host_in, non_blocking=True)
        scores = net(staged.to(getattr(torch, precision)).contiguous(memory_format=layout))
        host_out.copy_(scores.float(), non_blocking=True)

    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(5):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
        given, times, start = torch.randn(batch, *item).numpy(), [], time.perf_counter()
        into, out_of = host_in.numpy(), host_out.numpy()
        for i in range(WARM_UPS + RUNS):
            begin = time.perf_counter()
            into[...] = given
            graph.replay()
            stream.synchronize()
            out_of.copy()
            if i >= WARM_UPS:
                times.append(time.perf_counter() - begin)
            if i > WARM_UPS + 10 and time.perf_counter() - start > SECONDS_MAX:
                break
    return statistics.median(times) * 1e6


def throughput(torch, make, suffix, channels_last, in_graph, batch=128, steps=200):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = PRECISIONS[suffix][0]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net, item = make()
    net = net.cuda().to(memory_format=layout)
    descent = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4, nesterov=True, foreach=True)
    host = torch.randn(batch, *item).pin_memory()
    labels = torch.randint(10, (batch,), device="cuda")
    images = torch.zeros(batch, *item, device="cuda")

    def step():
        images.copy_(host, non_blocking=True)
        loss = torch.nn.functional.cross_entropy(net(images.contiguous(memory_format=layout)), labels)
        loss.backward()
        descent.step()
        descent.zero_grad(set_to_none=not in_graph)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(10):
            step()
        stream.synchronize()
        run = step
        if in_graph:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                step()
            run = graph.replay
        for _ in range(10):
            run()
        stream.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            run()
        stream.synchronize()
    return batch * steps / (time.perf_counter() - begin)


def best(measure, choices, pick):
    """The best of several ways; those that fail do not count."""
    found, faults = [], []
    for choice in choices:
        try:
            found.append(measure(*choice))
        except Exception as fault:  # whatever PyTorch raises: the other ways may do
            faults.append(f"{choice}: {fault}"[:200])
    return (pick(found) if found else None), faults


def suffix_of(row):
    return row["device"][len("cuda:0"):]


def compare(torch, ours):
    torch.backends.cudnn.benchmark = True
    made, faults, peers = nets(torch.nn), [], {}
    for row in ours.get("latency", []):
        if "p50_us" not in row:
            continue
        case = (row["net"], row["batch"], suffix_of(row))
        if case not in peers:
            peers[case], more = best(lambda last: latency(torch, made[case[0]], case[1], case[2], last),
                                     [(False,), (True,)], min)
            faults += more
        peer = peers[case]
        if peer:
            row.update(pytorch_p50_us=round(peer, 2), over_pytorch=round(row["p50_us"] / peer, 3))
    for row in ours.get("training", []):
        if "images_per_second" not in row:
            continue
        peer, more = best(lambda last, graph: throughput(torch, made[row["net"]], suffix_of(row), last, graph),
                          [(a, b) for a in (False, True) for b in (False, True)], max)
        faults += more
        if peer:
            row.update(pytorch_images_per_second=round(peer),
                       over_pytorch=round(row["images_per_second"] / peer, 3))
    ours["pytorch"] = {"version": torch.__version__, "cudnn": torch.backends.cudnn.version(), "failed": faults}


def main():
    ours = json.load(open(sys.argv[1]))
    try:
        import torch

        compare(torch, ours) if torch.cuda.is_available() else ours.update(pytorch="sees no GPU")
    except ImportError:
        ours["pytorch"] = "is not here"
    json.dump(ours, sys.stdout, indent=1)
    print()


main()
