#!/usr/bin/env python
# coding: utf-8

# # 2 · Second stage: balancing the classifier
# 
# [The first chapter](demo1_first-stage-training.ipynb) left us with good features and a classifier that hardly ever answers with a rare class. Here the network's body stays as it is, **frozen**, and only the last layer changes,
# 
# $$z_k = w_k^\top f(x) + b_k,$$
# 
# a row of weights $w_k$ and a bias $b_k$ for each class. First without any learning, by normalising the rows; then by training them further with a class-balanced loss, weight decay and MaxNorm. The biases are kept, or trained along.
# 
# **Goals.** Write each method from its formula; train the paper's own combination in a loop of twenty lines, on the real features of CIFAR100-LT, in seconds; predict, then check, what each does to common and rare classes; know when a classifier's confidence can be believed.
# 
# **You need** the first chapter. **Time**: forty minutes to read, under a minute to run.
# 
# **Contents**: [features](#Features) · [dividing by norms](#Dividing-by-norms) · [a class-balanced loss](#A-class-balanced-loss) · [MaxNorm](#MaxNorm) · [the loop](#The-loop) · [eight methods](#Eight-methods) · [what changed](#What-changed) · [what a radius does](#What-a-radius-does) · [whom the classifier expects](#Whom-the-classifier-expects) · [calibration](#Calibration) · [try it](#Try-it) · [take-aways](#Take-aways) · [exercises](#Exercises)
# 
# *Options* are as in the first chapter; `--base shipped` trains all classifiers anew on the features that come with the package, without images or GPU. `interactive = True` turns [two figures](#Try-it) into sliders. The prose describes the committed runs; for runs of your own, trust only the lines that begin with *holds*.

options = ""
interactive = False


import math

import numpy as np
import pandas as pd
import torch

from ltr import losses, metrics, models, plots, regularizers
from ltr.regularizers import row_norms
from ltr.settings import SecondStage
from ltr.stack import Grid
from ltr.study import published
from ltr.study.chapter import Chapter, difference
from ltr.study.measured import compared, tuning
from ltr.study.page import show_table, take_aways


settings = SecondStage.read(options)
chapter = Chapter(settings)
rows, classes, order = chapter.rows, chapter.classes, chapter.order
counts = torch.tensor(classes["count"].to_list())


# ## Features
# 
# The body gives each image $D$ numbers. They do not depend on the classifier, so they are computed in advance: of the training images one pass per epoch, with new crops and flips in each (the features that ship hold six such passes, taken in turn); of the test images one pass in all. (The network was tested in bfloat16, its features are float32: accuracies of the two may differ by a tenth or two.)

# From the body in evaluation mode. The paper does not say; the released code takes training mode.
features = rows.sources.paper
first = rows.sources.classifier
x, y = features.draw(settings.batch_size, settings.seed, epoch=0)
test_x, test_y = features.test_features(epoch=0, flip=False), features.test_labels
print(f"training features {tuple(x.shape)} an epoch, test features {tuple(test_x.shape)}")
print(f"classifier: weights {tuple(first.weight.shape)}, biases {tuple(first.bias.shape)}")


@torch.no_grad()
def accuracy(head: torch.nn.Linear) -> dict[str, float]:
    """Percent of test images that a classifier gets right: many, medium, few, all."""
    return metrics.group_accuracy(head(test_x).float().cpu().numpy(), test_y, counts.numpy())


def in_words(accuracies: dict[str, float]) -> str:
    """Groups and accuracies, to one decimal."""
    said = (f"{name} {accuracies[name]:.1f}" for name in ("many", "medium", "few", "all"))
    return metrics.with_dashes(", ".join(said))


print("as the first stage left it:", in_words(accuracy(first)))


# ## Dividing by norms
# 
# The rows of common classes are longer, so their logits reach further. The biases hold little of the tail, as the first chapter showed, so they stay as they are. **L2-normalisation** divides each row by its norm, **τ-normalisation** ([Kang et al. 2020](https://arxiv.org/abs/1910.09217)) by a power of it:
# 
# $$\text{L2:}\;\; w_k \leftarrow \frac{w_k}{\lVert w_k \rVert_2} \qquad\qquad \tau:\;\; w_k \leftarrow \frac{w_k}{\lVert w_k \rVert_2^{\,\tau}}$$
# 
# $\tau = 0$ changes nothing, $\tau = 1$ is L2-normalisation. (The first chapter's **logit adjustment**, $z_k \leftarrow z_k - \tau \log n_k$, moves the biases in the rows' place; its $\tau$ is another number, chosen on its own.) Three classes in the plane, the first with the longest row:

