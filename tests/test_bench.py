"""The benchmark's bookkeeping, and one round of it on a few images; no time is asserted."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch

from ltr.datasets import LongTailed
from ltr.errors import InputError
from ltr.runtime import engine
from ltr.study import bench

MEASURED = {"what": bench.STAGE_1, "backbone": "resnet32", "device": "cpu (x)", "images": 10_847, "precision": "fp32"}
MEASURED |= {"ours_s": 2.0, "reference_s": 6.0, "ratio": 3.0}


def rows_after(path: Path, *changes: dict) -> pd.DataFrame:
    """The file's rows after some measurements."""
    for change in changes:
        bench.add(path, MEASURED | change)
    return pd.read_csv(path)


def test_a_new_measurement_takes_the_place_of_the_old_one(tmp_path):
    assert rows_after(tmp_path / "b.csv", {}, {"ours_s": 1.0}).ours_s.tolist() == [1.0]
    assert rows_after(tmp_path / "b.csv", {"images": 2_711}).images.tolist() == [2_711, 10_847], "as numbers"


def test_a_row_of_another_device_or_without_a_network_stands_beside_it(tmp_path):
    others = {"device": "NVIDIA X", "precision": "bf16"}, {"what": "balance", "backbone": ""}
    rows = rows_after(tmp_path / "b.csv", {}, *others, {"ours_s": 1.0}, others[1] | {"ours_s": 3.0})
    assert rows[["device", "ours_s"]].to_numpy().tolist() == [["cpu (x)", 3.0], ["NVIDIA X", 2.0], ["cpu (x)", 1.0]]


def test_a_gpu_measures_all_networks():
    works = [(what, backbone) for what, backbone, _ in bench.plan(torch.device("cuda"), 1)]
    assert {"resnet32", "resnet32-wide", "resnet34"} == {backbone for _, backbone in works}


def test_operations_of_an_epoch_are_three_forward_passes():
    # 68.9 M multiply-adds an image, two operations each, forward and twice backward
    assert bench.epoch_flops("resnet32", 10) == pytest.approx(10 * 6 * 68.9e6, rel=0.01)


all_of_them = bench.drawn


def few(scale: float = 1.0) -> LongTailed:
    """130 training images, 100 to test."""
    data = all_of_them(0.02)
    return dataclasses.replace(data, train=data.train.take(slice(130)), test=data.test.take(slice(100)))


@pytest.mark.slow
def test_a_round_measures_both_sides(monkeypatch):
    monkeypatch.setattr(bench, "drawn", few)
    monkeypatch.setattr(bench, "peak_mb", lambda *_: 123.0)
    (row,) = bench.stage_1("resnet32", engine.choose("cpu"), repeat=1)
    assert set(row) <= set(bench.COLUMNS)
    assert row["ratio"] == pytest.approx(row["reference_s"] / row["ours_s"])
    assert (row["images"], row["peak_mb"], row["torch"]) == (130, 123.0, torch.__version__.split("+")[0])
    assert 0 < row["floor_share"] < 1.5


@pytest.mark.slow
def test_the_reference_learns(monkeypatch):
    data = few()
    reference = bench.Reference(data, "resnet32", torch.device("cpu"))
    before = reference.model.stem[0].weight.clone()
    reference.epoch()
    assert not torch.equal(before, reference.model.stem[0].weight)
    frozen = bench.Reference(data, "resnet32", torch.device("cpu"), frozen=True)
    backbone, classifier = frozen.model.stem[0].weight.clone(), frozen.model.classifier.weight.clone()
    frozen.epoch()
    assert torch.equal(backbone, frozen.model.stem[0].weight)
    assert not torch.equal(classifier, frozen.model.classifier.weight)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="--repeat"):
        bench.main(["--repeat", "0"])


def test_the_table_is_written_as_it_grows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "plan", lambda *_: [(bench.STAGE_1, "resnet32", lambda: iter([row]))])
    row = MEASURED
    bench.main(["--device", "cpu", "--out", str(tmp_path / "b.csv")])
    assert "3.0" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "b.csv").ours_s.tolist() == [2.0]


def test_balancing_is_measured_in_a_process_of_its_own(monkeypatch):
    assert bench.balance_seconds("fast", 600, 5, 8) > 0
    calls = []
    monkeypatch.setattr(bench, "in_child", lambda call: calls.append(call) or (41.5, 900.0))
    (row,) = bench.balancing("fast")
    assert calls == ["balance_seconds('fast', **{'images': 100000, 'classes': 1000, 'features': 512})"]
    assert (row["ours_s"], row["peak_mb"], row["images"]) == (41.5, 900.0, 100_000)
    rows = [what for what, _, _ in bench.plan(torch.device("cpu"), 1)]
    assert rows[-2:] == ["balance a head, fast methods", "balance a head, all methods"]


def test_what_is_never_measured_is_refused(tmp_path):
    with pytest.raises(InputError, match="^--only: must be the beginning of one of stage 1, .*, got nothing"):
        bench.main(["--only", "nothing", "--device", "cpu", "--out", str(tmp_path / "benchmarks.csv")])
