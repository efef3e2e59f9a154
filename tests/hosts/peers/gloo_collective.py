"""Times a collective of Gloo, as PyTorch has it: gloo_collective.py RANK RANKS ADDRESS PORT OP REPEATS BYTES

OP is broadcast (from rank 0) or allreduce (a sum of floats). Rank 0 listens at ADDRESS and PORT for the others, and
prints "seconds S" for each repetition: from the moment that all ranks are ready to that at which the last one has its
result. Every element of every rank's result is checked, outside of that time; a wrong one ends all.
"""
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402 - reads the line above
from torch import distributed  # noqa: E402

WARM_UP_ELEMENTS = 1 << 18  # 1 MiB


def pattern(count: int, repeat: int) -> torch.Tensor:
    """Whole numbers that floats hold exactly even when summed over ranks; others for each repetition."""
    return torch.arange(count) % 97 + float(repeat % 31 + 1)


def slowest(seconds: float) -> float:
    worst = torch.tensor([seconds], dtype=torch.float64)
    distributed.all_reduce(worst, op=distributed.ReduceOp.MAX)
    return float(worst)


def repetition(op: str, rank: int, ranks: int, count: int, repeat: int) -> float:
    """Seconds of the slowest rank."""
    factor = rank + 1 if op == "allreduce" else int(rank == 0)  # of a broadcast, nothing but zeros at the others
    data = pattern(count, repeat) * factor
    distributed.barrier()
    begun = time.perf_counter()
    if op == "allreduce":
        distributed.all_reduce(data)
    else:
        distributed.broadcast(data, 0)
    seconds = slowest(time.perf_counter() - begun)
    wanted = pattern(count, repeat) * (ranks * (ranks + 1) // 2 if op == "allreduce" else 1)
    if not torch.equal(data, wanted):
        sys.exit(f"rank {rank}: the contents of repetition {repeat} are wrong")
    distributed.barrier()  # a time is printed once every rank has found its contents right
    return seconds


def main() -> None:
    rank, ranks = int(sys.argv[1]), int(sys.argv[2])
    address, port, op = sys.argv[3:6]
    repeats, count = int(sys.argv[6]), int(sys.argv[7]) // 4
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://{address}:{port}", rank=rank, world_size=ranks)
    repetition(op, rank, ranks, min(count, WARM_UP_ELEMENTS), 0)
    for repeat in range(1, repeats + 1):
        seconds = repetition(op, rank, ranks, count, repeat)
        if rank == 0:
            print(f"seconds {seconds:.6f}", flush=True)
    distributed.barrier()
    os._exit(0)  # all is done; taking Gloo down in order has been seen to abort a rank


if __name__ == "__main__":
    main()
