"""Which types of a skops file are trusted."""

import pytest

from converter.load.skops_types import untrusted


@pytest.mark.parametrize(
    "name",
    [
        "sklearn.tree._tree.Tree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "numpy.random._mt19937.MT19937",
        "scipy.special.expit",
        "converter.features.WindowFeatures",
    ],
)
def test_types_of_the_scientific_packages_are_trusted(name: str) -> None:
    """scikit-learn's own types need no --trust, although skops asks."""
    assert untrusted([name]) == []


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "sklearn.os.system",
        "sklearn.utils._testing.raises",
        "sklearn.conftest.fetch_california_housing_fxt",
        "sklearn.datasets.fetch_openml",
        "sklearn.show_versions",
        "numpy.f2py.crackfortran.myeval",
        "numpy.load",
        "numpy.memmap",
        "numpy.testing._private.utils.runstring",
        "scipy.io.loadmat",
        "sklearn.metrics.numbers.Integral",
        "sklearn",
        "sklearnish.Tree",
        "converter.features.np",
        "xgboost.core.Booster",
        "no.such.Thing",
        "sklearn.no_such",
    ],
)
def test_functions_and_strangers_are_not(name: str) -> None:
    """A function that the file names is code that the file chose; neither is a class that only passes through."""
    assert untrusted([name]) == [name]
