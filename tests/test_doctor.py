"""`python -m ltr doctor`: what it says is of this machine, and what cannot be had is a sentence."""

import pytest
import torch

from ltr.errors import InputError
from ltr.runtime.engine import Engine
from ltr.study import doctor


def test_every_way_that_the_engine_has_is_tried_once():
    cuda = Engine(torch.device("cuda"), precision="bf16", graph=True, compile=True)
    assert list(doctor.ways(cuda)) == ["plain, float32", "plain, bf16", "captured", "compiled", "as chosen"]
    assert doctor.ways(cuda)["captured"] == Engine(torch.device("cuda"), graph=True)
    assert list(doctor.ways(Engine())) == ["plain, float32", "compiled", "as chosen"]


@pytest.mark.slow
def test_the_report_names_engine_images_disk_and_hours(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor, "ways", lambda how: {"plain, float32": how, "as chosen": how})
    words = f"--device cpu --data-root {tmp_path / 'none'} --dataset folder --backbone resnet32 --epochs 3"
    doctor.main([*words.split(), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "engine: cpu, fp32, eager steps" in said
    assert "images: not there" in said
    assert "GiB free" in said
    assert said.count("0.0e+00") == 2  # the same steps from the same weights end in the same weights
    assert "resnet32, 3 epochs, without and with weight decay: about " in said
    assert not (tmp_path / "out").exists()


def test_steps_that_differ_are_seen():
    plain, _ = doctor.trained(doctor.small_network(), Engine(), 2)
    other, _ = doctor.trained(doctor.small_network(), Engine(), 3)
    assert doctor.difference(plain.model, other.model) > 1e-4


def test_an_unknown_option_is_one_line():
    with pytest.raises(InputError, match="^--backbone: must be one of"):
        doctor.main(["--backbone", "resnet33"])
