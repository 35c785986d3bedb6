"""Options: presets, one-line errors, the same string for Jupyter and the command line."""

import json
import subprocess
import sys

import forked
import pytest

from ltr import settings
from ltr.errors import InputError
from ltr.runtime import distributed, options, process, storage
from ltr.runtime.options import ROOT
from ltr.settings import FirstStage, SecondStage

STAGES = [FirstStage, SecondStage]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--imbalance-factor 0.5", "--imbalance-factor: must be a number at least 1, got 0.5"),
        ("--imbalance-factor nan", "--imbalance-factor: must be a number at least 1, got nan"),
        ("--epochs 0", "--epochs: must be a whole number at least 1 and at most 100000, got 0"),
        ("--epochs ten", "--epochs: must be a whole number at least 1 and at most 100000, got ten"),
        ("--lr -0.1", "--lr: must be a number above 0, got -0.1"),
        ("--lr 0", "--lr: must be a number above 0, got 0"),
        ("--weight-decay -1e-4", "--weight-decay: must be a number at least 0, got -1e-4"),
        ("--batch-size 1", "--batch-size: must be a whole number at least 2 and at most 100000, got 1"),
        ("--hold-out -1", "--hold-out: must be a whole number at least 0, got -1"),
        ("--seed -1", "--seed: must be a whole number at least 0 and at most 4294967295, got -1"),
        ("--momentum 1.5", "--momentum: must be a number at least 0 and at most 1, got 1.5"),
        ("--backbone resnet43", "did you mean resnet34?"),
        ("--dataset cifar101", "--dataset: must be one of cifar100, cifar10, folder, list, synthetic, imagenet-lt"),
        ("--dataset cifar-100", "got cifar-100 (did you mean cifar100?)"),
        ("--preset papper", "did you mean paper?"),
        ("--profile log", "--profile: must be one of exp, step, as-is, got log"),
        ("--device gpu9", "--device: must be auto"),
        ("--epoch 3", "--epoch: must be one of the options that --help lists (did you mean --epochs?)"),
        ("--epochs", "--epochs: must have a value"),
    ],
)
def test_bad_options_say_what_is_allowed(stage, words, says):
    with pytest.raises(InputError) as caught:
        stage.parse(words.split())
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", ["demo", "paper"])
@pytest.mark.parametrize("source", ["folder", "list"])
def test_images_of_ones_own_are_cut_only_where_asked(stage, preset, source):
    words = ["--preset", preset, "--dataset", source]
    own = stage.parse(words)
    assert (own.profile, own.imbalance_factor, own.data["resize"]) == ("as-is", 1.0, None)
    cut = stage.parse([*words, "--profile", "exp"])
    assert (cut.profile, cut.imbalance_factor) == ("exp", 100.0)
    with pytest.raises(InputError) as caught:
        stage.parse([*words, "--imbalance-factor", "10"])
    says = "--imbalance-factor: must be given with --profile exp or step, got 10 with --dataset "
    assert str(caught.value) == f"{says}{source}, which keeps every image"
    assert stage.parse(["--preset", preset]).profile == "exp"


@pytest.mark.parametrize("stage", STAGES)
def test_another_size_is_part_of_an_identity_only_where_it_is_asked_for(stage):
    words = "--preset demo --dataset folder".split()
    keys = [stage.parse([*words, *more]).identity() for more in ((), ("--resize", "24"))]
    assert "resize" not in keys[0]
    assert keys[1] == keys[0] | {"resize": 24}
    with pytest.raises(InputError, match="^--resize: must be given with --dataset folder or list, got 24 with cifar10"):
        stage.parse("--preset demo --dataset cifar10 --resize 24".split())


def test_presets_differ_and_options_win():
    demo = FirstStage.parse(["--preset", "demo"])
    paper = FirstStage.parse("--preset paper --epochs 320 --backbone resnet34".split())
    assert (demo.dataset, demo.backbone) == ("synthetic", "resnet32")
    assert (paper.dataset, paper.epochs, paper.lr, paper.weight_decay) == ("cifar100", 320, 0.01, 5e-3)
    assert FirstStage.parse(["--preset", "paper"]).backbone == "resnet34"


