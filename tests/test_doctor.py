"""`python -m ltr doctor`: what it says is of this machine, and what cannot be had is a sentence."""

import pytest
import torch

from ltr.errors import InputError
from ltr.runtime.engine import Engine
from ltr.settings import FirstStage
from ltr.study import doctor


def test_every_way_that_the_engine_has_is_tried_once(monkeypatch):
    monkeypatch.setattr(doctor, "has_fast_bf16", lambda device: device.type == "meta")
    cuda = Engine(torch.device("cuda"), precision="bf16", graph=True, compile=True)
    plain = ["plain, float32", "plain, channels-first"]
    assert list(doctor.ways(cuda)) == [*plain, "plain, bf16", "captured", "compiled", "as chosen"]
    assert doctor.ways(cuda)["captured"] == Engine(torch.device("cuda"), graph=True)
    assert list(doctor.ways(Engine())) == [*plain, "compiled", "as chosen"]
    has_bf16 = Engine(torch.device("meta"))  # stands for a CPU that computes in it
    assert list(doctor.ways(has_bf16)) == [*plain, "plain, bf16", "compiled", "as chosen"]
    assert doctor.ways(has_bf16)["as chosen"].precision == "fp32"


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


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_ones_own_images_are_counted_and_not_decoded(tree, kind):
    if kind == "list":
        for split in ("train", "test"):
            paths = sorted((tree / split).glob("*/*"))
            labels = {name: k for k, name in enumerate(sorted({path.parent.name for path in paths}))}
            lines = [f"{path.relative_to(tree)} {labels[path.parent.name]}\n" for path in paths]
            (tree / f"{split}.txt").write_text("".join(lines))
    before = sorted(tree.rglob("*"))
    settings = FirstStage.parse(["--preset", "paper", "--device", "cpu", "--dataset", kind, "--data-root", str(tree)])
    images = len(list(tree.glob("t*/*/*")))
    assert doctor.images_at_hand(settings).startswith(f"{images} of 3 classes in ")
    assert sorted(tree.rglob("*")) == before, "no pixels are kept"


def test_images_that_are_not_there_are_not_fetched(monkeypatch, tmp_path):
    def fetch(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr("ltr.data.cifar.receive", fetch)
    settings = FirstStage.parse(["--preset", "paper", "--device", "cpu", "--data-root", str(tmp_path / "data")])
    assert doctor.images_at_hand(settings).endswith("yet, the first script fetches them")
    assert not (tmp_path / "data").exists()


@pytest.mark.seconds
def test_memory_order_changes_no_step_and_is_what_it_says():
    last, _ = doctor.trained(doctor.small_network(), Engine(), 2)
    first, _ = doctor.trained(doctor.small_network(), Engine(), 2, channels_first=True)
    assert doctor.difference(last.model, first.model) < 1e-4
    seen = {}
    for name, trainer in {"last": last, "first": first}.items():
        images, _ = trainer.data.batch(trainer.step.drawn, torch.arange(4))
        trainer.model.stem.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output}))
        trainer.model(images)
    assert seen["first"].is_contiguous()
    assert seen["last"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.seconds
def test_steps_that_differ_are_seen():
    plain, _ = doctor.trained(doctor.small_network(), Engine(), 2)
    other, _ = doctor.trained(doctor.small_network(), Engine(), 3)
    assert doctor.difference(plain.model, other.model) > 1e-4


def test_an_unknown_option_is_one_line():
    with pytest.raises(InputError, match="^--backbone: must be one of"):
        doctor.main(["--backbone", "resnet33"])


def test_the_hours_are_those_of_the_job_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(doctor, "trained", lambda *_: (None, 0.1))
    asked = ("", "--naive skip", "--imbalance-factor 1", "--epochs 400")
    whole, half, long_tailed, twice = (
        doctor.hours_of_the_job(FirstStage.parse(f"--preset paper --device cpu {words}".split())) for words in asked
    )
    assert half == pytest.approx(whole / 2)
    assert twice == pytest.approx(2 * whole)
    assert long_tailed == pytest.approx(whole * 50_000 / 10_847)
