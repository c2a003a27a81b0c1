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
    over_mqtt.py      the questions of predict_api.py by MQTT 5, without a server
    scorer.py         the models, one call for all that wait together
    live_view.py      what the daemon shows: the only object that both sides touch; history.py is its last hour
    page_facts.py     what the page has to know of the models
    yield_to_loop.py  the threads that answer give way to the event loop

No thread of this package touches an object of the event loop. What the loop shows, it puts on the board.
"""
