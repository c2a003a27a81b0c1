"""Limits and times that the pages name are those of the code, as `test_guarantee_numbers.py` holds the guarantees.

A page is read by a person who plans with its numbers. Each stands here with the words around it, so that a change of
either side is noticed. Weak point: a number that is not listed here is not checked; figures that were
measured are no limits and have no place here.
"""

from pathlib import Path

import pytest

from converter import reference
from edge_runtime.bringup import part_writer, recorder
from edge_runtime.capture import captures, requests, tap
from edge_runtime.config.tables import TruthTable
from edge_runtime.delivery import home_assistant, outbox
from edge_runtime.drift import monitor
from edge_runtime.fleet import mqtt_transport, progress, rollout, wave_progress
from edge_runtime.http import app, connections, history, oip_v2, predict_api, request_reader, routes, scorer
from edge_runtime.mqtt import connection, password_command, subscriptions
from edge_runtime.sinks import command_sink, file_sink, http_sink
from edge_runtime.sparkplug import node
from edge_runtime.store import agreement, ota
from edge_runtime.stream import origin, rejections, score_drift, seen
from edge_runtime.truth import model_truth

DOCS = Path(__file__).resolve().parents[3] / "docs"
MIB, KIB = 1 << 20, 1 << 10
NUMBERS = [
    (
        "brokers", "pauses that stream for 5 s, doubling up to 300 s",
        (outbox.REFUSED_FIRST_S, outbox.REFUSED_MOST_S), (5, 300),
    ),
    ("brokers", "nothing in flight was acknowledged for 60 s", connection.ACKS_MOST_S, 60),
    (
        "brokers", "subscribes again after 5 s, doubling up to 600 s",
        (subscriptions.RETRY_FIRST_S, subscriptions.RETRY_MOST_S), (5, 600),
    ),
    (
        "brokers", "a fifth of its life before its end, 5 minutes at the most",
        (password_command._SHARE_AHEAD, password_command._MOST_AHEAD_S), (0.2, 300),
    ),
    ("brokers", "waits for what is in flight (1 s at the most)", connection._SETTLE_S, 1),
    ("brokers", "it is asked again every 5 s", connection._ASK_AGAIN_S, 5),
    ("captures", "the next 16 windows of the keys", tap.ALARM_WINDOWS, 16),
    ("captures", "for a day at the most", requests.LASTS_S, 86_400),
    ("captures", "once in ten seconds, or when 256 KB wait", (captures.WRITE_S, captures.WRITE_BYTES), (10, 256 * KIB)),
    ("captures", "At most 1 MB waits in memory", captures.MOST_WAITING_BYTES, MIB),
    ("captures", "stay in memory (1 MB)", tap.RECENT_BYTES, MIB),
    ("drift", "The first 256 keys are watched", monitor.MOST_STREAMS, 256),
    (
        "drift", "takes the earlier 70 % of the recordings (of eight sessions or",
        (reference.CALIBRATING_SHARE, reference._MANY_SESSIONS), (0.7, 8),
    ),
    ("drift", "Recordings of less than 30 blocks", reference.LEAST_BLOCKS, 30),
    ("fleet", "`the transfer has not moved for 60 s", mqtt_transport.SILENCE_S, 60),
    ("fleet", "With more than 20 devices, progress is one line", progress.MOST_LINES, 20),
    ("fleet", "gives its place to the next one after 30 s", rollout.STRAGGLER_S, 30),
    ("fleet", "Each wave but the last runs the new model for 30 s", rollout.DEFAULT_SOAK_S, 30),
    ("fleet", "Quantiles are of the last 4,096 windows", agreement.KEPT, 4096),
    (
        "fleet", "judged on the last 1,024 windows of both, and not before there are 500 of each",
        (score_drift.KEPT, score_drift.ENOUGH), (1024, 500),
    ),
    ("fleet", "A device that does not report within 30 s", wave_progress.SILENT_S, 30),
    ("fleet", "whose transfer does not move for 30 s", wave_progress.STALL_S, 30),
    ("formats", "An identity over 128 characters", origin.MAX_IDENTITY_CHARACTERS, 128),
    ("formats", "and has at most 200 characters", origin.MAX_KEY_CHARACTERS, 200),
    ("formats", "the last 4,096 to 8,192 readings of a source", seen.GENERATION, 4096),
    ("formats", "with at most 200 characters of the input", rejections.MOST_SAMPLE, 200),
    ("home-assistant", "from about two seconds after its first reading on", home_assistant.LOOK_S, 2),
    ("home-assistant", "at most 100 keys of a model have them", home_assistant.MOST_KEYS, 100),
    ("http", "24 keys have a card", history.MOST_KEYS, 24),
    ("http", "when the daemon's loop has not answered for 30 s", routes.STALE_S, 30),
    ("http", "New connections are accepted for 2 s more", connections.GRACE_S, 2),
    ("http", "compressed or not | 8 MiB, else 413", app.MAX_BODY_BYTES, 8 * MIB),
    ("http", "bodies of all requests together | 16 MiB, else 503", connections.MAX_BODIES_BYTES, 16 * MIB),
    ("http", "one of up to 64 KiB always has room", connections.SMALL_BODY_BYTES, 64 * KIB),
    ("http", "header | 16 KiB, else 431", request_reader.MAX_HEAD_BYTES, 16 * KIB),
    ("http", "it must have arrived after 5 s", connections.HEAD_S, 5),
    ("http", "a request must have arrived after | 30 s", connections.REQUEST_S, 30),
    ("http", "silent connections are closed after | 60 s", connections.IDLE_S, 60),
    (
        "http", "connections | 100, of which 50 from one address",
        (connections.CONNECTIONS, connections.MOST_OF_ONE_ADDRESS), (100, 50),
    ),
    ("http", "answers that clients have not read | 48 MiB together", connections.MOST_UNREAD_BYTES, 48 * MIB),
    ("http", "an answer | 16 MiB by the shape", oip_v2.MAX_ANSWER_BYTES, 16 * MIB),
    ("http", "windows that wait for a model | 32 MiB together", scorer.MAX_WAITING_BYTES, 32 * MIB),
    ("http", "64 KiB, and 64 bytes for each number", (predict_api.BYTES, predict_api.NUMBER_BYTES), (64 * KIB, 64)),
    ("http", "waiting requests | 64 for the models", scorer.MAX_WAITING, 64),
    ("http", "waiting time | 10 s for a turn", scorer.PATIENCE_S, 10),
    ("http", "windows in one call of a model | 256", scorer.MAX_WINDOWS, 256),
    ("ota", "A missing chunk is requested again after 5 s", ota.ASK_AGAIN_S, 5),
    ("ota", "when the first has brought no chunk for 10 s", ota.TAKE_OVER_S, 10),
    ("ota", "publishes `receiving` every 2 s", ota.PROGRESS_S, 2),
    ("ota", "A sender without an answer for 5 s repeats the offer", mqtt_transport.OFFER_AGAIN_S, 5),
    ("ota", "It gives up after 60 s without a byte", mqtt_transport.SILENCE_S, 60),
    ("ota", "A device that receives nothing for 120 s ends the transfer", ota.PATIENCE_S, 120),
    ("payloads", "waits in memory, up to 1,000 predictions", node.MOST_WAITING, 1000),
    ("payloads", "At most 1,000 devices", node.MOST_DEVICES, 1000),
    ("sinks", "and synchronised within a second", file_sink.SYNC_S, 1),
    ("sinks", "While the disk is full, 1 MiB in memory", file_sink.WAITING_BYTES, MIB),
    ("sinks", "without a state folder, 4 MiB of memory", http_sink.MEMORY_BYTES, 4 * MIB),
    ("sinks", "32 predictions wait; then", command_sink.MOST_WAITING, 32),
    (
        "sinks", "tried again after 1 to 30 seconds",
        (file_sink._FIRST_PAUSE_S, file_sink._LONGEST_PAUSE_S), (1, 30),
    ),
    ("truth", "at most `tolerance` (1 s) away", TruthTable().tolerance, 1),
    ("truth", "it waits for 10 seconds, and counts as `unknown`", model_truth.WAIT_S, 10),
    ("truth", "within `tolerance` of it, waits for 2 seconds", model_truth.NEAR_WAIT_S, 2),
    ("truth", "At most 1,000 truths of each model wait", model_truth.MOST_EARLY, 1000),
    ("bringup", "written and synchronised twice a second", part_writer.WRITE_S, 0.5),
    ("bringup", "ten seconds after the first reading", recorder.DESCRIBE_S, 10.0),
    ("bringup", "Once a second the terminal shows", recorder.SHOW_S, 1.0),
    ("truth", "wait for their truth, 1,000 by default", TruthTable().remember, 1000),
]  # fmt: skip


@pytest.mark.parametrize(
    ("page", "sentence", "found", "promised"), NUMBERS, ids=[f"{page}: {words[:40]}" for page, words, *_ in NUMBERS]
)
def test_a_number_of_a_page_is_that_of_the_code(page: str, sentence: str, found: object, promised: object) -> None:
    """The words stand on the page, and the code keeps them."""
    assert sentence in " ".join((DOCS / f"{page}.md").read_text().split())
    assert found == promised
