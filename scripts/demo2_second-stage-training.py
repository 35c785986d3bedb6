#!/usr/bin/env python
# coding: utf-8

# # Second stage: balancing the classifier
# 
# The [first stage](demo1_first-stage-training.ipynb) learned features with cross-entropy and weight decay, and left the rare
# classes far behind the common ones. Now the backbone is frozen, and only the classifier
# $z_k = w_k^\top f(x) + b_k$ changes. First without any learning (L2- and tau-normalisation), then by
# retraining it with a class-balanced loss and each of nothing, weight decay, MaxNorm, and both.
# 
# *Settings.* `LTR_ARGS` in Jupyter, or the command line of the script, as in the first notebook; give both notebooks
# the same data, backbone and seed. `--stage1-epochs` and `--stage1-weight-decay` say which first stage to start from.

import numpy as np
import pandas as pd
import torch

from ltr import (
    classifiers,
    datasets,
    losses,
    metrics,
    models,
    plots,
    regularizers,
    runs,
    training,
)
from ltr.settings import SecondStage, short

settings = SecondStage.read()
figures = settings.figures


missing = None
try:
    data = datasets.load(**settings.data)
    fingerprint = data.describe()["fingerprint"]
except datasets.Absent as absent:
    print(f"{absent}; only finished runs can be read")
    data, fingerprint, missing = None, None, absent

stage1, weight_decay = settings.out / "demo_1", settings.stage1_weight_decay
naive = runs.find(stage1, settings.first_stage(0.0), fingerprint, missing)
decayed = runs.find(stage1, settings.first_stage(weight_decay), fingerprint, missing)
fingerprint, counts = decayed.config["data"]["fingerprint"], decayed.class_counts
print(f"first stage: {naive.path.name} and {decayed.path.name}")


def first_stage_model() -> models.CifarResNet:
    """The network with weight decay, as the first stage left it."""
    model = models.build_model(settings.backbone, len(counts))
    model.load_state_dict(decayed.weights())
    return model.to(settings.device, memory_format=torch.channels_last)


model = first_stage_model()
frozen = {}  # features: computed when first needed, then shared by all classifiers
if data is not None:
    draws = settings.batch_size, settings.seed, settings.engine
    frozen = {
        mode: classifiers.FrozenFeatures(first_stage_model(), data, settings.device, mode, *draws)
        for mode in classifiers.MODES
    }
weight = model.classifier.weight.detach()
norms = regularizers.row_norms(weight)
print(f"classifier: {tuple(weight.shape)}, norms {norms.min():.2f} to {norms.max():.2f}")


# ## Without learning: L2- and tau-normalisation
# 
# Divide every class's weights by their norm, or by a power of it; the biases stay:
# 
# $$\text{L2:}\;\; w_k \leftarrow \frac{w_k}{\lVert w_k \rVert_2} \qquad\qquad
# \tau:\;\; w_k \leftarrow \frac{w_k}{\lVert w_k \rVert_2^{\,\tau}}$$
# 
# $\tau = 0$ changes nothing, $\tau = 1$ is L2-normalisation, and $\tau > 1$ turns the order around: the rarer the class, the
# larger its weights.

def normalised(method: str, tau: float, taus: tuple[float, ...] = ()) -> runs.Result:
    """Evaluate the first stage's classifier with normalised weights, or load the run."""
    label, identity = settings.model(
        method, "", decayed.path.name, loss=None, weight_decay=None, tau=tau
    )
    run = runs.open_run(settings.out / "demo_2", label, identity, fingerprint)
    if settings.retrain or not run.finished:
        run.begin(data, settings.device, settings.retrain)
        outcomes = {}
        for each in sorted({tau, *taus}):
            classifier = classifiers.copy_classifier(model)
            classifier.weight.data = regularizers.tau_normalize(weight, each)
            outcomes[each] = classifiers.evaluate(classifier, frozen["paper"])
        outcomes[tau].extra["sweep"] = [
            {"tau": t, **metrics.group_accuracy(o.logits["last", "none"], o.labels, counts)}
            for t, o in outcomes.items()
        ]
        run.save(outcomes[tau], counts)
    return run.load()


l2norm = normalised("WD + L2norm", 1.0)
taunorm = normalised("WD + tau-norm", settings.tau, tuple(np.arange(0, 3.01, 0.1).round(1)))
print(runs.table([naive, decayed, l2norm, taunorm]).to_string())


swept = pd.DataFrame(taunorm.summary["sweep"])
plots.show(
    plots.sweep(swept, "tau", r"$\tau$", best=settings.tau), figures / "demo2_tau-sweep.png"
)


