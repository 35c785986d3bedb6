"""Recipes of the large benchmarks: each value has a source, options win, and runs of CIFAR-100 keep their names."""

import json

import numpy as np
import pytest
from committed import SHIPPED

from ltr import recipes, runs
from ltr.data.large_sets import LARGE_SETS
from ltr.runtime.configs import read_config
from ltr.runtime.options import ROOT
from ltr.runtime.storage import read_table
from ltr.settings import FirstStage, SecondStage
from ltr.study.cells import where

STAGES = [(FirstStage, recipes.LARGE_FIRST_STAGE), (SecondStage, recipes.LARGE_SECOND_STAGE)]
COMMITTED = sorted((ROOT / "exp").glob("demo_1/*/config.json"))


@pytest.mark.parametrize("dataset", LARGE_SETS)
@pytest.mark.parametrize(("stage", "table"), STAGES)
def test_the_paper_preset_takes_the_recipe(stage, table, dataset):
    settings = stage.parse(["--preset", "paper", "--dataset", dataset])
    for name, value in {**recipes.LARGE_SHARED, **table[dataset]}.items():
        assert getattr(settings, name) == value
    assert settings.imbalance_factor == 1


def test_what_the_paper_publishes():
    about = {name: FirstStage.parse(["--preset", "paper", "--dataset", name]) for name in LARGE_SETS}
    published = {name: (s.backbone, s.epochs, s.batch_size, s.lr, s.momentum, s.schedule) for name, s in about.items()}
    assert published["imagenet-lt"] == ("resnext50", 200, 64, 0.01, 0.9, "cosine")
    assert published["inaturalist2018"] == ("resnet50", 200, 512, 0.01, 0.9, "cosine")
    assert [about[name].weight_decay for name in ("imagenet-lt", "inaturalist2018")] == [5e-4, 1e-4]


def test_the_laptops_learning_rate_and_weight_decay_are_the_best_of_the_map():
    table = read_table(ROOT / "exp" / "tuning" / "lr_wd.csv")
    for classifier in ("logit adjustment", "CB + WD"):
        cells = table[(table.classifier == classifier) & (table.epochs == 40)]
        best = cells.loc[cells["all"].idxmax()]
        laptop = recipes.LAPTOP
        assert (best.lr, best["weight decay"], best.batch) == (
            laptop["lr"],
            laptop["weight_decay"],
            laptop["batch_size"],
        )


def test_the_laptops_schedule_is_the_best_of_its_cells_once_balanced():
    table = read_table(ROOT / "exp" / "tuning" / "laptop.csv")
    cells = table[table.classifier == "logit adjustment"]
    best, laptop = cells.loc[cells["all"].idxmax()], recipes.LAPTOP
    told = [best.lr, best["weight decay"], best.batch, best["warm-up"], best.epochs, best.further]
    own = [laptop[name] for name in ("lr", "weight_decay", "batch_size", "warm_up", "epochs")]
    assert told == [*own, f"schedule {laptop['schedule']}"]
    assert best["all gain"] > 2 * best["all gain ±"]  # over the cosine with a warm-up
    assert not laptop["nesterov"]
    assert laptop["average"] == "none"


def test_the_laptops_second_stage_is_what_its_own_network_chose_on_held_out_images():
    tested = where(read_table(ROOT / "exp" / "comparison.csv"), stage1_epochs=40, choice=None)  # on the draw
    (network,) = tested.tuned_on.dropna().unique()
    table = read_table(ROOT / "exp" / "tuning" / "comparison.csv")
    chosen = table[table.stage1_run.eq(network) & table.chosen.eq(True)].set_index("method")
    told = SecondStage.parse(["--preset", "laptop"])
    best = chosen.loc["CB + WD + MaxNorm"]
    assert (told.weight_decay, told.lr) == (best["weight decay"], best.lr)
    assert told.tau == chosen.tau["tau-norm"]
    norms = np.load(ROOT / "exp" / "tuning" / "demo_1" / network / "norms.npy")[-1]
    assert told.max_norm == pytest.approx(best["radius / mean norm"] * norms.mean(), abs=0.005)


