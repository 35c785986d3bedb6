"""A long tail of Gaussian features, which stands in for those of a frozen backbone."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from ltr import methods, metrics, stack
from ltr.recipes import Recipe


@dataclass
class Gaussians:
    """Features of 12 Gaussian classes in 10 dimensions, 300 down to 3 training images: a long tail whose answer
    is known, since all classes are equally hard."""

    seed: int = 0

    def __post_init__(self):
        rng, self.class_counts = np.random.default_rng(7), np.floor(300 * 0.01 ** (np.arange(12) / 11)).astype(int)
        means = rng.normal(size=(12, 10))
        own = np.random.default_rng(self.seed)
        self.labels = own.permutation(np.repeat(np.arange(12), self.class_counts))
        self.test_labels = np.repeat(np.arange(12), 100)
        self.x, self.test_x = (
            torch.tensor(means[y] + own.normal(size=(len(y), 10)), dtype=torch.float32)
            for y in (self.labels, self.test_labels)
        )
        self.model = SimpleNamespace(classifier=self.naive())

    def draw(self, batch_size, seed, epoch):
        return self.x, torch.as_tensor(self.labels)

    def test_logits(self, classifier, epoch):
        return classifier(self.test_x).detach().numpy()

    def naive(self) -> torch.nn.Linear:
        """A first stage: plain cross-entropy from zeros."""
        start = [torch.zeros(12, 10), torch.zeros(12)]
        return methods.train(self, Recipe(20, lr=0.05), [{"lr": 1.0}], start, stack.cross_entropy_gradient)[0]

    def accuracy(self, classifier) -> dict[str, float]:
        return metrics.group_accuracy(self.test_logits(classifier, 0), self.test_labels, self.class_counts)
