#!/usr/bin/env python
# coding: utf-8

# # 1 · First stage: learning features from a long tail
# 
# Real data is long-tailed: a few classes have hundreds of images, most have a handful. A network that is trained on it in the usual way does well on the common classes and fails on the rare ones.
# 
# *Long-Tailed Recognition via Weight Balancing* ([Alshammari, Wang, Ramanan and Kong, CVPR 2022](https://arxiv.org/abs/2203.14197)) counters this in two stages. **This chapter** is the first: learn features with plain cross-entropy and a *tuned* weight decay (0.005 at the paper's learning rate of 0.01, which is large; ours is a tenth of it at ten times the rate). [The second](demo2_second-stage-training.ipynb) keeps these features and balances the classifier on top of them.
# 
# **Goals.** See why the tail fails; build the training step from nothing but gradients; predict, then measure, what weight decay does to accuracy, to the classifier's weights and to the features.
# 
# **You need** Python, some PyTorch, and to have heard of softmax and convolutional networks. **Time**: half an hour to read, under a minute to run.
# 
# **Contents**: [the tail](#The-tail) · [a training step](#A-training-step) · [why the tail fails](#Why-the-tail-fails,-in-the-plane) · [naive training](#Naive-training) · [weight decay](#Weight-decay) · [the classifier's weights](#The-classifier's-weights) · [filters and features](#Filters-and-features) · [choosing λ](#Choosing-λ) · [take-aways](#Take-aways) · [exercises](#Exercises)
# 
# *Running all cells* shows the runs that come with the package: no images, no GPU. To train anew, write a preset into the cell below: `options = "--preset demo"` takes minutes on a small synthetic set, `options = "--preset paper"` does the paper's job on a GPU. Scripts take the same words on their command line. Lines that begin with *holds* are claims that a cell checks against the runs at hand. The prose describes the committed runs; for runs of your own, trust only these lines.

options = ""


from functools import partial

import numpy as np
import pandas as pd
import torch

from ltr import analysis, datasets, losses, metrics, models, plots, runs, training
from ltr.data import loader
from ltr.recipes import Recipe
from ltr.settings import FirstStage
from ltr.study import published
from ltr.study.chapter import Chapter, difference, geometry, mean_logits, where_the_tail_sits
from ltr.study.measured import print_other_images, tuning_runs
from ltr.study.page import show_table, take_aways


settings = FirstStage.read(options)
chapter = Chapter(settings)
classes = chapter.classes  # class_index, name, count (training images), group
order = chapter.order  # from the most common class to the rarest
counts = classes["count"].to_numpy()


# ## The tail
# 
# Class $k$ of $C$, counted from 0, keeps $n_k$ of its $n_{\max}$ training images, fewer and fewer by a constant factor; the **imbalance factor** $\mathrm{IF}$ is the largest class over the smallest:
# 
# $$n_k = \left\lfloor n_{\max} \cdot \mathrm{IF}^{-k/(C-1)} \right\rfloor$$
# 
# CIFAR100-LT cuts the 100 classes of CIFAR-100 in this way, with $n_{\max} = 500$ and $\mathrm{IF} = 100$. The test set stays balanced: every class counts the same there, which is what we want of the network.
# 
# Which $n_k$ images of a class stay is a choice too. Here they are drawn, in the order of the hashes of their pixels: one draw for all networks and seeds. (The first ones by file name would be a harder set, [by this much](../exp/README.md#another-choice-of-the-images).)

def tail(largest: int, number: int, imbalance_factor: float) -> np.ndarray:
    """Training images of each class, from common to rare."""
    k = np.arange(number)
    exact = largest * imbalance_factor ** (-k / (number - 1))
    return np.floor(exact + 1e-9).astype(int)  # a whole number may come out just below itself


images = tail(500, 100, 100)
print(images[:4], "...", images[-4:], f"{images.sum():,} images of once 50,000")
assert (images == datasets.class_counts(500, 100, 100)).all()


name = chapter.about["name"]
print(f"{name}: {counts.sum():,} training images, {counts.max()} to {counts.min()} a class")
chapter.show(plots.class_counts(classes), "demo1_class-counts.png")


sizes = {group: int((classes["group"] == group).sum()) for group in metrics.GROUPS}
chapter.claim(
    "10,847 training images, 500 of the most common class down to 5 of the rarest",
    (counts.sum(), counts.max(), counts.min()) == (10_847, 500, 5),
)
chapter.claim(
    "35 classes are many, 35 medium, 30 few", sizes == {"many": 35, "medium": 35, "few": 30}
)
rarest = int((np.sort(counts).cumsum() <= counts.max()).sum())
chapter.claim(
    f"the most common class alone has as many images as the {rarest} rarest together",
    np.sort(counts)[:rarest].sum() <= counts.max() and rarest > 1,
)