def test_the_narrow_networks_second_stage_is_what_its_tuning_networks_chose():
    values = read_table(ROOT / "exp" / "tuning" / "values.csv").set_index(["tuning_run", "method"])
    network = read_table(SHIPPED / "tuned.csv").tuning_run.iloc[0]
    best, told = values.loc[network, "CB + WD + MaxNorm"], recipes.STAGE2["resnet32"]
    assert told["weight_decay"] == best.weight_decay
    assert told["max_norm"] == pytest.approx(best.max_norm, abs=0.005)
    assert told["tau"] == values.tau[network, "WD + tau-norm"]
    choices = {
        run: read_config(ROOT / "exp" / "tuning" / "demo_1" / run)["settings"]["choice"] for run, _ in values.index
    }
    naive = values.tau.xs("naive + tau-norm", level="method")
    assert [told["naive_tau"]] == [tau for run, tau in naive.items() if choices[run] == choices[network]]


def test_what_a_preset_says_wins_over_what_suits_a_network():
    assert FirstStage.parse("--preset laptop --backbone resnet34".split()).weight_decay == 5e-4
    assert SecondStage.parse("--preset demo --backbone resnet34".split()).tau == 0.75
    assert SecondStage.parse("--preset paper --dataset places-lt".split()).max_norm == 1.0


@pytest.mark.parametrize(("name", "value"), [("schedule", "linaer"), ("average", "ewa")])
def test_a_recipe_knows_its_choices(name, value):
    with pytest.raises(ValueError, match=f"^{name}: must be one of .*, got {value}$"):
        recipes.Recipe(1, **{name: value})


def test_options_win_over_the_recipe():
    words = "--preset paper --dataset imagenet-lt --backbone resnet50 --epochs 90 --weight-decay 1e-3 --lr 0.2"
    settings = FirstStage.parse(words.split())
    assert (settings.backbone, settings.epochs, settings.weight_decay, settings.lr) == ("resnet50", 90, 1e-3, 0.2)
    assert (settings.batch_size, settings.profile) == (64, "as-is")
    words = "--preset paper --dataset imagenet-lt --normalization cifar10 --tau 0.3 --stage1-epochs 90"
    settings = SecondStage.parse(words.split())
    assert (settings.normalization, settings.tau, settings.stage1_epochs) == ("cifar10", 0.3, 90)


@pytest.mark.parametrize("dataset", LARGE_SETS)
def test_the_second_stage_starts_from_the_first_ones_recipe(dataset):
    words = ["--preset", "paper", "--dataset", dataset]
    first, second = FirstStage.parse(words), SecondStage.parse(words)
    _, identity = first.run_key("WD", first.weight_decay)
    wanted = second.base_settings
    assert {key: identity.get(key) for key in wanted} == wanted


def test_the_demo_preset_takes_the_images_alone():
    settings = FirstStage.parse(["--preset", "demo", "--dataset", "imagenet-lt"])
    assert (settings.profile, settings.normalization, settings.backbone) == ("as-is", "imagenet", "resnet32")


def test_cifar10_has_its_own_statistics():
    assert FirstStage.parse("--preset paper --dataset cifar10".split()).normalization == "cifar10"
    assert FirstStage.parse("--preset paper --dataset cifar100".split()).normalization == "cifar100"


def test_workers_are_no_part_of_a_run():
    one, two = (FirstStage.parse(f"--preset paper --dataset imagenet-lt --workers {n}".split()) for n in (1, 2))
    assert one.identity() == two.identity()
    assert one.data["workers"] == 1


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_runs_are_found_by_the_same_names(path):
    config = json.loads(path.read_text("utf-8"))
    asked = config["settings"]
    names = ["dataset", "imbalance_factor", "profile", "backbone", "lr", "batch_size", "test_every", "seed"]
    later = "schedule", "warm_up", "choice", "loss", "mix", "mix_alpha", "augmentation", "sampling", "precision"
    names += [name for name in later if name in asked]
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(asked[name]))]
    settings = FirstStage.parse(["--preset", "paper", *words, "--epochs", str(asked["stage1_epochs"])])
    key = settings.run_key("WD" if asked["stage1_weight_decay"] else "naive", asked["stage1_weight_decay"])
    run = runs.open_run(path.parents[1], *key, config["data"]["fingerprint"])
    assert run.path == path.parent


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", -1), ("batch_size", 0), ("lr", -1.0), ("lr", float("nan")), ("weight_decay", -0.1), ("momentum", 1.0)]
    + [("momentum", -0.1), ("test_every", 0), ("warm_up", 3), ("warm_up", -1), ("sam_rho", -1.0)],
)
def test_a_recipe_refuses_what_no_training_can_follow(name, value):
    with pytest.raises(ValueError, match=f"^{name}: must be "):
        recipes.Recipe(**{"epochs": 3, name: value})