def tau_normalize(weight: torch.Tensor, tau: float) -> torch.Tensor:
    """Divide each row of weights [C, D] by its norm to the power tau."""
    return weight / weight.norm(dim=1, keepdim=True) ** tau


toy = torch.tensor([[2.4, 1.0], [-0.6, 1.3], [0.3, -0.5]])
for tau in (0, 0.5, 1, 1.5):
    changed = tau_normalize(toy, tau)
    torch.testing.assert_close(changed, regularizers.tau_normalize(toy, tau))
    print(f"tau {tau:3}: norms", changed.norm(dim=1).numpy().round(2))


# Look at $\tau = 1.5$: beyond 1 the order turns around, and the rarest class has the longest row. *What do you expect* of common and rare classes as $\tau$ grows from 0 to 3? Which $\tau$ is best for all classes together?
# 
# Like every setting it is chosen on held-out images, with a network that was trained without them.

tried = tuning(rows)
curve = tried[tried.method == "tau-norm"]
best_tau = rows.tau("WD + tau-norm", settings.tau)
if len(curve) > 1:
    figure = plots.sweep(curve, "tau", r"$\tau$", best_tau, images="held-out")
    chapter.show(figure, "demo2_tau-sweep.png")
    top = curve.loc[curve["all"].idxmax()]
    chapter.claim(f"tau {top.tau:g} is best on held-out images", abs(top.tau - best_tau) < 0.05)
weight = first.weight.detach()
for tau in sorted({0, 0.5, 1, best_tau}):
    head = models.linear(tau_normalize(weight, tau), first.bias)
    print(f"test images, tau {tau:g}:", in_words(accuracy(head)))


# Normalisation trades accuracy on common classes for accuracy on rare ones, without any training. It has one number to move; the next methods learn $C \cdot (D + 1)$ of them.
# 
# ## A class-balanced loss
# 
# Cross-entropy is a mean over images, so classes weigh by their images. Weighing each image by $1/n_k$ instead makes all classes weigh the same. [Cui et al. (2019)](https://arxiv.org/abs/1901.05555) interpolate between the two: images of a class overlap, so the $n$-th adds only $\beta^{n-1}$ of a new one, and the **effective number** of images is $(1 - \beta^{n_k}) / (1 - \beta)$. The weights are its inverse, scaled to sum to $C$; $\beta = 0$ leaves all images alike, $\beta \to 1$ gives $1/n_k$:
# 
# $$a_k = \frac{1 - \beta}{1 - \beta^{n_k}}, \qquad \alpha_k = C \, \frac{a_k}{\sum_j a_j}, \qquad \mathcal{L}_{CB} = -\frac{1}{N} \sum_{i=1}^N \alpha_{y_i} \log p_{y_i}(x_i)$$

def class_balanced_weights(counts: torch.Tensor, beta: float = 0.9999) -> torch.Tensor:
    """Inverse effective numbers of images [C], with mean 1."""
    a = (1 - beta) / (1 - beta ** counts.double())
    return (a / a.mean()).float()