# Normalisation trades accuracy on common classes for accuracy on rare ones; the line marks the $\tau$ used in the tables. The
# curves are on the test set, to be looked at: choosing $\tau$ by them would be choosing on the test set.

# ## Retraining the classifier
# 
# **Class-balanced loss** (Cui et al. 2019). Every class is weighted by its effective number of images, $\beta = 0.9999$:
# 
# $$\alpha_k = C \cdot \frac{a_k}{\sum_j a_j}, \quad a_k = \frac{1 - \beta}{1 - \beta^{n_k}} \qquad\qquad
# \mathcal{L} = \frac{1}{N} \sum_i \alpha_{y_i} \, \ell(z_i, y_i)$$
# 
# **MaxNorm.** After an update, every class's weights are projected onto a ball of radius $\delta$:
# 
# $$w_k \leftarrow \min\left(1, \frac{\delta}{\lVert w_k \rVert_2}\right) w_k$$
# 
# Weight decay pulls on all weights all the time; MaxNorm acts only on those that leave the ball.
# 
# The paper and its released code differ, so there are two modes:
# 
# | | paper | released |
# |---|---|---|
# | loss $\ell$ | cross-entropy (`--loss`) | binary cross-entropy of the softmax probabilities, mean over all classes |
# | weight decay | tuned (`--weight-decay`) | 0.1 |
# | radius $\delta$ | absolute, tuned (`--max-norm`) | min + 0.1 (max − min) of the first stage's norms |
# | projection | after each batch | once an epoch |
# | backbone | evaluation mode | training mode: batch statistics, and running ones that drift |
# | learning rate | `--lr`, cosine | 0.01, cosine, stepped before each epoch: the last one runs at 0 |

MODES = {
    "paper": {
        "loss": settings.loss,
        "lr": settings.lr,
        "weight_decay": settings.weight_decay,
        "schedule": "cosine",
        "max_norm": settings.max_norm,
        "max_norm_every": "step",
    },
    "released": {
        "loss": "cb-bce",
        "lr": 0.01,
        "weight_decay": 0.1,
        "schedule": "released",
        "max_norm": regularizers.relative_radius(weight, 0.1),
        "max_norm_every": "epoch",
    },
}
for mode, values in MODES.items():
    print(mode, values)
weights = losses.class_balanced_weights(torch.as_tensor(counts))
print(f"class-balanced weights: {weights.min():.3f} (common) to {weights.max():.3f} (rarest)")


# ### Choosing weight decay and radius
# 
# Never on the test set. With `--hold-out 20` (give it to both notebooks), 20 images of each class stay out of training, and
# the cell below trains a whole grid of classifiers at once and scores each on these images; what it finds best is then
# given as `--weight-decay`, `--max-norm` and `--tau` to a run on all training images.

if data is None or data.validation is None:
    print(f"none held out: weight decay {settings.weight_decay:g}, radius {settings.max_norm:g}")
