"""A bill of materials in CycloneDX 1.6: `python -m edge_runtime.fleet.sbom FILE... -o OUT.cdx.json`.

For wheels (of a wheelhouse or of `dist`) it lists name, release, licence and digest from their metadata; `edge-convert
inspect --sbom` fills the same `document` for a bundle. Equal files give equal bytes: no time and no random number is
written. Weak point: third-party libraries inside a wheel are not listed.
"""

import argparse
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from edge_runtime import __version__
from edge_runtime.errors import EXIT_FAILED, EXIT_OK, CommandError, EdgeError
from edge_runtime.fleet.wheels import DISTRIBUTION
from edge_runtime.system.durable import replace_file

Component = dict[str, Any]


def document(subject: Component, parts: Iterable[Component]) -> dict[str, Any]:
    """The whole document.

    Args:
        subject: what the document is about.
        parts: what it is made of; each with a `bom-ref` of its own.
    """
    components = sorted(parts, key=lambda part: str(part["bom-ref"]))
    body = {
        "metadata": {
            "component": subject,
            "tools": {"components": [{"type": "application", "name": "edge-runtime", "version": __version__}]},
        },
        "components": components,
        "dependencies": [
            {"ref": subject["bom-ref"], "dependsOn": [part["bom-ref"] for part in components]},
            *({"ref": part["bom-ref"]} for part in components),
        ],
    }
    # The same content has the same number (RFC 4122, version 5), so that two builds can be compared.
    number = uuid5(NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{number}", "version": 1, **body}


def file_digest(digest: str) -> list[dict[str, str]]:
    """A SHA-256 in hex as CycloneDX writes it; nothing for an empty one."""
    return [{"alg": "SHA-256", "content": digest}] if digest else []


def wheel_component(path: Path) -> Component:
    """One wheel, by its own METADATA (core metadata 2.x).

    Raises:
        CommandError: the file is no wheel.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            name = next(each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
            about = HeaderParser().parsestr(wheel.read(name).decode("utf-8", "replace"))
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise CommandError(f"{path}: expected a wheel, found another file: {str(error) or 'no METADATA'}") from error
    purl = f"pkg:pypi/{about['Name'].lower().replace('_', '-')}@{about['Version']}"
    return {
        "type": "library",
        "bom-ref": f"{purl}?file_name={path.name}",
        "name": about["Name"],
        "version": about["Version"],
        "purl": f"{purl}?file_name={path.name}",
        "hashes": file_digest(hashlib.sha256(path.read_bytes()).hexdigest()),
        **_licences(about["License-Expression"], about["License"]),
    }


def of_wheels(files: Sequence[Path], lock: Path | None = None) -> dict[str, Any]:
    """The runtime's wheel, and those that are installed beside it: as files, or as the releases of a lock.

    Raises:
        CommandError: the runtime's own wheel is not among them.
    """
    own = [path for path in files if path.name.startswith(f"{DISTRIBUTION}-")]
    if len(own) != 1:
        raise CommandError(f"expected the runtime's own wheel among the files, found {len(own)} of them: `make wheel`")
    subject = wheel_component(own[0]) | {"type": "application"}
    beside = [wheel_component(path) for path in files if path != own[0]]
    return document(subject, beside + (_releases(lock) if lock is not None else []))


def text_of(document: dict[str, Any]) -> str:
    """A document as it is written to a file."""
    return json.dumps(document, indent=2) + "\n"


def _releases(lock: Path) -> list[Component]:
    """The packages of a lock. Which file of a release is taken depends on the device, so that no digest is given."""
    found = (line.split(" ")[0].split("==") for line in lock.read_text().splitlines() if re.match(r"[\w.-]+==", line))
    purls = [(name, version, f"pkg:pypi/{name}@{version}") for name, version in found]
    return [
        {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
        for name, version, purl in purls
    ]


def _licences(expression: str | None, text: str | None) -> dict[str, Any]:
    if expression:
        return {"licenses": [{"expression": expression}]}
    first = (text or "").strip().split("\n")[0]
    return {"licenses": [{"license": {"name": first}}]} if first else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the document of some wheels."""
    parser = argparse.ArgumentParser(prog="sbom", description="Write a bill of materials (CycloneDX) of wheels.")
    parser.add_argument("wheels", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--lock", type=Path, help="what is installed beside them, as exact releases")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    args = parser.parse_args(arguments)
    try:
        text = text_of(of_wheels(args.wheels, args.lock))
        replace_file(args.output, text.encode())
    except (EdgeError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