def class_balanced_loss(
    logits: torch.Tensor, labels: torch.Tensor, alpha: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of logits [B, C], each image weighing as its class."""
    log_p = logits.log_softmax(1)[torch.arange(len(labels)), labels]
    return -(alpha[labels] * log_p).mean()


toy_alpha = class_balanced_weights(torch.tensor([500, 50, 5]))
logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
labels = torch.tensor([0, 2])
loss = class_balanced_loss(logits, labels, toy_alpha)
torch.testing.assert_close(toy_alpha, losses.class_balanced_weights(torch.tensor([500, 50, 5])))
torch.testing.assert_close(loss, losses.balanced_cross_entropy(logits, labels, toy_alpha))
print("weights of classes with 500, 50 and 5 images:", toy_alpha.numpy().round(3))
alpha = class_balanced_weights(counts)
print(f"of the real classes: {alpha.min():.3f} (most common) to {alpha.max():.2f} (rarest)")
inverse = class_balanced_weights(counts, beta=1 - 1e-9)
print(f"and with 1/n: {inverse.min():.3f} to {inverse.max():.2f}")
of_images = float((alpha * counts).sum() / counts.sum())
print(f"mean over classes {alpha.mean():.2f}, over training images {of_images:.2f}")


# With at most 500 images a class the usual $\beta = 0.9999$ is $1/n_k$ for all practical purposes; it matters where classes have thousands of images.
# 
# Mind the scale. The weights are 1 in the mean over *classes*, but an *image* weighs far less in the mean, since most are of common classes. So where all images are answered equally well, this loss is a fifth of plain cross-entropy, and its gradients are several times smaller: the same weight decay pulls that much harder against them. (Not yet at the start of this stage: the images that weigh most, those of rare classes, are the ones answered worst.)

# ## MaxNorm
# 
# Balanced loss or not, nothing limits the length of a row. Weight decay pulls on all rows, all the time. **MaxNorm** acts only on those that leave a ball of radius $\delta$: after each update they are brought back to its surface,
# 
# $$w_k \leftarrow \min\left(1, \frac{\delta}{\lVert w_k \rVert_2}\right) w_k .$$
# 
# This is projected gradient descent on $\lVert w_k \rVert_2 \le \delta$ (section 4.3 of the paper).

def max_norm(weight: torch.Tensor, radius: float) -> torch.Tensor:
    """Bring rows that lie outside the ball of this radius to its surface."""
    return weight * (radius / weight.norm(dim=1, keepdim=True)).clamp(max=1)


torch.testing.assert_close(max_norm(toy, 1.0), regularizers.max_norm_project(toy, 1.0))
rules = {
    "as learned": toy,
    "L2: all to length 1": tau_normalize(toy, 1),
    "tau 0.5": tau_normalize(toy, 0.5),
    "MaxNorm, radius 1": max_norm(toy, 1.0),
}
panels = {name: weight.numpy() for name, weight in rules.items()}
names = "common", "medium", "rare"
chapter.show(plots.projections(toy.numpy(), panels, 1.0, names), "demo2_projections.png")


# L2-normalisation moves all rows, to one length; MaxNorm leaves the short one as it is. *Which* classes do you expect to meet the ball?
# 
# ## The loop
# 
# Now everything together: the class-balanced loss, weight decay (on rows and biases) and MaxNorm (on rows alone), the paper's best method. *What do you expect* it to give for few-shot classes, and what will it cost the others?

def balance(
    alpha: torch.Tensor, weight_decay: float, radius: float, lr: float, momentum: float = 0.9
) -> tuple:
    """Train on: class-balanced loss, weight decay, MaxNorm after each step."""
    head = models.linear(first.weight, first.bias)  # a copy
    weights, curve = list(head.parameters()), [accuracy(head)]
    momenta = [torch.zeros_like(w) for w in weights]
    for epoch in range(settings.epochs):
        lr_now = lr * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
        x, y = features.draw(settings.batch_size, settings.seed, epoch)
        for x_batch, y_batch in zip(
            x.split(settings.batch_size), y.split(settings.batch_size), strict=True
        ):
            loss = class_balanced_loss(head(x_batch), y_batch, alpha.to(x.device))
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for w, v, g in zip(weights, momenta, gradients, strict=True):
                    v.mul_(momentum).add_(g + weight_decay * w)
                    w.sub_(lr_now * v)
                head.weight.copy_(max_norm(head.weight, radius))
        curve.append(accuracy(head))
    return head, curve


values = rows.values("CB + WD + MaxNorm", "paper")  # tuned on held-out images
chosen = {name: values[name] for name in ("weight_decay", "max_norm", "lr")}
print(", ".join(f"{name} {value:g}" for name, value in chosen.items()))
head, trained = balance(alpha, values["weight_decay"], values["max_norm"], values["lr"])
library = rows.learned("CB + WD + MaxNorm", "paper")
print("by hand:   ", in_words(accuracy(head)))
print("by library:", in_words(library.accuracy()))
apart = abs(accuracy(head)["all"] - library.accuracy()["all"])
chapter.claim("the loop above ends within 0.3 points of the library's training", apart < 0.3)


# (On committed runs they differ a little: by hand the features are those that ship, in half precision and with fewer passes over augmented images than the library had.) In the library the loop is `training.fit`, which trains networks too, and `ltr.stack`, which trains hundreds of such classifiers at once.
# 
# How long does it take?

by_epoch = pd.DataFrame(trained).assign(epoch=range(len(trained)))
chapter.show(
    plots.sweep(by_epoch, "epoch", "epoch (0: as the first stage left it)"), "demo2_epochs.png"
)
before, after_one, end = (trained[epoch]["few"] for epoch in (0, 1, -1))
words = f"few-shot: {before:.1f} before, {after_one:.1f} after one epoch, {end:.1f} at the end"
far = [epoch for epoch, each in enumerate(trained) if not abs(each["few"] - end) < 1]
settled = max(far, default=-1) + 1  # from then on it stays near
chapter.claim(
    f"a few epochs are enough: {words}, within a point of it from epoch {settled} on",
    settled <= settings.epochs / 2,
)


# ## Eight methods
# 
# The paper's comparison, with values that held-out images chose. Read *WD + CB & WD & MaxNorm* as: the first stage with weight decay; then the classifier trained with the class-balanced loss, weight decay and MaxNorm.

RETRAINED = ("CB", "CB + WD", "CB + MaxNorm", "CB + WD + MaxNorm")
learned = {name: rows.learned(name, "paper") for name in RETRAINED}
models_of_table = {
    "naive": rows.naive,
    "WD": rows.base,
    "WD + L2norm": rows.normalised("WD + L2norm", 1.0, rows.base),
    "WD + tau-norm": rows.normalised("WD + tau-norm", best_tau, rows.base),
    **{f"WD + {name.replace(' + ', ' & ')}": result for name, result in learned.items()},
}
table = {name: result for name, result in models_of_table.items() if result is not None}
chapter.results(
    models_of_table,
    "Small: standard errors.",
)


each_its_own = "held-out images chose values for each row"
one_for_all = "values are the preset's or those given, the same for all rows"
print(each_its_own if len(rows.tuned) else one_for_all)
own = pd.DataFrame({name: rows.values(name, "paper") for name in RETRAINED}).T
own = own[["lr", "weight_decay", "max_norm"]].astype(float)
own.columns = ["learning rate", "weight decay", "radius"]
show_table(own.rename(index=lambda name: name.replace(" + ", " & ")).map("{:g}".format))
if best_tau == 1:
    print("tau is 1, so that tau-norm is L2norm here")
if learned["CB + MaxNorm"].summary["projected_share"] == 0:
    print("CB & MaxNorm is CB here, as no row reaches its radius")


wd, best = table["WD"], table["WD + CB & WD & MaxNorm"]
gain = difference(wd, best)
chapter.claim(f"balancing adds to weight decay alone {gain}", gain.points > 2 * gain.error)
rare, common = (best.accuracy()[group] - wd.accuracy()[group] for group in ("few", "many"))
chapter.claim(
    f"few-shot classes gain {rare:.1f} points, many-shot ones pay {-common:.1f}",
    rare > 0 > common,
)


start, *norm_rules = RETRAINED
over_cb = {name: difference(learned[start], learned[name]) for name in norm_rules}
paper = {name: published.TABLE_1[name][-1] - published.TABLE_1[start][-1] for name in norm_rules}
rates = {name: rows.values(name, "paper")["lr"] for name in RETRAINED}
for name, added in over_cb.items():
    words = f"{name.replace(' + ', ' & ')} (at {rates[name]:g}) over CB (at {rates[start]:g})"
    print(f"{words}: {added}; in the paper {paper[name]:+.1f}")
one, other, together = (each.points for each in over_cb.values())
chapter.claim(
    f"weight decay and MaxNorm together do no more than one of them: {together:+.1f}, "
    f"weight decay alone {one:+.1f}, MaxNorm alone {other:+.1f}",
    together < max(one, other) + over_cb[norm_rules[0]].error,
)
untrained = difference(best, table["WD + L2norm"])
theirs = published.TABLE_1["WD + L2norm"][-1] - published.TABLE_1["CB + WD + MaxNorm"][-1]
chapter.claim(
    f"dividing by norms, without any training, does better here: L2norm over CB & WD & MaxNorm "
    f"{untrained}; in the paper {theirs:+.1f}",
    untrained.points > 2 * untrained.error,
)


# Here this reproduction and the paper part. In the paper the class-balanced loss alone gains a point over the first stage, and weight decay and MaxNorm six more. Here the loss alone does most, at a learning rate ten times as large, which held-out images chose for it; weight decay adds less than a point to that, and MaxNorm nothing ([below](#What-a-radius-does) we shall see why). At *one* learning rate both add more: [the study](study_paper-versus-code.ipynb#4-Does-MaxNorm-act?) shows that, and has [a ResNet-34 of our own](study_paper-versus-code.ipynb#3-What-does-a-weight-decay-of-0.1-leave?), which lies in between.
# 
# The first chapter left a question open: were the features of the network with weight decay better, or was it the classifier on top? Balance both networks in the same way, by τ-normalisation, each with its own $\tau$; and by logit adjustment, each with its own again:

if rows.naive is not None and not settings.shipped:  # its features do not ship
    own_tau = rows.tau("naive + tau-norm", settings.naive_tau)
    naive_balanced = rows.normalised("naive + tau-norm", own_tau, rows.naive)
    pair = {"naive": (naive_balanced, own_tau), "WD": (table["WD + tau-norm"], best_tau)}
    for name, (result, tau) in pair.items():
        print(f"{name:5} + tau-norm, tau {tau:.1f}: {in_words(result.accuracy())}")
    chapter.keep([naive_balanced])
    control = difference(naive_balanced, table["WD + tau-norm"])
    chapter.claim(
        f"balanced alike, the features of weight decay are worth {control} over all classes",
        control.points > 2 * control.error,
    )


adjusted = compared(rows, "logit adjustment").reindex([0, settings.stage1_weight_decay])
for name, (_, own) in zip(("naive", "WD"), adjusted.iterrows(), strict=True):
    if own["all"] > 0:
        print(f"{name:5} + logit adjustment, {own['hyper-parameters']}: {in_words(own)}")
without, with_it = adjusted["few"]
chapter.claim(
    f"rare classes are no exception: by logit adjustment {without:.1f} without weight decay, "
    f"{with_it:.1f} with it",
    with_it > without,
)


# (Values of τ stand at different points of the trade between common and rare classes. For the groups look at the second pair: there the network without weight decay has the larger τ, which favours rare classes, and still gets fewer of them right.)
# 
# ## What changed
# 
# *Who* gains? Each class's accuracy, less that of the network with weight decay:

COLOURED = ["naive", "WD", "WD + CB & WD & MaxNorm", "WD + tau-norm", "WD + CB", "WD + L2norm"]
LOOKS = {"model": pd.CategoricalDtype(COLOURED)}  # each method has one colour in all figures
balanced = "WD + CB & WD & MaxNorm"
shown = {name: table[name] for name in ("WD", "WD + L2norm", "WD + tau-norm", balanced)}
per_class = pd.concat([result.per_class().assign(model=name) for name, result in shown.items()])
per_class = per_class.astype(LOOKS)
chapter.show(plots.class_differences(per_class, "WD", classes), "demo2_differences.png")
names = [name for name in ("naive", "WD", "WD + tau-norm", balanced) if name in table]
accuracies = pd.DataFrame([{"model": name, **table[name].accuracy()} for name in names])
chapter.show(plots.group_bars(accuracies.astype(LOOKS)), "demo2_groups.png")


by_name = per_class.pivot(index="class_index", columns="model", values="accuracy")
few = min(10, len(classes) // 2)
change = by_name.sub(by_name["WD"], axis=0).loc[order[-few:]].mean().drop("WD")
said = ", ".join(f"{name} {points:+.1f}" for name, points in change.items())
print(f"the {few} rarest gain most by {change.idxmax()}: {said}")
lose = (by_name[balanced] < by_name["WD"]).groupby(classes["group"]).sum()
for name, number in classes.groupby("group", sort=False).size().items():
    print(f"{name}: {lose[name]} of {number} classes lose by retraining")


# And the rows' norms? L2-normalisation makes them equal by force. *Does* the class-balanced loss do so too?

heads = ("WD", "WD + L2norm", "WD + tau-norm", "WD + CB", "WD + CB & WD & MaxNorm")
norms = {name: table[name].norms[-1] for name in heads}
frame = pd.concat([table[name].per_class().assign(model=name) for name in heads])
chapter.show(plots.class_norms(frame.astype(LOOKS), classes), "demo2_class-norms.png")
for name, each in norms.items():
    print(f"{name}: largest over smallest {each.max() / each.min():.2f}")
group = classes["group"].to_numpy()
by_group = {name: pd.Series(each).groupby(group).mean() for name, each in norms.items()}
few_norm, many_norm = (by_group["WD + CB"].get(each, np.nan) for each in ("few", "many"))
grown = few_norm / by_group["WD"].get("few", np.nan)
chapter.claim(
    f"partly: under CB the rare classes' rows grow {grown:.1f}-fold, and stay the shorter ones "
    f"(mean norm {few_norm:.2f}, of many-shot classes {many_norm:.2f})",
    grown > 1 and few_norm < many_norm,
)


# Epoch by epoch, common classes on top; epoch 0 is the first stage's classifier:

evolution = {name.replace(" + ", " & "): each.norms[:, order] for name, each in learned.items()}
figure = plots.norm_evolution(evolution, first_epoch=0, counts=classes)
chapter.show(figure, "demo2_norm-evolution.png")
for name in ("CB + MaxNorm", "CB + WD + MaxNorm"):
    radius, moved = (learned[name].summary[key] for key in ("max_norm", "projected_share"))
    longest = learned[name].norms.max(axis=1)
    print(f"{name}: radius {radius:.2f}; longest row {longest[0]:.2f} at the start,", end=" ")
    print(f"at most {longest[1:].max():.2f} after an epoch;", end=" ")
    print(f"MaxNorm moved {100 * moved:.2f} % of the rows that it looked at")


# ## What a radius does
# 
# Where no row reaches the ball, or only before the first step, a panel with MaxNorm is the one without it. Held-out images chose such long radii here. To see what shorter ones do, the library trains the loop above without weight decay, for none and for four radii, given as shares of the first stage's mean norm. (All numbers of this section are of test images: to look at, not to choose by.) *Which* classes do you expect to meet the ball first? And what becomes of the others?

shares = {"none": math.nan, "1": 1.0, "0.75": 0.75, "0.5": 0.5, "0.25": 0.25}
radii = float(weight.norm(dim=1).mean()) * pd.Series(shares)
asked = pd.DataFrame({"max_norm": radii})  # a row a classifier, of which the radius alone differs
asked = asked.assign(max_norm_every="step", loss=settings.loss, weight_decay=0.0)
asked = asked.assign(lr=values["lr"], seed=settings.seed)
recipe = settings.recipe(loss=settings.loss, lr=values["lr"])
stack = Grid(first, {settings.seed: features}, recipe, asked)
stack.fit()
by_radius = {share: stack.classifier(number) for number, share in enumerate(shares)}


def told_of(head: torch.nn.Linear, radius: float) -> pd.Series:
    """A classifier's measures on the test images, and how many of its rows lie on the ball."""
    logits = head(test_x).detach().float().cpu().numpy()
    on_ball = 100.0 * (row_norms(head.weight).detach().cpu().numpy() > 0.999 * radius)
    lie = pd.Series(on_ball).groupby(group).mean().add_prefix("on the ball: ")
    said = metrics.Predictions.of(logits, test_y).summary(counts.numpy())
    return pd.concat([pd.Series(said), lie])


measured = {share: told_of(head, radii[share]) for share, head in by_radius.items()}
columns = ["many", "medium", "few", "all", "ece", "on the ball: many", "on the ball: few"]
of_radius = pd.DataFrame(measured).T.reindex(columns=columns)
titles = {share: f"{share} × mean = {radii[share]:.2f}" for share in shares if share != "none"}
shown_radii = of_radius.rename(index=titles, columns={"ece": "ECE"}).map("{:.1f}".format)
show_table(shown_radii, "radius; CB without weight decay; test images, %")


free, at_mean, half = (of_radius.loc[share] for share in ("none", "1", "0.5"))
many_on, few_on = at_mean["on the ball: many"], at_mean["on the ball: few"]
chapter.claim(
    "it is the common classes that meet the ball: with the mean norm as its radius "
    f"{many_on:.0f} % of many-shot rows end on it, {few_on:.0f} % of few-shot ones",
    many_on > few_on,
)
for share in ("1", "0.5"):
    change = of_radius.loc[share] - free
    by_group = ", ".join(f"{name} {change[name]:+.1f}" for name in ("all", "many", "few"))
    print(metrics.with_dashes(f"{share} × mean: {by_group} points"))
gained = half - free
chapter.claim(
    f"half of the mean norm leaves {half['on the ball: few']:.0f} % of the few-shot rows on the "
    f"ball too, and adds {gained['all']:+.1f} points",
    half["on the ball: few"] > few_on and gained["few"] > 0,
)


# So a radius about as long as the rows are is a wall for common classes alone, behind which the rare ones catch up. A much shorter one holds them all: the ball becomes a sphere, all norms are equal, as under L2-normalisation, and training goes on from there. At this learning rate that is worth about as much as a weight decay, without any; beside one, or beside a faster rate, there is less left to win ([the study](study_paper-versus-code.ipynb#4-Does-MaxNorm-act?) has hundreds of such classifiers).
# 
# ## Whom the classifier expects
# 
# What a network expects can be read off its probabilities. The mean probability of class $k$ over all test images, $\bar p_k = \frac{1}{N} \sum_i p_k(x_i)$, is its *marginal likelihood* (the paper's figure 6). On a balanced test set it should be $1/C$; times $C$, that is 1. (Over the training images it comes to $n_k / N$ for the network as it learned by plain cross-entropy, as the first chapter derived. Under the class-balanced loss each image counts $\alpha_{y_i}$ there, and it comes to about $1/C$.)

expected = [
    pd.DataFrame({"model": name, "likelihood": result.predictions.marginal})
    for name, result in shown.items()
    if name != "WD + L2norm"
]
expected = pd.concat(expected).rename_axis("class_index").reset_index().astype(LOOKS)
chapter.show(plots.marginal_likelihoods(expected, classes), "demo2_marginal-likelihood.png")
rarest = order[-few:]
share = {name: 100 * result.predictions.marginal[rarest].mean() for name, result in shown.items()}
fair = 100 / len(classes)
chapter.claim(
    f"the {few} rarest classes get {share['WD']:.2f} % of the probability each before, "
    f"{share['WD + CB & WD & MaxNorm']:.2f} % after; {fair:g} % would be fair",
    abs(share["WD + CB & WD & MaxNorm"] - fair) < abs(share["WD"] - fair),
)


# ## Calibration
# 
# A classifier that says 80 % should be right in 80 % of these cases. Sort the test images into 15 bins $B_b$ of equal width by the probability of the answer, its **confidence**; the **expected calibration error** ([Guo et al. 2017](https://arxiv.org/abs/1706.04599)) is the mean gap between confidence and accuracy:
# 
# $$\mathrm{ECE} = \sum_b \frac{|B_b|}{N} \, \left| \mathrm{acc}(B_b) - \mathrm{conf}(B_b) \right|$$

def expected_calibration_error(confidence: np.ndarray, hit: np.ndarray, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy in bins of the confidence, in percent."""
    index = np.ceil(confidence * bins).astype(int)
    # |B| cancels: |B| / N times a difference of two means over B is one of two sums, over N.
    gaps = [abs(hit[index == b].sum() - confidence[index == b].sum()) for b in range(bins + 1)]
    return 100 * sum(gaps) / len(hit)


toy_error = expected_calibration_error(np.array([0.9, 0.9, 0.6]), np.array([1, 1, 0]))
print(f"two right at 90 %, one wrong at 60 %: {toy_error:.1f} %")
assert math.isclose(toy_error, 100 * (0.2 + 0.6) / 3)
for name, result in table.items():
    said = result.predictions
    mine = expected_calibration_error(said.confidence, said.hits)
    print(f"{name:24} ECE {mine:5.2f} %")
    assert abs(mine - result.accuracy()["ece"]) < 0.02


three = {name: table[name] for name in ("WD", "WD + CB", "WD + CB & WD & MaxNorm")}
bins = [result.predictions.reliability().assign(model=name) for name, result in three.items()]
chapter.show(plots.reliability(pd.concat(bins).astype(LOOKS)), "demo2_reliability.png")
errors = {name: result.accuracy()["ece"] for name, result in table.items()}
chapter.claim(
    "a radius changes confidence more than accuracy: under CB the ECE is "
    f"{free['ece']:.1f} % without one, {half['ece']:.1f} with half the mean norm",
    half["ece"] < free["ece"],
)


# (A dot's area is its share of the images; below the diagonal a classifier is too sure, above it too modest.) A shorter row makes smaller logits, and smaller logits make a less confident classifier. So does dividing all logits by one number, a **temperature**, which changes no answer. Is a radius more than that? See [the study](study_paper-versus-code.ipynb).
# 
# ## Try it
# 
# With `interactive = True` in the first code cell, drag $\tau$ and the radius and watch the groups; otherwise, both ways as curves. Once the radius is below every norm, all rows are equally short, and the biases, which are not shortened, begin to decide. These are test images, to look at: choosing by them would be choosing on the test set.

def moved(tau: float, radius: float) -> dict[str, float]:
    """Accuracies of the first stage's classifier, tau-normalised, then projected."""
    return accuracy(models.linear(max_norm(tau_normalize(weight, tau), radius), first.bias))


def drag(tau: float = best_tau, radius: float = 3.0) -> None:
    """Bars of the groups, before and after."""
    name = f"tau {tau:.1f}, radius {radius:.2f}"
    bars = [{"model": "as learned", **accuracy(first)}, {"model": name, **moved(tau, radius)}]
    plots.show(plots.group_bars(pd.DataFrame(bars)))


if interactive:
    from ipywidgets import interact

    interact(drag, tau=(0.0, 3.0, 0.1), radius=(0.05, 3.0, 0.05))
else:
    taus = pd.DataFrame([{"tau": tau, **moved(tau, 1e9)} for tau in np.arange(0, 3.01, 0.1)])
    chapter.show(plots.sweep(taus, "tau", r"$\tau$, test images"), "demo2_tau-on-test.png")
    tested = pd.DataFrame([{"radius": r, **moved(0, r)} for r in np.geomspace(0.05, 3, 25)])
    figure = plots.sweep(tested, "radius", r"radius $\delta$, test images", log=True)
    chapter.show(figure, "demo2_radius-on-test.png")


# ## Take-aways

chapter.keep(list(table.values()))
tau_gain = difference(wd, table["WD + tau-norm"])
take_aways(
    f"Dividing by norms needs no training, and is worth {tau_gain} over all classes (τ-norm).",
    f"Retraining the classifier with CB & WD & MaxNorm: {gain}; few-shot {rare:+.1f}, "
    f"many-shot {common:+.1f}.",
    f"Accuracy is not confidence: L2norm has an ECE of {errors['WD + L2norm']:.1f} %, CB "
    f"{errors['WD + CB']:.1f}, with weight decay {errors['WD + CB & WD']:.1f}. A radius sets it, "
    f"too: {of_radius.ece['0.5']:.1f} at half the mean norm, {of_radius.ece['0.25']:.1f} at a "
    "quarter, where the classifier is too modest.",
    f"The paper's order is another: L2norm, without training, over its best method {untrained}, "
    f"in the paper {theirs:+.1f}.",
)


# ## Exercises
# 
# **1. τ by hand.** Two rows have norms 4 and 0.5. What are their norms after τ-normalisation with $\tau = 0.5$, 1 and 2? In general, if the ratio of two norms is $r$, what is it afterwards?
# 
# <details><summary>Solution</summary>
# 
# A norm $\nu$ becomes $\nu^{1-\tau}$: 2 and 0.71; 1 and 1; 0.25 and 2. The ratio becomes $r^{1-\tau}$, here $8^{0.5} = 2.83$, 1 and $1/8$: beyond $\tau = 1$ the order has turned around.
# </details>
# 
# **2. The nearest point.** Prove that MaxNorm's projection is the point of the ball that lies nearest to $w$.
# 
# <details><summary>Solution</summary>
# 
# Inside the ball $w$ itself is nearest. Outside, for any $u$ with $\lVert u \rVert \le \delta$, $\lVert w - u \rVert \ge \lVert w \rVert - \lVert u \rVert \ge \lVert w \rVert - \delta$ by the triangle inequality, and $u = \delta w / \lVert w \rVert$ reaches that bound. It is the only point that does: equality needs $u$ to point along $w$ and to have length $\delta$.
# </details>
# 
# **3. Why τ = 1.9 fails.** The authors' released notebook uses $\tau = 1.9$ for a ResNet-34. Compute the ratio of the largest to the smallest norm here, before and after, and the accuracies.
# 
# <details><summary>Solution</summary>
# 
# ```python
# norm = weight.norm(dim=1)
# after = tau_normalize(weight, 1.9).norm(dim=1)
# print(f"largest over smallest: {norm.max() / norm.min():.2f} before, {after.max() / after.min():.2f} after, turned around")
# print(in_words(accuracy(models.linear(tau_normalize(weight, 1.9), first.bias))))
# ```
# 
# A ratio $r$ becomes $r^{-0.9}$: nearly as uneven as before, the other way round. Now the rare classes take the common ones' images. How much that costs is another question, which the ratio alone does not answer ([the study](study_paper-versus-code.ipynb#2-Why-does-tau-1.9-fail-here?) has a network that bears it).
# </details>
# 
# **4. Another β.** Train by `balance` with $\beta = 0.9$ and $\beta = 0.99$. What are the weights near, and what follows for the groups?
# 
# <details><summary>Solution</summary>
# 
# ```python
# for beta in (0.9, 0.99, 0.9999):
#     other = class_balanced_weights(counts, beta)
#     trained, _ = balance(other, values["weight_decay"], values["max_norm"], values["lr"])
#     print(f"beta {beta}: weights {other.min():.2f} to {other.max():.2f};", in_words(accuracy(trained)))
# ```
# 
# Towards 0 all images weigh the same, which is plain cross-entropy; towards 1 they weigh $1/n_k$. At 0.9 only classes with a few images weigh more than the others, so the medium ones gain nothing; 0.99 lies between. The mean weight of an image changes as well (`(other * counts).sum() / counts.sum()`: 0.20 at 0.9999, several times that at 0.9), and with it how hard the same weight decay pulls.
# </details>
# 
# ## References and the next chapter
# 
# - Alshammari, Wang, Ramanan and Kong, [Long-Tailed Recognition via Weight Balancing](https://arxiv.org/abs/2203.14197), CVPR 2022
# - Kang et al., [Decoupling Representation and Classifier for Long-Tailed Recognition](https://arxiv.org/abs/1910.09217), ICLR 2020: τ-normalisation
# - Cui et al., [Class-Balanced Loss Based on Effective Number of Samples](https://arxiv.org/abs/1901.05555), CVPR 2019
# - Menon et al., [Long-tail learning via logit adjustment](https://arxiv.org/abs/2007.07314), ICLR 2021
# - Guo et al., [On Calibration of Modern Neural Networks](https://arxiv.org/abs/1706.04599), ICML 2017
# 
# **Next**: [the study: paper versus code](study_paper-versus-code.ipynb), all of Table 1 and a detective story. To balance a classifier of your own, see [the README](../README.md#balance-a-classifier-that-you-have).