def test_without_a_preset_a_machine_without_cuda_gets_the_demo(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert FirstStage.parse([]).preset == "demo"


def test_jupyter_takes_the_options_from_the_environment(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(process, "in_ipython", lambda: True)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setenv("LTR_ARGS", f"--preset demo --epochs 7 --out '{tmp_path / 'a folder'}'")
    read = FirstStage.read()
    assert (read.epochs, read.out) == (7, tmp_path / "a folder")
    assert "--epochs 7" in capsys.readouterr().out


def test_relative_folders_are_the_callers_and_defaults_the_checkouts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    read = FirstStage.parse(["--preset", "demo", "--out", "exp"])
    assert read.out == tmp_path / "exp"
    assert read.data_root == ROOT / "data"
    assert FirstStage.parse(["--preset", "demo"]).out == ROOT / "build" / "demo"


def test_identity_leaves_out_what_does_not_change_the_result():
    one = FirstStage.parse("--preset demo --out a --data-root x".split())
    two = FirstStage.parse("--preset demo --out b --data-root y --retrain".split())
    assert one.run_key("WD", 1e-3) == two.run_key("WD", 1e-3)
    assert one.run_key("WD", 1e-3) != one.run_key("WD", 2e-3)
    assert one.run_key("naive", 0.0) != FirstStage.parse("--preset demo --lr 0.2".split()).run_key("naive", 0.0)


def test_tau_of_the_naive_network_is_part_of_its_own_runs_alone():
    one, two = (SecondStage.parse(["--preset", "demo", "--naive-tau", tau]) for tau in ("0.5", "1"))
    assert one.run_key("CB", "paper", "first") == two.run_key("CB", "paper", "first")
    named = [each.run_key("naive + tau-norm", "", "first", tau=each.naive_tau) for each in (one, two)]
    assert named[0] != named[1]


@pytest.mark.parametrize("preset", ["demo", "laptop", "paper"])
def test_the_second_stage_looks_for_what_the_first_one_writes(preset):
    first = FirstStage.parse(["--preset", preset])
    second = SecondStage.parse(["--preset", preset])
    for method, weight_decay in (("naive", 0.0), ("WD", first.weight_decay)):
        _, identity = first.run_key(method, weight_decay)
        wanted = second.base_settings | {"stage1_weight_decay": weight_decay}
        assert {key: identity.get(key) for key in wanted} == wanted


def test_the_laptop_preset_trains_one_network_in_40_epochs_at_most():
    first = FirstStage.parse(["--preset", "laptop"])
    assert (first.dataset, first.backbone, first.imbalance_factor, first.profile) == (
        "cifar100",
        "resnet32",
        100,
        "exp",
    )
    assert first.epochs <= 40
    assert first.naive == "skip"
    assert "naive" not in first.identity()
    assert FirstStage.parse(["--preset", "laptop", "--naive", "train"]).naive == "train"
    assert SecondStage.parse(["--preset", "laptop"]).out == first.out == ROOT / "build" / "laptop"


@pytest.mark.parametrize("average", ["swa", "ema"])
def test_averaging_is_part_of_a_run_where_it_is_used(average):
    plain, with_mean = (
        FirstStage.parse(f"--preset demo {words}".split()) for words in ("--average none", f"--average {average}")
    )
    assert "average" not in plain.identity()
    assert with_mean.identity() == plain.identity() | {"average": average}
    assert with_mean.recipe(0.1).average == average
    with pytest.raises(InputError, match="^--average: must be one of none, swa, ema, got mean"):
        FirstStage.parse("--preset demo --average mean".split())


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_is_explained(stage):
    text = options.parser_of(stage).format_help()
    for name in stage.__dataclass_fields__:
        assert options.flag(name) in text


def test_an_unwritable_out_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"^--out: must be a folder that can be written to"):
        storage.check_writable(tmp_path / "file" / "below")


@pytest.mark.slow
def test_what_scripts_import_leaves_torchvision_for_later():
    """It takes as long to import as PyTorch, and a refused option should not wait for it."""
    lines = [script.read_text("utf-8").split("\nsettings =")[0] for script in forked.SCRIPTS]
    code = "\n".join([*lines, "import sys", "assert 'torchvision' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


scripts = pytest.mark.parametrize("script", forked.SCRIPTS, ids=lambda path: path.stem)


@pytest.mark.slow
@scripts
def test_scripts_end_bad_input_in_one_line_and_exit_code_2(script, tmp_path):
    words = ["--preset", "demo", "--out", str(tmp_path / "out"), "--backbone", "resnet51"]
    done = forked.run(script, words)
    assert done.returncode == 2
    assert done.stderr == (
        "error: --backbone: must be one of resnet32, resnet32-wide, resnet34, resnext50, resnet50, resnet152, "
        "got resnet51 (did you mean resnet50?)\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@scripts
def test_scripts_have_help(script):
    done = forked.run(script, ["--help"])
    assert done.returncode == 0
    assert "--imbalance-factor" in done.stdout


def config(settings: dict) -> dict:
    """What a finished first stage's config.json holds."""
    data = {"name": "tiny", "class_counts": [9, 3], "fingerprint": {"train": "a"}}
    return {"settings": {"method": "WD"} | settings, "data": data, "environment": {"device": "cpu", "torch": "2.10"}}


@pytest.fixture
def shipping(tmp_path, monkeypatch):
    """A package with which the features of one first stage ship."""
    run = tmp_path / "exp" / "demo_1" / "wd_1"
    run.mkdir(parents=True)
    (run / "features.npz").touch()
    kept = {"backbone": "resnet32", "dataset": "folder", "seed": 3, "stage1_epochs": 7}
    kept |= {"imbalance_factor": 50.0, "profile": "exp"}
    (run / "config.json").write_text(json.dumps(config(kept | {"lr": 0.5, "loss": "ce"})))
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    return tmp_path


def test_shipped_features_bring_their_settings_along(shipping):
    chosen = SecondStage.parse(["--base", "shipped"])
    assert (chosen.imbalance_factor, chosen.seed, chosen.stage1_epochs) == (50.0, 3, 7)
    assert (chosen.dataset, chosen.backbone, chosen.preset) == ("folder", "resnet32", "paper")
    assert (chosen.lr, chosen.loss) == (0.01, "cb-ce")  # of the second stage, not of the first
    assert chosen.out == shipping / "build" / "shipped"
    assert chosen.first_stages == shipping / "exp" / "demo_1"
    assert SecondStage.parse(["--base", "shipped", "--seed", "4"]).seed == 4
    assert chosen.tuned_on == "shipped"
    assert SecondStage.parse(["--base", "shipped", "--tau", "0.5"]).tuned_on is None  # what is given wins
    assert SecondStage.parse(["--preset", "demo"]).first_stages.name == "demo_1"


def test_features_that_do_not_ship_are_one_line(shipping):
    with pytest.raises(InputError, match=r"^--backbone: must be one whose features ship \(resnet32\), got resnet34$"):
        SecondStage.parse(["--base", "shipped", "--backbone", "resnet34"])
    (shipping / "exp" / "demo_1" / "wd_1" / "features.npz").unlink()
    with pytest.raises(InputError, match="none yet"):
        SecondStage.parse(["--base", "shipped"])


def test_a_shipping_run_that_cannot_be_read_hinders_no_other(shipping):
    (shipping / "exp" / "demo_1" / "broken").mkdir()
    for name in ("features.npz", "config.json"):
        (shipping / "exp" / "demo_1" / "broken" / name).write_text("{")
    with pytest.warns(UserWarning, match=r"broken is passed over \(--out: \S+config\.json cannot be read"):
        assert SecondStage.parse(["--base", "shipped"]).seed == 3


@pytest.fixture
def stages(tmp_path):
    """A folder of two finished first stages, and the words that name it."""
    for name, factor in (("wd_one", 50.0), ("wd_two", 20.0)):
        run = tmp_path / "demo_1" / name
        run.mkdir(parents=True)
        (run / "summary.json").write_text("{}")
        (run / "config.json").write_text(json.dumps(config({"imbalance_factor": factor, "backbone": "resnet34"})))
    return ["--preset", "demo", "--out", str(tmp_path)]


def test_a_named_first_stage_brings_its_settings_along(stages):
    chosen = SecondStage.parse([*stages, "--stage1", "wd_two"])
    assert (chosen.imbalance_factor, chosen.backbone, chosen.stage1) == (20.0, "resnet34", "wd_two")
    assert SecondStage.parse([*stages, "--stage1", "wd_two", "--imbalance-factor", "3"]).imbalance_factor == 3


@pytest.mark.parametrize("name", ["wd_tow", "wd-two", "WD_TWO", "wd_two/", "../demo_1/wd_two", "demo_1/wd_two"])
def test_a_first_stage_that_is_not_there_is_answered_with_the_nearest(stages, name):
    with pytest.raises(InputError, match=r"^--stage1: must be a finished run in \S+demo_1, got .*mean wd_two\?\)$"):
        SecondStage.parse([*stages, "--stage1", name])


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a\0b", "\udcff", "x" * 300, "none/at/all"])
def test_what_is_no_name_of_a_run_is_refused(stages, name):
    with pytest.raises(InputError, match=r"^--stage1: must be a finished run in ") as caught:
        SecondStage.parse([*stages, "--stage1", name])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}", '{"settings": {}}', '{"settings": 3}'])
def test_a_named_first_stage_that_cannot_be_read_names_the_file(stages, tmp_path, content):
    (tmp_path / "demo_1" / "wd_two" / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"^--out: \S+wd_two/config\.json cannot be read: .+"):
        SecondStage.parse([*stages, "--stage1", "wd_two"])


def said(monkeypatch, capsys, stage, words: str, cuda: bool) -> str:
    """The first line that `read` prints."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr(process, "in_ipython", lambda: True)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setenv("LTR_ARGS", words)
    stage.read()
    return capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", ("--preset demo, as CUDA is not there", "--preset paper, as CUDA is there")),
        ("--base shipped", ("--preset paper, as the shipped features are of its job",) * 2),
        ("--base shipped --preset demo", ("--preset paper, as the shipped features are of its job",) * 2),
        ("--preset demo", ("settings: --preset demo",) * 2),
        ("--preset=paper", ("settings: --preset paper",) * 2),
    ],
)
def test_the_first_line_says_why_the_preset_is_so(shipping, monkeypatch, capsys, words, says, cuda):
    line = said(monkeypatch, capsys, SecondStage, f"{words} --device cpu --out {shipping / 'out'}", cuda)
    assert line.startswith(says[cuda])
    assert ("as " in line) == ("as " in says[cuda])


@pytest.mark.parametrize(
    ("text", "windows", "words"),
    [
        (r"--out C:\Users\me\data --epochs 3", False, ["--out", r"C:\Users\me\data", "--epochs", "3"]),
        (r"--out C:\Users\me\data --epochs 3", True, ["--out", r"C:\Users\me\data", "--epochs", "3"]),
        (r"--out \\server\share --epochs 3", True, ["--out", r"\\server\share", "--epochs", "3"]),
        ("--out C:\\data\\ --epochs 3", True, ["--out", "C:\\data\\", "--epochs", "3"]),
        ('--out "C:\\my data\\" --epochs 3', True, ["--out", "C:\\my data\\", "--epochs", "3"]),
        (r"--out 'C:\my data'", True, ["--out", r"C:\my data"]),
        (r'--out "C:\my data"', False, ["--out", r"C:\my data"]),
        (r"--out 'C:\my data'", False, ["--out", r"C:\my data"]),
        (r"--out my\ data/it\'s", False, ["--out", "my data/it's"]),
        (r'--out "a \"b\" c"', False, ["--out", 'a "b" c']),
        (r"--out a\\b", False, ["--out", r"a\b"]),
        ("--out a\\", False, ["--out", "a\\"]),
        ("", False, []),
    ],
)
def test_backslashes_of_paths_survive_in_jupyters_options(text, windows, words):
    assert options.split_words(text, windows) == words


def test_an_option_that_was_set_before_is_named_with_its_source(monkeypatch):
    monkeypatch.setattr(process, "in_ipython", lambda: True)
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setenv("LTR_ARGS", "--preset demo --epochs none")
    with pytest.raises(InputError, match=r"^--epochs: must be a whole number.*, got none \(in LTR_ARGS\)$"):
        FirstStage.read()
    monkeypatch.delenv("LTR_ARGS")
    with pytest.raises(InputError, match="got none$"):
        FirstStage.read("--preset demo --epochs none")


@pytest.mark.parametrize("windows", [False, True])
def test_a_quotation_that_does_not_end_is_one_line(windows):
    with pytest.raises(InputError, match=r"^LTR_ARGS: must be options as on a command line \(No closing quotation\)$"):
        options.split_words("--out 'a folder", windows)


def test_where_the_features_come_from_is_no_part_of_a_trained_runs_identity():
    assert "base" not in SecondStage.parse(["--preset", "demo"]).identity()


def test_choices_of_the_paper_leave_the_identity_as_it_was():
    plain, given = (
        FirstStage.parse(["--preset", "demo"]),
        "--mix none --augmentation none --sampling instance --loss ce",
    )
    assert FirstStage.parse(["--preset", "demo", *given.split()]).run_key("WD", 0.1) == plain.run_key("WD", 0.1)
    identity = plain.run_key("WD", 0.1)[1]
    assert not {"mix", "augmentation", "sampling"} & identity.keys()
    assert (identity["method"], identity["loss"]) == ("WD", "ce")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("--loss ldam-drw", "LDAM-DRW"),
        ("--loss balanced-softmax", "Balanced Softmax, whole network"),
        ("--loss vs", "VS loss"),
        ("--mix mixup", "mixup"),
        ("--mix cutmix --sampling sqrt", "CutMix + square-root sampling"),
        ("--augmentation autoaugment+cutout", "AutoAugment and Cutout"),
    ],
)
def test_other_choices_name_the_model(words, name):
    chosen = FirstStage.parse(["--preset", "demo", *words.split()])
    label, identity = chosen.run_key("WD", 0.1)
    assert identity["method"] == name
    assert chosen.run_key("naive", 0.0)[1]["method"] == f"{name}, no WD"
    assert label != FirstStage.parse(["--preset", "demo"]).run_key("WD", 0.1)[0]
    assert set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")


def test_the_second_stage_starts_from_cross_entropy_with_crop_and_flip_alone():
    wanted = SecondStage.parse(["--preset", "demo"]).base_settings
    assert wanted["loss"] == "ce"
    assert wanted["mix"] is wanted["augmentation"] is wanted["sampling"] is None


@pytest.mark.parametrize(
    ("line", "variable", "cell", "seed"),
    [("--seed 1", "--seed 2", "--seed 3", 1), ("", "--seed 2", "--seed 3", 2), ("", "", "--seed 3", 3)],
)
def test_the_command_line_beats_the_variable_and_that_the_cell(monkeypatch, tmp_path, line, variable, cell, seed):
    shared = f" --preset demo --out {tmp_path}"
    monkeypatch.setattr(process, "in_ipython", lambda: True)
    monkeypatch.setattr("sys.argv", ["script.py", *(line + shared if line else "").split()])
    monkeypatch.setenv("LTR_ARGS", variable + shared if variable else "")
    assert FirstStage.read(cell + shared).seed == seed


@pytest.mark.parametrize("stage", [FirstStage, SecondStage])
@pytest.mark.parametrize(("notebook", "cuda"), [(True, True), (False, False)])
def test_without_a_word_the_committed_runs_are_read(monkeypatch, capsys, stage, notebook, cuda):
    monkeypatch.setattr(process, "in_ipython", lambda: notebook)
    monkeypatch.setattr(process, "begin", lambda options: (distributed.ALONE, [], ""))
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    settings = stage.read()
    assert settings.committed
    assert (settings.device, settings.out, settings.backbone) == ("cpu", ROOT / "exp", "resnet32")
    said = capsys.readouterr().out
    assert (
        said == ""
        if notebook
        else said.startswith("the committed runs, as there is no CUDA here; --preset paper trains")
    )


@pytest.mark.parametrize("stage", [FirstStage, SecondStage])
def test_no_command_makes_the_committed_runs(stage):
    with pytest.raises(InputError, match="^--preset: must be one of demo, laptop, paper, got committed"):
        stage.of_command(["--preset", "committed"])


def test_committed_settings_are_those_of_the_run_that_ships():
    first, second = (stage.parse(["--preset", "committed"]) for stage in (FirstStage, SecondStage))
    assert (first.epochs, first.weight_decay) == (second.stage1_epochs, second.stage1_weight_decay)
    shipped = {path.parent.name for path in (ROOT / "exp" / "demo_1").glob("*/features.npz")}
    label, _ = first.run_key("WD", first.weight_decay)
    assert {name.rsplit("-", 1)[0] for name in shipped} == {label}


def test_paths_are_shortened_where_they_begin(tmp_path):
    assert options.short(f"--out {tmp_path}/a, /b{tmp_path}/c", tmp_path) == f"--out a, /b{tmp_path}/c"


def test_a_command_checks_what_one_process_can_do():
    with pytest.raises(InputError, match="^--sync-batch-norm: must be given to several processes"):
        FirstStage.of_command(["--preset", "demo", "--device", "cpu", "--sync-batch-norm"])
