"""Several processes that train together, one a GPU, as PyTorch's `torchrun` starts them.

    torchrun --standalone --nproc-per-node=8 scripts/demo1_first-stage-training.py --preset paper

Every process runs the same script. Each takes its shard of every batch and of the test images; rank 0
alone writes, prints and draws; the one that fails first says why, for all. PyTorch keeps one group a process, so
`current` asks there which one this is, and nobody has to hand it on.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ltr.errors import InputError

# For a process that is stuck; torchrun ends the others of one that died. Longer than what one does alone while
# the others wait: rank 0 saves, or one of several machines reads its images more slowly.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class ProcessGroup:
    """Which of how many processes this is; the default is one that is alone.

    What says "together" must be called by all of them, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the one process that writes and shows."""
        return self.rank == 0

    def shard(self, size: int, block: int = 1, rank: int | None = None) -> range:
        """The part of `size` rows that is this process's, or another one's: side by side, the first ones' larger.

        Args:
            size: rows of all processes.
            block: rows that stay together, so that batches are those of one process and round alike.
            rank: whose part; None for one's own.
        """
        rank = self.rank if rank is None else rank
        each, rest = divmod(-(-size // block), self.size)
        start = rank * each + min(rank, rest)
        stop = start + each + (rank < rest)
        return range(min(start * block, size), min(stop * block, size))

    def gather(self, rows: Tensor, size: int, block: int = 1) -> Tensor:
        """All processes' shards [shard, ...] in their order, on each of them: [size, ...]. Together."""
        if self.size == 1:
            return rows
        sizes = [len(self.shard(size, block, rank)) for rank in range(self.size)]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # backends want parts of one size
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:own] for part, own in zip(parts, sizes, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, of the same shape. Together."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Give each tensor its mean over all processes, in place. Together."""
        for values in tensors if self.size > 1 else ():
            dist.all_reduce(values)
            values /= self.size

    def broadcast(self, value: Any = None) -> Any:
        """Rank 0's value, which the others wait for. Together."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def on_main(self, act: Callable[[], None]) -> None:
        """Let rank 0 do something, for which the others wait. Together."""
        if self.is_main:
            act()
        self.broadcast()

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """The model with gradients that are means over all processes; as it is where this one is alone. Together.

        Batch-norm's running statistics stay each process's own; training averages them once an epoch.
        """
        if self.size == 1:
            return model
        wrap = nn.parallel.DistributedDataParallel
        newer = "forward_sync_buffers" in inspect.signature(wrap).parameters  # the other name warns there
        return wrap(model, **{"forward_sync_buffers" if newer else "broadcast_buffers": False})


def current() -> ProcessGroup:
    """The processes that train together; one alone where no group was joined."""
    if dist.is_available() and dist.is_initialized():
        return ProcessGroup(dist.get_rank(), dist.get_world_size())
    return ProcessGroup()


@dataclass(frozen=True)
class Job:
    """What torchrun told this process; the default was started without it."""

    process_group: ProcessGroup = ProcessGroup()
    local_rank: int = 0  # which process of this machine
    store: Any = None  # torchrun's, which outlives the processes

    def device(self, name: str) -> str:
        """This process's device, where `cuda` is asked for: one GPU each.

        Raises:
            InputError: the processes cannot share it, or there are fewer GPUs than processes here.
        """
        if self.process_group.size == 1 or name == "cpu":
            return name
        if name != "cuda":
            raise InputError(f"--device: must be cpu or cuda for several processes, got {name}")
        if self.local_rank >= torch.cuda.device_count():
            there = f"the GPUs of this machine, {torch.cuda.device_count()}"
            raise InputError(f"--nproc-per-node: must be at most {there} (torchrun's option)")
        return f"cuda:{self.local_rank}"

    @contextlib.contextmanager
    def join(self, device: str) -> Iterator[None]:
        """The group of all processes, for as long as the context lasts; none for one that is alone."""
        if self.process_group.size == 1:
            yield
            return
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"  # words between processes stay off the GPU
        store = dist.PrefixStore("group", self.store)
        dist.init_process_group(
            backend, store=store, rank=self.process_group.rank, world_size=self.process_group.size, timeout=TIMEOUT
        )
        try:
            yield
        finally:
            dist.destroy_process_group()

    def mute(self) -> None:
        """Let rank 0 alone print, warn and show progress; what a process ends with is heard, see `end`."""
        if not self.process_group.is_main:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)

    def end(self, text: str, code: int) -> NoReturn:
        """Say why this process ends, unless another one was first, and leave.

        Among several, at once: to close the group in good order would be to wait for those that are gone.
        """
        if self.process_group.size == 1:
            with contextlib.suppress(BrokenPipeError):  # nobody reads it
                print(text, file=sys.stderr)
            raise SystemExit(code)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):  # without the store twice is better than never
            if self.store.add("ended", 1) > 1:
                os._exit(code)
        print(text, file=sys.__stderr__, flush=True)
        os._exit(code)


ALONE = Job()


def connect(environment: Mapping[str, str]) -> Job:
    """Meet the other processes that torchrun has started; alone where it has not.

    Raises:
        InputError: the environment says that there are others, but not how to meet them.
    """
    if environment.get("WORLD_SIZE", "1") == "1" or "RANK" not in environment:
        return ALONE
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        job = Job(ProcessGroup(rank, size), int(environment["LOCAL_RANK"]), store)
    except (AttributeError, KeyError, ValueError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"torchrun: must start all processes, and PyTorch be built for it ({reason})") from error
    if job.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(job.local_rank)  # before anything is put on the first GPU
    return job


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process is gone or stuck; gloo has no type of its own for that."""
    return isinstance(error, getattr(dist, "DistError", ())) or "/gloo/" in str(error)
