"""Any bytes, in numbers: short on every run, long with EDGE_TORTURE=long."""

import os
import resource
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutations
from tests.fuzz.targets import SEEDS, TARGETS
from tests.support.disk_faults import LONG

INPUTS = int(os.environ.get("EDGE_FUZZ_INPUTS", "1000000" if LONG else "0"))
EXAMPLES = max(150, INPUTS // 100)
# The configuration reads a file for each input; give it its share by what an input costs.
SHORT = {"framing": 4000, "cobs": 3000, "codecs": 2500, "binary_codecs": 4000, "configuration": 400, "manifest": 6000}
SHORT |= {"http_requests": 4000, "mqtt_packets": 4000}
SHARE = {"framing": 0.12, "cobs": 0.1, "codecs": 0.15, "binary_codecs": 0.15, "configuration": 0.05, "manifest": 0.13}
SHARE |= {"http_requests": 0.15, "mqtt_packets": 0.15}

fuzz = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=not INPUTS, suppress_health_check=[HealthCheck.too_slow]
)


def mixed(name: str) -> st.SearchStrategy[bytes]:
    """Plain bytes, lines of them, and good inputs with a piece replaced."""
    piece = st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace")))
    spliced = st.builds(
        lambda seed, at, gone, new: seed[: at % (len(seed) + 1)] + new + seed[at % (len(seed) + 1) + gone :],
        st.sampled_from(SEEDS[name]),
        st.integers(min_value=0, max_value=100_000),
        st.integers(min_value=0, max_value=12),
        piece,
    )
    return st.one_of(spliced, st.lists(piece, max_size=6).map(b"\n".join))


@pytest.mark.parametrize("name", list(TARGETS))
def test_any_bytes_are_survived(name: str) -> None:
    """No bytes, however odd, break a promise of the part that reads them first."""

    @fuzz
    @given(mixed(name))
    def survives(data: bytes) -> None:
        TARGETS[name](data)

    survives()


@pytest.mark.parametrize("name", list(TARGETS))
def test_mutated_inputs_are_survived(name: str) -> None:
    """Thousands of inputs that are nearly right break no promise."""
    for data in mutations(SEEDS[name], SHORT[name], seed=4):
        TARGETS[name](data)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not INPUTS, reason="long form: EDGE_TORTURE=long, or EDGE_FUZZ_INPUTS=N")
@pytest.mark.parametrize("name", list(TARGETS))
def test_a_million_mutated_inputs_are_survived_without_growth(name: str) -> None:
    """A million inputs, shared out over the targets, crash nothing, hang nothing and leave no memory behind."""
    count = int(INPUTS * SHARE[name])
    target, slowest, begin = TARGETS[name], 0.0, time.process_time()
    baseline = 0
    for index, data in enumerate(mutations(SEEDS[name], count, seed=count)):
        start = time.process_time()
        target(data)
        slowest = max(slowest, time.process_time() - start)
        if index == count // 10:  # warm: pools of the allocator and caches are full
            baseline = _peak_kib()
    growth = (_peak_kib() - baseline) / 1024
    spent = time.process_time() - begin
    print(f"\n{name}: {count} inputs, {spent:.0f} s CPU, slowest {slowest * 1e3:.1f} ms, growth {growth:.1f} MiB")  # noqa: T201
    assert growth < 20


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
