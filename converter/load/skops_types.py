"""The types of a skops file that need no `--trust`: exact names, each required by an estimator that converts.

skops trusts the public estimators of scikit-learn, numpy's dtypes and element-wise functions itself, and reports other
types. `python -m benchmarks.skops_names` lists the reported types for every estimator of scikit-learn. The names below
were taken from that list one by one, after a review of what the constructor and `__setstate__` do with text from the
file. A package is never trusted as a whole: `scipy.stats` has a class whose `__setstate__` executes its state, and
numpy has one that opens files.
"""

from collections.abc import Iterable, Mapping

# Module -> names, with their users. None of them reads files, imports modules or calls objects that its state names.
_EXACT: Mapping[str, tuple[str, ...]] = {
    # Trees and forests, boosting, isolation forests: arrays of nodes.
    "sklearn.tree._tree": ("Tree",),
    # Histogram boosting: arrays of nodes, and the borders of bins.
    "sklearn.ensemble._hist_gradient_boosting.predictor": ("TreePredictor",),
    "sklearn.ensemble._hist_gradient_boosting.binning": ("_BinMapper",),
    # Boosting and generalised linear models: loss and link functions, which hold numbers.
    "sklearn._loss.loss": (
        "AbsoluteError", "ExponentialLoss", "HalfBinomialLoss", "HalfGammaLoss", "HalfMultinomialLoss",
        "HalfPoissonLoss", "HalfSquaredError", "HalfTweedieLoss", "HalfTweedieLossIdentity", "HuberLoss", "PinballLoss",
    ),
    "sklearn._loss.link": (
        "HalfLogitLink", "IdentityLink", "Interval", "LogLink", "LogitLink", "MultinomialLogit",
    ),
    "sklearn._loss._loss": (
        "CyAbsoluteError", "CyExponentialLoss", "CyHalfBinomialLoss", "CyHalfGammaLoss", "CyHalfMultinomialLoss",
        "CyHalfPoissonLoss", "CyHalfSquaredError", "CyHalfTweedieLoss", "CyHalfTweedieLossIdentity", "CyHuberLoss",
        "CyPinballLoss",
    ),
    # Linear models by stochastic gradient descent: loss functions, which hold numbers.
    "sklearn.linear_model._sgd_fast": (
        "EpsilonInsensitive", "Hinge", "SquaredEpsilonInsensitive", "SquaredHinge",
    ),
    # Neighbours and local outlier factor: arrays, and distances.
    "sklearn.neighbors._kd_tree": ("KDTree", "KDTree32", "KDTree64", "newObj"),
    "sklearn.neighbors._ball_tree": ("BallTree", "BallTree32", "BallTree64", "newObj"),
    "sklearn.metrics._dist_metrics": (
        "ChebyshevDistance", "ChebyshevDistance64", "EuclideanDistance", "EuclideanDistance64", "ManhattanDistance",
        "ManhattanDistance64", "MinkowskiDistance", "MinkowskiDistance64", "newObj",
    ),
    # Networks: the state of the training (numbers).
    "sklearn.neural_network._stochastic_optimizers": ("AdamOptimizer", "SGDOptimizer"),
    # Calibration: two numbers a class, or the points of a line.
    "sklearn.calibration": ("_CalibratedClassifier", "_SigmoidCalibration"),
    # Gaussian processes: arrays, and kernels made of numbers.
    "sklearn.gaussian_process._gpc": ("_BinaryGaussianProcessClassifierLaplace",),
    "sklearn.gaussian_process.kernels": (
        "ConstantKernel", "DotProduct", "ExpSineSquared", "Exponentiation", "Hyperparameter", "Matern", "Product",
        "RBF", "RationalQuadratic", "Sum", "WhiteKernel",
    ),
    # One class against the rest: a constant where training saw one class.
    "sklearn.multiclass": ("_ConstantPredictor",),
    # Column transformers: lists of columns.
    "sklearn.compose._column_transformer": ("_RemainderColsList",),
    # Searches: the split of the rows, which prediction does not use.
    "sklearn.model_selection._split": (
        "GroupKFold", "KFold", "ShuffleSplit", "StratifiedGroupKFold", "StratifiedKFold", "StratifiedShuffleSplit",
        "TimeSeriesSplit",
    ),
    # Searches and tuned thresholds: the name of a score.
    "sklearn.metrics._scorer": ("_CurveScorer", "_PassthroughScorer", "_Scorer"),
    # Selection of columns: scores of columns, which prediction does not call.
    "sklearn.feature_selection._univariate_selection": (
        "chi2", "f_classif", "f_oneway", "f_regression", "r_regression",
    ),
    "sklearn.feature_selection._mutual_info": ("mutual_info_classif", "mutual_info_regression"),
    # Metrics in a search's scorer, which prediction does not call.
    "sklearn.metrics._classification": (
        "accuracy_score", "balanced_accuracy_score", "f1_score", "log_loss", "matthews_corrcoef", "precision_score",
        "recall_score",
    ),
    "sklearn.metrics._ranking": ("average_precision_score", "roc_auc_score"),
    "sklearn.metrics._regression": ("mean_absolute_error", "mean_squared_error", "r2_score", "root_mean_squared_error"),
    # Containers of numbers.
    "sklearn.utils._bunch": ("Bunch",),
    "scipy.sparse._csr": ("csr_array", "csr_matrix"),
    "scipy.sparse._csc": ("csc_array", "csc_matrix"),
    # Random generators, and functions of one number, which some releases of skops report.
    "numpy.random._mt19937": ("MT19937",),
    "numpy.random._pcg64": ("PCG64",),
    "numpy": ("dtype",),
    "scipy.special": ("expit", "logit"),
    # Our own features; `converter.audio` is their module in version 0.1.
    "converter.features": ("MFCC", "MelSpectrogram", "STFT", "WindowFeatures"),
    "converter.audio": ("MFCC", "MelSpectrogram", "STFT"),
}  # fmt: skip

TRUSTED = frozenset(f"{module}.{name}" for module, names in _EXACT.items() for name in names)


def untrusted(names: Iterable[str]) -> list[str]:
    """The names that neither skops nor this list trusts."""
    return sorted(set(names) - TRUSTED)
