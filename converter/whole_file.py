"""The file around a graph: its manifest with golden rows and the record of the search, and the size of the file.

Forms are compared by the sizes of whole files. The record of the search holds these sizes and is itself a part of the
file, so it is rewritten until the figures match the file.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import onnx

from converter.choice import Form, Found
from converter.graph.shrink import Saving
from converter.layers import Layer, worst_of
from converter.load.source import SourceModel
from converter.package import bundle_bytes, is_batch_invariant, make_manifest, self_test
from converter.plan import BundlePlan
from converter.record import record_of
from converter.reference import BundleReference
from converter.search import Bench
from converter.session import CHUNK, run, session_of, start_of
from converter.uncertainty import HeldOut, in_words, uncertainty_of
from edge_runtime.bundle.manifest import Manifest, Uncertainty

_ROUNDS = 8  # the second round normally confirms the figures; a third is needed if a number gains a digit


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WholeFile:
    """The content of a bundle beside its graph.

    Attributes:
        source: the source model.
        plan: the bundle's facts.
        reference: the distributions of the training data and of the answers to them.
        options: of the user.
        target: the device that it is for, or None.
        metric: its name.
        savings: the removed parts of the graph.
        held: the rows that calibrate uncertainty; None without `[uncertainty]`.
    """

    source: SourceModel
    plan: BundlePlan
    reference: BundleReference
    options: argparse.Namespace
    target: str | None
    metric: str
    savings: Sequence[Saving]
    held: HeldOut | None = None

    def bytes_beside(self, base: Form, bench: Bench) -> int:
        """The approximate bytes of a file beside its graph, for any form."""
        manifest = self._manifest(base, bench, invariant=bench.batch_free)
        whole, _ = self._settled(Found((base,), base, ""), bench, manifest, (), drift=())
        return whole.forms[0].manifest_bytes

    def of(self, found: Found, bench: Bench, layers: Sequence[Layer], drift: Sequence[str]) -> tuple[Found, bytes]:
        """The search with the sizes of whole files, and the file of the kept form."""
        assert found.kept is not None
        model = found.kept.candidate.model
        invariant = bench.batch_free and is_batch_invariant(model, bench.evaluation, start_of(bench.states))
        return self._settled(found, bench, self._manifest(found.kept, bench, invariant=invariant), layers, drift=drift)

    def about_uncertainty(self, form: Form, bench: Bench) -> list[str]:
        """The uncertainty of a form, in sentences."""
        made = self._uncertainty(form, bench)
        return [] if made is None or self.held is None else in_words(made, self.held, form.answer, bench.truth)

    def _uncertainty(self, form: Form, bench: Bench) -> Uncertainty | None:
        if self.held is None:
            return None
        together = bench.batch_free and form.candidate.method != "dynamic"
        session = session_of(form.candidate.model)
        found = run(session, self.held.windows, CHUNK if together else 1, start_of(bench.states))
        return uncertainty_of(self.held.spec, (found, self.held.truth), (form.answer, bench.truth))

    def _manifest(self, form: Form, bench: Bench, *, invariant: bool) -> Manifest:
        """The manifest of a form, without the record of the search."""
        options, data = self.options, form.candidate.model
        model = onnx.load_model_from_string(data)
        golden = self_test(
            data, bench.evaluation, form.answer, start_of(bench.states), invariant=invariant,
            rough=form.candidate.method != "none" or is_quantised(model), kind=self.plan.input.dtype,
        )  # fmt: skip
        return make_manifest(
            self.plan, self.source, options.model, model, selftest=golden, reference=self.reference, quantization={},
            batch_invariant=invariant, target_device=self.target, batch_free=bench.batch_free, states=bench.states,
            recordings=[each for each in (options.data, options.calibration, options.evaluation) if each],
            uncertainty=self._uncertainty(form, bench),
        )  # fmt: skip

    def _settled(
        self, found: Found, bench: Bench, manifest: Manifest, layers: Sequence[Layer], *, drift: Sequence[str]
    ) -> tuple[Found, bytes]:
        asked, data = (self.options.quantize, self.options.max_drop), b""
        for _ in range(_ROUNDS):
            assert found.kept is not None
            record = record_of(
                found, bench, self.metric, asked, savings=self.savings, layers=worst_of(layers), drift=drift
            )
            model = onnx.load_model_from_string(found.kept.candidate.model)
            data = bundle_bytes(model, msgspec.structs.replace(manifest, quantization=record))
            if len(data) == found.kept.size:
                break
            beside = len(data) - len(found.kept.candidate.model)
            forms = tuple(replace(form, manifest_bytes=beside) for form in found.forms)
            found = Found(forms, forms[found.forms.index(found.kept)], found.reason)
        return found, data


def is_quantised(model: onnx.ModelProto) -> bool:
    """Whether a graph rounds to whole numbers."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)
