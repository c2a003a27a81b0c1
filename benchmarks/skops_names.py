"""The names that skops asks about in files of scikit-learn's estimators: the raw material of `load/skops_types.py`.

`python -m benchmarks.skops_names` prints each name, the estimators that need it, and whether it is on our list. A name
that is not gets there by hand, after a look at what its construction does with text from a file.
"""

import sys
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import skops.io
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.utils import all_estimators

from converter.load.skops_types import untrusted

_SHOWN = 4


def asked_about() -> dict[str, list[str]]:
    """Name -> the estimators whose files hold it."""
    x, y = make_classification(120, 6, n_informative=4, n_redundant=0, n_classes=3, random_state=0)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, kind in all_estimators():
        for each in _names_of(kind, np.abs(x), y):
            found[each].append(name)
    return dict(found)


def _names_of(kind: Any, x: Any, y: Any) -> list[str]:
    try:
        try:
            estimator = kind()
        except TypeError:
            estimator = kind(LogisticRegression())
        data = skops.io.dumps(estimator.fit(x, y))
        return list(skops.io.get_untrusted_types(data=data))
    except Exception as error:  # noqa: BLE001 - an estimator that does not fit this data is none that we list
        print(f"left out: {kind.__name__}: {str(error).splitlines()[0][:80]}", file=sys.stderr)
        return []


def main() -> int:
    """Print the list."""
    warnings.simplefilter("ignore")
    for name, estimators in sorted(asked_about().items()):
        mark = "needs --trust" if untrusted([name]) else "trusted"
        print(f"{name:<70} {mark:<14} {', '.join(estimators[:_SHOWN])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
