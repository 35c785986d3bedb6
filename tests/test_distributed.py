"""Two processes, as torchrun starts them, against one: the same results, one writer, one message, no hang.

On CPUs with gloo; what NCCL and several GPUs add to it is not run here.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import together
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from trees import write_benchmark

from ltr import first_stage, recipes, runs, training
from ltr.errors import InputError
from ltr.runtime import distributed, engine
from ltr.runtime.distributed import Job, ProcessGroup
from ltr.runtime.engine import Engine
from ltr.runtime.options import ROOT
from ltr.runtime.process import GO_ON
from ltr.settings import FirstStage

GLOO = dist.is_available() and dist.is_gloo_available()


def several(test: Callable) -> Callable:
    """A test that starts several processes: slow, and only for a PyTorch that can."""
    skip = pytest.mark.skipif(not GLOO, reason="this PyTorch was built without torch.distributed")
    return pytest.mark.slow(skip(test))


OPTIONS = "--preset demo --imbalance-factor 1 --epochs 12 --batch-size 16 --lr 0.05"
SCRIPT = Path(together.__file__)
GONE = "; the same command goes on from the last saved epoch"


def finish(
    out: Path, log: Path, options: str = OPTIONS, script: Path = SCRIPT, code: int = 0, **environment: str
) -> str:
    """Run two processes of a script to the end, which no failure may keep them from; what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **environment}
    command += [*options.split(), "--out", str(out)]
    with open(log, "w") as file:
        job = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            assert job.wait(timeout=180) == code, log.read_text()
        finally:
            job.terminate()  # torchrun ends its processes
    return log.read_text()


def only_message(log: str) -> str:
    """The one message of a failed job; torchrun's own report, with the exit codes, follows it."""
    messages = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, log
    assert log.count("Traceback (most recent call last)") == 1, log  # torchrun's own
    return messages[0]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """ImageNet-LT's files with 256 small JPEGs."""
    return write_benchmark(tmp_path_factory.mktemp("imagenet"), "imagenet-lt", together.TIMES)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory) -> tuple[runs.Result, list[dict], str]:
    """An uninterrupted job: its run, what each process computed and wrote, what was printed."""
    checks = tmp_path_factory.mktemp("checks")
    log = finish(checks / "out", checks / "log", CHECKS=str(checks), TREE=str(tree))
    (run,) = runs.finished_runs(checks / "out" / "demo_1")
    return run, [torch.load(checks / f"{rank}.pt") for rank in (0, 1)], log