# The vertical axis is logarithmic. The field speaks of three groups: classes with more than 100 training images are **many-shot**, with 20 to 100 **medium-shot**, with fewer than 20 **few-shot**.
# 
# Here is all that the network will ever see of three of the rarest classes, below a few images of the three most common ones.

def examples() -> plots.Figure:
    """Eight training images of classes from both ends of the tail."""
    train = chapter.data.train
    shown = plots.ends(order[:-2] if len(order) > 8 else order)
    rows = np.full(
        (len(shown), 8, *train.images.shape[1:]), 255, np.uint8
    )  # white where a class has no more
    for row, k in zip(rows, shown, strict=True):
        members = train.images[train.labels == k][:8]
        row[: len(members)] = members
    return plots.montage(rows, [f"{classes.name[k]} ({counts[k]})" for k in shown])


chapter.picture("demo1_montage.png", examples)


# **Augmentation.** Each time an image is used it is padded by four pixels, cropped at a random place, and mirrored half of the time. It is the only augmentation here: an image has 9 · 9 · 2 = 162 views, so a class of five images has 810 in all.

def view(image: np.ndarray, top: int, left: int, mirrored: bool) -> np.ndarray:
    """One of the 162 views of an image [H, W, 3]."""
    height, width, _ = image.shape
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    crop = padded[top : top + height, left : left + width]
    return crop[:, ::-1] if mirrored else crop


