"""How a training step is run: its precision, compiled or not, captured in a CUDA graph or not.

None of it changes the maths of a step, only rounding and time; synchronised batch-norm alone does. What cannot be
had here (CUDA, bfloat16, a compiler) gives way to the plain step, and a notice says so.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ltr.errors import InputError

PRECISIONS = ("auto", "fp32", "bf16")
COMPILE = GRAPH = ("auto", "on", "off")
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # a processor's instructions for it, as PyTorch calls them
MENDED = (2, 11)  # a capture that fails leaves earlier PyTorch in a state that a later allocation may die of
WARM_UP = 3  # steps before a capture, in which libraries choose their algorithms and allocate what they keep
Step = Callable[[], None]


@dataclass(frozen=True)
class Engine:
    """The way steps are run. The default is the plain one: eager, float32, on the CPU.

    Precision "bf16" runs the network's layers under autocast to bfloat16; weights, their updates, batch-norm's
    statistics, the classifier's logits and the loss stay in float32. "fp32" leaves PyTorch's defaults, which let CUDA's
    convolutions use TF32.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    compile: bool = False  # the network goes through `torch.compile`
    graph: bool = False  # a step is captured once in a CUDA graph, then replayed
    deterministic: bool = False  # only algorithms that give the same bits each time
    processes: int = 1  # that share each batch
    sync_batch_norm: bool = False  # normalises by the whole batch's statistics, not by those of a process's shard
    notices: tuple[str, ...] = ()  # what was wanted and is not to be had, or is there and unused, a sentence each

    def __str__(self) -> str:
        words = {
            str(self.device): True,
            self.precision: True,
            "CUDA graph" if self.graph else "eager steps": True,
            "torch.compile": self.compile,
            "deterministic": self.deterministic,
            f"{self.processes} processes": self.processes > 1,
            "synchronised batch-norm": self.sync_batch_norm,
        }
        return ", ".join(word for word, said in words.items() if said)

    @property
    def exact(self) -> "Engine":
        """The same in float32 and without compiling, for a linear classifier."""
        return replace(self, precision="fp32", compile=False)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context in which the network runs."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        # A cache of cast weights would outlive a capture and be read by the next one.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def stream(self) -> torch.cuda.Stream | None:
        """A stream of its own for one training, so that several run side by side; None without a graph.

        It begins when what was queued before is done.
        """
        if not self.graph:
            return None
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return stream

    @contextlib.contextmanager
    def backend(self) -> Iterator[None]:
        """Set PyTorch's switches for as long as training runs."""
        cudnn = torch.backends.cudnn
        before = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        kept = cudnn.benchmark, cudnn.deterministic
        cudnn.benchmark = not self.deterministic
        cudnn.deterministic = self.deterministic
        torch.use_deterministic_algorithms(self.deterministic or before, warn_only=warns and not self.deterministic)
        try:
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic = kept
            torch.use_deterministic_algorithms(before, warn_only=warns)

    def capture(self, steps: Mapping[int, Step], state: Sequence[Tensor], stream: torch.cuda.Stream | None) -> dict:
        """Make each step ready: run it a few times, capture it where there is a graph, put the state back.

        Args:
            steps: by batch size. A step reads and writes the same tensors each time, and waits for nothing.
            state: every tensor that a step changes; afterwards it holds what it held before.
            stream: of `stream()`.

        Returns:
            what to call instead, by batch size.
        """
        kept = [value.detach().clone() for value in state]
        ready, pool = {}, None
        for size, step in steps.items():
            for _ in range(WARM_UP):
                step()
                copy_into(state, kept)
            if self.graph:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=stream):
                    step()  # recorded, not run
                step, pool = graph.replay, graph.pool()
            ready[size] = step
        return ready

    def prepare(
        self,
        model: nn.Module,
        steps: Callable[[Callable[[Tensor], Tensor]], dict[int, Step]],
        state: Sequence[Tensor],
        stream: torch.cuda.Stream | None = None,
    ) -> tuple[dict[int, Step], "Engine"]:
        """Steps that are ready to run, and the engine that runs them: this one, or a plainer one where it fails.

        Args:
            steps: gives the steps by batch size for a `forward` of the model.
            state, stream: see `capture`.
        """
        for engine in dict.fromkeys((self, replace(self, compile=False))):
            if not (engine.compile or engine.graph):
                break
            before = [value.detach().clone() for value in state]
            try:
                forward = torch.compile(model, dynamic=False) if engine.compile else model
                return engine.capture(steps(forward), state, stream), engine
            except InputError:  # of an image that cannot be read
                raise
            except Exception as error:  # compilers and drivers raise whatever they like
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(f"{engine}: failed, so training goes on a plainer way ({reason})", stacklevel=2)
                copy_into(state, before)
        return steps(model), replace(self, compile=False, graph=False)


