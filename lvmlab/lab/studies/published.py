"""Figures that others published, for notebooks to compare with."""

# training, student, teacher, A100 cards, hours: second-hand notes on DeLVM (arXiv 2402.04841), not its paper
DELVM_HOURS = [
    ("1b", "1b", None, 16, 324),
    ("300m", "300m", None, 16, 126),
    ("300m + KD", "300m", "1b", 16, 235),
    ("80m", "80m", None, 8, 65),
    ("80m + KD", "80m", "1b", 8, 82),
]
