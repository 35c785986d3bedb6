#!/usr/bin/env python
# coding: utf-8

# # First stage: learning features from long-tailed data
# 
# Real data is long-tailed: a few classes have hundreds of images, most have a handful. A network trained on it
# in the usual way does well on the common classes and fails on the rare ones.
# 
# *Long-Tailed Recognition via Weight Balancing* (Alshammari, Wang, Ramanan, Kong, CVPR 2022) cures this in two stages:
# 
# 1. **this notebook**: learn features with plain cross-entropy and a *tuned, large* weight decay;
# 2. [the second](demo2_second-stage-training.ipynb): freeze them and retrain only the classifier with a
#    class-balanced loss, weight decay and MaxNorm.
# 
# We train the same network twice, without and with weight decay, and look at what weight decay does to the
# accuracy of rare classes and to the norms of the classifier's weights.
# 
# *Settings.* In Jupyter, set `LTR_ARGS="--preset demo"` (or any other options) before starting; as a script,
# give the same options on the command line (`--help` lists them). A finished run is loaded, not repeated.

import numpy as np
import pandas as pd
import torch

from ltr import analysis, datasets, metrics, models, plots, runs, training
from ltr.first_stage import ImageData
from ltr.runtime.options import short
from ltr.runtime.storage import read_table
from ltr.second_stage import FrozenFeatures
from ltr.settings import FirstStage

settings = FirstStage.read()
figures = settings.figures_folder


# ## The data
# 
# Class $k$ of $C$ keeps $n_k = \lfloor n_{max} \cdot r^{k/(C-1)} \rfloor$ training images, $r = 1/\mathrm{IF}$. At imbalance
# factor $\mathrm{IF} = 100$, CIFAR100-LT has 10,847 training images, 500 of the most common class down to 5 of the
# rarest. The test set stays balanced. Classes with more than 100 images are called *many*, 20 to 100 *medium*,
# fewer than 20 *few*.

try:
    data = datasets.load(**settings.data)
    about = data.describe()
except datasets.Absent as absent:
    print(f"{absent}; only finished runs can be read")
    data = None
    run = runs.find(settings.out / "demo_1", settings.identity(), absent=absent)
    about = run.config["data"]

counts = np.array(about["class_counts"])
order = np.argsort(-counts, kind="stable")  # from common to rare; CIFAR100-LT's classes are so
groups = metrics.group_of(counts)
print(
    f"{about['name']}: {counts.sum():,} training images, {counts.max()} to {counts.min()} a class"
)
sizes = ", ".join(f"{(groups == group).sum()} {group}" for group in metrics.GROUPS)
print(f"{about['test_images']:,} test images; classes: {sizes}")


classes = pd.DataFrame({"class_index": np.arange(len(counts)), "count": counts, "group": groups})
plots.show(plots.class_counts(classes), figures / "demo1_class-counts.png")
rarest = int((np.sort(counts).cumsum() <= counts.max()).sum())
print(f"the most common class has as many images as the {rarest} rarest together")


# The axis is logarithmic.

if data is not None:
    shown = plots.ends(order)  # the three most common and the three rarest
    shape = (len(shown), 8, *data.train.images.shape[1:])
    pictures = np.full(shape, 255, np.uint8)  # white where a class has no more
    for row, k in enumerate(shown):
        members = data.train.images[data.train.labels == k][:8]
        pictures[row, : len(members)] = members
    titles = [f"{about['class_names'][k]} ({counts[k]})" for k in shown]
    plots.show(plots.montage(pictures, titles), figures / "demo1_montage.png")


# Training images of the three most common and the three rarest classes, with each class's number of images. All that the
# network will ever see of a rare class fits in its row.

# ## Training
# 
# The network is a residual network for small images. *ResNet-32* means two networks in this field: a narrow one
# (16-32-64 channels, 0.46 M weights) and a wide one (64-128-256, 7.4 M); the paper's own numbers come from a ResNet-34
# with a 3×3 stem. `--backbone` chooses.
# 
# Both models minimise cross-entropy with SGD, momentum and a cosine schedule; the second adds weight decay $\lambda$
# to all its weights $\Theta$ (equation 4 of the paper):
# 
# $$\Theta^* = \arg\min_\Theta \; \frac{1}{N} \sum_{i=1}^{N} -\log p_{y_i}(x_i; \Theta) \; + \; \lambda \lVert \Theta \rVert_2^2$$
# 
# (SGD's `weight_decay` adds $\lambda \Theta$ to the gradient, so its loss term is $\frac{\lambda}{2} \lVert \Theta \rVert_2^2$.)
# 
# Other ways to train a whole network that people compare with are options: `--loss` (Balanced Softmax, LDAM-DRW, label smoothing,
# ...), `--mix` (mixup, CutMix), `--augmentation` (Cutout, AutoAugment), `--sampling`. The second notebook starts from none of
# them; `python -m ltr compare` puts them beside it.

