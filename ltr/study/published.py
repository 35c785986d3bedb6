"""What others measured on long-tailed CIFAR-100, top-1 accuracy in percent: facts, to stand beside ours.

`TABLE_1`, `TABLE_2` and `RELEASED` are the weight balancing paper's and its released notebooks', under the names that
methods have here. `OTHERS` are numbers of everything that people compare with.
"""

import numpy as np

NAN = float("nan")

# Table 1 of the paper: many, medium, few, all. Imbalance factor 100, ResNet-34, values tuned on the test set.
TABLE_1 = {
    "naive": (64.05, 35.80, 11.43, 38.38),
    "naive + tau-norm": (59.54, 38.23, 25.93, 42.00),
    "WD": (76.94, 44.28, 12.17, 46.08),
    "WD + tau-norm": (73.11, 47.69, 30.10, 51.31),
    "WD + L2norm": (76.09, 47.74, 20.87, 49.60),
    "CE + L2norm": (76.37, 48.11, 21.00, 49.87),
    "CE + WD": (76.97, 45.94, 14.00, 47.22),
    "CE + MaxNorm": (76.80, 47.26, 15.10, 47.95),
    "CE + WD + MaxNorm": (76.80, 47.51, 14.40, 47.83),
    "CB": (77.00, 45.89, 13.60, 47.09),
    "CB + L2norm": (76.43, 48.20, 21.60, 50.10),
    "CB + WD": (72.77, 49.74, 31.80, 52.42),
    "CB + MaxNorm": (76.49, 49.23, 20.67, 50.20),
    "CB + stage-1 WD + MaxNorm": (76.20, 48.91, 21.50, 50.24),
    "CB + WD + MaxNorm": (72.60, 51.86, 32.63, 53.35),
    "last 2 layers, CB + WD + MaxNorm": (71.37, 51.17, 35.53, 53.55),
    "last 5 layers, CB + WD + MaxNorm": (74.37, 49.80, 26.63, 51.45),
}

# Table 2 of the paper, CIFAR100-LT: all, at each of these imbalance factors. Its "+ Max" is Table 1's with stage-1 WD.
FACTORS = (100, 50, 10)
TABLE_2 = {
    "naive": (38.38, 43.99, 57.31),
    "WD": (46.08, 52.71, 66.03),
    "WD + L2norm": (49.60, 56.33, 67.16),
    "WD + tau-norm": (51.31, 57.65, 67.79),
    "CB + WD": (52.42, 57.47, 67.96),
    "CB + stage-1 WD + MaxNorm": (50.24, 56.06, 67.10),
    "CB + WD + MaxNorm": (53.35, 57.71, 68.67),
}


# The released notebooks, ResNet-34, 320 epochs, imbalance factor 100: many, medium, few, all as they print them (logits
# averaged with the mirrored image, best epoch on the test set); then all of the last epoch, plain, from their logs.
RELEASED = {
    "naive": ((67.4, 38.1, 10.4, 40.0), 39.13),
    "WD": ((78.0, 46.9, 13.9, 47.9), 46.76),
    "WD + L2norm": ((77.0, 50.3, 21.6, 51.0), NAN),
    "WD + tau-norm": ((74.1, 48.8, 32.0, 52.6), NAN),
    "CB + WD + MaxNorm": ((72.2, 49.6, 34.9, 53.1), 51.83),
}
# What their cells print as their wall time, in minutes.
RELEASED_EPOCHS, RELEASED_DEVICE = 320, "RTX 3090"
RELEASED_MINUTES = {"naive": 55 + 21 / 60, "WD": 55 + 36 / 60, "CB + WD + MaxNorm": 57 / 60}

WEIGHT_BALANCING = "Alshammari et al. 2022"
DECAYED = f"{WEIGHT_BALANCING}, with weight decay"
RERUN = "rerun by BagofTricks-LT"
# Method, network, all at each of `FACTORS`, source. Best test epochs, recipes and augmentations differ: a number says
# how far a method is known to go, not what it adds here.
OTHERS = [
    ("first stage alone", "resnet34", 46.08, 52.71, 66.03, DECAYED),
    ("L2norm", "resnet34", 49.60, 56.33, 67.16, DECAYED),
    ("tau-norm", "resnet34", 51.31, 57.65, 67.79, DECAYED),
    ("CB", "resnet34", 47.09, NAN, NAN, DECAYED),
    ("CB + WD", "resnet34", 52.42, 57.47, 67.96, DECAYED),
    ("CB + MaxNorm", "resnet34", 50.20, NAN, NAN, DECAYED),
    ("CB + WD + MaxNorm", "resnet34", 53.35, 57.71, 68.67, DECAYED),
    ("LOS", "resnet34", 54.9, 58.8, 69.7, "Sun et al. 2025"),
    ("isotonic norms (SAMN)", "resnet32-wide", 54.0, 58.3, 70.1, "Zhang et al. 2026"),
    ("first stage alone", "resnet32", 38.3, 43.9, 55.7, f"{RERUN}, small weight decay"),
    ("tau-norm", "resnet32", 41.0, 45.7, NAN, RERUN),
    ("cRT", "resnet32", 40.3, 45.4, NAN, RERUN),
    ("LWS", "resnet32", 40.2, 45.2, NAN, RERUN),
    ("naive", "resnet34", 38.38, 43.99, 57.31, WEIGHT_BALANCING),
    ("LORT", "resnet34", 53.9, NAN, NAN, "Lu et al. 2024"),
    ("GLMC", "resnet32-wide", 57.97, 63.78, 73.40, "Du et al. 2023, with mixing"),
    ("GLMC + MaxNorm", "resnet32-wide", 58.41, 64.57, 74.28, "Du et al. 2023, with mixing"),
    ("Balanced Softmax, whole network", "resnet32", 43.0, 46.6, NAN, RERUN),
    ("VS loss", "resnet32", 46.26, NAN, 61.11, "rerun by wang22ti/DDC, with weight decay"),
    ("LDAM-DRW", "resnet32", 42.0, 46.6, 58.7, "Cao et al. 2019"),
    ("MiSLAS", "resnet32", 47.0, 52.3, 63.2, "Zhong et al. 2021, with mixup"),
    ("BCL", "resnet32", 51.9, 56.6, 64.9, "Zhu et al. 2022, stronger augmentation"),
    ("PaCo", "resnet32", 52.0, 56.0, 64.2, "Cui et al. 2021, AutoAugment and Cutout, 400 epochs"),
]


def methods(dataset: str, imbalance_factor: float, profile: str, backbone: str) -> dict[str, tuple[float, str]]:
    """Each method's published number, and where it is from, for this set and network; nothing for others."""
    if imbalance_factor not in FACTORS or (dataset, profile) != ("cifar100", "exp"):
        return {}
    column = 2 + FACTORS.index(imbalance_factor)
    rows = [row for row in OTHERS if row[1] == backbone and not np.isnan(row[column])]
    return {row[0]: (row[column], row[5]) for row in rows}