else:
    held_out = classifiers.FrozenFeatures(
        first_stage_model(), data.for_tuning(), settings.device, "paper", *draws
    )
    shared = {"loss": settings.loss, "lr": settings.lr, "max_norm_every": "step"}
    radii = [*(float(norms.mean()) * np.array([0.25, 0.5, 0.75, 1.0, 1.5])).round(2), np.nan]
    decays = [0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    choices = [{**shared, "weight_decay": d, "max_norm": r} for d in decays for r in radii]
    recipe = settings.recipe(loss=settings.loss, lr=settings.lr)
    start = classifiers.copy_classifier(model)
    grid = classifiers.Grid(start, held_out, recipe, pd.DataFrame(choices)).fit().table()
    print(grid.sort_values("all", ascending=False).head(10).round(3).to_string(index=False))
    swept = grid.assign(max_norm=grid.max_norm.fillna(np.inf)).pivot(
        index="weight_decay", columns="max_norm", values="all"
    )
    figure = plots.heatmap(
        swept, r"MaxNorm radius $\delta$", "weight decay", "validation accuracy (%)"
    )
    plots.show(figure, figures / "demo2_validation-grid.png")


if data is not None and data.validation is not None:
    for tau in np.arange(0, 3.01, 0.25):
        classifier = classifiers.copy_classifier(model)
        classifier.weight.data = regularizers.tau_normalize(weight, tau)
        logits = held_out.test_logits(classifier, 0)
        accuracy = metrics.group_accuracy(logits, held_out.test_labels, counts)
        print(f"tau {tau:.2f}:", ", ".join(f"{key} {a:.2f}" for key, a in accuracy.items()))


def second_stage(method: str, mode: str) -> runs.Result:
    """Retrain the classifier on frozen features, or load the run where it is finished."""
    chosen = dict(MODES[mode])
    if "WD" not in method:
        chosen["weight_decay"] = 0.0
    if "MaxNorm" not in method:
        chosen["max_norm"] = chosen["max_norm_every"] = None
    label, identity = settings.model(method, mode, decayed.path.name, **chosen)
    run = runs.open_run(settings.out / "demo_2", label, identity, fingerprint)
    if settings.retrain or not run.finished:
        run.begin(data, settings.device, settings.retrain)
        ball = None
        if chosen["max_norm"]:
            ball = regularizers.MaxNorm(chosen["max_norm"], chosen["max_norm_every"])
        recipe = settings.recipe(
            **{key: chosen[key] for key in ("loss", "lr", "weight_decay", "schedule")}
        )
        classifier = classifiers.copy_classifier(model)
        outcome = training.fit(
            classifier, frozen[mode], recipe, ball, run.checkpoint, engine=settings.engine.exact
        )
        outcome.weights |= frozen[mode].drifted()
        run.save(outcome, counts)
    result = run.load()
    print(f"{result.label}: all {result.accuracy()['all']:.2f} %, {result.provenance()}")
    return result


METHODS = ("CB", "CB + WD", "CB + MaxNorm", "CB + WD + MaxNorm")
retrained = {(mode, method): second_stage(method, mode) for mode in MODES for method in METHODS}


# ## All models in one table

results = [naive, decayed, l2norm, taunorm, *retrained.values()]
print(
    f"{settings.backbone}, first stage of {settings.stage1_epochs} epochs, second of "
    f"{settings.epochs}, seed {settings.seed}; last epoch, plain test, in %"
)
print(runs.table(results).to_string())


best = retrained["paper", "CB + WD + MaxNorm"]
chosen = [naive, decayed, taunorm, best]
accuracies = pd.DataFrame([{"model": result.label, **result.accuracy()} for result in chosen])
plots.show(plots.group_bars(accuracies), figures / "demo2_groups.png")


# The retrained classifier rescues the rare classes for a few points on the common ones, and the accuracy over all classes
# rises.

classes = pd.DataFrame(
    {"class_index": np.arange(len(counts)), "count": counts, "group": metrics.group_of(counts)}
)
per_class = pd.concat([result.per_class() for result in chosen])
plots.show(plots.per_class_accuracy(per_class, classes), figures / "demo2_per-class-accuracy.png")


# What is gained on the right, among the rare classes, is more than what is lost on the left.

# ## Norms per model

per_class = pd.concat([retrained["paper", method].per_class() for method in METHODS])
per_class = pd.concat([decayed.per_class(), per_class])
plots.show(plots.class_norms(per_class, classes), figures / "demo2_class-norms.png")


# The class-balanced loss alone lets the norms of rare classes grow; weight decay shrinks all of them smoothly, MaxNorm cuts
# off whatever exceeds its radius.

evolution = {method: retrained["paper", method].norms for method in METHODS}
plots.show(plots.norm_evolution(evolution, first_epoch=0), figures / "demo2_norm-evolution.png")


# Epoch 0 is the first stage's classifier; common classes are on top.

# ## Does MaxNorm do anything?
# 
# A projection that never fires changes nothing. We count, over all updates and classes, how often a row lay outside
# the ball.

rows = []
for mode in MODES:
    for method in ("CB", "CB + WD"):
        without, limited = retrained[mode, method], retrained[mode, f"{method} + MaxNorm"]
        row = {"model": limited.label, "radius": f"{limited.summary['max_norm']:.3f}"}
        row["projected"] = "after each " + MODES[mode]["max_norm_every"]
        row["fired (% of checks)"] = f"{100 * limited.summary['max_norm_fired']:.2f}"
        row["all, with"] = metrics.percent(limited.accuracy()["all"])
        row["all, without"] = metrics.percent(without.accuracy()["all"])
        rows.append(row)
print(pd.DataFrame(rows).to_string(index=False))


# *with* and *without* compare the same loss and weight decay with and without the projection. Where it fired in 0 % of the
# checks, both are the same model: weight decay alone kept every class inside the ball.

# ## Calibration

bins = [
    metrics.reliability(*result.test_logits).assign(model=result.label)
    for result in (naive, decayed, best)
]
plots.show(plots.reliability(pd.concat(bins)), figures / "demo2_reliability.png")


# A network that is as often right as it is confident lies on the diagonal.

# ## Keeping the results
# 
# The headline is the last epoch on plain test images; the other three ways of counting stand beside it, since the released
# numbers used them.

print(runs.variants(results).to_string())
runs.append_results(settings.out / "results.csv", results)
print(short(f"\nruns: {settings.out / 'demo_2'}\nfigures: {figures}"))
print(short(f"table: {settings.out / 'results.csv'}"))