def network(seed: int = 0) -> models.CifarResNet:
    """A new network, on the device."""
    model = models.build_model(settings.backbone, len(counts), seed, settings.cosine)
    return model.to(settings.device, memory_format=torch.channels_last)


def first_stage(method: str, weight_decay: float) -> runs.Result:
    """Train a network, or go on training it, or load it where it is finished."""
    label, identity = settings.run_key(method, weight_decay)
    run = runs.open_run(settings.out / "demo_1", label, identity, about["fingerprint"])

    def train() -> training.Outcome:
        images = ImageData(data, settings.device, **settings.augmented)
        recipe, how = settings.recipe(weight_decay), settings.engine
        return training.fit(
            network(settings.seed), images, recipe, None, run.checkpoint, method, how
        )

    result = run.load_or_train(data, train, settings.device, counts, settings.retrain)
    weights = models.count_parameters(network())
    print(f"{method}: {weights:,} weights, {result.provenance()}")
    return result


naive = first_stage("naive", 0.0) if settings.naive == "train" else None


decayed = first_stage("WD", settings.weight_decay)


results = [result for result in (naive, decayed) if result]
history = pd.concat([result.history.assign(model=result.label) for result in results])
plots.show(plots.learning_curves(history), figures / "demo1_learning-curves.png")


# Both networks come to fit their training images, most of which are of common classes; the balanced test set tells
# them apart.

# ## What weight decay does to rare classes

print(
    f"{settings.backbone}, {settings.epochs} epochs, seed {settings.seed}; last epoch, plain; %"
)
print(runs.table(results).to_string())


accuracies = pd.DataFrame([{"model": result.label, **result.accuracy()} for result in results])
plots.show(plots.group_bars(accuracies), figures / "demo1_groups.png")
for group in ("all", *metrics.GROUPS) if naive else ():
    before, after = (result.accuracy()[group] for result in results)
    if np.isfinite(before):
        print(f"{group}: {before:.2f} % without weight decay, {after:.2f} % with it")


# Naive training serves the common classes and fails on the rare ones. Look at each group of the second network by itself: a
# higher accuracy over all classes says nothing about the rare ones, which are left to the second stage.

per_class = pd.concat([result.per_class() for result in results])
plots.show(plots.per_class_accuracy(per_class, classes), figures / "demo1_per-class-accuracy.png")


# Accuracy falls with the number of training images, from left to right, for both models.

# ## Norms of the classifier's weights
# 
# The logit of class $k$ is $w_k^\top f(x) + b_k$. A longer $w_k$ scales what the features say
# about class $k$ in both directions: an image that speaks for the class gets a larger logit, one that speaks against it a
# smaller one. Where the norms of common classes are larger, their logits spread further, and reach the top more often. This
# is the imbalance that the paper's title speaks of.

plots.show(plots.class_norms(per_class, classes), figures / "demo1_class-norms.png")
for result in results:
    norms = result.norms[-1]
    print(
        f"{result.label}: norms {norms.min():.2f} to {norms.max():.2f}, "
        f"largest over smallest {norms.max() / norms.min():.2f}, "
        f"correlation with log n_k {np.corrcoef(norms, np.log(counts))[0, 1]:+.2f}"
    )


# Both lines fall from left to right: the norms follow the class counts. Weight decay pulls all of them down and keeps their
# order. It does not make them more even: compare the largest with the smallest norm. The paper's premise, that weight decay
# balances norms, does not hold for their ratio here.

evolution = {result.label: result.norms for result in results}
plots.show(
    plots.norm_evolution(evolution, shared=False, first_epoch=0),
    figures / "demo1_norm-evolution.png",
)


# Each row is a class, common ones on top, each column an epoch (0 is before training). The imbalance is there from the first
# epochs on. Note the two colour scales.

epochs = np.unique([0, *np.geomspace(1, settings.epochs, 14).round().astype(int)])
rays = {name: norms[:, order] for name, norms in evolution.items()}
frames = (plots.weight_rays(rays, epoch) for epoch in epochs)
plots.show_animation(frames, figures / "demo1_weights.gif", seconds=0.3)


# The same norms as rays, clockwise from the most common class to the rarest. Balanced weights would fill a disc.

