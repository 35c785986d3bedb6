"""What chapters share: claims, tables with their errors, and an end before the last cell."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ltr import models
from ltr.errors import InputError
from ltr.metrics import Predictions
from ltr.runtime import process
from ltr.runtime.options import ROOT
from ltr.settings import FirstStage, SecondStage
from ltr.study import chapter, measured, page


def of(committed: bool) -> chapter.Chapter:
    return chapter.Chapter(SimpleNamespace(committed=committed))


def test_a_claim_about_committed_runs_is_asserted_and_of_others_it_is_said(capsys):
    with pytest.raises(AssertionError, match="^the committed runs do not say: rare classes gain$"):
        of(committed=True).claim("rare classes gain", False)
    of(committed=True).claim("rare classes gain", True)
    of(committed=False).claim("rare classes gain", False)
    of(committed=False).claim(f"rare classes of Nan and nana gain {np.nan:+.1f} ± {np.nan:.1f}", np.nan > 1)
    assert capsys.readouterr().out.splitlines() == [
        "holds: rare classes gain",
        "does not hold here: rare classes gain",
        "not measured here: rare classes of Nan and nana gain – ± –",
    ]


def test_a_table_that_cannot_be_read_is_left_out(tmp_path):
    assert measured.table_at(tmp_path / "none.csv", ["a"]).empty
    for text, said in (("a\n1\n1,2,3\n", "left out: --out: "), ("b\n1\n", "must have a column a")):
        (tmp_path / "broken.csv").write_text(text)
        with pytest.warns(UserWarning, match=said):
            table = measured.table_at(tmp_path / "broken.csv", ["a"])
        assert table.empty
        assert [*table] == ["a"]
    (tmp_path / "whole.csv").write_text("a,b\n1,2\n")
    assert measured.table_at(tmp_path / "whole.csv", ["a"]).a.tolist() == [1]


def test_a_map_is_of_this_network_on_these_images():
    of_set = {"dataset": "cifar100", "imbalance_factor": 100, "profile": "exp"}
    told = of_set | {"lr": 0.1, "batch_size": 64, "warm_up": 0, "out": ROOT / "exp"}

    def of_images(name: str, **other: object) -> chapter.Chapter:
        found = chapter.Chapter(SimpleNamespace(**{"backbone": "resnet32", **told, **other}))
        object.__setattr__(found, "about", {"name": name})  # which is read from images otherwise
        return found

    known = measured.tuning_runs(of_images("cifar100"))
    assert known.stage1_weight_decay.nunique() > 2
    assert len(measured.map_of(of_images("cifar100"))) > len(known)
    others = of_images("cifar10"), of_images("cifar100", backbone="resnet34"), of_images("cifar100", profile="as-is")
    for each in others:
        assert measured.map_of(each).empty
        assert measured.tuning_runs(each).empty


def test_what_is_absent_is_said_once_and_by_the_names_of_this_stage(tmp_path, capsys):
    words = ["--preset", "committed", "--epochs", "3"]
    with pytest.raises(InputError, match=r"^--epochs: no finished run in .* with 3; .* has \d+$"):
        _ = chapter.Chapter(FirstStage.parse(words)).about
    words = ["--preset", "paper", "--dataset", "imagenet-lt", "--device", "cpu", "--data-root", str(tmp_path / "none")]
    with pytest.raises(InputError, match=r"^--data-root: must hold ImageNet_LT_train.txt for --dataset imagenet-lt"):
        _ = chapter.Chapter(FirstStage.parse(words)).about
    assert capsys.readouterr().out == ""


def test_sentences_to_remember_have_dashes_for_what_is_missing(capsys):
    page.take_aways(f"few-shot {np.nan:+.1f} points")
    assert capsys.readouterr().out == "1. few-shot – points\n"


def result(label: str, hits: np.ndarray) -> SimpleNamespace:
    """A run of two classes, with 200 and 5 training images."""
    labels = np.arange(len(hits)) % 2
    said = Predictions(np.where(hits, labels, 1 - labels), np.full(len(hits), 0.5), labels, np.full(2, 0.5))
    figures = said.summary(np.array([200, 5]))
    return SimpleNamespace(
        label=label, predictions=said, class_counts=np.array([200, 5]), accuracy=lambda: figures, norms=None
    )


def test_rows_that_are_not_clearly_below_the_best_are_bold_and_errors_stand_below():
    best = np.tile([True, True, True, False], 100)
    near, far = best.copy(), best.copy()
    near[0] = False
    far[:200] = False
    rows = {name: result(name, hits) for name, hits in (("best", best), ("near", near), ("far", far))}
    table = page.accuracy_table(rows)
    assert [cell.startswith("<b>") for cell in table["all"]] == [True, True, False]
    error = 100 * np.sqrt(0.75 * 0.25 / 399)
    assert table.loc["best", "all"] == f"<b>75.00</b><br><small>±{error:.2f}</small>"
    assert table.loc["best", "medium"] == "–"  # no class has 20 to 100 images


@pytest.mark.parametrize(("notebook", "raised"), [(True, page.EndOfPage), (False, SystemExit)])
def test_a_page_may_end_early_without_a_traceback(monkeypatch, capsys, notebook, raised):
    monkeypatch.setattr(process, "in_ipython", lambda: notebook)
    with pytest.raises(raised) as ended:
        page.end("nothing to compare")
    if notebook:
        assert ended.value._render_traceback_() == ["nothing to compare"]
    else:
        assert ended.value.code is None
        assert capsys.readouterr().out == "nothing to compare\n"


def test_one_network_alone_is_shown_and_ends_the_page(capsys):
    with pytest.raises(SystemExit):
        chapter.Chapter(FirstStage.parse(["--preset", "committed"])).end_with("WD", 5e-4)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].startswith("WD  ")
    assert shown[-1] == "what this chapter compares needs --naive train"


def test_the_protocol_names_both_stages_where_they_are_equally_long():
    first = FirstStage.parse(["--preset", "demo", "--epochs", "2"])
    second = SecondStage.parse(["--preset", "demo", "--stage1-epochs", "2", "--epochs", "2"])
    network, end = "resnet32 (16-32-64 channels)", "seed 1; last epoch, plain test images; %."
    assert chapter.protocol(first, first.identity()) == f"{network}, 2 epochs at 0.1, batch 64, {end}"
    told = {"stage1_epochs": 2, "lr": 0.2, "batch_size": 128}
    assert (
        chapter.protocol(second, told)
        == f"{network}, 2 epochs at 0.2, batch 128, then 2 epochs of the classifier, {end}"
    )


@pytest.mark.parametrize(
    ("weight", "bias", "few"),
    [
        ([[4.0, 0.0], [0.0, 1.0]], [0.0, 0.0], (0, 0, 100)),  # the tail sits in the norms
        ([[1.0, 0.0], [0.0, 1.0]], [2.0, 0.0], (0, 100, 0)),  # in the biases
    ],
)
def test_where_the_tail_sits_is_seen_by_taking_it_away(weight, bias, few):
    classifier = models.linear(torch.tensor(weight), torch.tensor(bias))
    images = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    frozen = SimpleNamespace(
        model=SimpleNamespace(classifier=classifier),
        test_logits=lambda head, epoch: head(images).detach().numpy(),
        class_counts=np.array([200, 5]),
        test_labels=np.array([0, 1]),
    )
    table = chapter.where_the_tail_sits(frozen).set_index("classifier")
    assert tuple(table.few) == few
    assert (table.many == 100).all()
    assert [*table.index] == ["as learned", "without biases", "with rows of one length"]
