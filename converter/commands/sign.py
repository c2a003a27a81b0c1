"""`edge-convert sign`: sign a bundle that is there already."""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from converter.signing import remove_release, sign, sign_again, sign_release
from edge_runtime.errors import EXIT_OK, BundleError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--key", type=Path, required=True, help="the private key, as made by `edge-convert keygen`")
    parser.add_argument("--second", action="store_true", help="add the signature of a second key to a signed bundle")
    parser.add_argument(
        "--sequence", type=int, metavar="N", help="the number of this release, which only rises; default: the time"
    )
    parser.add_argument(
        "--expires", type=_day, metavar="YYYY-MM-DD", help="devices do not install it after this day (UTC)"
    )


def run(options: argparse.Namespace) -> int:
    """Sign it."""
    if options.second:
        for path in sign_again(options.bundle, options.key):
            print(f"wrote {path}")
        return EXIT_OK
    print(f"wrote {sign(options.bundle, options.key)}")
    remove_release(options.bundle)
    try:
        release = sign_release(options.bundle, options.key, sequence=options.sequence, expires=options.expires)
    except BundleError as error:  # a file that is no bundle can be signed too
        print(f"no release document is written: {error}", file=sys.stderr)
        return EXIT_OK
    print(f"wrote {release} and its signature")
    return EXIT_OK


def _day(text: str) -> int:
    """The end of a day as Unix time."""
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a day such as 2027-06-30, found {text}") from error
    return int((day + timedelta(days=1)).timestamp())