# ## Filters of the hidden layers
# 
# The paper's figure 3: weight decay acts on every layer. It makes the filters smaller; whether it makes them more even is
# told by their spread over their mean.

filters = pd.concat(
    [
        result.cached("filters", lambda r=result: analysis.filter_norms(r.weights())).assign(
            model=result.label
        )
        for result in results
    ]
)
plots.show(plots.filter_norms(filters), figures / "demo1_filter-norms.png")
spread = filters.assign(spread=filters.variance**0.5 / filters["mean"])
spread = spread.pivot(index="layer", columns="model", values="spread")
names = [result.label for result in results]
print("spread over mean, median:", spread[names].median().round(2).to_dict())
if naive:
    more = int((spread[names[1]] > spread[names[0]]).sum())
    print(f"larger with weight decay in {more} of {len(spread)} layers")


# The axes are logarithmic. What the next convolution sees is normalised by batch-norm in between, so the size of a filter by
# itself changes no output; it changes how fast the filter turns at the same learning rate.

# ## Why weight decay helps
# 
# Weight decay hardly helps the rare classes by itself; what it gives is better *features* to balance a classifier on. Two numbers
# tell (Hasegawa and Sato, ICLR 2024): **Fisher's discriminant ratio**
# $\mathrm{tr}(S_W^{+} S_B)$, scatter between classes over scatter within them, and the **mean cosine** of the
# features of two images, of one class and of two.

def geometry(result: runs.Result) -> pd.DataFrame:
    """Fisher's ratio and mean cosines of a network's features."""
    model = models.restore(settings.backbone, len(counts), result.weights(), settings.device)
    frozen = FrozenFeatures(model, data, settings.device, engine=settings.engine)
    parts = {
        "train": frozen.plain(),
        "test": (frozen.test_features(0, False), frozen.test.labels),
    }
    return pd.DataFrame([{"images": k, **analysis.geometry(*pair)} for k, pair in parts.items()])


for result in results:
    make = None if data is None else lambda r=result: geometry(r)
    table = result.cached("geometry", make)
    print(result.label if table is not None else f"{result.label}: needs the images")
    if table is not None:
        print(table.round(3).to_string(index=False))


# On test images, a larger ratio and a smaller cosine between classes mean classes that a linear classifier can tell apart.

# ## Which weight decay?
# 
# Chosen on held-out images, never on the test set: `python -m ltr sweep --hold-out 20 --weight-decays 0 0.001 0.002 0.005 0.01`
# with the options of this notebook trains a network for each, and what it found is drawn here (the paper's figure 4).

tuned = settings.out / "tuning" / "results.csv"
swept = read_table(tuned) if tuned.exists() else pd.DataFrame(columns=runs.COLUMNS)
swept = swept[(swept.backbone == settings.backbone) & (swept.selection == "last")]
swept = swept[(swept.imbalance_factor == settings.imbalance_factor) & (swept.tta == "none")]
swept = swept[swept.stage1_epochs == swept.stage1_epochs.max()]
if swept.stage1_weight_decay.nunique() > 1:
    print(f"held-out images, {swept.stage1_epochs.max()} epochs")
    best = settings.weight_decay
    figure = plots.sweep(swept, "stage1_weight_decay", "weight decay", best, log=True)
    plots.show(figure, figures / "demo1_weight-decay-sweep.png")
else:
    print("no sweep yet: the weight decay is the published one")


matrix = results[0].predictions.confusion
edges = [int((groups == "many").sum()), int((groups != "few").sum())]
sorted_matrix = matrix[np.ix_(order, order)]
plots.show(plots.confusion(sorted_matrix, edges), figures / "demo1_confusion.png")
few = groups == "few"
if few.any():
    lost = 100 * matrix[few][:, ~few].sum() / matrix[few].sum()
    first = results[0].label
    print(f"{first}: {lost:.0f} % of few-shot test images are taken for larger classes")
else:
    print("no class has fewer than 20 images")


# The lower rows are the rare classes: the naive network spreads their test images over the common classes on the left, and
# hardly ever answers with a rare class.

# ## Keeping the results
# 
# The headline is the last epoch on plain test images. The released code printed the best epoch *on the test set*, with
# logits averaged over the image and its mirror image; the table shows what each choice adds.

print(runs.variants(results).to_string())
runs.append_results(settings.out / "results.csv", results)
print(short(f"\nruns: {settings.out / 'demo_1'}\nfigures: {figures}"))
print(short(f"table: {settings.out / 'results.csv'}"))

