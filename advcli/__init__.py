"""advcli: adversarial training and honest robustness evaluation of image classifiers."""

__version__ = "0.1.0"