def on_stream(stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager:
    """The context in which work is queued on a stream of its own; without one, where it always is."""
    return torch.cuda.stream(stream) if stream else contextlib.nullcontext()


@torch.no_grad()
def copy_into(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors that stay where they are."""
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16. PyTorch is asked on this GPU, not on the one that happens to be current;
    of a CPU an older one cannot tell, and it counts as one that does not.
    """
    if device.type == "cpu":
        can = getattr(torch.cpu, "get_capabilities", dict)()
        return any(can.get(name, False) for name in CPU_BF16)
    if not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def choose_graph(device: torch.device, graph: str) -> tuple[bool, list[str]]:
    """Whether steps are captured, and a sentence on why not, unless that was asked for."""
    if device.type != "cuda":
        return False, [f"no CUDA graph on {device.type}"]
    release = tuple(int(number) for number in torch.__version__.split("+")[0].split(".")[:2])
    if graph == "auto" and release < MENDED:
        wanted = ".".join(map(str, MENDED))
        return False, [f"no CUDA graph before PyTorch {wanted}, where a failed capture may end a run; --graph on tries"]
    return graph != "off", []


def choose(
    device: torch.device | str,
    precision: str = "auto",
    compile: str = "auto",
    deterministic: bool = False,
    large: bool = False,
    processes: int = 1,
    sync_batch_norm: bool = False,
    graph: str = "auto",
) -> Engine:
    """The fastest way that this machine has and the options allow.

    Args:
        device, deterministic, processes, sync_batch_norm: see `Engine`.
        precision: one of `PRECISIONS`; "auto" is bfloat16 on a GPU that computes in it, else float32: also on a CPU
            that has it, whose results are to be those of any other.
        compile: one of `COMPILE`; "auto" compiles large networks on CUDA, whose elementwise passes it fuses. On a
            CPU it saves little of an epoch, and the compiler takes longer than an epoch (exp/benchmarks.csv).
        large: whether the network has millions of weights.
        graph: one of `GRAPH`; "auto" captures on CUDA where a capture that fails does no harm (PyTorch 2.11 on).
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    captured, notices = choose_graph(device, graph)
    fast = has_fast_bf16(device)
    if precision == "auto":
        precision = "bf16" if fast and cuda else "fp32"
        if fast and not cuda:
            notices.append("--precision bf16 is faster on this processor")
    elif precision == "bf16" and not fast:
        notices.append(f"{device.type} has no fast bf16 here" + (": fp32" if device.type != "cpu" else ""))
        precision = "bf16" if device.type == "cpu" else "fp32"
    compiled = compile == "on" or (compile == "auto" and cuda and large)
    if processes > 1 and (compiled or captured):  # where a compiler fails in one process alone, the others would wait
        notices.append("neither CUDA graph nor torch.compile where several processes exchange gradients")
        compiled = captured = False
    return Engine(device, precision, compiled, captured, deterministic, processes, sync_batch_norm, tuple(notices))
