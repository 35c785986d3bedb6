"""What an accuracy costs: beside minutes and arithmetic, and beside the released code's.

    python -m ltr costs exp/results.csv exp/comparison.csv exp/benchmarks.csv --readme README.md

A row is a kind of first stage whose classifier was balanced (comparison.csv): how it does alone, and by the method that
held-out images chose; last epoch, plain test, means over its seeds. The arithmetic is the first stage's, six operations
a multiply-add; the minutes are those of its epochs, their tests and the features of the second stage at the speed that
was measured (benchmarks.csv), a dash where it was not. Without `--readme` the table is printed; a file has a place for
it, `<!-- costs -->`.
"""

from collections.abc import Iterator, Sequence

import pandas as pd

from ltr.metrics import or_dash
from ltr.runtime.options import Parser, file
from ltr.runtime.storage import read_table, write_text
from ltr.study import cells, other_tables, paper_tables, published, report
from ltr.study.bench import FEATURES, STAGE_1, epoch_flops

HEAD = ["network", "PFLOP", "minutes", "on", "alone", "balanced", "by"]
SAM = "sam_rho"  # as `runs.otherwise` tells of it
IMAGES = 10_847  # of CIFAR100-LT at imbalance factor 100


def petaflops(backbone: str, epochs: float, further: str = "") -> str:
    """Arithmetic of a first stage on CIFAR100-LT, in 10^15 operations; a sharpness-aware step is two."""
    return f"{(1 + (SAM in further)) * epochs * epoch_flops(backbone, IMAGES) / 1e15:.2g}"


def released() -> Iterator[list[str]]:
    """The released notebooks' rows, from their output and their logs."""
    for name, best in (("naive", ""), ("WD", "CB + WD + MaxNorm")):
        minutes, balanced = published.RELEASED_MINUTES[name], "–"
        if best:
            minutes += published.RELEASED_MINUTES[best]
            balanced = or_dash(published.RELEASED[best][1])
        epochs = published.RELEASED_EPOCHS
        words = f"released code: ResNet-34, {epochs} epochs, {name}"
        yield [
            words,
            petaflops("resnet34", epochs),
            f"{minutes:.0f}",
            published.RELEASED_DEVICE,
            or_dash(published.RELEASED[name][1]),
            balanced,
            best or "–",
        ]


def minutes(benchmarks: pd.DataFrame, first: pd.Series) -> tuple[str, str]:
    """Minutes from images to features, and the device; of the first one that has both measured, dashes without one."""
    if pd.notna(first["mix"]) or pd.notna(first.augmentation) or SAM in str(first.further):
        return "–", "–"  # the measured steps are plain, and crop and flip alone
    rows = benchmarks[(benchmarks.backbone == first.backbone) & (benchmarks.images == IMAGES)]
    for device, own in rows.groupby("device"):
        seconds = own.drop_duplicates("what").set_index("what").ours_s
        if {STAGE_1, FEATURES} <= {*seconds.index}:
            return f"{(first.stage1_epochs * seconds[STAGE_1] + seconds[FEATURES]) / 60:.0f}", str(device)
    return "–", "–"


def line(rows: pd.DataFrame, firsts: pd.DataFrame, benchmarks: pd.DataFrame) -> list[str]:
    """A kind of first stage.

    Args:
        rows: its methods in comparison.csv, those of each seed, tuned on the same held-out images.
        firsts: its first stages among the plain rows of results.csv.
    """
    first = firsts.iloc[0]
    chosen = rows.groupby("method", sort=False).validation.mean().idxmax()
    alone, balanced = (cells.cell(own["all"]) for own in (firsts, rows[rows.method == chosen]))
    words = f"{paper_tables.NETWORKS[first.backbone]}, {paper_tables.training(firsts)}, {cells.seeds(rows)}"
    cost = [petaflops(first.backbone, first.stage1_epochs, str(first.further)), *minutes(benchmarks, first)]
    return [words, *cost, alone, balanced, chosen]


def table_of(results: pd.DataFrame, comparison: pd.DataFrame, benchmarks: pd.DataFrame) -> pd.DataFrame:
    """The released code, then every kind of first stage with weight decay that was compared, the cheapest first.

    Args:
        results, comparison, benchmarks: of results.csv, comparison.csv and benchmarks.csv; CIFAR100-LT at imbalance
            factor 100 counts.

    Returns:
        text, of columns `HEAD`; accuracies in percent.
    """
    of_the_set = {"dataset": "cifar100", "imbalance_factor": 100, "profile": "exp"}
    firsts = cells.where(paper_tables.plain_rows(results), **of_the_set)
    firsts = paper_tables.of_one_choice(firsts[firsts.run == firsts.stage1_run])
    compared = cells.where(comparison, **of_the_set)
    compared = compared[compared.tuned_on.notna() & (compared.stage1_weight_decay > 0)]
    compared = compared[compared.stage1_run.isin(firsts.run)]
    kinds = sorted(other_tables.kinds(compared), key=lambda own: own.stage1_epochs.iloc[0])
    lines = [line(own, firsts[firsts.run.isin(own.stage1_run)], benchmarks) for own in kinds]
    return pd.DataFrame([*released(), *lines], columns=HEAD)


def main(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: a file is absent or lacks columns, or the README has no place for the table.
    """
    parser = Parser(prog="ltr costs", about=__doc__)
    for name in ("results", "comparison", "benchmarks"):
        parser.add_argument(name, type=file, help=f"a {name}.csv")
    parser.add_argument("--readme", type=file, help="a file whose table is written anew")
    options = parser.parse_args(arguments)
    of = [*paper_tables.SET, "stage1_run"]
    needs = {
        "results": [*of, "run", "selection", "tta"],
        "comparison": [*of, "stage1_weight_decay", "method", "all", "validation", "tuned_on"],
        "benchmarks": ["what", "backbone", "images", "device", "ours_s"],
    }
    table = table_of(*(read_table(getattr(options, name), name, columns) for name, columns in needs.items()))
    if options.readme is None:
        print(table.set_index("network").to_string())
    else:
        write_text(options.readme, report.replaced(options.readme, {"costs": cells.in_markdown(table)}))
