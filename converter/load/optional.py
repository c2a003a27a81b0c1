"""Optional frameworks: the message about a missing one contains the command that installs it."""

import importlib
import warnings
from typing import Any

from edge_runtime.errors import CommandError


def require(package: str, place: object, extra: str = "") -> Any:
    """Import an optional framework.

    Args:
        package: the module to import.
        place: the model file that needs it, for the message.
        extra: the extra of this project that installs it, if its name differs.

    Raises:
        CommandError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package.split(".", maxsplit=1)[0]:
            raise
        raise CommandError(
            f"{place}: this model needs {package}, which is not installed: "
            f"pip install 'edge-inference-runtime[convert,{extra or package}]'"
        ) from error
