"""Bills of materials: what stands in them, and whether a reader that is not ours takes them."""

import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from converter.cli import main as convert
from edge_runtime.fleet import sbom
from tests.support.builders import classification

ROOT = Path(__file__).resolve().parents[3]
READER = os.environ.get("EDGE_CYCLONEDX_PYTHON")
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
sys.exit(str(fault) if fault else 0)
"""


def wheel(folder: Path, name: str, version: str, *about: str) -> Path:
    """A wheel with nothing but its metadata."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    text = "\n".join(
        ["Metadata-Version: 2.4", f"Name: {name.replace('_', '-')}", f"Version: {version}", *about, "", ""]
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", text)
    return path


def is_valid(text: str) -> None:
    """The strict schema of CycloneDX 1.6, as its own library applies it."""
    if READER is None:
        pytest.skip("needs a reader of CycloneDX: make clients")
    done = subprocess.run([READER, "-c", VALIDATE], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """The runtime's wheel and two others."""
    return [
        wheel(tmp_path, "edge_inference_runtime", "0.1.0"),
        wheel(tmp_path, "numpy", "2.0.0", "License-Expression: BSD-3-Clause"),
        wheel(tmp_path, "pyserial", "3.5", "License: BSD"),
    ]


def test_wheels_are_listed_with_release_licence_and_digest(wheels: list[Path]) -> None:
    """Each by its own metadata; the runtime is the subject, and depends on the others."""
    found = sbom.of_wheels(wheels)
    assert found["metadata"]["component"]["name"] == "edge-inference-runtime"
    numpy, pyserial = found["components"]
    assert (numpy["name"], numpy["version"]) == ("numpy", "2.0.0")
    assert numpy["licenses"] == [{"expression": "BSD-3-Clause"}]
    assert pyserial["licenses"] == [{"license": {"name": "BSD"}}]
    assert numpy["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheels[1].read_bytes()).hexdigest()}]
    assert found["dependencies"][0]["dependsOn"] == [numpy["bom-ref"], pyserial["bom-ref"]]
    is_valid(sbom.text_of(found))


def test_equal_wheels_give_equal_bytes(wheels: list[Path]) -> None:
    """Whatever the order in which they are named; another digest gives another number."""
    first = sbom.text_of(sbom.of_wheels(wheels))
    assert first == sbom.text_of(sbom.of_wheels(wheels[::-1]))
    wheel(wheels[1].parent, "numpy", "2.0.0", "License-Expression: MIT")
    other = json.loads(sbom.text_of(sbom.of_wheels(wheels)))
    assert other["serialNumber"] != json.loads(first)["serialNumber"]


def test_a_lone_wheel_names_the_releases_that_are_installed_beside_it(wheels: list[Path]) -> None:
    """Those of the lock by which a device installs it."""
    found = sbom.of_wheels(wheels[:1], ROOT / "tests" / "locked" / "device.txt")
    assert {"numpy", "onnxruntime", "paho-mqtt", "pyserial", "msgspec"} <= {
        part["name"] for part in found["components"]
    }
    is_valid(sbom.text_of(found))


@pytest.mark.parametrize(
    ("name", "content", "answered"),
    [
        ("edge_inference_runtime-0.1.0-py3-none-any.whl", b"no zip", "expected a wheel, found another file"),
        ("other-1.0-py3-none-any.whl", b"", "expected the runtime's own wheel among the files, found 0 of them"),
    ],
)
def test_a_file_that_is_no_wheel_is_one_line(
    name: str, content: bytes, answered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is written."""
    path = tmp_path / name
    path.write_bytes(content)
    assert sbom.main([str(path), "-o", str(tmp_path / "out.json")]) == 1
    assert answered in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_bundle_names_what_it_was_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Source, framework, recordings and converter, each with its release or digest, and the bundle's own digest."""
    draft = classification()
    draft.manifest["source"] = {
        "framework": "scikit-learn", "version": "1.9.1", "digest": "a" * 64, "file": "m.skops", "converter": "0.1.0",
        "data": ["b" * 64, "c" * 64],
    }  # fmt: skip
    bundle = draft.save(tmp_path / "m.onnx")
    assert convert(["inspect", "--sbom", str(bundle)]) == 0
    text = capsys.readouterr().out
    found: dict[str, Any] = json.loads(text)
    own = hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert found["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": own}]
    parts = {part["bom-ref"]: part for part in found["components"]}
    assert parts["source"]["hashes"][0]["content"] == "a" * 64
    assert (parts["framework"]["name"], parts["framework"]["version"]) == ("scikit-learn", "1.9.1")
    assert [parts[f"data:{n}"]["hashes"][0]["content"][0] for n in (1, 2)] == ["b", "c"]
    is_valid(text)