def crop_and_flip(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """A view, drawn at random."""
    return view(image, *draw.integers(0, 9, size=2), draw.random() < 0.5)


toy = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
padded = torch.as_tensor(np.pad(toy, ((4, 4), (4, 4), (0, 0))))[None]
theirs = loader.crop_and_flip(padded, torch.tensor([[2, 7]]), torch.tensor([True]), (32, 32))
assert (view(toy, 2, 7, True) == theirs[0].numpy()).all()


def augmented() -> plots.Figure:
    """One image of a common, a medium and a rare class, and seven views of each."""
    draw = np.random.default_rng(0)
    train = chapter.data.train
    shown = [order[0], order[len(order) // 2], order[-1]]
    originals = [np.asarray(train.images[train.labels == k][:1])[0] for k in shown]
    rows = [[image, *(crop_and_flip(image, draw) for _ in range(7))] for image in originals]
    return plots.montage(
        np.array(rows),
        [classes.name[k] for k in shown],
        "the image, and what the network sees of it",
    )


chapter.picture("demo1_augmented.png", augmented)


# ## A training step
# 
# A network turns an image $x$ into one **logit** $z_k$ for each class. Softmax makes probabilities of them. The *surprise* at an answer is $-\log p$, zero where $p = 1$; **cross-entropy** is the mean surprise at the right answers:
# 
# $$p_k = \frac{e^{z_k}}{\sum_j e^{z_j}}, \qquad \mathcal{L} = -\frac{1}{N} \sum_{i=1}^N \log p_{y_i}(x_i)$$

def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean surprise; logits [N, C], labels [N]."""
    log_p = logits - logits.logsumexp(1, keepdim=True)
    return -log_p[torch.arange(len(labels)), labels].mean()


logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 1.0]], requires_grad=True)
labels = torch.tensor([0, 2, 1])
loss = cross_entropy(logits, labels)
loss.backward()
print(
    f"loss {loss.item():.4f}; N times its gradient, a row an image:",
    (len(labels) * logits.grad).numpy().round(2),
    sep="\n",
)
torch.testing.assert_close(loss, losses.cross_entropy(logits, labels))


# Read the rows of the gradient: each image pushes its own class's logit up (a negative gradient, as descent goes against it) and **every other class's logit down**, by the probability that it has. The gradient is $p - \mathrm{onehot}(y)$, up to $1/N$.
# 
# So over an epoch a class is pulled up by its own $n_k$ images, each with force 1, and pushed down by all $N$, with force $p_k(x_i)$. Where its bias comes to rest the two are equal (but for the bias's own weight decay, where there is some):
# 
# $$\sum_{i=1}^N p_k(x_i) = n_k$$
# 
# Whatever else the classifier learns, it expects each class as often as it met it in training. *What do you expect* to become of a class with 5 images among 10,847, on test images that have all classes alike? ([The next chapter](demo2_second-stage-training.ipynb#Whom-the-classifier-expects) measures the mean of $p_k$ over the test images.)
# 
# The step itself is **stochastic gradient descent** with momentum: the buffer $v$ sums past gradients, each step weakened by the factor $m = 0.9$, and $\eta$ is the learning rate. Weight decay $\lambda$ adds $\lambda w$ to the gradient: a pull towards zero, the stronger the larger the weight.
# 
# $$v \leftarrow m v + \nabla \mathcal{L} + \lambda w, \qquad w \leftarrow w - \eta v$$

@torch.no_grad()
def descend(
    weights: list, momenta: list, lr: float, weight_decay: float = 0.0, momentum: float = 0.9
) -> None:
    """One step of SGD, in place, on weights that have their gradients."""
    for w, v in zip(weights, momenta, strict=True):
        v.mul_(momentum).add_(w.grad + weight_decay * w)
        w.sub_(lr * v)
        w.grad = None


start = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
mine, theirs = torch.nn.Parameter(start), models.linear(start, None)
momenta = [torch.zeros_like(mine)]
recipe = Recipe(epochs=1, lr=0.1, weight_decay=0.01)
optimizer = training.sgd(theirs, recipe, torch.device("cpu"))
for _ in range(5):
    (mine**3).sum().backward()
    descend([mine], momenta, 0.1, 0.01)
    optimizer.zero_grad()
    (theirs.weight**3).sum().backward()
    optimizer.step()
torch.testing.assert_close(mine, theirs.weight)
print("five steps by hand and five of the library's optimizer end at the same weights")


# The library's own optimizer is `torch.optim.SGD`, whose step does what `descend` does. [`TrainingStep.update`](../ltr/training.py) calls it, with room for mixed precision, several GPUs and MaxNorm.
# 
# ## Why the tail fails, in the plane
# 
# Three classes of points in the plane, equally spread, and a linear classifier $z = Wx + b$. We train it twice by the step above: on 200 points of each class, and on a tail of 500, 50 and 5. Both are tested on the same balanced points. *Where do you expect* the borders between the classes?

def points(number: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian points [N, 2] around the corners of a triangle, and their labels [N]."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(number))
    angle = 2 * torch.pi * labels / 3 + torch.pi / 2
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.6 * torch.randn(
        len(labels), 2, generator=draw
    ), labels


def train(number: list[int]) -> torch.nn.Linear:
    """A linear classifier, trained on points."""
    x, y = points(number, seed=0)
    model = torch.nn.Linear(2, 3)
    weights = [torch.nn.init.zeros_(w) for w in model.parameters()]
    momenta = [torch.zeros_like(w) for w in weights]
    for _ in range(500):
        cross_entropy(model(x), y).backward()
        descend(weights, momenta, lr=0.1)
    return model


def answer(model: torch.nn.Linear, plane: np.ndarray) -> np.ndarray:
    """The class [M] that a classifier gives points [M, 2] of the plane."""
    return model(torch.as_tensor(plane).float()).argmax(1).numpy()


sets = {"200, 200 and 200 points": [200] * 3, "500, 50 and 5 points": [500, 50, 5]}
toys = {title: train(number) for title, number in sets.items()}
test_x, test_y = points([1000] * 3, seed=1)
panels, toy_accuracy = {}, {}
for title, model in toys.items():
    seen_x, seen_y = (values.numpy() for values in points(sets[title], seed=0))
    panels[title] = (seen_x, seen_y, partial(answer, model))
    toy_accuracy[title] = metrics.per_class_accuracy(
        model(test_x).detach().numpy(), test_y.numpy()
    )


names = ["common", "medium", "rare"]
chapter.show(plots.regions(panels, names), "demo1_plane.png")
show_table(pd.DataFrame(toy_accuracy, names).T.map("{:.0f} %".format), "test accuracy")
even, tailed = (accuracies[-1] for accuracies in toy_accuracy.values())
chapter.claim(
    f"of the same test points of the rare class {tailed:.0f} % are recognised, not {even:.0f} %",
    tailed < even / 2,
)


# The classes themselves did not change: the borders did. The tail's classifier has moved them towards the rare class, which it predicts too seldom. Nothing is wrong with the points, nor with the step: cross-entropy minimises the surprise *over the training set*, where the rare class hardly occurs.
# 
# The border between two classes is where $(w_k - w_j)^\top x + b_k - b_j = 0$. The direction of a row of $W$ moves it, so does its length, and so does the bias. Which was it here?

for title, model in toys.items():
    lengths = model.weight.detach().norm(dim=1).numpy().round(2)
    print(f"{title}: norms {lengths}, biases {model.bias.detach().numpy().round(2)}")
weight, bias = (each.detach() for each in toys["500, 50 and 5 points"].parameters())
without_bias = (test_x @ weight.T).numpy()
recovered = metrics.per_class_accuracy(without_bias, test_y.numpy())
words = ", ".join(f"{name} {value:.0f} %" for name, value in zip(names, recovered, strict=True))
chapter.claim(
    f"in the plane the tail sits in the biases: without them it is {words}",
    recovered.min() > even - 10,
)


# *Why* there, and by how much? The classifier is not wrong: it answers by the frequencies of its *training* set. By Bayes' rule $p(k \mid x) \propto p(x \mid k) \, n_k$, and for clouds of one spread $\sigma$ around centres $c_k$, all at distance 1 from the origin,
# 
# $$\log p(k \mid x) = \frac{c_k^\top x}{\sigma^2} + \log n_k + h(x),$$
# 
# with an $h$ that is the same for all classes.
# 
# So rows should have one length, $1/\sigma^2 = 1/0.36 = 2.8$, and biases go in steps of $\log 10 = 2.3$: compare them with what was learned above. And so the remedy is known without any training. Where all classes are to count the same, take away what the counts have added. This is **logit adjustment** ([Menon et al. 2021](https://arxiv.org/abs/2007.07314)), at $\tau = 1$:
# 
# $$z_k \leftarrow z_k - \tau \log n_k$$

def adjust_logits(logits: torch.Tensor, counts: torch.Tensor, tau: float = 1.0) -> torch.Tensor:
    """Logits [N, C] for classes that count the same, of those learned from so many images [C]."""
    return logits - tau * counts.log()


seen = torch.tensor([500.0, 50.0, 5.0])
of_tail = toys["500, 50 and 5 points"](test_x).detach()
adjusted = adjust_logits(of_tail, seen)
theirs = losses.adjust_logits(of_tail, seen, 1.0)  # of shares n / N, which moves all logits alike
torch.testing.assert_close(adjusted.softmax(1), theirs.softmax(1))
mended = metrics.per_class_accuracy(adjusted.numpy(), test_y.numpy())
words = ", ".join(f"{name} {value:.0f} %" for name, value in zip(names, mended, strict=True))
chapter.claim(f"less log n, without any training: {words}", mended.min() > even - 10)


# A network learns its features along with the rows, and nothing holds the rows to one length. There, as we shall see, the tail sits in their norms rather than in the biases. Either way the **features** may be good and the classifier on top of them biased: that is what the paper's second stage mends, with the features as they are.
# 
# ## Naive training
# 
# Now the real thing. The network is a residual network for small images, the narrow **ResNet-32** of this field (16-32-64 channels); the paper's own numbers come from a ResNet-34 with a 3×3 stem (`--backbone resnet34`). *Naive* is cross-entropy without weight decay.
# 
# A training is in essence four lines; `first_stage` below has them, goes on with an interrupted training, and loads a finished one:
# 
# ```python
# model = models.build_model(settings.backbone, num_classes, settings.seed)
# images = ImageData(data, device)               # crops and flips, on the device
# recipe = settings.recipe(weight_decay)         # epochs, batch size, learning rate, schedule, ...
# outcome = training.fit(model, images, recipe)  # the step above, for every batch of every epoch
# ```

network = models.build_model(settings.backbone, len(classes), settings.seed)
print(f"{settings.backbone}: {models.count_parameters(network):,} weights")
recipe = settings.recipe(weight_decay=0.0)
print(f"{recipe.epochs} epochs, batches of {recipe.batch_size}, learning rate {recipe.lr:g}")
if settings.naive == "skip":  # one network alone, which the next chapter balances
    chapter.end_with("WD", settings.weight_decay)


naive = chapter.first_stage("naive", 0.0)
chapter.results([naive])
few, many = naive.accuracy()["few"], naive.accuracy()["many"]
chapter.claim(
    f"of the test images of many-shot classes {many:.1f} % are recognised, "
    f"of those of few-shot classes {few:.1f} %",
    few < many / 4,
)


# *Plain* test images are the images themselves, not averaged with their mirror images as some do. Under each accuracy stands its standard error over them. **ECE** says how far the network's confidence is from its accuracy; [the next chapter](demo2_second-stage-training.ipynb#Calibration) defines it.
# 
# Two networks are compared by their *difference*, in **paired** standard errors: both answer the same test images. With $d_i = 1$ where only the second is right, $-1$ where only the first is, else 0, the standard error of the difference is $\mathrm{std}(d) / \sqrt{N}$. That says how much other test images would change a difference, not how much other seeds would. A ± over three seeds is a standard error too, but of so few that it takes four of them, not two, to be sure.
# 
# Where do the rare classes' images go? Each row of the matrix is a true class, each column an answer; common classes come first. *Where do you expect* the light spots of the lowest rows?

matrix = naive.predictions.confusion
chapter.show(plots.confusion(matrix, classes), "demo1_confusion.png")
groups = classes["group"].to_numpy()
few_rows = matrix[groups == "few"]
if few_rows.size:
    elsewhere = 100 * few_rows[:, groups != "few"].sum() / few_rows.sum()
    chapter.claim(
        f"{elsewhere:.0f} % of few-shot images are taken for a many- or medium-shot class",
        elsewhere > 50,
    )


# ## Weight decay
# 
# The paper's first stage is the same training with one number changed (its equation 4):
# 
# $$\Theta^* = \arg\min_\Theta \; \frac{1}{N} \sum_{i=1}^{N} -\log p_{y_i}(x_i; \Theta) \; + \; \frac{\lambda}{2} \lVert \Theta \rVert_2^2$$
# 
# The gradient of the new term is $\lambda \Theta$: the line that `descend` has already. *What do you expect* of each group, and of the rare classes above all?

decayed = chapter.first_stage("WD", settings.weight_decay)
both = [naive, decayed]
product = settings.weight_decay * settings.lr
print(f"weight decay {settings.weight_decay:g}; times the learning rate {product:g}, ", end="")
print(f"in the paper 0.005 times 0.01 is {0.005 * 0.01:g}")
chapter.results(both)
accuracies = pd.DataFrame([{"model": result.label, **result.accuracy()} for result in both])
chapter.show(plots.group_bars(accuracies), "demo1_groups.png")
for group in ("all", "many", "medium", "few"):
    before, after = (result.accuracy()[group] for result in both)
    print(metrics.with_dashes(f"{group:6}: {after - before:+.1f} points"))


gain = difference(naive, decayed)
chapter.claim(
    f"weight decay changes the accuracy over all classes by {gain}", gain.points > 2 * gain.error
)
rare = np.isin(naive.predictions.labels, classes.class_index[classes["group"] == "few"])
if rare.any():
    rare_gain = metrics.paired_difference(*(result.predictions.hits[rare] for result in both))
    chapter.claim(
        f"the rare classes hardly share in it: few-shot {rare_gain}",
        rare_gain.points < gain.points / 2,
    )


of_seeds = [runs.seeds_of(result) for result in both]
shared_seeds = sorted(of_seeds[0].keys() & of_seeds[1].keys())
gains = pd.DataFrame(
    pd.Series(of_seeds[1][seed].accuracy()) - pd.Series(of_seeds[0][seed].accuracy())
    for seed in shared_seeds
)
seeds, rare_seeds = "one seed", f"{decayed.accuracy()['few'] - naive.accuracy()['few']:+.1f}"
if len(gains) > 1:
    seeds = f"in {len(gains)} seeds {gains['all'].mean():+.1f} ± {gains['all'].sem():.1f}"
    rare_seeds = f"{gains['few'].mean():+.1f} ± {gains['few'].sem():.1f}"
    print(f"{seeds} over all classes, few-shot {rare_seeds}")


# A surprise, if you expected balance: weight decay by itself serves the common and medium classes. (How the rare classes fare depends on the learning rate too, as [the study](study_paper-versus-code.ipynb#8-Weight-decay,-or-learning-rate-times-weight-decay?) shows.) In the paper's own table the rare ones hardly gain either:

theirs = {name: published.TABLE_1[name] for name in ("naive", "WD")}
for name, (*_, few, overall) in theirs.items():
    print(f"paper, ResNet-34, {name}: few-shot {few:.1f} %, all classes {overall:.1f} %")


# Class by class:

per_class = pd.concat([result.per_class() for result in both])
chapter.show(plots.class_differences(per_class, naive.label, classes), "demo1_differences.png")
better = (
    (decayed.per_class().accuracy > naive.per_class().accuracy).groupby(classes["group"]).sum()
)
for group in metrics.GROUPS:
    print(
        f"{group}: {better.get(group, 0)} of {sizes[group]} classes are better with weight decay"
    )


# What changed while they learned? Both networks come to fit their training images, most of which are of common classes; only the balanced test set separates the two. (On the right of the first figure is the learning rate, which the schedule lowers epoch by epoch. The number in the second figure was tested while the network trained, in the training's own precision, so that it may miss the table's by a tenth or two.)

history = pd.concat([result.history.assign(model=result.label) for result in both])
chapter.show(plots.loss_curves(history), "demo1_losses.png")
chapter.show(plots.learning_curves(history), "demo1_learning-curves.png")
last = {result.label: result.history.iloc[-1] for result in both}
for name, row in last.items():
    right = f"{row.train_accuracy:.1f} % of training images right"
    print(f"{name}: loss {row.train_loss:.2f}, {right} in the last epoch")


# ## The classifier's weights
# 
# The last layer is linear: $z_k = w_k^\top f(x) + b_k$, where $f(x)$ are the image's **features** and each class has a row of weights $w_k$. The paper's title speaks of these rows: a longer row scales what the features say about its class, for or against it.
# 
# *What do you expect*: do the norms $\lVert w_k \rVert$ follow the class counts? Does weight decay make them more even?

chapter.show(plots.class_norms(per_class, classes), "demo1_class-norms.png")
norms = {result.label: result.norms[-1] for result in both}
for result in both:
    bias = result.weights().get("classifier.bias")
    if bias is not None:
        parts = norms[result.label], bias.numpy()
        by_norm, by_bias = (np.corrcoef(each, np.log(counts))[0, 1] for each in parts)
        words = f"{result.label}: norms follow the counts (correlation with log n {by_norm:+.2f})"
        chapter.claim(f"{words}, biases less ({by_bias:+.2f})", by_norm > 0.8 > by_bias)
        sizes_of = f"biases lie between {bias.min():+.2f} and {bias.max():+.2f}"
        print(f"  norms between {parts[0].min():.2f} and {parts[0].max():.2f}, {sizes_of}")


# A correlation says nothing about size. So where does the tail *sit*? As in the plane, take each away in turn: the same network with a classifier without its biases, and with rows of one length.

tail_in = chapter.of_images("tail-in", decayed, where_the_tail_sits)
if tail_in is not None:
    said = tail_in.set_index("classifier").rename_axis(None)
    show_table(said.map("{:.1f}".format), f"test images, %; features of {decayed.label}")
    learned, bare, even_rows = said["few"]
    chapter.claim(
        f"without biases few-shot {bare:.1f} %, with rows of one length {even_rows:.1f}, as "
        f"learned {learned:.1f}: in the network the tail sits in the norms",
        even_rows - learned > 3 * abs(bare - learned),
    )


uneven = {}
for name, values in norms.items():
    means = pd.Series(values).groupby(classes["group"]).mean()
    uneven[name] = means.get("many", np.nan) / means.get("few", np.nan)
    words = f"{name}: {values.min():.2f} to {values.max():.2f}, mean of many- over few-shot"
    print(metrics.with_dashes(f"{words} classes {uneven[name]:.2f}"))


chapter.claim("weight decay makes every norm smaller", bool((norms["WD"] < norms["naive"]).all()))
chapter.claim(
    "but not more even: many- over few-shot goes from "
    f"{uneven['naive']:.2f} to {uneven['WD']:.2f}",
    uneven["WD"] > uneven["naive"],
)
left = pd.Series(norms["WD"] / norms["naive"]).groupby(classes["group"]).mean()
chapter.claim(
    f"of a few-shot norm {100 * left.get('few', np.nan):.0f} % is left, "
    f"of a many-shot one {100 * left.get('many', np.nan):.0f} %",
    left.get("few", np.nan) < left.get("many", np.nan),
)


# It is the ratio that counts: one factor for all rows changes how confident the classifier is but, biases aside, none of its answers. The paper's premise is that weight decay balances norms. Here, and in [all pairs](../exp/README.md#what-does-weight-decay-do-to-the-norms) of narrow networks and of ResNet-34, it does not (in the one pair of wide ResNet-32 it does): it shrinks them all, those of rare classes a little more, presumably because hardly any image pulls these the other way.
# 
# What do norms do to the logits? The figure shows, for the network with weight decay, each class's mean logit over its own test images and over all others, and its norm, scaled to the mean of the first:

table = chapter.of_images("mean-logits", decayed, mean_logits)
if table is not None:
    drawn = table.assign(model=decayed.label, norm=norms["WD"])
    chapter.show(plots.class_logits(drawn, classes), "demo1_logits.png")
    own, others = (np.corrcoef(table[kind], norms["WD"])[0, 1] for kind in ("own", "others"))
    chapter.claim(
        f"the logit of a class's own images follows its norm (correlation {own:.2f}), "
        f"that of other images hardly does ({others:.2f})",
        own > 0.5 > abs(others),
    )


if table is not None:
    logit = table.own.groupby(classes["group"]).mean()
    per_norm = (table.own / norms["WD"]).groupby(classes["group"]).mean()
    (many, few), (many_unit, few_unit) = (
        each.reindex(["many", "few"]) for each in (logit, per_norm)
    )
    chapter.claim(
        f"but norms are not all: own logits are {many:.1f} of many-shot classes, {few:.1f} of "
        f"few-shot ones, per unit of norm still {many_unit:.1f} and {few_unit:.1f}",
        few_unit < many_unit,
    )


# So an image of a rare class gets a smaller logit for its own class than an image of a common one, and loses to the others more often: its row is shorter, and fits the class's test images less well, having been learned from few. When do the norms begin to differ? (Each panel has its own scale of colours.)

evolution = {result.label: result.norms[:, order] for result in both}
chapter.show(
    plots.norm_evolution(evolution, shared=False, first_epoch=0, counts=classes),
    "demo1_norm-evolution.png",
)
early = max(1, settings.epochs // 20)
along = np.corrcoef(naive.norms[early], np.log(counts))[0, 1]
chapter.claim(
    f"after {early} epochs the norms follow the counts already (correlation {along:.2f})",
    along > 0.5,
)


epochs = np.unique([0, *np.geomspace(1, settings.epochs, 8).round().astype(int)])
frames = (plots.weight_rays(evolution, epoch) for epoch in epochs)
chapter.animate(frames, "demo1_weights.png")


# The same as rays, clockwise from the most common class to the rarest, on one scale. Equal norms make a disc, as before training.
# 
# ## Filters and features
# 
# Weight decay acts on every layer. The paper's figure 3 looks at the **filters** of the hidden layers: their mean norm, and how much it varies within a layer. *Do you expect* them to be more even?

def filters(result: runs.Result) -> pd.DataFrame:
    """Norms of the filters of a network, a row a layer."""
    return analysis.filter_norms(result.weights()).assign(model=result.label)


table = pd.concat(
    [result.cached("filters", partial(filters, result)) for result in both],
)
chapter.show(plots.filter_norms(table), "demo1_filter-norms.png")


table["spread"] = table.variance**0.5 / table["mean"]
spread = table.pivot(index="layer", columns="model", values="spread")
less_even = int((spread["WD"] > spread["naive"]).sum())
middle = spread.median()
chapter.claim(
    "relative to their mean they are not more even: median spread over mean "
    f"{middle['naive']:.2f} without, {middle['WD']:.2f} with it; "
    f"less even in {less_even} of {len(spread)} layers",
    middle["WD"] > 0.9 * middle["naive"],
)


# The variance falls only because everything shrinks. Each convolution's output is normalised by batch-norm, so a filter's size by itself changes no output. It changes how fast the filter turns: as the output ignores the size, $\nabla \mathcal{L}(c w) = \nabla \mathcal{L}(w) / c$, so one step turns a filter by an angle in proportion to $\eta / \lVert w \rVert^2$, and weight decay keeps the norms small.
# 
# So what does weight decay give, if no balance? **Better features.** Three numbers tell (Hasegawa and Sato, ICLR 2024): Fisher's discriminant ratio $\mathrm{tr}(S_W^{+} S_B)$, where $S_B$ is the scatter of the classes' means and $S_W^{+}$ the pseudo-inverse of the scatter within classes; and the mean cosine between the features of two images, once of the same class, once of different classes. In all of them every class, common or rare, weighs the same.

tables = {result.label: chapter.of_images("geometry", result, geometry) for result in both}
if all(table is not None for table in tables.values()):
    test = {name: table.set_index("images").loc["test"] for name, table in tables.items()}
    test = pd.DataFrame(test)
    show_table(test.T.map("{:.2f}".format), "features of the test images")
    fisher, cosine = test.loc["Fisher's ratio"], test.loc["cosine between classes"]
    chapter.claim(
        f"Fisher's ratio rises from {fisher['naive']:.0f} to {fisher['WD']:.0f}, "
        f"and the cosine between classes falls from {cosine['naive']:.2f} to {cosine['WD']:.2f}",
        fisher["WD"] > fisher["naive"] and cosine["WD"] < cosine["naive"],
    )


# Where classes' features lie apart, a linear classifier can tell them apart. The one that was trained along with them neglects the tail, so it takes a balanced one to show it, on the features of *both* networks: the next chapter has them.
# 
# ## Choosing λ
# 
# Never on the test set. 20 images of each class are held out before the tail is cut, a network is trained on the others for each $\lambda$, and the held-out images say which is best (the paper's figure 4). *What do you expect*: does the best $\lambda$ for common classes also serve the rare ones?

HELD_OUT = 20  # images of each class
tuned = tuning_runs(chapter)
if tuned.stage1_weight_decay.nunique() > 1:
    figure = plots.sweep(
        tuned, "stage1_weight_decay", "weight decay", settings.weight_decay, True, "held-out"
    )
    chapter.show(figure, "demo1_weight-decay-sweep.png")
    images = HELD_OUT * len(classes)
    share = tuned["all"].max() / 100
    error = 100 * (share * (1 - share) / images) ** 0.5
    print(f"{images:,} held-out images, {tuned.stage1_epochs.max()} epochs each", end="; ")
    print(f"the best has {100 * share:.1f} ± {error:.1f} %")
    print_other_images(chapter, tuned.choice)
    by_decay = tuned.set_index("stage1_weight_decay")
    best = by_decay["all"].idxmax()
    for group in ("many", "few"):
        missed = by_decay[group].max() - by_decay[group][best]
        words = f"{group}-shot accuracy is {missed:.1f} points below its own best here"
        print(metrics.with_dashes(f"at {best:g}, best over all classes, {words}"))
else:
    print("such networks: `ltr sweep --hold-out 20 --weight-decays 0 0.001 0.005`,", end=" ")
    print("with the options of this run")


# Two things to be frank about: a few networks with an error of a point each find the order of magnitude of $\lambda$, not its second digit (that rare classes lose at twice this $\lambda$ is [beyond that error](study_paper-versus-code.ipynb#8-Weight-decay,-or-learning-rate-times-weight-decay?), that common ones gain is not); and 20 held-out images a class are four times what the rarest classes train on, which a real long tail would not have. How learning rate and weight decay depend on each other is told in [the study](study_paper-versus-code.ipynb).

# ## Take-aways

chapter.keep(both)
few = [result.accuracy()["few"] for result in both]
known = all(table is not None for table in tables.values())
take_aways(
    f"The tail fails: of few-shot images naive training recognises {few[0]:.1f} %, "
    f"of many-shot ones {naive.accuracy()['many']:.1f} %.",
    f"Weight decay: {gain} over all classes ({seeds}; few-shot {rare_seeds}); norms become "
    f"smaller, not more even (many- over few-shot {uneven['naive']:.2f} to {uneven['WD']:.2f}).",
    f"How well features tell the classes apart: Fisher's ratio is {fisher['naive']:.1f} without "
    f"weight decay, {fisher['WD']:.1f} with it."
    if known
    else "Features: not measured here.",
)


# ## Exercises
# 
# **1. Loss by group.** Cross-entropy is a mean over images. What share of the naive network's *training* loss can come from the 30 rare classes at the first step, when all logits are about equal? And what is their share of the test loss?
# 
# <details><summary>Solution</summary>
# 
# At the first step every image costs about $\log C$, so a class's share of the training loss is its share of the images; of the test loss it is its share of the classes.
# 
# ```python
# few = classes["group"] == "few"
# print(f"training: {100 * counts[few].sum() / counts.sum():.1f} %, test: {100 * few.mean():.0f} %")
# ```
# 
# For CIFAR100-LT at imbalance factor 100 that is about 3 % against 30 %: the training hears of the rare classes a tenth as much as the test asks.
# </details>
# 
# **2. Choose λ.** Train the points in the plane with the tail and `weight_decay` in `descend` at 0, 0.001, 0.01 and 0.1. Which λ would held-out points choose, `points([100] * 3, seed=2)`? Which norms shrink most? Is the rare class served?
# 
# <details><summary>Solution</summary>
# 
# ```python
# x, y = points([500, 50, 5], seed=0)
# held_out_x, held_out_y = points([100] * 3, seed=2)
# for decay in (0, 0.001, 0.01, 0.1):
#     model = torch.nn.Linear(2, 3)
#     weights = [torch.nn.init.zeros_(w) for w in model.parameters()]
#     momenta = [torch.zeros_like(w) for w in weights]
#     for _ in range(500):
#         cross_entropy(model(x), y).backward()
#         descend(weights, momenta, 0.1, decay)
#     accuracy = metrics.per_class_accuracy(model(held_out_x).detach().numpy(), held_out_y.numpy())
#     print(decay, model.weight.detach().norm(dim=1).numpy().round(2), accuracy.round(), accuracy.mean().round(1))
# ```
# 
# Held-out points choose $\lambda = 0$. All norms shrink, and the biases draw together; the rare class's norm shrinks relatively most, and it is predicted less and less: here, where the features are given, weight decay cannot balance a classifier that cross-entropy trains.
# </details>
# 
# **3. Does dividing by norms help in the plane?** The next chapter divides each row of a classifier by its norm. Do that to the tail's classifier in the plane, `toys["500, 50 and 5 points"]`, with its biases as they are; then subtract $\log n_k$ instead. What does each repair, and what does it say about the network, where dividing helps?
# 
# <details><summary>Solution</summary>
# 
# ```python
# tail_model = toys["500, 50 and 5 points"]
# rows, bias = tail_model.weight.detach(), tail_model.bias.detach()
# unit = rows / rows.norm(dim=1, keepdim=True)
# for words, logits in {
#     "as learned": test_x @ rows.T + bias,
#     "rows of one length": test_x @ unit.T + bias,
#     "less log n": adjust_logits(test_x @ rows.T + bias, torch.tensor([500.0, 50.0, 5.0])),
# }.items():
#     print(words, metrics.per_class_accuracy(logits.numpy(), test_y.numpy()).round())
# ```
# 
# The norms carry no tail here, so to make them equal repairs nothing; it even harms, since shorter rows leave the biases more to say. Logit adjustment repairs it. Normalisation, and the paper's MaxNorm, need a tail that sits in the norms: a property of how networks learn, not of long tails.
# </details>
# 
# ## References and the next chapter
# 
# - Alshammari, Wang, Ramanan and Kong, [Long-Tailed Recognition via Weight Balancing](https://arxiv.org/abs/2203.14197), CVPR 2022
# - Cui, Jia, Lin, Song and Belongie, [Class-Balanced Loss Based on Effective Number of Samples](https://arxiv.org/abs/1901.05555), CVPR 2019: the tail's formula
# - Hasegawa and Sato, [Exploring Weight Balancing on Long-Tailed Recognition Problem](https://arxiv.org/abs/2305.16573), ICLR 2024: Fisher's ratio and cosines
# - Kang et al., [Decoupling Representation and Classifier for Long-Tailed Recognition](https://arxiv.org/abs/1910.09217), ICLR 2020: the two stages
# - Menon et al., [Long-tail learning via logit adjustment](https://arxiv.org/abs/2007.07314), ICLR 2021
# 
# **Next**: [2 · Second stage: balancing the classifier](demo2_second-stage-training.ipynb).
