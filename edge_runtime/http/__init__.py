"""Predictions on demand, a status page and metrics. Imported only for `[http]` and `serve`.

::

    in_daemon.py    [http] of a daemon  ─┐
    standalone.py   `edge-runtime serve` ─┴─> server.py      address, thread
                                              connections.py  epoll, limits; request_reader.py, channel.py
                                              app.py          token, host, size, counting
                                              routes.py ──┬─> oip_v2.py        Open Inference Protocol v2
                                                          ├─> predict_api.py   readings by name
                                                          ├─> metrics.py       Prometheus text
                                                          ├─> page.html        the status page
                                                          └─> event_stream.py  its events
    over_mqtt.py      the requests of predict_api.py over MQTT 5, without a server
    scorer.py         the models, one call for all waiting requests
    live_view.py      the board: the only object that loop and server share; history.py is its last hour
    page_facts.py     the facts of the models for the page
    yield_to_loop.py  the answering threads yield to the event loop

No thread of this package touches an object of the event loop. The loop puts everything that is shown on the board.
"""