@pytest.fixture(scope="module")
def alone(tree) -> dict[str, Any]:
    """What one process computes, with one thread like each of two: sums over several are rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return together.computed() | together.streamed(tree)
    finally:
        torch.set_num_threads(threads)


def assert_equal(one: runs.Result, other: runs.Result) -> None:
    """Equal at tolerance 0, but for times."""
    pd.testing.assert_frame_equal(
        *(result.history.drop(columns="seconds") for result in (one, other)), check_exact=True
    )
    assert np.array_equal(one.norms, other.norms)
    assert np.array_equal(one.predictions.confidence, other.predictions.confidence)
    weights, others = one.weights(), other.weights()
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


# ---- shares


@given(size=st.integers(0, 60), processes=st.integers(1, 9), block=st.integers(1, 12))
def test_shards_drop_and_repeat_nothing_and_differ_by_a_block_at_most(size, processes, block):
    shares = [ProcessGroup(rank, processes).shard(size, block) for rank in range(processes)]
    assert [position for share in shares for position in share] == list(range(size))
    blocks = [-(-len(share) // block) for share in shares]
    assert max(blocks) - min(blocks) <= 1
    assert blocks == sorted(blocks, reverse=True)


@several
def test_unequal_and_empty_shares_are_gathered_in_order_by_each(whole):
    for process in whole[1]:
        for size in together.SIZES:
            assert torch.equal(process["computed"][f"gathered {size}"], torch.arange(2 * size).view(size, 2))


# ---- two processes against one


@several
@pytest.mark.parametrize("test", [37, 250])
def test_test_logits_are_those_of_one_process(whole, alone, test):
    for process in whole[1]:
        assert torch.equal(process["computed"][f"logits {test}"], alone[f"logits {test}"])


@several
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_frozen_features_are_those_of_one_process(whole, alone, mode):
    for process in whole[1]:
        for value, expected in zip(process["computed"][f"{mode} features"], alone[f"{mode} features"], strict=True):
            assert torch.equal(value, expected)


@several
def test_logits_and_features_of_streamed_images_are_those_of_one_process(whole, alone):
    for process in whole[1]:
        assert torch.equal(process["computed"]["streamed logits"], alone["streamed logits"])
        pairs = zip(process["computed"]["streamed features"], alone["streamed features"], strict=True)
        assert all(torch.equal(value, expected) for value, expected in pairs)


@several
@pytest.mark.parametrize(
    "what",
    ["trained", "trained, deferred", "trained, mixed", "trained, sharp", "trained classifier", "streamed training"],
)
def test_training_without_batch_norm_is_that_of_one_process(whole, alone, what):
    for process in whole[1]:
        torch.testing.assert_close(process["computed"][what], alone[what], rtol=1e-4, atol=1e-5, equal_nan=True)


@several
def test_with_batch_norm_processes_agree_and_stay_near_one_process(whole, alone):
    first, second = (process["computed"]["batch-norm"] for process in whole[1])
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    assert first["weights"]["stem.1.running_mean"].isfinite().all()
    loss = [found["history"][:, 2] for found in (first, alone["batch-norm"])]  # epoch, lr, train_loss
    torch.testing.assert_close(*loss, rtol=0.15, atol=0)
    assert not torch.equal(*loss)  # its statistics are of a share


# ---- one writer, one name


@several
def test_rank_0_alone_writes_and_prints(whole):
    run, (main, other), log = whole
    assert other["written"] == []
    assert any("summary.json" in path for path in main["written"])
    assert any("figure.png" in path for path in main["written"])
    assert log.count("finished\n") == log.count("\nWD  12/12: ") == 1
    assert "2 processes share each batch of 16 images, so the learning rate stays 0.05" in log
    assert run.config["settings"]["processes"] == 2
    assert run.config["environment"]["device"].startswith("2 x cpu")
    assert run.summary["engine"] == "cpu, fp32, eager steps, 2 processes"
    assert len(pd.read_csv(run.path.parent.parent / "results.csv")) == 4


def test_one_process_keeps_the_names_of_its_runs():
    committed = ROOT / "exp" / "demo_1" / "wd_wd0.0005_e200_resnet32_if100_s0-ee82bd89"
    words = "--preset paper --dataset folder --profile exp --backbone resnet32 --precision bf16 --device cpu"
    settings = FirstStage.parse(words.split())
    label, identity = settings.run_key("WD", settings.weight_decay)
    images = runs.Result.read(committed).config["data"]["fingerprint"]
    assert runs.open_run(committed.parent, label, identity, images).path == committed


# ---- failures


@several
def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(whole, tmp_path):
    log = finish(tmp_path / "out", tmp_path / "log", code=1, KILL="22")  # 6 to prepare, 5 an epoch
    # torchrun's SIGTERM may reach the other process before it notices that it is alone
    assert only_message(log).endswith((GONE, GO_ON))
    assert "\nWD   3/12" in log
    assert "\nWD   4/12" not in log
    assert "WD: resuming at epoch" in finish(tmp_path / "out", tmp_path / "log")
    assert_equal(runs.finished_runs(tmp_path / "out" / "demo_1")[0], whole[0])


@several
def test_a_loss_that_is_not_finite_ends_all_in_one_message(tmp_path):
    log = finish(tmp_path / "out", tmp_path / "log", OPTIONS.replace("0.05", "1e38"), code=1)
    assert only_message(log) == "error: the loss is nan in epoch 1: try a smaller --lr"


@several
def test_bad_input_ends_all_in_one_message(tmp_path):
    script = next((ROOT / "scripts").glob("demo1_*.py"))
    log = finish(tmp_path / "out", tmp_path / "log", "--preset demo --batch-size 1", script, code=1)  # torchrun's code
    assert only_message(log).startswith("error: --batch-size: must be a whole number at least 2")
    assert "exitcode  : 2" in log
    assert not (tmp_path / "out").exists()


# ---- settings of a job


JOB = Job(ProcessGroup(1, 8), local_rank=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--batch-size 4", "--batch-size: must be at least the number of processes, 8, got 4"),
        ("--sync-batch-norm", "--sync-batch-norm: must be given to several processes (torchrun) on CUDA, got 8 on cpu"),
    ],
)
def test_settings_that_do_not_suit_several_processes_are_refused(options, says):
    with pytest.raises(InputError) as caught:
        FirstStage.parse(f"--preset demo --device cpu {options}".split()).for_job(JOB)
    assert str(caught.value) == says


def test_synchronised_batch_norm_is_refused_for_one_process():
    with pytest.raises(InputError, match=r"^--sync-batch-norm: .* got 1 on cpu$"):
        FirstStage.parse("--preset demo --device cpu --sync-batch-norm".split()).for_job(distributed.ALONE)


def test_synchronised_batch_norm_keeps_weights_names_and_test_logits():
    model, images = together.network(), first_stage.ImageData(together.small_set(), "cpu")
    weights, logits = dict(model.named_parameters()), images.test_logits(model, 0)
    trainer = training.Trainer(model, images, recipes.Recipe(1), engine=Engine(sync_batch_norm=True))
    assert isinstance(model.stem[1], torch.nn.SyncBatchNorm)
    assert {name: id(value) for name, value in weights.items()} == {n: id(v) for n, v in model.named_parameters()}
    assert [id(value) for value in trainer.step.optimizer.state] == [id(value) for value in weights.values()]
    assert np.array_equal(images.test_logits(model, 0), logits)


def test_each_process_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [JOB.device(name) for name in ("cpu", "cuda")] == ["cpu", "cuda:1"]
    assert distributed.ALONE.device("cuda:1") == "cuda:1"
    with pytest.raises(InputError, match=r"^--device: must be cpu or cuda for several processes, got cuda:1$"):
        JOB.device("cuda:1")
    with pytest.raises(InputError, match=r"^--nproc-per-node: must be at most the GPUs of this machine, 2"):
        Job(ProcessGroup(2, 8), local_rank=2).device("cuda")


def test_several_processes_take_plain_steps_and_say_so(monkeypatch):
    monkeypatch.setattr(engine, "has_fast_bf16", lambda _: True)
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    chosen = engine.choose("cuda", large=True, processes=8)
    assert str(chosen) == "cuda, bf16, eager steps, 8 processes"
    assert chosen.notices == ("neither CUDA graph nor torch.compile where several processes exchange gradients",)


def test_an_environment_that_is_not_whole_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^torchrun: must start all processes"):
        distributed.connect({"WORLD_SIZE": "2", "RANK": "0"})


def test_a_process_is_alone_without_torchrun_and_where_it_starts_one():
    assert distributed.connect({}) is distributed.connect({"WORLD_SIZE": "1", "RANK": "0"}) is distributed.ALONE
    assert distributed.current() == ProcessGroup(0, 1)
