"""Which types of a skops file are trusted."""

import pytest

from converter.load.skops_types import TRUSTED, untrusted


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
        "scipy.stats._distn_infrastructure.rv_continuous",
        "scipy.stats._distn_infrastructure.rv_discrete",
        "scipy.io._fortran.FortranFile",
        "scipy.io._netcdf.netcdf_file",
        "numpy.lib._npyio_impl.NpzFile",
        "numpy.lib._datasource.DataSource",
        "numpy._pytesttester.PytestTester",
        "sklearn.utils._testing.TempMemmap",
        "sklearn.utils._joblib.Memory",
        "sklearn.externals._packaging.version.Version",
        "sklearn.tree._tree",
        "sklearn.tree._tree.Tree.predict",
        "no.such.Thing",
        "sklearn.no_such",
    ],
)
def test_functions_and_strangers_are_not(name: str) -> None:
    """A function that the file names is code that the file chose; neither is a class that only passes through."""
    assert untrusted([name]) == [name]


def test_the_list_holds_names_and_no_packages() -> None:
    """Each name is that of one class or function; none of them is a module, and none stands for others."""
    assert all(name.count(".") >= 1 and "*" not in name for name in TRUSTED)
    assert not {name for name in TRUSTED if any(other.startswith(f"{name}.") for other in TRUSTED)}
