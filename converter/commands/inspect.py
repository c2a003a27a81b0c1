"""`edge-convert inspect`: the manifest of a bundle, for a person or (`--json`) for a program."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from edge_runtime.bundle.manifest import METADATA_KEY, Manifest, read_manifest, write_manifest
from edge_runtime.bundle.measured import read_measured, sidecar_of
from edge_runtime.errors import EXIT_OK, BundleError, CommandError
from edge_runtime.fleet.sbom import document, file_digest, text_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the whole manifest as JSON")
    how.add_argument("--sbom", action="store_true", help="print a bill of materials (CycloneDX 1.6, JSON)")


def check(options: argparse.Namespace) -> None:
    """There is nothing to check without reading the bundle."""
    del options


def run(options: argparse.Namespace) -> int:
    """Show it."""
    manifest = manifest_of(options.bundle)
    if options.json:
        print(json.dumps(json.loads(write_manifest(manifest)), indent=2, sort_keys=True))
    elif options.sbom:
        print(text_of(bill_of(manifest, options.bundle)), end="")
    else:
        for name, value in (*_lines(manifest, options.bundle.stat().st_size), _measured(options.bundle)):
            print(f"{name:<14}{value}".rstrip())
    return EXIT_OK


def manifest_of(path: Path) -> Manifest:
    """The manifest inside a bundle.

    Raises:
        CommandError: there is no such file, or it is no bundle.
    """
    import onnx  # noqa: PLC0415 - heavy

    if not path.is_file():
        raise CommandError(f"{path}: expected a bundle, found no such file")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:
        raise BundleError(f"{path}: expected an ONNX file, found a damaged, truncated or other one") from error
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return read_manifest(entry.value, str(path))
    raise BundleError(
        f"{path}: expected a bundle, found an ONNX model without a manifest: run `edge-convert build` on it"
    )


def bill_of(manifest: Manifest, bundle: Path) -> dict[str, Any]:
    """The components of a bundle as CycloneDX: the source file, its framework, the recordings, and the converter."""
    source = manifest.source
    own = hashlib.sha256(bundle.read_bytes()).hexdigest()
    subject = {
        "type": "machine-learning-model",
        "bom-ref": f"bundle:{own}",
        "name": manifest.name,
        "version": manifest.version,
        "hashes": file_digest(own),
    }
    parts: list[dict[str, Any]] = [
        {"type": "file", "bom-ref": "source", "name": source.file or "source", "hashes": file_digest(source.digest)},
        {"type": "framework", "bom-ref": "framework", "name": source.framework or "unknown", "version": source.version},
        {"type": "application", "bom-ref": "converter", "name": "edge-convert", "version": source.converter},
    ]
    parts += [
        {"type": "data", "bom-ref": f"data:{number}", "name": f"recordings {number}", "hashes": file_digest(digest)}
        for number, digest in enumerate(source.data, start=1)
    ]
    return document(subject, parts)


def _lines(manifest: Manifest, size: int) -> list[tuple[str, str]]:
    window = manifest.input.window
    lines = [
        ("name", f"{manifest.name} {manifest.version}"),
        ("task", manifest.task),
        ("bytes", f"{size:,}"),
    ]
    if manifest.input.shape is not None:
        lines.append(("input", f"a frame {' x '.join(map(str, manifest.input.shape))} {manifest.input.dtype}"))
    else:
        rate = f" at {window.rate_hz:g} Hz" if window.rate_hz else ""
        lines.append(("window", f"{window.length} readings, a new one every {window.stride}{rate}"))
    for channel in manifest.input.channels:
        limits = f" {channel.range[0]:g} to {channel.range[1]:g}" if channel.range else ""
        lines.append(("channel", f"{channel.name}{limits}{' ' + channel.unit if channel.unit else ''}"))
    if manifest.output.labels:
        lines.append(("labels", ", ".join(manifest.output.labels)))
    for target in manifest.output.targets:
        lines.append(("target", f"{target.name} {target.unit}"))
    if manifest.output.threshold is not None:
        lines.append(("threshold", f"{manifest.output.threshold:g} (a higher score is an anomaly)"))
    lines += [("state", f"{state.input} -> {state.output} {list(state.shape)}") for state in manifest.state]
    lines += _quantization(manifest.quantization)
    source, needs = manifest.source, manifest.requires
    lines += [
        ("source", f"{source.framework} {source.version}, {source.file}, sha256 {source.digest}"),
        ("converted", f"{source.converted} by edge-convert {source.converter}"),
        ("requires", f"onnxruntime {needs.onnxruntime}, opset {needs.opset}, IR {needs.ir_version}"),
        ("self-test", f"{manifest.selftest.input.shape[0]} golden rows" if manifest.selftest else "none"),
        ("batches", "any size, same answer" if manifest.batch_invariant else "the size changes the last bits"),
    ]
    return lines


def _measured(bundle: Path) -> tuple[str, str]:
    """The figures that a device measured for exactly this file, where they lie beside it."""
    found = read_measured(bundle, hashlib.sha256(bundle.read_bytes()).hexdigest())
    if found is None:
        return ("measured", f"not on a device: {sidecar_of(bundle).name} is not beside it or speaks of another file")
    return ("measured", f"{found.in_words()}, on {found.machine}, onnxruntime {found.onnxruntime}")


def _quantization(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if not facts:
        return []
    lines = [("quantised", f"{facts.get('method')}: {facts.get('reason', '')}".rstrip(": "))]
    if facts.get("metric"):
        proof = (
            f"{facts['metric']} {facts.get('source_metric'):.4f} in the source, {facts.get('final_metric'):.4f} here, "
            f"on {facts.get('rows')} rows; {facts.get('differing_labels')} labels differ"
        )
        lines.append(("proof", proof))
    left = facts.get("left_out", [])
    if left:
        words = ", ".join(f"{each['count']:,} {each['what']}" for each in left)
        lines.append(("left out", f"{sum(each['bytes'] for each in left):,} bytes: {words}"))
    layers = [
        f"{layer['name']} ({layer['operator']}) {layer['sqnr_db']:.0f} dB"
        for layer in facts.get("least_exact_layers", [])
    ]
    if layers:
        lines.append(("least exact", ", ".join(layers)))
    return lines
