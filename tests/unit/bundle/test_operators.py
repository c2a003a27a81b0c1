import onnx

from edge_runtime.bundle import operators


def _known(domain: str) -> set[str]:
    return {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == domain}


def test_every_standard_operator_is_either_allowed_or_refused_on_purpose() -> None:
    """The list is complete for the installed standard: a new operator makes this fail until it is judged."""
    assert _known("") <= operators.STANDARD | operators.REFUSED_STANDARD
    assert _known("ai.onnx.ml") <= operators.ML | operators.REFUSED_ML
    assert not operators.STANDARD & operators.REFUSED_STANDARD
    assert not operators.ML & operators.REFUSED_ML


def test_an_operator_of_a_foreign_domain_is_not_allowed() -> None:
    """The name of a standard operator does not help it in another domain."""
    assert operators.is_allowed("", "Relu")
    assert not operators.is_allowed("com.example", "Relu")
    assert not operators.is_allowed("com.microsoft", "FusedConv")
    assert not operators.is_allowed("", "RandomNormal")
