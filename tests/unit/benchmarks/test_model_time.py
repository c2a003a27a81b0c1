"""The benchmarks run, and what they compare is comparable."""

import json
import os
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks import growth, growth_steps, model_time, paced_instructions, wire
from benchmarks.converted import Samples
from benchmarks.models import write_bundle
from benchmarks.names import LABELS
from benchmarks.peers.floor import payload
from edge_runtime.bundle.open import open_bundle
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.readings import Prediction


def test_the_floor_publishes_what_the_daemon_publishes(tmp_path: Path) -> None:
    """Field by field, in the same order and nearly as many bytes, so that the two differ in their work alone."""
    manifest = open_bundle(write_bundle(tmp_path / "mlp.onnx")).manifest
    scores = np.array([0.25, 0.625, 0.125], np.float32)
    encoder = JsonPayload(device="bench", model="mlp", source="machine", start=1, manifest=manifest, threshold=None)
    prediction = Prediction(key=None, time=1e9, seq=7, identity=None, label=LABELS[1], score=scores[1], scores=scores)
    ours, floor = encoder.encode(prediction), payload(7, 1, scores.tolist())
    assert list(json.loads(floor)) == list(json.loads(ours))
    assert {name: type(value) for name, value in json.loads(floor).items()} == {
        name: type(value) for name, value in json.loads(ours).items()
    }
    assert abs(len(floor) - len(ours)) <= 2


def test_a_paced_reading_is_answered_under_the_counting_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The floor answers each reading of the benchmark's broker; a stand-in for valgrind prints one count a reading."""
    programs = {
        "valgrind": 'shift 3\n"$@" & child=$!\ntrap \'kill $child\' TERM\nwait $child\necho "Collected : 3000"\n',
        "callgrind_control": f'echo "$2" >> {tmp_path / "switched"}\necho OK\n',
    }
    for name, program in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    model = write_bundle(tmp_path / "mlp.onnx")
    for identity in (False, True):
        assert paced_instructions.per_reading("floor", tmp_path, model, 3, identity=identity) == 1000.0
    assert (tmp_path / "switched").read_text().split() == ["on", "off"] * 2


def test_the_readings_that_are_counted_are_the_same_for_every_target() -> None:
    """With an identity each has the next number."""
    plain, numbered = (list(islice(paced_instructions._payloads(identity=each), 3)) for each in (False, True))
    assert [json.loads(payload) | {"seq": number} for number, payload in enumerate(plain, 1)] == [
        json.loads(payload) for payload in numbered
    ]


def test_the_steps_of_a_daemon_are_counted_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings of two sources with two topics each are answered; a reading takes some thousand steps."""
    monkeypatch.setattr(growth_steps, "CALM_SECONDS", 0.0)
    size = growth.Size(models=2, sources=2, topics=2)
    assert len(set(islice(growth_steps._messages(size), 4))) == 4
    assert 1_000 < growth_steps.steps(tmp_path, size, readings=8) < 100_000


def test_every_filter_of_a_subscription_is_granted() -> None:
    """MQTT 3.1.1 section 3.9: a return code for each, behind the packet's number."""
    filters = b"".join(len(name).to_bytes(2, "big") + name + b"\1" for name in (b"a/+", b"b", b"c/#"))
    assert wire.suback(b"\0\7" + filters) == b"\x90\x05\0\7\1\1\1"
    assert wire.suback(b"\0\7" + filters * 100)[:3] == bytes([0x90, 302 % 128 | 128, 302 // 128])


def test_models_are_timed_beside_their_peers(tmp_path: Path) -> None:
    """The quick form of one forest: both answer the same and have their times; a library that is missing is named."""
    collected: list[str] = []
    lines, failed = model_time.run(
        ["random forest, 10 trees"], tmp_path / "nowhere", sys.executable, quick=True, say=collected.append
    )
    assert failed == 0, collected
    (line,) = lines
    assert {"runtime", "scikit-learn"} <= set(line.one) == set(line.many)
    assert all(time > 0 for time in (*line.one.values(), *line.many.values()))
    assert line.apart["scikit-learn"] < 1e-6
    assert model_time.row(line).startswith("| random forest, 10 trees |")
    assert "one window: at most 1.0 of the best other in " in model_time.summary(lines)
    for peer in model_time.SCIPY_PEERS:
        skipped = f"SKIPPED {peer}: expected the package treelite, found none: install it, or name --peers"
        assert (
            peer in line.one
            or skipped in collected
            or skipped.replace("package treelite", f"package {peer}") in collected
        )


def test_a_peer_that_computes_something_else_is_no_peer(tmp_path: Path) -> None:
    """Answers are compared before anything is timed, and the difference is printed."""
    subject = next(each for each in model_time.subjects() if each.name == "random forest, 10 trees")

    def other(data: Path, folder: Path) -> tuple[Path, Path, Samples, Samples]:
        model, _, calibration, rows = subject.prepare(data, folder)
        (folder / "other").mkdir()
        _, original, *_ = model_time._forest(3)(data, folder / "other")
        return model, original, calibration, rows

    wrong = model_time.Subject("another forest", other, ("scikit-learn",), "", needs_data=False)
    with pytest.raises(RuntimeError, match=r"scikit-learn: expected the same answers within 0\.0001, found"):
        model_time.measure(wrong, tmp_path, tmp_path, sys.executable, quick=True, say=print)


def test_a_data_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    """Its models are left out, and the rest is measured."""
    collected: list[str] = []
    lines, failed = model_time.run(
        ["sine, int8"], tmp_path / "nowhere", sys.executable, quick=True, say=collected.append
    )
    assert (lines, failed) == ([], 0)
    assert collected == [
        f"SKIPPED sine, int8 TFLite: expected the folder of models and recordings at {tmp_path / 'nowhere'}, found none"
    ]
