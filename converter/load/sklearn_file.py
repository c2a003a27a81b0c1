"""Files of scikit-learn: reads pickle, joblib and skops files, and refuses code that the user does not trust."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converter.load.skops_types import untrusted
from converter.load.source import SourceModel
from converter.spec import ChannelSpec
from edge_runtime.errors import CommandError


def read_pickle(path: Path, trust: bool) -> tuple[Any, str]:
    """The estimator, and the release of scikit-learn that made it, if it differs from the installed one.

    Raises:
        CommandError: it is not trusted, damaged, or needs a package that is not installed.
    """
    if not trust:
        raise CommandError(
            f"{path}: this is a pickle, which can run any code while it is loaded: nothing of it was read. "
            "If you trust where it comes from, add --trust; better, save the model with skops.io.dump"
        )
    import joblib  # noqa: PLC0415 - heavy, and it reads plain pickles too

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator = joblib.load(path)
        versions = [getattr(each.message, "original_sklearn_version", "") for each in caught]
        return estimator, next(filter(None, versions), "")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise CommandError(
            f"{path}: it needs the package {package!r}, which is not installed: install it, in the release that the "
            "model was trained with, so that the model can be asked"
        ) from error
    except Exception as error:
        raise CommandError(f"{path}: cannot be unpickled: {type(error).__name__}: {error}") from error


def read_skops(path: Path, trust: bool) -> Any:
    """The estimator in a skops file.

    Raises:
        CommandError: it is damaged, or has types that are not trusted.
    """
    import skops.io  # noqa: PLC0415 - heavy

    try:
        names = skops.io.get_untrusted_types(file=path)
    except Exception as error:
        raise CommandError(f"{path}: cannot be read as a skops file: {type(error).__name__}: {error}") from error
    strange = untrusted(names)
    if strange and not trust:
        raise CommandError(
            f"{path}: it needs types that are not trusted: {', '.join(strange)}: "
            "look at them, and add --trust if you trust where the file comes from"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return skops.io.load(path, trusted=names)
    except Exception as error:
        raise CommandError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from error


def booster_model(booster: Any, module: str, path: Path, channels: Sequence[ChannelSpec]) -> SourceModel:
    """A pickled booster as a model of its own framework."""
    if module == "lightgbm":
        from converter.load.lightgbm import LightgbmModel  # noqa: PLC0415 - an extra

        return LightgbmModel(booster, str(path), channels)
    from converter.load.xgboost import XgboostModel  # noqa: PLC0415 - an extra

    return XgboostModel(booster, str(path), channels)
